//! Back-off between connections: twice as long each time, with jitter, so that a site's daemons do not all come back at once.
//!
//! Invariant: a delay is between half of [`BACKOFF_MIN`] and [`BACKOFF_MAX`].

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::Duration;

pub(super) struct Backoff {
    next: Duration,
    random: StdRng,
}

impl Backoff {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            next: BACKOFF_MIN,
            random: StdRng::seed_from_u64(seed),
        }
    }

    pub(super) fn reset(&mut self) {
        self.next = BACKOFF_MIN;
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.next == BACKOFF_MIN
    }

    /// Between half and all of the delay that it has come to.
    pub(super) fn next(&mut self) -> Duration {
        let most = self.next;
        self.next = (most * 2).min(BACKOFF_MAX);
        let percent = u32::try_from(50 + self.random.next_u64() % 51).expect("at most 100");
        most * percent / 100
    }
}

/// Longest delay before the second connection.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest delay of all.
const BACKOFF_MAX: Duration = Duration::from_secs(2);
