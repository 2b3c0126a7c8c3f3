//! Setting that changes while it is used.
//!
//! Invariant: all clones have the same value at any time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// A duration whose clones all change at once. Users read it each time and keep no copy, so that work begun under the
/// old value goes on under the new one.
#[derive(Clone, Debug)]
pub struct LiveDuration(Arc<AtomicU64>);

impl LiveDuration {
    /// To the nanosecond, up to 584 years.
    pub fn new(duration: Duration) -> Self {
        Self(Arc::new(AtomicU64::new(nanos(duration))))
    }

    pub fn get(&self) -> Duration {
        // Nothing else is published by it, so that no order is needed.
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    pub fn set(&self, duration: Duration) {
        self.0.store(nanos(duration), Ordering::Relaxed);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clone_sees_the_change() {
        let cell = LiveDuration::new(Duration::from_secs(30));
        let clone = cell.clone();
        assert_eq!(clone.get(), Duration::from_secs(30));
        cell.set(Duration::ZERO);
        assert_eq!(clone.get(), Duration::ZERO);
        cell.set(Duration::MAX);
        assert!(clone.get() > Duration::from_hours(24 * 365 * 500));
    }
}
