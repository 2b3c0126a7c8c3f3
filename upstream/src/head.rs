//! Worth of an answer to HEAD, and what was learnt of HEAD in a repository.
//!
//! Invariant: nothing is concluded from an answer to HEAD that GET would contradict. Registries, and filters in front of them, refuse
//! HEAD where they serve GET, or leave out what GET states.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;
use reqwest::StatusCode;

use crate::{PullError, breaker::RequestKind};

/// The time for which what was learnt of HEAD counts.
const LEARNT_LIFE: Duration = Duration::from_secs(60 * 60);
/// The most repositories of one upstream of which something was learnt, each with its manifests and its blobs apart.
const LEARNT_MAX: NonZeroUsize = NonZeroUsize::new(8 * 1024).expect("it is not zero");

/// An answer to HEAD, as its status line and its headers state it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadAnswer {
    pub(crate) status: StatusCode,
    /// It states the digest, the one that was asked for if one was.
    pub(crate) states_digest: bool,
    pub(crate) states_size: bool,
    pub(crate) has_challenge: bool,
    /// It comes from a redirect's target, whose URL may be signed for GET alone.
    pub(crate) led_on: bool,
}

/// Worth of an answer to HEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worth {
    /// As good as an answer to GET.
    Good,
    /// An error that stands as it is: GET would get it too.
    Stands,
    /// GET has to be asked.
    Nothing,
}

/// Knowledge of HEAD for one kind of item of a repository.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Learnt {
    /// When an answer stated the digest.
    stated: Option<Instant>,
    /// When GET stated the size that HEAD had stated without a digest.
    sized: Option<Instant>,
    /// The last refusal that GET repeated, and when.
    repeated: Option<(StatusCode, Instant)>,
    /// When GET served what HEAD had not.
    contradicted: Option<Instant>,
}

impl Learnt {
    /// Whether HEAD is not worth a round trip: GET contradicts it, and no answer to HEAD was good.
    pub(crate) fn is_useless(&self, now: Instant) -> bool {
        counts(self.contradicted, now) && !counts(self.stated, now) && !counts(self.sized, now)
    }

    /// What `answer` is worth.
    pub(crate) fn worth(&self, answer: HeadAnswer, now: Instant) -> Worth {
        match answer.status {
            status if status.is_success() && answer.states_digest => Worth::Good,
            status if status.is_success() && answer.states_size && counts(self.sized, now) => Worth::Good,
            StatusCode::UNAUTHORIZED if answer.has_challenge && !answer.led_on => Worth::Stands,
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Worth::Stands,
            status if !answer.led_on && self.repeats(status, now) => Worth::Stands,
            _ => Worth::Nothing,
        }
    }

    /// Whether the host's HEAD works, and GET has repeated this refusal of it. That HEAD works must have shown: where every HEAD is
    /// refused alike, GET repeats the refusal of what does not exist.
    fn repeats(&self, status: StatusCode, now: Instant) -> bool {
        let may_repeat = matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND);
        let has_repeated = self
            .repeated
            .is_some_and(|(of, at)| of == status && counts(Some(at), now));
        may_repeat && has_repeated && (counts(self.stated, now) || counts(self.sized, now))
    }

    /// GET was asked since the answer to HEAD was worth nothing: `head` was that answer, `None` when it was no answer to rely on.
    fn compare(&mut self, head: Option<StatusCode>, get: &Got, now: Instant) {
        match (head, get) {
            (Some(head), Got::Size { is_same: true }) if head.is_success() => self.sized = Some(now),
            (Some(head), Got::Refused(get)) if head == *get => self.repeated = Some((head, now)),
            (_, Got::Served | Got::Size { .. }) => {
                self.contradicted = Some(now);
                self.repeated = self.repeated.filter(|(of, _)| head != Some(*of));
            }
            (_, Got::Refused(_) | Got::Nothing) => {}
        }
    }
}

/// The outcome of the GET that followed an answer to HEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Served,
    /// Served, and both stated a size.
    Size {
        is_same: bool,
    },
    Refused(StatusCode),
    /// No answer that says anything about HEAD.
    Nothing,
}

