//! Patience of a fill: how long upstream may fail, and when the next request follows a failure. Pure.
//!
//! A body that brings something new renews it.

use std::time::Duration;

/// The pause after a failure; it doubles with each, until something new comes.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(200);
pub(super) const RETRY_DELAY_MAX: Duration = Duration::from_secs(3);
/// How long upstream may send nothing new before a fill is given up.
pub(super) const FILL_PATIENCE: Duration = Duration::from_secs(30);
/// How long a blob waits for a place among those that are filled in memory.
pub(super) const PLACE_PATIENCE: Duration = Duration::from_secs(10);
/// So many bodies in a row that bring nothing new are enough: an upstream without ranges that always breaks off would send
/// its beginning again and again.
pub(super) const BARREN_MAX: u32 = 5;

/// How long upstream may fail.
#[derive(Debug)]
pub(super) struct Patience {
    max: Duration,
    last_progress: Duration,
    /// Bodies since then.
    barren: u32,
    delay: Duration,
    resting_until: Duration,
}

impl Patience {
    /// `max`: how long upstream may send nothing new.
    pub(super) fn new(now: Duration, max: Duration) -> Self {
        Self {
            max,
            last_progress: now,
            barren: 0,
            delay: RETRY_DELAY,
            resting_until: now,
        }
    }

    /// Nothing is asked of upstream now: this time does not count.
    pub(super) fn stand_still(&mut self, now: Duration) {
        self.last_progress = now;
    }

    /// A body has ended. `progressed`: something came that was not here before.
    pub(super) fn body_ended(&mut self, now: Duration, progressed: bool) {
        if progressed {
            (self.last_progress, self.barren, self.delay) = (now, 0, RETRY_DELAY);
        } else {
            self.barren += 1;
        }
    }

    /// A piece has landed: upstream sends.
    pub(super) fn landed(&mut self, now: Duration) {
        self.last_progress = now;
    }

    /// A request or a body has failed: the next request is due after a pause. Returns whether that is too late.
    pub(super) fn ends_with_failure(&mut self, now: Duration) -> bool {
        if self.barren >= BARREN_MAX || now.saturating_sub(self.last_progress) + self.delay > self.max {
            return true;
        }
        self.resting_until = now + self.delay;
        self.delay = (self.delay * 2).min(RETRY_DELAY_MAX);
        false
    }

    /// Whether the pause after the last failure is over.
    pub(super) fn is_rested(&self, now: Duration) -> bool {
        now >= self.resting_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(30);

    #[test]
    fn pauses_double_up_to_three_seconds_until_the_time_is_over() {
        let mut patience = Patience::new(Duration::ZERO, MAX);
        let (mut now, mut pauses) = (Duration::ZERO, Vec::new());
        while !patience.ends_with_failure(now) {
            pauses.push((patience.resting_until - now).as_millis());
            assert!(!patience.is_rested(now) && patience.is_rested(patience.resting_until));
            now = patience.resting_until;
        }
        assert_eq!(pauses[..6], [200, 400, 800, 1600, 3000, 3000]);
        assert!(now <= MAX && now + RETRY_DELAY_MAX > MAX, "{now:?}");
    }

    #[test]
    fn something_new_renews_it() {
        let mut patience = Patience::new(Duration::ZERO, MAX);
        for _ in 0..3 {
            patience.body_ended(MAX, false);
        }
        assert!(patience.ends_with_failure(MAX));
        patience.body_ended(MAX, true);
        assert!(!patience.ends_with_failure(MAX));
        assert!(patience.is_rested(MAX + RETRY_DELAY));
    }

    #[test]
    fn a_few_bodies_in_a_row_without_anything_new_are_enough() {
        let mut patience = Patience::new(Duration::ZERO, MAX);
        for body in 1..=BARREN_MAX {
            patience.body_ended(Duration::ZERO, false);
            assert_eq!(patience.ends_with_failure(Duration::ZERO), body == BARREN_MAX);
        }
    }

    #[test]
    fn while_pieces_land_failures_of_other_requests_only_delay_the_next() {
        let mut patience = Patience::new(Duration::ZERO, MAX);
        for second in 1..100 {
            let now = Duration::from_secs(second);
            patience.landed(now);
            assert!(!patience.ends_with_failure(now));
        }
        assert!(patience.ends_with_failure(Duration::from_secs(99) + MAX));
    }

    #[test]
    fn no_patience_ends_with_the_first_failure() {
        assert!(Patience::new(MAX, Duration::ZERO).ends_with_failure(MAX));
    }
}
