//! What an upstream has said of whom, for as long as it counts.
//!
//! "Allowed" is said of a repository: who was once served anything of it may have the rest of it for a while.
//! A refusal is remembered briefly, so that many who ask at once cost upstream one request.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::{Credential, PullError, caller::Fingerprint};

/// How long 401, 403 and 404 are remembered.
const REFUSED_LIFE: Duration = Duration::from_secs(10);
/// So many at least are put in before those past their time are looked for.
const PURGE_MIN: usize = 256;
/// The most of each kind that is remembered.
const VERDICTS_MAX: usize = 16 * 1024;

/// For whom a verdict was given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// Nobody in particular: without a credential.
    Anybody,
    /// Whoever shows this credential.
    Holder(Fingerprint),
    /// The site, by the credential that the mirror holds.
    Site,
}

/// The verdicts of one upstream. Times are passed in.
#[derive(Default)]
pub(crate) struct Verdicts(Mutex<Table>);

#[derive(Default)]
struct Table {
    allowed: Timed<(Who, String), ()>,
    refused: Timed<(Who, String, Option<String>), PullError>,
    /// The credential that was accepted last, by repository: with it a download goes on whose own has expired.
    accepted: Timed<String, Credential>,
}

impl Verdicts {
    /// Whether upstream has served `who` from the repository within `life`.
    pub(crate) fn allow(&self, who: &Who, repository: &str, life: Duration, now: Instant) -> bool {
        self.lock()
            .allowed
            .get(&(who.clone(), repository.to_owned()), life, now)
            .is_some()
    }

    /// What upstream has just refused: the repository, or this path of it.
    pub(crate) fn refusal(&self, who: &Who, repository: &str, path: &str, now: Instant) -> Option<PullError> {
        let table = self.lock();
        let of = |path: Option<&str>| (who.clone(), repository.to_owned(), path.map(str::to_owned));
        table
            .refused
            .get(&of(None), REFUSED_LIFE, now)
            .or_else(|| table.refused.get(&of(Some(path)), REFUSED_LIFE, now))
            .cloned()
    }

    /// The credential that was accepted last for the repository, within `life`.
    pub(crate) fn accepted(&self, repository: &str, life: Duration, now: Instant) -> Option<Credential> {
        self.lock().accepted.get(&repository.to_owned(), life, now).cloned()
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
        let mut table = self.lock();
        table.refused.forget(&(who.clone(), repository.to_owned(), None));
        table.allowed.put((who.clone(), repository.to_owned()), (), life, now);
        if let (Who::Holder(_), Some(credential)) = (who, credential) {
            table.accepted.put(repository.to_owned(), credential.clone(), life, now);
        }
    }

