//! Claims of a fill: which pieces have a writer.
//!
//! A piece has one writer at a time. A claim also says whether another writer waits for it.

use std::collections::{HashMap, hash_map::Entry};

/// The pieces that are being written, and for each whether another writer waits for it.
#[derive(Default)]
pub(super) struct Claims(HashMap<u32, bool>);

impl Claims {
    /// Claims the piece; `false` when another writer has it. The caller counts as waiting for it then.
    pub(super) fn take(&mut self, piece: u32) -> bool {
        match self.0.entry(piece) {
            Entry::Vacant(free) => {
                free.insert(false);
                true
            }
            Entry::Occupied(mut taken) => {
                taken.insert(true);
                false
            }
        }
    }

    /// Ends the claim, if there is one; says whether another writer waits for it.
    pub(super) fn end(&mut self, piece: u32) -> bool {
        self.0.remove(&piece).unwrap_or(false)
    }
}
