//! Cache of an upstream's verdicts by credential, each for as long as it counts.
//!
//! "Allowed" concerns a repository: a caller that was served anything of it may pull the rest of it for a while. A refusal is
//! remembered briefly, so that many callers at once cost upstream one request.

use std::{
    hash::Hash,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;

use crate::{Credential, PullError, caller::Fingerprint};

/// The time for which 401, 403 and 404 are remembered.
const REFUSED_LIFE: Duration = Duration::from_secs(10);
/// The most rights that are remembered of one upstream: 10,000 nodes with six private repositories each.
const ALLOWED_MAX: NonZeroUsize = NonZeroUsize::new(64 * 1024).expect("it is not zero");
/// The most refusals, each with its challenges, and the most repositories with a credential that was accepted.
const REFUSED_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("it is not zero");
const ACCEPTED_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("it is not zero");

/// The holder of a right, for whom a verdict was given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// Requests without a credential.
    Public,
    /// Requests with this credential.
    Holder(Fingerprint),
    /// The site, by the credential that the mirror holds.
    Site,
}

/// The verdicts of one upstream. Times are passed in.
#[derive(Default)]
pub(crate) struct Verdicts(Mutex<Table>);

struct Table {
    allowed: Timed<(Who, String), ()>,
    refused: Timed<(Who, String, Option<String>), PullError>,
    /// The credential that was accepted last, by repository: a download whose own credential has expired goes on with it.
    accepted: Timed<String, Credential>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            allowed: Timed::new(ALLOWED_MAX),
            refused: Timed::new(REFUSED_MAX),
            accepted: Timed::new(ACCEPTED_MAX),
        }
    }
}

impl Verdicts {
    /// Whether upstream has served `who` from the repository within `life`.
    pub(crate) fn allow(&self, who: &Who, repository: &str, life: Duration, now: Instant) -> bool {
        self.0
            .lock()
            .allowed
            .get(&(who.clone(), repository.to_owned()), life, now)
            .is_some()
    }

    /// The recent refusal of the repository, or of this path of it.
    pub(crate) fn refusal(&self, who: &Who, repository: &str, path: &str, now: Instant) -> Option<PullError> {
        let mut table = self.0.lock();
        [None, Some(path)].into_iter().find_map(|path| {
            let key = (who.clone(), repository.to_owned(), path.map(str::to_owned));
            table.refused.get(&key, REFUSED_LIFE, now).cloned()
        })
    }

    /// The credential that was accepted last for the repository, within `life`.
    pub(crate) fn accepted(&self, repository: &str, life: Duration, now: Instant) -> Option<Credential> {
        self.0.lock().accepted.get(&repository.to_owned(), life, now).cloned()
    }

    /// Upstream has served something of the repository.
    pub(crate) fn allowed(
        &self,
        who: &Who,
        repository: &str,
        credential: Option<&Credential>,
        life: Duration,
        now: Instant,
    ) {
        let mut table = self.0.lock();
        table.refused.forget(&(who.clone(), repository.to_owned(), None));
        table.allowed.put((who.clone(), repository.to_owned()), (), life, now);
        if let (Who::Holder(_), Some(credential)) = (who, credential) {
            table.accepted.put(repository.to_owned(), credential.clone(), life, now);
        }
    }

    /// Upstream has answered with an error. Only final verdicts are remembered.
    pub(crate) fn refused(&self, who: &Who, repository: &str, path: &str, error: &PullError, now: Instant) {
        let mut table = self.0.lock();
        let of = |path: Option<&str>| (who.clone(), repository.to_owned(), path.map(str::to_owned));
        match error {
            // A 401 concerns the whole repository.
            PullError::Denied { status: 401, .. } => {
                table.allowed.forget(&(who.clone(), repository.to_owned()));
                table.refused.put(of(None), error.clone(), REFUSED_LIFE, now);
            }
            // A 403 may concern this path alone; upstream must be asked about the rest.
            PullError::Denied { .. } => {
                table.allowed.forget(&(who.clone(), repository.to_owned()));
                table.refused.put(of(Some(path)), error.clone(), REFUSED_LIFE, now);
            }
            PullError::Unknown(_) => table.refused.put(of(Some(path)), error.clone(), REFUSED_LIFE, now),
            _ => {}
        }
    }
}

