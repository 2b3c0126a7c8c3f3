//! Rate limiter of a daemon's transfers, up and down summed.
//!
//! Invariant: bytes are paid for before they move, first come first served. In any second no more than the rate and one slice
//! pass: at most 1 % above a rate of 1 MB/s or more. Callers that are up to 5 ms late lose nothing of the rate.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep},
};

/// A token bucket on a clock that its caller keeps.
///
/// It may go into debt: a request may move at the time at which it, and all requests before it, are paid for.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate_bytes_per_second: u64,
    /// Time to earn the whole burst.
    burst: Duration,
    /// When everything that was taken is paid for.
    paid: Duration,
}

impl TokenBucket {
    /// A full bucket. A rate of 0 counts as 1.
    pub fn new(rate_bytes_per_second: u64, burst_bytes: u64) -> Self {
        let rate_bytes_per_second = rate_bytes_per_second.max(1);
        Self {
            rate_bytes_per_second,
            burst: duration(burst_bytes, rate_bytes_per_second),
            paid: Duration::ZERO,
        }
    }

    /// Takes `bytes`, and says how long to wait before using them. `now` counts from any fixed point and never goes back.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let earned_since = now.saturating_sub(self.burst);
        let cost = duration(bytes, self.rate_bytes_per_second);
        self.paid = self.paid.max(earned_since).saturating_add(cost);
        self.paid.saturating_sub(now)
    }
}

/// The time that `bytes` take, rounded up to the nanosecond.
fn duration(bytes: u64, rate_bytes_per_second: u64) -> Duration {
    let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(rate_bytes_per_second));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Most bytes that should move at once at a rate: 0.5 % of a second's, so that no second shows the grain.
pub fn slice_bytes(rate_bytes_per_second: Option<u64>) -> usize {
    let share = rate_bytes_per_second.map_or(u64::MAX, |rate| rate / SLICES_PER_SECOND);
    usize::try_from(share)
        .unwrap_or(SLICE_BYTES_MAX)
        .clamp(SLICE_BYTES_MIN, SLICE_BYTES_MAX)
}

/// The limit that all transfers of a daemon share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Limiter {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    rate: watch::Sender<Option<u64>>,
    started: Instant,
    /// The caller that holds the lock is served next: the lock is fair, and so is the queue.
    turn: Mutex<Turn>,
}

#[derive(Debug)]
struct Turn {
    rate: u64,
    bucket: TokenBucket,
}

impl Turn {
    fn new(rate: u64) -> Self {
        let slice = u64::try_from(slice_bytes(Some(rate))).expect("a slice is small");
        Self {
            rate,
            bucket: TokenBucket::new(rate, slice.max(rate / SLICES_PER_SECOND)),
        }
    }
}

