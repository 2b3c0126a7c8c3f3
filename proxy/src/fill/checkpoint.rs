//! Checkpoint of a piece that is being received: how much of it the store has, and when more is due. Pure.

use std::time::Duration;

/// How much of a piece a cut or a crash may cost, in bytes.
const CHECKPOINT_BYTES: usize = 64 * 1024;
/// The same in time, for an upstream faster than 100 Mbit/s: a write for each 64 KiB would slow it down.
const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(5);

/// What the store has of a piece that is not whole yet.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// In bytes.
    pub(super) kept: usize,
    kept_at: Duration,
}

impl Checkpoint {
    /// `kept`: what an earlier try has left.
    pub(super) fn new(now: Duration, kept: usize) -> Self {
        Self { kept, kept_at: now }
    }

    /// The next piece begins.
    pub(super) fn begin(&mut self) {
        self.kept = 0;
    }

    /// Whether the store is to have more, of a piece of which so many bytes have come.
    pub(super) fn is_due(&self, now: Duration, received: usize) -> bool {
        received >= self.kept + CHECKPOINT_BYTES && now.saturating_sub(self.kept_at) >= CHECKPOINT_INTERVAL
    }

    /// The store has so many bytes of the piece.
    pub(super) fn keep(&mut self, now: Duration, received: usize) {
        (self.kept, self.kept_at) = (received, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_due_by_bytes_and_not_too_often() {
        let (start, soon) = (Duration::from_secs(1), Duration::from_secs(1) + CHECKPOINT_INTERVAL);
        let mut checkpoint = Checkpoint::new(start, 1000);
        assert!(!checkpoint.is_due(start, 1000 + CHECKPOINT_BYTES), "too soon");
        assert!(!checkpoint.is_due(soon, 999 + CHECKPOINT_BYTES), "too little");
        assert!(checkpoint.is_due(soon, 1000 + CHECKPOINT_BYTES));
        checkpoint.keep(soon, 1000 + CHECKPOINT_BYTES);
        assert!(!checkpoint.is_due(soon + CHECKPOINT_INTERVAL, 1000 + CHECKPOINT_BYTES));
        checkpoint.begin();
        assert!(checkpoint.is_due(soon + CHECKPOINT_INTERVAL, CHECKPOINT_BYTES));
    }
}