impl Got {
    pub(crate) fn error(error: &PullError) -> Self {
        let status = match error {
            PullError::Unknown(_) => Some(404),
            PullError::Denied { status, .. } | PullError::Rejected { status, .. } => Some(*status),
            _ => None,
        };
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        status.map_or(Self::Nothing, Self::Refused)
    }
}

fn counts(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| now.saturating_duration_since(at) < LEARNT_LIFE)
}

/// What was learnt of HEAD at one upstream, by repository and kind. Times are passed in; a full table forgets its oldest.
pub(crate) struct Heads(Mutex<LruCache<(String, RequestKind), Learnt>>);

impl Default for Heads {
    fn default() -> Self {
        Self(Mutex::new(LruCache::sparse(LEARNT_MAX)))
    }
}

impl Heads {
    pub(crate) fn of(&self, repository: &str, kind: RequestKind) -> Learnt {
        let key = (repository.to_owned(), kind);
        self.0.lock().peek(&key).copied().unwrap_or_default()
    }

    /// An answer to HEAD stated the digest.
    pub(crate) fn stated(&self, repository: &str, kind: RequestKind, now: Instant) {
        self.change(repository, kind, |learnt| learnt.stated = Some(now));
    }

    /// GET was asked since HEAD's answer was worth nothing.
    pub(crate) fn compared(
        &self,
        repository: &str,
        kind: RequestKind,
        head: Option<StatusCode>,
        get: &Got,
        now: Instant,
    ) {
        if *get != Got::Nothing {
            self.change(repository, kind, |learnt| learnt.compare(head, get, now));
        }
    }

