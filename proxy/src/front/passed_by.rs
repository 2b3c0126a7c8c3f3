//! Private pulls that go past this daemon, as far as it can see them.
//!
//! A client that names the registry by path, or not at all, is asked for no credential at `/v2/`, and shows none afterwards: it is
//! refused, and pulls from the registry itself. That is counted, and told once an hour for each registry.

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;
use piecemeal_proto::accelerated;
use piecemeal_store::Repository;
use piecemeal_upstream::{Caller, PullError};
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tracing::warn;

use super::name::Named;

/// The interval of the log line of one registry.
const TOLD_EVERY: Duration = Duration::from_secs(3600);
/// The most registries whose last log line is remembered.
const TOLD_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");

/// Counter of refusals to clients that could not show a credential. Cheap to clone.
#[derive(Clone)]
pub(crate) struct PassedBy {
    refusals: Family<[(&'static str, &'static str); 1], Counter>,
    /// By upstream.
    told: Arc<Mutex<LruCache<String, Instant>>>,
}

impl Default for PassedBy {
    fn default() -> Self {
        Self {
            refusals: Family::default(),
            told: Arc::new(Mutex::new(LruCache::new(TOLD_MAX))),
        }
    }
}

impl PassedBy {
    /// Adds the counters, all from zero on.
    pub(crate) fn register(&self, registry: &mut Registry) {
        for named in [Named::Host, Named::Path, Named::Default] {
            self.count(named, 0);
        }
        registry.sub_registry_with_prefix("piecemeal").register(
            "refused_without_credential",
            "Requests that the upstream refused because their client showed no credential, by what names the upstream",
            self.refusals.clone(),
        );
    }

    /// A request was refused. By `ns` the client hears the challenge, and comes back with a credential if it has one.
    pub(super) fn note(&self, caller: &Caller, named: Named, at: &Repository, error: &PullError) {
        let is_refusal = matches!(error, PullError::Denied { .. });
        if !is_refusal || caller.credential.is_some() || named == Named::Namespace {
            return;
        }
        self.count(named, 1);
        if named != Named::Host && self.is_due(&at.upstream, Instant::now()) {
            let host = accelerated::name(&at.upstream, 0);
            let host = host.as_deref().and_then(|host| host.rsplit_once(':'));
            let host = host.map_or(&*at.upstream, |(host, _)| host);
            warn!(
                upstream = at.upstream,
                repository = at.name,
                "a client without a credential was refused {}/{}, and pulls it from the registry itself: a client that does not name the \
                 registry as its host is not asked for a login; let its mirror be {host} with this daemon's port, or set credentials at the mirror",
                at.upstream,
                at.name
            );
        }
    }

    fn count(&self, named: Named, count: u64) {
        self.refusals.get_or_create(&[("named", named.label())]).inc_by(count);
    }

    fn is_due(&self, upstream: &str, now: Instant) -> bool {
        let mut told = self.told.lock();
        let is_fresh = |at: &Instant| now.saturating_duration_since(*at) < TOLD_EVERY;
        if told.get(upstream).is_some_and(is_fresh) {
            return false;
        }
        told.put(upstream.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use piecemeal_upstream::Credential;

    use super::*;

    fn count(passed_by: &PassedBy, named: Named) -> u64 {
        passed_by.refusals.get_or_create(&[("named", named.label())]).get()
    }

    #[test]
    fn a_refusal_counts_only_where_the_client_could_not_show_a_credential() {
        let passed_by = PassedBy::default();
        let at = Repository {
            upstream: "priv.test".to_owned(),
            name: "team/app".to_owned(),
        };
        let denied = PullError::Denied {
            upstream: at.upstream.clone(),
            status: 401,
            challenge: None,
        };
        let bare = Caller::default();
        let with_login = Caller {
            credential: Some(Credential::basic("bob", "oops")),
            ..Caller::default()
        };
        let all = [Named::Namespace, Named::Host, Named::Path, Named::Default];
        for named in all {
            passed_by.note(&bare, named, &at, &denied);
            passed_by.note(&with_login, named, &at, &denied);
            passed_by.note(&bare, named, &at, &PullError::Unknown("gone".to_owned()));
        }
        assert_eq!(all.map(|named| count(&passed_by, named)), [0, 1, 1, 1]);
    }

    #[test]
    fn a_registry_is_told_of_once_an_hour() {
        let (passed_by, start) = (PassedBy::default(), Instant::now());
        let is_due = |upstream, now| passed_by.is_due(upstream, now);
        assert!(is_due("a.test", start) && !is_due("a.test", start + TOLD_EVERY / 2));
        assert!(is_due("b.test", start) && is_due("a.test", start + TOLD_EVERY));
    }
}
