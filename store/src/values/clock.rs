//! Time as the store counts it.
//!
//! Last uses are kept in the store's own *age*, not as dates. While the process runs, the age advances with the monotonic
//! clock. Across a restart it advances by what the wall clock says, clamped to `0..=1 h`: a board without a battery boots
//! in 1970 and learns the date a minute later, and a cache that took that jump for fifty idle years would throw everything
//! away just when the uplink may be down. The price is that a long power cut ages nothing by more than an hour.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// The most that one restart may age the store.
pub(crate) const RESTART_AGE_MAX: Duration = Duration::from_secs(60 * 60);

/// Clock that the store reads time from.
pub trait Clock: Send + Sync {
    /// Time since an arbitrary fixed moment; never runs backwards.
    fn monotonic(&self) -> Duration;
    /// The date, which may be wrong and may jump.
    fn wall(&self) -> SystemTime;
}

/// The clocks of the operating system.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A moment in the store's own age, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Age(pub(crate) u64);

impl Age {
    /// The time from `earlier` to this moment; zero when `earlier` is still to come.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The moment `span` ago; `None` when the store is younger than that.
    pub(crate) fn before(self, span: Duration) -> Option<Self> {
        self.0.checked_sub(millis(span)).map(Self)
    }

    pub(crate) fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(millis(span)))
    }
}

/// An age and the date when it was taken: what is written down, and what a restart continues from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) age: Age,
    pub(crate) wall_ms: u64,
}

impl Stamp {
    pub(crate) fn new(age: Age, wall: SystemTime) -> Self {
        // A date before 1970 counts as 1970: only differences matter, and those are clamped.
        let since_epoch = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            age,
            wall_ms: millis(since_epoch),
        }
    }

    /// The age at `wall` in a process that starts after `self` was written.
    pub(crate) fn resumed(self, wall: SystemTime) -> Age {
        let down_ms = Self::new(self.age, wall).wall_ms.saturating_sub(self.wall_ms);
        self.age.after(Duration::from_millis(down_ms).min(RESTART_AGE_MAX))
    }
}

/// Tells the store's age in one run of the process.
#[derive(Clone, Copy, Debug)]
struct AgeCounter {
    start: Age,
    start_monotonic: Duration,
}

impl AgeCounter {
    fn new(start: Age, monotonic: Duration) -> Self {
        Self {
            start,
            start_monotonic: monotonic,
        }
    }

    fn now(&self, monotonic: Duration) -> Age {
        self.start.after(monotonic.saturating_sub(self.start_monotonic))
    }
}

/// The store's age and the clocks that it advances by.
#[derive(Clone)]
pub(crate) struct AgeClock {
    clock: Arc<dyn Clock>,
    age: AgeCounter,
}

impl AgeClock {
    /// Goes on from `last`, the stamp of the last write; a new store has none.
    pub(crate) fn resume(clock: Arc<dyn Clock>, last: Option<Stamp>) -> Self {
        let start = last.map_or(Age(0), |stamp| stamp.resumed(clock.wall()));
        let age = AgeCounter::new(start, clock.monotonic());
        Self { clock, age }
    }

    pub(crate) fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    pub(crate) fn now(&self) -> Age {
        self.age.now(self.monotonic())
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp::new(self.now(), self.clock.wall())
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    #[test]
    fn a_restart_ages_the_store_by_the_wall_clock_within_an_hour() {
        let then = date(1_000_000);
        let cases = [
            (then, 0),
            (then + Duration::from_secs(90), 90),
            (then + Duration::from_secs(3600), 3600),
            (then + Duration::from_secs(50 * 365 * 86400), 3600),
            (date(5), 0),
            (SystemTime::UNIX_EPOCH - Duration::from_secs(5), 0),
        ];
        for (now, aged_secs) in cases {
            let stamp = Stamp::new(Age(7_000), then);
            assert_eq!(stamp.resumed(now), Age(7_000 + aged_secs * 1000), "{now:?}");
        }
    }

    #[test]
    fn the_age_follows_the_monotonic_clock() {
        let counter = AgeCounter::new(Age(5), Duration::from_secs(10));
        assert_eq!(counter.now(Duration::from_secs(12)), Age(2_005));
        assert_eq!(counter.now(Duration::ZERO), Age(5));
        assert_eq!(Age(2_005).since(Age(5)), Duration::from_secs(2));
        assert_eq!(Age(5).since(Age(2_005)), Duration::ZERO);
        assert_eq!(Age(5).before(Duration::from_secs(1)), None);
        assert_eq!(Age(5).before(Duration::from_millis(5)), Some(Age(0)));
    }
}