    fn change(&self, repository: &str, kind: RequestKind, change: impl FnOnce(&mut Learnt)) {
        let mut learnt = self.0.lock();
        let key = (repository.to_owned(), kind);
        let mut known = learnt.pop(&key).unwrap_or_default();
        change(&mut known);
        learnt.put(key, known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: RequestKind = RequestKind::Manifest;

    fn answer(status: u16) -> HeadAnswer {
        HeadAnswer {
            status: StatusCode::from_u16(status).unwrap(),
            states_digest: false,
            states_size: false,
            has_challenge: false,
            led_on: false,
        }
    }

    fn worth(learnt: Learnt, status: u16, now: Instant) -> Worth {
        learnt.worth(answer(status), now)
    }

    #[test]
    fn an_answer_that_is_no_200_with_a_digest_is_worth_nothing_but_for_a_few_errors() {
        let (learnt, now) = (Learnt::default(), Instant::now());
        for status in 100..600 {
            let stands = matches!(status, 429 | 500 | 502 | 503 | 504);
            let plain = if stands { Worth::Stands } else { Worth::Nothing };
            assert_eq!(worth(learnt, status, now), plain, "{status}");
            let stated = HeadAnswer {
                states_digest: true,
                states_size: true,
                ..answer(status)
            };
            let good = if (200..300).contains(&status) {
                Worth::Good
            } else {
                plain
            };
            assert_eq!(learnt.worth(stated, now), good, "{status} with a digest");
            let challenged = HeadAnswer {
                has_challenge: true,
                ..answer(status)
            };
            let challenged_stands = if status == 401 { Worth::Stands } else { plain };
            assert_eq!(
                learnt.worth(challenged, now),
                challenged_stands,
                "{status} with a challenge"
            );
            let led = HeadAnswer {
                led_on: true,
                ..challenged
            };
            assert_eq!(learnt.worth(led, now), plain, "{status} of a redirect's target");
        }
    }

    #[test]
    fn a_refusal_is_believed_for_an_hour_once_head_has_worked_and_get_has_repeated_it() {
        let (heads, now) = (Heads::default(), Instant::now());
        let not_found = Some(StatusCode::NOT_FOUND);
        let of = |repository: &str| heads.of(repository, MANIFEST);
        heads.compared("a", MANIFEST, not_found, &Got::Refused(StatusCode::NOT_FOUND), now);
        assert_eq!(worth(of("a"), 404, now), Worth::Nothing, "all HEADs may be refused so");
        heads.stated("a", MANIFEST, now);
        assert_eq!(worth(of("a"), 404, now), Worth::Stands);
        for status in [403, 405, 410, 501] {
            assert_eq!(worth(of("a"), status, now), Worth::Nothing, "{status}");
        }
        assert_eq!(worth(of("b"), 404, now), Worth::Nothing, "another repository");
        assert_eq!(worth(heads.of("a", RequestKind::Blob), 404, now), Worth::Nothing);
        let led = HeadAnswer {
            led_on: true,
            ..answer(404)
        };
        assert_eq!(of("a").worth(led, now), Worth::Nothing, "a redirect's target says it");
        assert_eq!(worth(of("a"), 404, now + LEARNT_LIFE), Worth::Nothing, "an hour later");
        heads.compared("a", MANIFEST, not_found, &Got::Served, now);
        assert_eq!(worth(of("a"), 404, now), Worth::Nothing, "GET has served it since");
        assert!(!of("a").is_useless(now), "an answer stated the digest");
    }

    #[test]
    fn where_get_contradicts_head_it_is_not_sent_for_an_hour() {
        for (head, get) in [
            (Some(405), Got::Served),
            (Some(404), Got::Served),
            (Some(200), Got::Served),
            (Some(200), Got::Size { is_same: false }),
            (None, Got::Served),
        ] {
            let (heads, now) = (Heads::default(), Instant::now());
            let status = head.map(|head| StatusCode::from_u16(head).unwrap());
            heads.compared("a", MANIFEST, status, &get, now);
            assert!(heads.of("a", MANIFEST).is_useless(now), "{head:?} {get:?}");
            assert!(!heads.of("a", MANIFEST).is_useless(now + LEARNT_LIFE));
            assert!(!heads.of("b", MANIFEST).is_useless(now));
            heads.stated("a", MANIFEST, now);
            assert!(!heads.of("a", MANIFEST).is_useless(now), "it has worked");
        }
    }

    #[test]
    fn what_says_nothing_about_head_teaches_nothing() {
        let (heads, now) = (Heads::default(), Instant::now());
        for get in [Got::Nothing, Got::Refused(StatusCode::FORBIDDEN)] {
            heads.compared("a", MANIFEST, Some(StatusCode::NOT_FOUND), &get, now);
            heads.stated("a", MANIFEST, now);
            assert_eq!(worth(heads.of("a", MANIFEST), 404, now), Worth::Nothing, "{get:?}");
            assert_eq!(worth(heads.of("a", MANIFEST), 403, now), Worth::Nothing, "{get:?}");
        }
    }

    #[test]
    fn a_size_without_a_digest_is_good_once_get_has_stated_the_same() {
        let (heads, now) = (Heads::default(), Instant::now());
        let sized = HeadAnswer {
            states_size: true,
            ..answer(200)
        };
        let of = || heads.of("a", RequestKind::Blob);
        assert_eq!(of().worth(sized, now), Worth::Nothing);
        let same = Got::Size { is_same: true };
        heads.compared("a", RequestKind::Blob, Some(StatusCode::OK), &same, now);
        assert_eq!(of().worth(sized, now), Worth::Good);
        assert_eq!(worth(of(), 200, now), Worth::Nothing, "no size");
        assert_eq!(of().worth(sized, now + LEARNT_LIFE), Worth::Nothing);
    }

    #[test]
    fn a_full_table_forgets_its_oldest_alone() {
        let (heads, now) = (Heads::default(), Instant::now());
        for number in 0..=LEARNT_MAX.get() {
            heads.compared(&number.to_string(), MANIFEST, None, &Got::Served, now);
        }
        assert!(!heads.of("0", MANIFEST).is_useless(now), "it went");
        assert!(heads.of("1", MANIFEST).is_useless(now));
        assert_eq!(heads.0.lock().len(), LEARNT_MAX.get());
    }
}
