//!
//! Back-off after failures: a member that failed is not used for a while, and the time doubles with each failure.
//!
//! Invariant: no wait is longer than `backoff_max`.

use super::{MemberId, Policy, Time};

/// A back-off: active until a time that moves further with every strike in a row.
#[derive(Clone, Copy, Default)]
pub(super) struct Backoff {
    until: Time,
    strikes: u32,
}

impl Backoff {
    pub(super) fn is_active(&self, now: Time) -> bool {
        now < self.until
    }

    pub(super) fn strike(&mut self, now: Time, policy: &Policy) {
        if now > self.until + policy.backoff_max {
            self.strikes = 0;
        }
        let wait = policy.backoff_first * (1 << self.strikes.min(16));
        self.until = now + wait.min(policy.backoff_max);
        self.strikes += 1;
    }
}

/// The receivers that do not use one source for a while.
#[derive(Default)]
pub(super) struct SourceBackoff {
    all: Backoff,
    /// Receivers that complained, at most [`RECEIVERS_MAX`], the latest last.
    receivers: Vec<(MemberId, Backoff)>,
    /// Distinct receivers that complained since the source last served a receiver.
    accusers: Vec<MemberId>,
}

impl SourceBackoff {
    pub(super) fn is_active_for_all(&self, now: Time) -> bool {
        self.all.is_active(now)
    }

    pub(super) fn is_active_for(&self, receiver: MemberId, now: Time) -> bool {
        self.receivers
            .iter()
            .any(|(of, backoff)| *of == receiver && backoff.is_active(now))
    }

    /// `receiver` alone does not use the source for a while.
    pub(super) fn strike(&mut self, receiver: MemberId, now: Time, policy: &Policy) {
        let known = self.receivers.iter().position(|(of, _)| *of == receiver);
        let (_, mut backoff) = match known {
            Some(index) => self.receivers.remove(index),
            None => (receiver, Backoff::default()),
        };
        backoff.strike(now, policy);
        if self.receivers.len() == RECEIVERS_MAX {
            self.receivers.remove(0);
        }
        self.receivers.push((receiver, backoff));
    }

    /// `receiver` says that the source does not serve. After enough distinct receivers in a row, no receiver uses the source
    /// for a while.
    pub(super) fn accuse(&mut self, receiver: MemberId, now: Time, policy: &Policy) {
        self.strike(receiver, now, policy);
        if !self.accusers.contains(&receiver) {
            self.accusers.push(receiver);
        }
        if self.accusers.len() >= policy.accusers {
            self.accusers.clear();
            self.all.strike(now, policy);
        }
    }

    /// The source has served a receiver: three broken receivers must not take it from the others.
    pub(super) fn serve(&mut self, receiver: MemberId) {
        self.accusers.clear();
        self.receivers.retain(|(of, _)| *of != receiver);
    }
}

/// Receivers in one source's back-off. Beyond it the oldest is forgotten, and may use the source early.
const RECEIVERS_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_maximum_and_is_forgotten() {
        let policy = Policy::default();
        let mut backoff = Backoff::default();
        let mut now = Time::from_secs(100);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            backoff.strike(now, &policy);
            now += Time::from_secs(seconds);
            assert!(
                backoff.is_active(now - Time::from_nanos(1)) && !backoff.is_active(now),
                "{seconds}"
            );
        }
        now += Time::from_secs(31);
        backoff.strike(now, &policy);
        assert!(!backoff.is_active(now + Time::from_secs(1)));
    }

    #[test]
    fn three_distinct_receivers_in_a_row_set_a_source_aside_for_all_receivers() {
        let policy = Policy::default();
        let mut source_backoff = SourceBackoff::default();
        let now = Time::from_secs(1);
        for _ in 0..5 {
            source_backoff.accuse(MemberId(1), now, &policy);
        }
        source_backoff.accuse(MemberId(2), now, &policy);
        assert!(source_backoff.is_active_for(MemberId(1), now) && !source_backoff.is_active_for(MemberId(3), now));
        assert!(!source_backoff.is_active_for_all(now));
        source_backoff.serve(MemberId(4));
        source_backoff.accuse(MemberId(3), now, &policy);
        assert!(
            !source_backoff.is_active_for_all(now),
            "it served a receiver in between"
        );
        source_backoff.accuse(MemberId(1), now, &policy);
        source_backoff.accuse(MemberId(2), now, &policy);
        assert!(source_backoff.is_active_for_all(now));
    }
}
