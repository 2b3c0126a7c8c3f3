//! Authority clock: the time by which grants and tickets expire.
//!
//! Invariant: no step of the local clock changes what is valid. Edge boards boot in 1970 and are set right, or wrong, while
//! they run; once the scheduler's time is known, only the time that has passed since is added to it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// The authority's clock, as far as this daemon knows it. Clones share what they learn.
#[derive(Clone, Debug)]
pub struct AuthorityClock {
    started: Instant,
    /// The authority's time at `started`, in seconds since 1970; [`UNKNOWN`] before it was learnt.
    origin: Arc<AtomicI64>,
}

impl Default for AuthorityClock {
    fn default() -> Self {
        Self::new()
    }
}

impl AuthorityClock {
    /// A clock that follows this host's until the authority's is learnt.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            origin: Arc::new(AtomicI64::new(UNKNOWN)),
        }
    }

    /// Seconds since 1970.
    pub fn now(&self) -> u64 {
        match self.origin.load(Ordering::Relaxed) {
            UNKNOWN => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            origin => u64::try_from(origin.saturating_add(self.elapsed())).unwrap_or_default(),
        }
    }

    /// The authority says that it is now `unix_seconds`.
    pub fn learn(&self, unix_seconds: u64) {
        let now = i64::try_from(unix_seconds).unwrap_or(i64::MAX);
        self.origin.store(now - self.elapsed(), Ordering::Relaxed);
    }

    /// The authority's time as another daemon states it. It counts until the authority's own is learnt.
    pub fn assume(&self, unix_seconds: u64) {
        let now = i64::try_from(unix_seconds).unwrap_or(i64::MAX);
        let origin = now - self.elapsed();
        // Leaves a time that is already learnt.
        let _ = self
            .origin
            .compare_exchange(UNKNOWN, origin, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn elapsed(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_secs()).unwrap_or(i64::MAX)
    }
}

const UNKNOWN: i64 = i64::MIN;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_is_believed_over_the_local_clock() {
        let clock = AuthorityClock::new();
        assert!(
            clock.now() > 1_000_000_000,
            "before that, the local clock is all there is"
        );
        let clone = clock.clone();
        clock.assume(9000);
        assert!((9000..9010).contains(&clone.now()));
        clock.learn(5000);
        clock.assume(9000);
        assert!((5000..5010).contains(&clone.now()));
        clone.learn(0);
        assert!(clock.now() < 10);
        clone.learn(u64::MAX);
        assert!(clock.now() > 1_000_000_000);
    }
}
