//! Waits of a fill's readers: which piece each of them needs, and since when.
//!
//! A reader is here only while it has no byte.

use std::{collections::BTreeMap, time::Duration};

use piecemeal_proto::PieceSet;

/// The readers of one fill that have no byte.
#[derive(Default)]
pub(super) struct Waits {
    waits: BTreeMap<u64, Wait>,
    /// The number of waits that have begun: the id of the latest.
    begun: u64,
}

/// A reader without a byte.
#[derive(Clone, Copy)]
struct Wait {
    piece: u32,
    since: Duration,
}

impl Waits {
    /// Returns the id of the wait.
    pub(super) fn begin(&mut self, piece: u32, since: Duration) -> u64 {
        self.begun += 1;
        self.waits.insert(self.begun, Wait { piece, since });
        self.begun
    }

    pub(super) fn end(&mut self, id: u64) {
        self.waits.remove(&id);
    }

    /// The lowest piece that a reader waits for and that has not landed.
    pub(super) fn wanted(&self, landed: &PieceSet) -> Option<u32> {
        let pieces = self.waits.values().map(|wait| wait.piece);
        pieces.filter(|piece| !landed.contains(*piece)).min()
    }

    /// The piece that was waited for longest, and how long.
    pub(super) fn longest(&self, now: Duration) -> Option<(u32, Duration)> {
        let wait = self.waits.values().min_by_key(|wait| wait.since)?;
        Some((wait.piece, now.saturating_sub(wait.since)))
    }
}
