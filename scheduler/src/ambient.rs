//!
//! Ambient inputs of the scheduler, in one place: the wall clock and randomness.
//!
//! Invariant: no other file reads either.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ring::rand::SystemRandom;

/// The clock that grants and tickets are judged by, in seconds since 1970; 0 when it stands before that.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Bytes that no caller can foresee.
pub(crate) fn random<const N: usize>() -> [u8; N]
where
    [u8; N]: ring::rand::RandomlyConstructable,
{
    ring::rand::generate(&SystemRandom::new())
        .expect("the operating system has random numbers")
        .expose()
}

/// Notices when this host's clock was set: daemons go by the time that it had when they connected.
pub(crate) struct ClockWatch {
    at: Instant,
    date: u64,
}

impl ClockWatch {
    /// `date` is the clock's time at `at`, in seconds since 1970.
    pub(crate) fn new(at: Instant, date: u64) -> Self {
        Self { at, date }
    }

    /// Whether the clock was set since `true` was last returned.
    pub(crate) fn was_set(&mut self, at: Instant, date: u64) -> bool {
        let due = self
            .date
            .saturating_add(at.saturating_duration_since(self.at).as_secs());
        let was_set = date.abs_diff(due) > STEP_SECONDS_MAX;
        if was_set {
            *self = Self { at, date };
        }
        was_set
    }
}

/// Seconds that a slewed clock may go off before it counts as set: far below the time that is left of each ticket.
const STEP_SECONDS_MAX: u64 = 60;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_that_goes_is_told_from_one_that_was_set() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let mut watch = ClockWatch::new(begun, 1000);
        assert!(!watch.was_set(after(5000), 6000));
        assert!(!watch.was_set(after(5000), 6060), "it is slewed");
        assert!(watch.was_set(after(5000), 1_800_000_000), "a board that booted in 1970");
        assert!(!watch.was_set(after(5010), 1_800_000_010));
        assert!(watch.was_set(after(5010), 1_799_999_000), "back");
        assert!(!watch.was_set(after(5020), 1_799_999_010));
    }
}
