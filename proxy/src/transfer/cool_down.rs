//! Cool-down of blobs whose transfer has failed. Pure: the time is an argument.
//!
//! Each failure in a row doubles the time, up to a minute; a success ends it.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;
use piecemeal_proto::Digest;
use piecemeal_upstream::PullError;

use crate::callers::{Right, RightKey};

/// After a failure a digest is answered with that failure for this long, so that a client's resume goes to its next host
/// instead of starting the same download over. Doubles with each failure in a row.
const COOL_DOWN: Duration = Duration::from_secs(1);
const COOL_DOWN_MAX: Duration = Duration::from_secs(60);
/// The most failures remembered, the oldest forgotten first.
const FAILURES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not zero");

/// The failures of a daemon's transfers.
pub(super) struct CoolDowns(LruCache<FailureKey, Failure>);

/// The callers for which a failure counts.
#[derive(PartialEq, Eq, Hash)]
enum FailureKey {
    /// All callers of this upstream: it began to send the blob, and what came was wrong or broke off.
    Blob(String, Digest),
    /// Callers with this right: no byte has come for it.
    Right(RightKey, Digest),
}

struct Failure {
    error: PullError,
    until: Instant,
    in_a_row: u32,
}

impl Default for CoolDowns {
    fn default() -> Self {
        Self(LruCache::new(FAILURES_MAX))
    }
}

impl CoolDowns {
    /// # Errors
    /// The last failure, while the digest cools down after it for this right.
    pub(super) fn require_none(&mut self, digest: &Digest, right: &Right, now: Instant) -> Result<(), PullError> {
        for key in keys(digest, right) {
            let failure = self.0.get(&key);
            if let Some(failure) = failure.filter(|failure| now < failure.until) {
                return Err(failure.error.clone());
            }
        }
        Ok(())
    }

    /// The transfer with this right has succeeded.
    pub(super) fn end(&mut self, digest: &Digest, right: &Right) {
        for key in keys(digest, right) {
            self.0.pop(&key);
        }
    }

    /// The transfer has failed. `asked`: the right that it used last. `opener`: the right with which its source answered first.
    pub(super) fn begin(
        &mut self,
        digest: &Digest,
        asked: &Right,
        opener: Option<&Right>,
        error: &PullError,
        now: Instant,
    ) {
        // A verdict concerns one caller, and the upstream client remembers it.
        if error.is_verdict() {
            return;
        }
        let key = match opener.filter(|_| !error.is_refusal()) {
            Some(opener) => FailureKey::Blob(opener.at.upstream.clone(), *digest),
            None => FailureKey::Right(asked.key(), *digest),
        };
        let in_a_row = self.0.get(&key).map_or(0, |failure| failure.in_a_row + 1);
        let cool_down = COOL_DOWN.saturating_mul(1 << in_a_row.min(10)).min(COOL_DOWN_MAX);
        let failure = Failure {
            error: error.clone(),
            until: now + cool_down,
            in_a_row,
        };
        self.0.put(key, failure);
    }
}

fn keys(digest: &Digest, right: &Right) -> [FailureKey; 2] {
    [
        FailureKey::Blob(right.at.upstream.clone(), *digest),
        FailureKey::Right(right.key(), *digest),
    ]
}

#[cfg(test)]
mod tests {
    use piecemeal_store::Repository;
    use piecemeal_upstream::Caller;

    use super::*;

    fn right(upstream: &str, name: &str) -> Right {
        let at = Repository {
            upstream: upstream.to_owned(),
            name: name.to_owned(),
        };
        Right::new(&Caller::default(), &at)
    }

    fn broken() -> PullError {
        PullError::Unavailable("it broke off".to_owned())
    }

    #[test]
    fn a_blob_that_broke_off_cools_down_for_all_callers_of_its_upstream_and_longer_each_time() {
        let (mut failures, digest, begun) = (CoolDowns::default(), Digest::of(b"blob"), Instant::now());
        let (asked, other) = (right("a.test", "app"), right("a.test", "other"));
        let mut now = begun;
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            failures.begin(&digest, &asked, Some(&asked), &broken(), now);
            let end = now + Duration::from_secs(seconds);
            assert!(
                failures
                    .require_none(&digest, &other, end - Duration::from_millis(1))
                    .is_err()
            );
            assert!(failures.require_none(&digest, &right("b.test", "app"), now).is_ok());
            assert!(failures.require_none(&digest, &other, end).is_ok());
            now = end;
        }
        failures.end(&digest, &asked);
        failures.begin(&digest, &asked, Some(&asked), &broken(), now);
        assert!(
            failures.require_none(&digest, &other, now + COOL_DOWN).is_ok(),
            "a success begins at one second again"
        );
    }

    #[test]
    fn a_blob_that_never_began_cools_down_for_the_right_that_asked() {
        let (mut failures, digest, now) = (CoolDowns::default(), Digest::of(b"blob"), Instant::now());
        let asked = right("a.test", "app");
        failures.begin(&digest, &asked, None, &broken(), now);
        assert!(failures.require_none(&digest, &asked, now).is_err());
        assert!(failures.require_none(&digest, &right("a.test", "other"), now).is_ok());
    }
}
