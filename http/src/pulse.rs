//! Pulse of one connection: counters that its stream updates without the lock of the port's table.
//!
//! Invariant: a receiver is stuck only if bytes were ready for it nearly all the time. One that waits for bytes that this
//! daemon does not have yet is not.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

pub(crate) struct Pulse {
    /// Whether the table waits for a first byte.
    pub(crate) listening: AtomicBool,
    /// Whether there is a request or a session.
    pub(crate) busy: AtomicBool,
    /// Answers that are complete and not flushed yet. More than one where a client pipelines requests and reads nothing.
    pub(crate) ending: AtomicUsize,
    /// Bytes that the socket has taken.
    pub(crate) moved: AtomicU64,
    /// Time that the socket has taken nothing although bytes were ready, in milliseconds.
    pub(crate) blocked: AtomicU64,
    /// When the socket stopped to take bytes, in milliseconds from the gate's start; [`NOT_BLOCKED`].
    pub(crate) blocked_since: AtomicU64,
}

/// Progress of a connection's answers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meter {
    moved: u64,
    blocked: Duration,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self {
            listening: AtomicBool::new(true),
            busy: AtomicBool::new(false),
            ending: AtomicUsize::new(0),
            moved: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            blocked_since: AtomicU64::new(NOT_BLOCKED),
        }
    }

    /// The socket took `bytes` at `now`.
    pub(crate) fn wrote(&self, bytes: usize, now: impl FnOnce() -> Duration) {
        self.moved.fetch_add(bytes as u64, Relaxed);
        let since = self.blocked_since.swap(NOT_BLOCKED, Relaxed);
        if since != NOT_BLOCKED {
            let blocked = millis(now()).saturating_sub(since);
            self.blocked.fetch_add(blocked, Relaxed);
        }
    }

    /// The socket takes nothing at `now`.
    pub(crate) fn note_blocked(&self, now: impl FnOnce() -> Duration) {
        if self.blocked_since.load(Relaxed) == NOT_BLOCKED {
            self.blocked_since.store(millis(now()), Relaxed);
        }
    }

    pub(crate) fn meter(&self, now: Duration) -> Meter {
        let since = self.blocked_since.load(Relaxed);
        let blocked_now = if since == NOT_BLOCKED {
            0
        } else {
            millis(now).saturating_sub(since)
        };
        Meter {
            moved: self.moved.load(Relaxed),
            blocked: Duration::from_millis(self.blocked.load(Relaxed) + blocked_now),
        }
    }
}

/// Whether a receiver took nearly nothing in `window` although bytes were ready for it nearly all the time.
pub(crate) fn is_stuck(before: Meter, after: Meter, window: Duration) -> bool {
    let blocked = after.blocked.saturating_sub(before.blocked);
    blocked >= window * 3 / 4 && after.moved - before.moved < MOVED_BYTES_MIN
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(NOT_BLOCKED - 1)
}

/// The value of [`Pulse::blocked_since`] while the socket takes bytes.
const NOT_BLOCKED: u64 = u64::MAX;
/// Bytes that a receiver has to take in `take_max` in order to be served on: less than a modem's worth.
const MOVED_BYTES_MIN: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_receiver_that_could_take_bytes_and_does_not_is_stuck() {
        let window = Duration::from_secs(30);
        let stuck = |moved, blocked| {
            let blocked = Duration::from_secs(blocked);
            is_stuck(Meter::default(), Meter { moved, blocked }, window)
        };
        assert!(stuck(0, 30), "takes nothing");
        assert!(stuck(640, 30), "a few bytes now and then");
        assert!(!stuck(MOVED_BYTES_MIN, 30), "slow, and going on");
        assert!(!stuck(0, 20), "there was nothing for it most of the time");
        assert!(!stuck(0, 0), "waits for what comes over the WAN");
    }
}
