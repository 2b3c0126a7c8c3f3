//! Progress of one blob: when it is news, and when the blob stands still. Pure: the time is an argument, counted from any start.

use std::time::Duration;

/// How long a blob may go without another whole piece: four at once, of 4 MiB, over half a megabit. A transfer that really
/// stands still ends by itself before.
pub(super) const STALL_MAX: Duration = Duration::from_secs(300);
const TELL_EVERY: Duration = Duration::from_millis(250);

/// Bytes of a blob that were reported last.
pub(super) struct BlobProgress {
    told_bytes: u64,
    told_at: Option<Duration>,
    moved_at: Duration,
}

impl BlobProgress {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            told_bytes: 0,
            told_at: None,
            moved_at: now,
        }
    }

    /// Says whether to report that `here_bytes` are here.
    pub(super) fn handle_bytes(&mut self, here_bytes: u64, now: Duration) -> bool {
        let is_due = self.told_at.is_none_or(|told| now.saturating_sub(told) >= TELL_EVERY);
        let is_news = is_due && here_bytes != self.told_bytes;
        if is_news {
            (self.told_bytes, self.told_at, self.moved_at) = (here_bytes, Some(now), now);
        }
        is_news
    }

    pub(super) fn is_stalled(&self, now: Duration) -> bool {
        now.saturating_sub(self.moved_at) > STALL_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_reported_four_times_a_second_at_most() {
        let begun = TELL_EVERY;
        let mut progress = BlobProgress::new(begun);
        assert!(!progress.handle_bytes(0, begun), "nothing has come");
        assert!(progress.handle_bytes(1, begun));
        assert!(!progress.handle_bytes(2, begun + TELL_EVERY / 2));
        assert!(progress.handle_bytes(2, begun + TELL_EVERY));
        assert!(!progress.handle_bytes(2, begun + TELL_EVERY * 9));
    }

    #[test]
    fn a_blob_without_a_new_piece_for_five_minutes_stands_still() {
        let begun = TELL_EVERY;
        let mut progress = BlobProgress::new(begun);
        assert!(!progress.is_stalled(begun + STALL_MAX));
        progress.handle_bytes(1, begun + STALL_MAX);
        assert!(!progress.is_stalled(begun + STALL_MAX * 2));
        assert!(progress.is_stalled(begun + STALL_MAX * 2 + TELL_EVERY));
    }
}
