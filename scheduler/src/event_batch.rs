//! Batch of one daemon's events for placement, weighed by the memory that it takes.
//!
//! Invariant: [`EventBatch::bytes`] covers every event that was in the batch at the latest [`EventBatch::weigh`].

use crate::brain::Event;

#[derive(Default)]
pub(crate) struct EventBatch {
    pub(crate) events: Vec<Event>,
    /// Events at the front that are in `bytes` already.
    weighed: usize,
    bytes: usize,
}

impl EventBatch {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES
    }

    /// Counts the events that have come since it was last called.
    pub(crate) fn weigh(&mut self) {
        for event in &self.events[self.weighed..] {
            self.bytes += size_of::<Event>()
                + match event {
                    Event::Have { hashes, .. } => size_of_val(&hashes[..]),
                    Event::Want { have, .. } => size_of_val(have.words()),
                    Event::PieceHashes { list, .. } => size_of_val(list.hashes()),
                    _ => 0,
                };
        }
        self.weighed = self.events.len();
    }
}

/// A batch of this size is passed on: small enough that no daemon holds up the others.
const BATCH_BYTES: usize = 256 * 1024;
