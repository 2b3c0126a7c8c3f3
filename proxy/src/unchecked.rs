//! Tags that cannot be checked although their upstream answers.
//!
//! Invariant: a tag is here from the first check that fails until one succeeds. Each is logged once in [`TELL_INTERVAL`], so that an old
//! image that is served for long is no secret.

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;
use piecemeal_store::Repository;
use piecemeal_upstream::PullError;
use serde_json::{Value, json};

/// The time after which a tag counts as unchecked for long, in times of its `tag_ttl`, and at the least.
const LONG_TTLS: u32 = 10;
const LONG_MIN: Duration = Duration::from_secs(60);
/// The shortest time between two warnings of one tag.
const TELL_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// The time after the last request for a tag at which it is forgotten.
const FORGET_AFTER: Duration = TELL_INTERVAL;
/// The most tags that are remembered.
const TAGS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("it is not zero");
/// The most tags that `status` lists.
const LISTED_MAX: usize = 20;

/// The tags of a daemon whose last checks have failed. Times are passed in; a full table forgets its oldest.
#[derive(Clone)]
pub(crate) struct UncheckedTags(Arc<Mutex<LruCache<Tag, Unchecked>>>);

type Tag = (Repository, String);

struct Unchecked {
    since: Instant,
    last: Instant,
    /// The last reason.
    why: String,
    is_long: bool,
    told: Option<Instant>,
}

impl Default for UncheckedTags {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LruCache::sparse(TAGS_MAX))))
    }
}

impl UncheckedTags {
    /// A check has failed. Says for how long the tag has not been checked, when that is to be logged. A source that is lost is told of
    /// elsewhere.
    pub(crate) fn failed(
        &self,
        at: &Repository,
        tag: &str,
        error: &PullError,
        tag_ttl: Duration,
        now: Instant,
    ) -> Option<Duration> {
        let key = (at.clone(), tag.to_owned());
        let mut tags = self.0.lock();
        if error.is_source_lost() {
            tags.pop(&key);
            return None;
        }
        let unchecked = tags.get_or_insert_mut(key, || Unchecked {
            since: now,
            last: now,
            why: String::new(),
            is_long: false,
            told: None,
        });
        unchecked.last = now;
        unchecked.why = error.to_string();
        let age = now.saturating_duration_since(unchecked.since);
        unchecked.is_long = age >= tag_ttl.saturating_mul(LONG_TTLS).max(LONG_MIN);
        let is_told = |told: Instant| now.saturating_duration_since(told) < TELL_INTERVAL;
        if !unchecked.is_long || unchecked.told.is_some_and(is_told) {
            return None;
        }
        unchecked.told = Some(now);
        Some(age)
    }

    /// A check has succeeded.
    pub(crate) fn checked(&self, at: &Repository, tag: &str) {
        let mut tags = self.0.lock();
        if !tags.is_empty() {
            tags.pop(&(at.clone(), tag.to_owned()));
        }
    }

    /// Those that have not been checked for long, for `status`.
    pub(crate) fn status(&self, now: Instant) -> Vec<Value> {
        let tags = self.0.lock();
        let counts =
            |unchecked: &Unchecked| unchecked.is_long && now.saturating_duration_since(unchecked.last) < FORGET_AFTER;
        let line = |((at, tag), unchecked): (&Tag, &Unchecked)| {
            json!({
                "tag": format!("{}/{}:{tag}", at.upstream, at.name),
                "unchecked_seconds": now.saturating_duration_since(unchecked.since).as_secs(),
                "why": unchecked.why,
            })
        };
        let long = tags.iter().filter(|(_, unchecked)| counts(unchecked));
        long.take(LISTED_MAX).map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    fn at() -> Repository {
        Repository {
            upstream: "a.io".to_owned(),
            name: "app".to_owned(),
        }
    }

    fn bad() -> PullError {
        PullError::BadGateway("a page".to_owned())
    }

    #[test]
    fn a_tag_that_cannot_be_checked_for_ten_ttls_is_told_once_an_hour_and_listed_until_it_is_checked() {
        let (tags, now) = (UncheckedTags::default(), Instant::now());
        let at_second = |second| now + Duration::from_secs(second);
        let failed = |second| tags.failed(&at(), "v1", &bad(), TTL, at_second(second));
        for second in [0, 100, 299] {
            assert_eq!(failed(second), None, "{second}");
            assert!(tags.status(at_second(second)).is_empty());
        }
        assert_eq!(failed(300), Some(TTL * LONG_TTLS));
        assert_eq!(failed(301), None, "it was told");
        let listed = tags.status(at_second(310));
        let expected = json!({ "tag": "a.io/app:v1", "unchecked_seconds": 310, "why": "a page" });
        assert_eq!(listed, [expected]);
        assert!(failed(300 + 3600).is_some());
        tags.checked(&at(), "v1");
        assert!(tags.status(at_second(3901)).is_empty());
        assert_eq!(failed(3902), None, "it begins again");
    }

    #[test]
    fn a_lost_source_is_no_failing_check_and_a_short_ttl_is_no_long_time() {
        let (tags, now) = (UncheckedTags::default(), Instant::now());
        let later = now + Duration::from_secs(59);
        assert_eq!(tags.failed(&at(), "v1", &bad(), Duration::ZERO, now), None);
        assert_eq!(tags.failed(&at(), "v1", &bad(), Duration::ZERO, later), None);
        let lost = PullError::Unreachable("silence".to_owned());
        assert_eq!(tags.failed(&at(), "v1", &lost, TTL, now + TTL * 20), None);
        assert_eq!(
            tags.failed(&at(), "v1", &bad(), TTL, now + TTL * 20),
            None,
            "it begins again"
        );
    }

    #[test]
    fn a_full_table_forgets_its_oldest_and_status_is_short() {
        let (tags, now) = (UncheckedTags::default(), Instant::now());
        for number in 0..=TAGS_MAX.get() {
            tags.failed(&at(), &number.to_string(), &bad(), TTL, now);
        }
        assert_eq!(tags.0.lock().len(), TAGS_MAX.get());
        assert!(!tags.0.lock().contains(&(at(), "0".to_owned())));
        for number in 1..=TAGS_MAX.get() {
            tags.failed(&at(), &number.to_string(), &bad(), TTL, now + TTL * 10);
        }
        assert_eq!(tags.status(now + TTL * 10).len(), LISTED_MAX);
        assert!(
            tags.status(now + TTL * 10 + FORGET_AFTER).is_empty(),
            "no caller asks for them"
        );
    }
}
