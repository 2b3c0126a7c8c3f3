//! Logins by path: the repositories that have asked for one.
//!
//! A client that names the registry by path has one login for this daemon's address, whichever registry the path names. Invariant: a
//! registry gets it only for a repository that it has refused without.

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;
use piecemeal_store::Repository;
use piecemeal_upstream::Caller;

/// The time since a login was last shown at a repository, after which it is asked without again.
const ASKED_LIFE: Duration = Duration::from_secs(10 * 60);
/// The most repositories that are remembered. Of another, each login costs one more question.
const ASKED_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not zero");

/// The repositories that ask for a login, each with the last time that one was shown. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Logins(Arc<Mutex<LruCache<Repository, Instant>>>);

impl Default for Logins {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(ASKED_MAX))))
    }
}

impl Logins {
    /// The caller without its credential, as which the repository is to be asked first; `None`: it is asked with what the caller shows.
    pub(super) fn withheld(&self, caller: &Caller, at: &Repository, now: Instant) -> Option<Caller> {
        caller.credential.as_ref()?;
        let mut asked = self.0.lock();
        match asked.get_mut(at) {
            Some(shown) if now.saturating_duration_since(*shown) < ASKED_LIFE => {
                *shown = now;
                None
            }
            _ => Some(Caller {
                credential: None,
                ..caller.clone()
            }),
        }
    }

    /// The repository has refused a caller without a credential.
    pub(super) fn asked_for(&self, at: &Repository, now: Instant) {
        self.0.lock().put(at.clone(), now);
    }
}

#[cfg(test)]
mod tests {
    use piecemeal_upstream::Credential;

    use super::*;

    fn at(name: &str) -> Repository {
        Repository {
            upstream: "priv.test".to_owned(),
            name: name.to_owned(),
        }
    }

    fn caller() -> Caller {
        Caller {
            credential: Some(Credential::basic("bob", "secret")),
            ..Caller::default()
        }
    }

    #[test]
    fn a_login_is_shown_where_it_was_asked_for_and_for_as_long_as_it_is_used() {
        let (logins, start) = (Logins::default(), Instant::now());
        let is_withheld = |name: &str, now| {
            let bare = logins.withheld(&caller(), &at(name), now);
            assert!(bare.as_ref().is_none_or(|bare| bare.credential.is_none()));
            bare.is_some()
        };
        assert!(is_withheld("team/app", start));
        logins.asked_for(&at("team/app"), start);
        let later = start + ASKED_LIFE - Duration::from_secs(1);
        assert!(!is_withheld("team/app", later));
        assert!(
            !is_withheld("team/app", later + ASKED_LIFE / 2),
            "it was used meanwhile"
        );
        assert!(is_withheld("team/app", later + ASKED_LIFE * 2));
        assert!(is_withheld("team/other", start), "another repository has not asked");
        assert!(logins.withheld(&Caller::default(), &at("team/app"), start).is_none());
    }

    #[test]
    fn a_full_table_gives_up_its_oldest_repository_alone() {
        let (logins, now) = (Logins::default(), Instant::now());
        for number in 0..=ASKED_MAX.get() {
            logins.asked_for(&at(&number.to_string()), now);
        }
        assert!(logins.withheld(&caller(), &at("0"), now).is_some());
        assert!(logins.withheld(&caller(), &at("1"), now).is_none());
    }
}