impl Limiter {
    /// `rate` is in bytes a second; `None`: no limit.
    pub fn new(rate: Option<u64>) -> Self {
        let inner = Inner {
            rate: watch::Sender::new(rate),
            started: Instant::now(),
            turn: Mutex::new(Turn::new(rate.unwrap_or_default())),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Changes the rate at once, also for waiting callers.
    pub fn set_rate(&self, rate: Option<u64>) {
        self.inner
            .rate
            .send_if_modified(|current| std::mem::replace(current, rate) != rate);
    }

    /// The rate in bytes a second; `None`: no limit.
    pub fn rate(&self) -> Option<u64> {
        *self.inner.rate.borrow()
    }

    /// The limiter for transfers with `address`: bytes that stay on this host are free.
    pub fn for_address(&self, address: IpAddr) -> Self {
        if address.to_canonical().is_loopback() {
            Self::new(None)
        } else {
            self.clone()
        }
    }

    /// Most bytes to take, and then move, at once.
    pub fn slice_bytes(&self) -> usize {
        slice_bytes(self.rate())
    }

    /// Most bytes to take at once where they need not be touched: without a limit, all of them.
    pub(crate) fn chunk_bytes(&self) -> usize {
        self.rate().map_or(usize::MAX, |rate| slice_bytes(Some(rate)))
    }

    /// Waits until `bytes` may move. Dropped before it is done, it has taken one slice at most.
    pub async fn take(&self, bytes: usize) {
        let mut rate = self.inner.rate.subscribe();
        if rate.borrow().is_none() {
            return;
        }
        let mut left = bytes;
        while left > 0 {
            // A turn is one slice: no caller waits for the whole piece of another.
            let mut turn = self.inner.turn.lock().await;
            let Some(current) = *rate.borrow_and_update() else {
                return;
            };
            if turn.rate != current {
                *turn = Turn::new(current);
            }
            let slice = left.min(slice_bytes(Some(current)));
            let slice_bytes = u64::try_from(slice).expect("a slice is small");
            let wait = turn.bucket.take(self.inner.started.elapsed(), slice_bytes);
            if wait.is_zero() {
                left -= slice;
                continue;
            }
            tokio::select! {
                () = sleep(wait) => left -= slice,
                // The next round replaces the bucket, and with it what was taken.
                _ = rate.changed() => {}
            }
        }
    }
}

/// Slices a second: with the wake-ups' jitter, each second stays within 1 % of the rate.
const SLICES_PER_SECOND: u64 = 200;
/// Smallest slice: below it a system call costs more than the smoothness is worth. It matters to rates under 200 kB/s only.
const SLICE_BYTES_MIN: usize = 1024;
/// Bytes that a socket easily takes in one call.
const SLICE_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The most bytes used in any window of a second. `uses` are ascending in time.
    fn busiest_second(uses: &[(Duration, u64)]) -> u64 {
        let (mut first, mut sum, mut most) = (0, 0, 0);
        for &(at, bytes) in uses {
            sum += bytes;
            while uses[first].0 + SECOND <= at {
                sum -= uses[first].1;
                first += 1;
            }
            most = most.max(sum);
        }
        most
    }

    /// In parts of the time that a slice takes: seldom long, so that more is asked for than the rate allows.
    fn pause_percent() -> impl Strategy<Value = u64> {
        prop_oneof![50 => 0_u64..60, 1 => 0_u64..10_000]
    }

    fn bucket(rate: u64) -> TokenBucket {
        Turn::new(rate).bucket
    }

    proptest! {
        /// Requests of any size up to a slice, mostly faster than the rate, from callers that do not wait for each other.
        #[test]
        fn no_second_has_more_than_a_hundredth_too_much(
            rate in 1_000_000_u64..20_000_000,
            requests in vec((pause_percent(), 1_u64..=100), 1..1500),
        ) {
            let mut bucket = bucket(rate);
            let slice = u64::try_from(slice_bytes(Some(rate))).unwrap();
            let mut now = Duration::from_secs(7);
            let mut uses = Vec::new();
            for (pause_percent, share) in requests {
                now += duration(slice * pause_percent / 100, rate);
                let bytes = (slice * share / 100).max(1);
                uses.push((now + bucket.take(now, bytes), bytes));
            }
            prop_assert!(uses.is_sorted_by_key(|&(at, _)| at), "first come, first served");
            prop_assert!(busiest_second(&uses) <= rate + rate / 100);
        }

        /// One caller that waits each time, and comes back up to 4 ms late.
        #[test]
        fn the_full_rate_is_reached_although_wake_ups_are_late(
            rate in 1_000_000_u64..2_000_000_000,
            late_micros in vec(0_u64..4000, 1000),
        ) {
            let mut bucket = bucket(rate);
            let slice = u64::try_from(slice_bytes(Some(rate))).unwrap();
            let start = Duration::from_secs(7);
            let (mut now, mut used) = (start, 0);
            for late in late_micros {
                let wait = bucket.take(now, slice);
                now += wait;
                if !wait.is_zero() {
                    now += Duration::from_micros(late);
                }
                used += slice;
            }
            let expected = u128::from(rate) * (now - start).as_micros() / 1_000_000;
            prop_assert!(u128::from(used) * 100 >= expected * 99, "used {used} of {expected}");
        }

        #[test]
        fn no_caller_waits_longer_than_the_bytes_up_to_its_own_take(
            rate in 1_u64..1_000_000_000,
            sizes in vec(0_u64..10_000_000, 1..100),
        ) {
            let mut bucket = bucket(rate);
            let mut sum = 0;
            for bytes in sizes {
                sum += bytes;
                let wait = bucket.take(Duration::from_secs(7), bytes);
                prop_assert!(wait <= duration(sum, rate) + Duration::from_nanos(100));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_callers_share_one_rate_and_none_starves() {
        let limiter = Limiter::new(Some(1_000_000));
        let start = Instant::now();
        let callers: Vec<_> = (0..10)
            .map(|_| {
                let limiter = limiter.clone();
                tokio::spawn(async move {
                    limiter.take(500_000).await;
                    start.elapsed()
                })
            })
            .collect();
        for caller in callers {
            let done = caller.await.unwrap();
            assert!(
                done > Duration::from_millis(4900),
                "its turns come round as the others' do: {done:?}"
            );
            assert!(done < Duration::from_millis(5100), "{done:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_rate_holds_for_those_who_wait() {
        let limiter = Limiter::new(Some(1));
        let waiting = tokio::spawn({
            let limiter = limiter.clone();
            async move { limiter.take(1_000_000).await }
        });
        tokio::task::yield_now().await;
        let start = Instant::now();
        limiter.set_rate(Some(1_000_000));
        waiting.await.unwrap();
        assert!((900..1100).contains(&start.elapsed().as_millis()));

        let waiting = tokio::spawn({
            let limiter = limiter.clone();
            async move { limiter.take(1_000_000_000).await }
        });
        tokio::task::yield_now().await;
        let start = Instant::now();
        limiter.set_rate(None);
        waiting.await.unwrap();
        assert!(start.elapsed() < Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_gives_up_does_not_hold_up_the_next_one() {
        let limiter = Limiter::new(Some(1_000_000));
        let start = Instant::now();
        let gave_up = tokio::time::timeout(Duration::from_millis(100), limiter.take(100_000_000)).await;
        assert!(gave_up.is_err());
        limiter.take(100_000).await;
        assert!(start.elapsed() < Duration::from_millis(220), "{:?}", start.elapsed());
    }

    #[test]
    fn what_stays_on_the_host_is_free() {
        let limiter = Limiter::new(Some(1));
        for (address, rate) in [
            ("127.0.0.1", None),
            ("::1", None),
            ("::ffff:127.0.0.2", None),
            ("10.0.0.1", Some(1)),
        ] {
            assert_eq!(limiter.for_address(address.parse().unwrap()).rate(), rate, "{address}");
        }
    }
}