/// Bounded table of values that count for a while; the least recently used goes first. The reader states how long they count:
/// that setting may have changed since they were put in.
struct Timed<K: Eq + Hash, V> {
    /// Each with when it was put in.
    values: LruCache<K, (V, Instant)>,
}

impl<K: Eq + Hash, V> Timed<K, V> {
    fn new(max: NonZeroUsize) -> Self {
        Self {
            values: LruCache::sparse(max),
        }
    }

    fn get(&mut self, key: &K, life: Duration, now: Instant) -> Option<&V> {
        self.values
            .get(key)
            .filter(|(_, since)| now.saturating_duration_since(*since) < life)
            .map(|(value, _)| value)
    }

    fn put(&mut self, key: K, value: V, life: Duration, now: Instant) {
        let is_over = |(_, (_, since)): (&K, &(V, Instant))| now.saturating_duration_since(*since) >= life;
        while self.values.peek_lru().is_some_and(is_over) {
            self.values.pop_lru();
        }
        self.values.put(key, (value, now));
    }

    fn forget(&mut self, key: &K) {
        self.values.pop(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED_LIFE: Duration = Duration::from_secs(300);

    fn denied() -> PullError {
        PullError::Denied {
            upstream: "a.io".to_owned(),
            status: 401,
            challenges: Vec::new(),
        }
    }

    #[test]
    fn a_right_is_one_callers_in_one_repository_for_a_while() {
        let (verdicts, now) = (Verdicts::default(), Instant::now());
        let (mine, other) = (Who::Holder([1; 32]), Who::Holder([2; 32]));
        verdicts.allowed(&mine, "a", None, ALLOWED_LIFE, now);

        assert!(verdicts.allow(&mine, "a", ALLOWED_LIFE, now + ALLOWED_LIFE / 2));
        assert!(!verdicts.allow(&mine, "a", ALLOWED_LIFE, now + ALLOWED_LIFE));
        for (who, repository) in [(&other, "a"), (&mine, "b"), (&Who::Public, "a"), (&Who::Site, "a")] {
            assert!(
                !verdicts.allow(who, repository, ALLOWED_LIFE, now),
                "{who:?} {repository}"
            );
        }
    }

    #[test]
    fn a_life_that_is_changed_is_that_of_rights_given_before_too() {
        let (verdicts, now) = (Verdicts::default(), Instant::now());
        let later = now + ALLOWED_LIFE / 2;
        verdicts.allowed(&Who::Public, "a", None, ALLOWED_LIFE, now);
        assert!(!verdicts.allow(&Who::Public, "a", ALLOWED_LIFE / 4, later));
        assert!(verdicts.allow(&Who::Public, "a", ALLOWED_LIFE, later));
    }

    #[test]
    fn a_denial_ends_the_right_and_is_remembered_briefly() {
        let (verdicts, now) = (Verdicts::default(), Instant::now());
        verdicts.allowed(&Who::Public, "a", None, ALLOWED_LIFE, now);
        verdicts.refused(&Who::Public, "a", "manifests/v1", &denied(), now);

        assert!(!verdicts.allow(&Who::Public, "a", ALLOWED_LIFE, now));
        assert!(
            verdicts.refusal(&Who::Public, "a", "blobs/x", now).is_some(),
            "of all of it"
        );
        assert!(verdicts.refusal(&Who::Holder([1; 32]), "a", "blobs/x", now).is_none());
        assert!(
            verdicts
                .refusal(&Who::Public, "a", "blobs/x", now + REFUSED_LIFE)
                .is_none()
        );
        verdicts.allowed(&Who::Public, "a", None, ALLOWED_LIFE, now);
        assert!(verdicts.refusal(&Who::Public, "a", "blobs/x", now).is_none());
    }

    #[test]
    fn what_is_forbidden_says_nothing_of_the_rest() {
        let (verdicts, now) = (Verdicts::default(), Instant::now());
        let forbidden = PullError::Denied {
            upstream: "a.io".to_owned(),
            status: 403,
            challenges: Vec::new(),
        };
        verdicts.refused(&Who::Public, "a", "manifests/v1", &forbidden, now);
        assert!(verdicts.refusal(&Who::Public, "a", "manifests/v1", now).is_some());
        assert!(verdicts.refusal(&Who::Public, "a", "manifests/v2", now).is_none());
    }

    #[test]
    fn what_is_past_its_time_takes_no_room() {
        let (mut timed, mut now) = (Timed::new(ALLOWED_MAX), Instant::now());
        for number in 0..100_000 {
            now += Duration::from_millis(1);
            timed.put(number, (), Duration::from_millis(100), now);
        }
        assert!(timed.values.len() <= 100, "{}", timed.values.len());
    }

    #[test]
    fn ten_thousand_nodes_keep_their_rights_in_several_repositories_and_a_full_table_forgets_one() {
        let (verdicts, now) = (Verdicts::default(), Instant::now());
        let holder = |node: usize| {
            let mut fingerprint = [0; 32];
            fingerprint[..8].copy_from_slice(&node.to_le_bytes());
            Who::Holder(fingerprint)
        };
        let names: Vec<_> = (0..6).map(|repository| format!("private/{repository}")).collect();
        for (node, name) in (0..10_000).flat_map(|node| names.iter().map(move |name| (node, name))) {
            verdicts.allowed(&holder(node), name, None, ALLOWED_LIFE, now);
        }
        let allowed = |node: usize| {
            names
                .iter()
                .all(|name| verdicts.allow(&holder(node), name, ALLOWED_LIFE, now))
        };
        assert!((0..10_000).all(allowed));
        for node in 10_000..2 * ALLOWED_MAX.get() {
            verdicts.allowed(&holder(node), "a", None, ALLOWED_LIFE, now);
            // A holder that goes on pulling is not forgotten, however many others come.
            assert!(verdicts.allow(&holder(0), &names[0], ALLOWED_LIFE, now));
        }
        assert_eq!(verdicts.0.lock().allowed.values.len(), ALLOWED_MAX.get());
    }

    #[test]
    fn what_does_not_exist_says_nothing_of_the_rest() {
        let (verdicts, now) = (Verdicts::default(), Instant::now());
        verdicts.allowed(&Who::Public, "a", None, ALLOWED_LIFE, now);
        verdicts.refused(
            &Who::Public,
            "a",
            "manifests/v1",
            &PullError::Unknown("no".to_owned()),
            now,
        );

        assert!(verdicts.allow(&Who::Public, "a", ALLOWED_LIFE, now));
        assert!(verdicts.refusal(&Who::Public, "a", "manifests/v1", now).is_some());
        assert!(verdicts.refusal(&Who::Public, "a", "manifests/v2", now).is_none());
        let passing = PullError::Unavailable("later".to_owned());
        verdicts.refused(&Who::Public, "a", "manifests/v2", &passing, now);
        assert!(verdicts.refusal(&Who::Public, "a", "manifests/v2", now).is_none());
    }

    #[test]
    fn a_download_goes_on_with_the_credential_that_was_accepted_last() {
        let (verdicts, now) = (Verdicts::default(), Instant::now());
        let [old, new] = ["old", "new"].map(|token| Credential::bearer(token).unwrap());
        for credential in [&old, &new] {
            verdicts.allowed(
                &Who::Holder(credential.fingerprint()),
                "a",
                Some(credential),
                ALLOWED_LIFE,
                now,
            );
        }
        assert_eq!(verdicts.accepted("a", ALLOWED_LIFE, now), Some(new));
        assert_eq!(verdicts.accepted("b", ALLOWED_LIFE, now), None);
    }
}
