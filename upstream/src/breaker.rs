//! Circuit breaker for the rate limits (429) of one upstream.
//!
//! A 429 counts for the host that answered it: the registry, its token server or a redirect's target. It counts for the
//! callers that share the limit: one credential, or all requests without one. And it counts for one kind of request, since a
//! registry counts manifests, blobs and lists apart. Such requests get that 429 until its time is over; then one request at a
//! time tries whether it is. `reach.rs` decides whether the upstream is there at all.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;
use url::Url;

use crate::PullError;
use crate::verdicts::Who;

/// The pause after a 429 without `Retry-After`.
pub(crate) const BUSY_PAUSE: Duration = Duration::from_secs(5);
/// The longest that an upstream may ask for.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(10 * 60);
/// The most open breakers of one upstream: 10,000 nodes with several credentials each.
const BREAKERS_MAX: NonZeroUsize = NonZeroUsize::new(64 * 1024).expect("it is not zero");

/// Kinds of request, which a registry counts apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RequestKind {
    Manifest,
    Blob,
    List,
    Token,
}

/// A host by its origin.
type Key = (String, Who, RequestKind);

/// The open breakers of one upstream. Times are passed in.
pub(crate) struct CircuitBreakers(Mutex<LruCache<Key, Open>>);

struct Open {
    error: PullError,
    until: Instant,
    /// Whether one request is trying whether the limit is over.
    trying: bool,
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self(Mutex::new(LruCache::sparse(BREAKERS_MAX)))
    }
}

/// Permission to send a request. Dropped without a call it leaves the breaker as it was.
pub(crate) struct Permit<'a> {
    breakers: &'a CircuitBreakers,
    key: Key,
    tries: bool,
}

impl CircuitBreakers {
    /// # Errors
    /// The 429 that opened the breaker.
    pub(crate) fn enter(&self, host: &Url, who: Who, kind: RequestKind, now: Instant) -> Result<Permit<'_>, PullError> {
        let key = (host.origin().ascii_serialization(), who, kind);
        let tries = match self.0.lock().get_mut(&key) {
            None => false,
            Some(open) if now < open.until || open.trying => return Err(open.error.clone()),
            Some(open) => {
                open.trying = true;
                true
            }
        };
        Ok(Permit {
            breakers: self,
            key,
            tries,
        })
    }
}

impl Permit<'_> {
    /// Upstream has answered within its limit.
    pub(crate) fn close(mut self) {
        if std::mem::take(&mut self.tries) {
            self.breakers.0.lock().pop(&self.key);
        }
    }

    /// Blocks requests of this kind with this right for `pause`.
    pub(crate) fn open(mut self, error: PullError, pause: Duration, now: Instant) {
        self.tries = false;
        let open = Open {
            error,
            until: now + pause.min(PAUSE_MAX),
            trying: false,
        };
        self.breakers.0.lock().put(self.key.clone(), open);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.tries
            && let Some(open) = self.breakers.0.lock().peek_mut(&self.key)
        {
            open.trying = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy() -> PullError {
        PullError::TooManyRequests {
            upstream: "a.io".to_owned(),
            retry_after: None,
        }
    }

    fn host(name: &str) -> Url {
        format!("https://{name}/v2/").parse().unwrap()
    }

    #[test]
    fn after_the_pause_one_request_at_a_time_finds_out() {
        let (breakers, now) = (CircuitBreakers::default(), Instant::now());
        let enter = |now| breakers.enter(&host("a.io"), Who::Public, RequestKind::Manifest, now);
        enter(now).unwrap().open(busy(), BUSY_PAUSE, now);
        assert!(enter(now).is_err());
        let later = now + BUSY_PAUSE;
        let tries = enter(later).unwrap();
        assert!(enter(later).is_err(), "one is enough");
        drop(tries);
        enter(later).unwrap().close();
        let (_one, _other) = (enter(later).unwrap(), enter(later).unwrap());
    }

    #[test]
    fn a_limit_is_that_of_one_host_of_one_right_and_of_one_kind_of_request() {
        let (breakers, now) = (CircuitBreakers::default(), Instant::now());
        let enter = |who, kind| breakers.enter(&host("a.io"), who, kind, now);
        enter(Who::Public, RequestKind::List)
            .unwrap()
            .open(busy(), BUSY_PAUSE, now);
        assert!(enter(Who::Public, RequestKind::List).is_err());
        assert!(enter(Who::Public, RequestKind::Manifest).is_ok());
        assert!(enter(Who::Public, RequestKind::Blob).is_ok());
        assert!(enter(Who::Holder([1; 32]), RequestKind::List).is_ok());
        let elsewhere = breakers.enter(&host("cdn.io"), Who::Public, RequestKind::List, now);
        assert!(elsewhere.is_ok(), "another host has limits of its own");
    }

    #[test]
    fn no_upstream_can_send_us_away_for_ever() {
        let (breakers, now) = (CircuitBreakers::default(), Instant::now());
        let enter = |now| breakers.enter(&host("a.io"), Who::Public, RequestKind::Blob, now);
        enter(now).unwrap().open(busy(), Duration::from_secs(1 << 40), now);
        assert!(enter(now + PAUSE_MAX).is_ok());
    }

    #[test]
    fn a_full_table_forgets_the_oldest_alone() {
        let (breakers, now) = (CircuitBreakers::default(), Instant::now());
        let holder = |number: usize| {
            let mut fingerprint = [0; 32];
            fingerprint[..8].copy_from_slice(&number.to_le_bytes());
            Who::Holder(fingerprint)
        };
        for number in 0..=BREAKERS_MAX.get() {
            breakers
                .enter(&host("a.io"), holder(number), RequestKind::Blob, now)
                .unwrap()
                .open(busy(), BUSY_PAUSE, now);
        }
        assert!(breakers.enter(&host("a.io"), holder(0), RequestKind::Blob, now).is_ok());
        assert!(
            breakers
                .enter(&host("a.io"), holder(1), RequestKind::Blob, now)
                .is_err()
        );
    }
}