    /// Upstream has answered with an error. Only what stands is remembered.
    pub(crate) fn refused(&self, who: &Who, repository: &str, path: &str, error: &PullError, now: Instant) {
        let mut table = self.lock();
        let of = |path: Option<&str>| (who.clone(), repository.to_owned(), path.map(str::to_owned));
        match error {
            // Who is unknown there is unknown in all of the repository.
            PullError::Denied { status: 401, .. } => {
                table.allowed.forget(&(who.clone(), repository.to_owned()));
                table.refused.put(of(None), error.clone(), REFUSED_LIFE, now);
            }
            // What is forbidden may be this alone; whether the rest is, upstream has to say again.
            PullError::Denied { .. } => {
                table.allowed.forget(&(who.clone(), repository.to_owned()));
                table.refused.put(of(Some(path)), error.clone(), REFUSED_LIFE, now);
            }
            PullError::Unknown(_) => table.refused.put(of(Some(path)), error.clone(), REFUSED_LIFE, now),
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

/// Values that count for a while. How long is said by who asks: it may be another time than when they were put in.
struct Timed<K, V> {
    /// Each with when it was put in.
    values: HashMap<K, (V, Instant)>,
    /// How many more may be put in before those past their time are taken out.
    puts_left: usize,
}

impl<K, V> Default for Timed<K, V> {
    fn default() -> Self {
        Self {
            values: HashMap::new(),
            puts_left: PURGE_MIN,
        }
    }
}

impl<K: Eq + Hash, V> Timed<K, V> {
    fn get(&self, key: &K, life: Duration, now: Instant) -> Option<&V> {
        self.values
            .get(key)
            .filter(|(_, since)| now.duration_since(*since) < life)
            .map(|(value, _)| value)
    }

    fn put(&mut self, key: K, value: V, life: Duration, now: Instant) {
        // As many as were still good the last time, so that the work stays in proportion.
        self.puts_left = self.puts_left.saturating_sub(1);
        if self.puts_left == 0 {
            self.values.retain(|_, (_, since)| now.duration_since(*since) < life);
            self.puts_left = self.values.len().max(PURGE_MIN);
        }
        if self.values.len() >= VERDICTS_MAX {
            self.values.clear();
        }
        self.values.insert(key, (value, now));
    }

    fn forget(&mut self, key: &K) {
        self.values.remove(key);
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
            challenge: None,
        }
    }

    #[test]
    fn a_right_is_one_callers_in_one_repository_for_a_while() {
        let (verdicts, now) = (Verdicts::default(), Instant::now());
        let (mine, other) = (Who::Holder([1; 32]), Who::Holder([2; 32]));
        verdicts.allowed(&mine, "a", None, ALLOWED_LIFE, now);

        assert!(verdicts.allow(&mine, "a", ALLOWED_LIFE, now + ALLOWED_LIFE / 2));
        assert!(!verdicts.allow(&mine, "a", ALLOWED_LIFE, now + ALLOWED_LIFE));
        for (who, repository) in [(&other, "a"), (&mine, "b"), (&Who::Anybody, "a"), (&Who::Site, "a")] {
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
        verdicts.allowed(&Who::Anybody, "a", None, ALLOWED_LIFE, now);
        assert!(!verdicts.allow(&Who::Anybody, "a", ALLOWED_LIFE / 4, later));
        assert!(verdicts.allow(&Who::Anybody, "a", ALLOWED_LIFE, later));
    }

    #[test]
    fn a_denial_ends_the_right_and_is_remembered_briefly() {
        let (verdicts, now) = (Verdicts::default(), Instant::now());
        verdicts.allowed(&Who::Anybody, "a", None, ALLOWED_LIFE, now);
        verdicts.refused(&Who::Anybody, "a", "manifests/v1", &denied(), now);

        assert!(!verdicts.allow(&Who::Anybody, "a", ALLOWED_LIFE, now));
        assert!(
            verdicts.refusal(&Who::Anybody, "a", "blobs/x", now).is_some(),
            "of all of it"
        );
        assert!(verdicts.refusal(&Who::Holder([1; 32]), "a", "blobs/x", now).is_none());
        assert!(
            verdicts
                .refusal(&Who::Anybody, "a", "blobs/x", now + REFUSED_LIFE)
                .is_none()
        );
        verdicts.allowed(&Who::Anybody, "a", None, ALLOWED_LIFE, now);
        assert!(verdicts.refusal(&Who::Anybody, "a", "blobs/x", now).is_none());
    }

    #[test]
    fn what_is_forbidden_says_nothing_of_the_rest() {
        let (verdicts, now) = (Verdicts::default(), Instant::now());
        let forbidden = PullError::Denied {
            upstream: "a.io".to_owned(),
            status: 403,
            challenge: None,
        };
        verdicts.refused(&Who::Anybody, "a", "manifests/v1", &forbidden, now);
        assert!(verdicts.refusal(&Who::Anybody, "a", "manifests/v1", now).is_some());
        assert!(verdicts.refusal(&Who::Anybody, "a", "manifests/v2", now).is_none());
    }

    #[test]
    fn what_is_past_its_time_takes_no_room() {
        let (mut timed, mut now) = (Timed::default(), Instant::now());
        for number in 0..100_000 {
            now += Duration::from_millis(1);
            timed.put(number, (), Duration::from_millis(100), now);
        }
        assert!(timed.values.len() <= 2 * PURGE_MIN, "{}", timed.values.len());
    }

    #[test]
    fn what_does_not_exist_says_nothing_of_the_rest() {
        let (verdicts, now) = (Verdicts::default(), Instant::now());
        verdicts.allowed(&Who::Anybody, "a", None, ALLOWED_LIFE, now);
        verdicts.refused(
            &Who::Anybody,
            "a",
            "manifests/v1",
            &PullError::Unknown("no".to_owned()),
            now,
        );

        assert!(verdicts.allow(&Who::Anybody, "a", ALLOWED_LIFE, now));
        assert!(verdicts.refusal(&Who::Anybody, "a", "manifests/v1", now).is_some());
        assert!(verdicts.refusal(&Who::Anybody, "a", "manifests/v2", now).is_none());
        let passing = PullError::Unavailable("later".to_owned());
        verdicts.refused(&Who::Anybody, "a", "manifests/v2", &passing, now);
        assert!(verdicts.refusal(&Who::Anybody, "a", "manifests/v2", now).is_none());
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
