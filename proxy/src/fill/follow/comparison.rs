//! Comparison of a transfer's leader with this upstream: when the leader is looked at, and when it is left. Pure.
//!
//! A leader that is slow because the WAN is, is not left.

use std::time::Duration;

/// How often it is looked how fast a leader is; twice as long after each comparison, up to [`LOOK_MAX`].
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOOK_MAX: Duration = Duration::from_secs(60);
/// A leader that is as fast, in bytes a second, is not compared.
const LEADER_RATE_GOOD: u64 = 1024 * 1024;
/// The size of a sample of another's bytes that an upstream must match, in bytes.
pub(in crate::fill) const SAMPLE_BYTES: usize = 1024;
/// What this upstream is asked for to compare how fast it is.
pub(super) const PROBE_BYTES: u64 = 64 * 1024;
/// A leader so many times slower than this upstream is left.
const LEADER_SLOWER_MAX: u64 = 4;

/// The looks at one leader.
#[derive(Debug)]
pub(super) struct Comparison {
    every: Duration,
    /// What had come from the leader at the last look, in bytes.
    arrived: u64,
    /// In bytes a second, between the last two looks.
    leader_rate: u64,
}

/// This upstream's answer to a request for some of the leader's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// It has the same, and sent it within this time.
    Same(Duration),
    Other,
    /// It does not answer either.
    Silent,
}

impl Comparison {
    /// `arrived`: what has come from the leader, in bytes.
    pub(super) fn new(arrived: u64) -> Self {
        Self {
            every: LOOK_EVERY,
            arrived,
            leader_rate: 0,
        }
    }

    /// How long until the next look.
    pub(super) fn pause(&self) -> Duration {
        self.every
    }

    /// A look, after the pause: returns whether this upstream is to be asked for the same. `is_full`: all has come.
    pub(super) fn look(&mut self, arrived: u64, is_full: bool) -> bool {
        let before = std::mem::replace(&mut self.arrived, arrived);
        self.leader_rate = rate(arrived.saturating_sub(before), self.every);
        self.leader_rate < LEADER_RATE_GOOD && !is_full
    }

    /// This upstream was asked: returns whether the leader is to be left.
    pub(super) fn leaves(&mut self, probe: Probe) -> bool {
        let leaves = match probe {
            Probe::Same(took) => rate(PROBE_BYTES, took) > self.leader_rate.saturating_mul(LEADER_SLOWER_MAX),
            Probe::Other => true,
            Probe::Silent => false,
        };
        self.every = (self.every * 2).min(LOOK_MAX);
        leaves
    }
}

/// In bytes a second.
fn rate(bytes: u64, took: Duration) -> u64 {
    let millis = took.as_millis().max(1);
    u64::try_from(u128::from(bytes) * 1000 / millis).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_fast_leader_and_one_that_has_all_are_not_compared() {
        let mut comparison = Comparison::new(1000);
        let fast = 1000 + 2 * LEADER_RATE_GOOD;
        assert!(!comparison.look(fast, false));
        assert!(!comparison.look(fast, true));
        assert!(comparison.look(fast + 2 * LEADER_RATE_GOOD - 2, false));
        assert_eq!(comparison.pause(), LOOK_EVERY, "it was not compared");
    }

    #[test]
    fn a_leader_is_left_when_this_upstream_is_several_times_faster_or_has_other_bytes() {
        for (probe, leaves) in [
            (Probe::Same(SECOND), true),
            (Probe::Same(4 * SECOND), false),
            (Probe::Silent, false),
            (Probe::Other, true),
        ] {
            let mut comparison = Comparison::new(0);
            // 4 KiB a second.
            assert!(comparison.look(8 * 1024, false));
            assert_eq!(comparison.leaves(probe), leaves, "{probe:?}");
        }
    }

    #[test]
    fn a_leader_that_stays_is_looked_at_less_and_less_often() {
        let mut comparison = Comparison::new(0);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pauses.push(comparison.pause().as_secs());
            assert!(comparison.look(0, false));
            assert!(!comparison.leaves(Probe::Silent));
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60]);
    }
}
