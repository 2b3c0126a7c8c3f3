//! Entry of the ledger: one blob, or the space of one that is not complete.
//!
//! An entry is evictable unless it is pinned or leaving.

use crate::values::clock::Age;

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// Complete and proven.
    Blob,
    /// Space reserved for a blob that is not complete.
    Partial,
}

/// Tells an entry from a later one of the same digest, so that an old handle never unpins its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generation(pub(super) u64);

/// A blob or a partial.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    /// The size of the whole blob.
    pub(crate) bytes: u64,
    /// The last use.
    pub(crate) used: Age,
    pub(crate) generation: Generation,
    /// The number of readers and writers that hold it.
    pub(super) pins: u32,
    /// Its file is being removed.
    pub(super) is_leaving: bool,
}

impl Entry {
    /// Whether it may go.
    pub(super) fn is_evictable(&self) -> bool {
        self.pins == 0 && !self.is_leaving
    }
}
