//! Reachability of an upstream, decided by probes of the daemon's own.
//!
//! A failed request of a caller proves nothing about the host: the caller chose the credential, the path and the item. So the
//! daemon probes the host itself (its *question*): a HEAD of manifests that are known to be public and of one whose name the
//! daemon has made up, or `/v2/` as long as no manifest is known to be public; and the token server where the registry names
//! one. No answer or a 5xx means that the host is lost; a 4xx is an answer. A peer asks its mirror `/v2/`.
//!
//! Callers choose which manifests are known to be public, and a caller may choose one that hangs. So a host is lost only when the
//! made-up manifest gets no answer either: no caller knows its name, and a registry answers it with 404 or 401 as long as its
//! backend works.
//!
//! An endpoint is asked one question at a time, whose answer counts for [`ANSWER_LIFE`]. A healthy upstream is asked none: the
//! question follows a request that failed or that got no answer within [`SILENCE`].

use std::time::{Duration, Instant};

use crate::PullError;

/// The wait of a request for its status line after which the question is asked.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);
/// The time for which an answer to the question counts.
pub(crate) const ANSWER_LIFE: Duration = Duration::from_secs(5);
/// From this age on the answer that an endpoint is lost is renewed while it still counts, so that no caller has to wait for it.
pub(crate) const RENEWAL: Duration = Duration::from_millis(2500);
/// The time for which the answer that an endpoint is there counts once a connection to it has failed: no caller can cause such a
/// failure.
pub(crate) const DOUBT: Duration = Duration::from_secs(1);
/// State of one endpoint, as the last question found it. Times are passed in.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    answer: Option<ProbeAnswer>,
    asking: bool,
}

#[derive(Debug)]
struct ProbeAnswer {
    /// Why it is lost.
    lost: Option<PullError>,
    /// The question got no answer in time: other requests would not either.
    silent: bool,
    at: Instant,
}

/// Decision about an endpoint for one request.
#[derive(Debug)]
pub(crate) enum Reachability {
    /// Go there.
    Open,
    /// Do not go there: the request would get no answer. `renew`: the question is due again.
    Silent { error: PullError, renew: bool },
    /// Ask first: the last answer is too old.
    Unsure,
}

impl Reach {
    /// Before a request.
    pub(crate) fn reachability(&self, now: Instant) -> Reachability {
        let Some(answer) = self.answer.as_ref().filter(|answer| answer.silent) else {
            return Reachability::Open;
        };
        let age = now.saturating_duration_since(answer.at);
        match &answer.lost {
            None => Reachability::Open,
            Some(_) if age >= ANSWER_LIFE => Reachability::Unsure,
            Some(error) => Reachability::Silent {
                error: error.clone(),
                renew: age >= RENEWAL,
            },
        }
    }

    /// The answer that counts now: why the endpoint is lost, if it is. `None`: no answer counts. `there_max`: the greatest
    /// age of an answer that it is there.
    pub(crate) fn answer(&self, there_max: Duration, now: Instant) -> Option<Option<PullError>> {
        let answer = self.answer.as_ref()?;
        let life = if answer.lost.is_some() { ANSWER_LIFE } else { there_max };
        let counts = now.saturating_duration_since(answer.at) < life;
        counts.then(|| answer.lost.clone())
    }

    /// Whether to ask: not while a question is under way, nor when there is an answer that is younger than `age_max`.
    pub(crate) fn begin(&mut self, age_max: Duration, now: Instant) -> bool {
        let is_young = |answer: &ProbeAnswer| now.saturating_duration_since(answer.at) < age_max;
        let begins = !self.asking && !self.answer.as_ref().is_some_and(is_young);
        self.asking |= begins;
        begins
    }

    /// The question that began at `begun` has ended. Says whether that is news.
    pub(crate) fn end(&mut self, lost: Option<PullError>, begun: Instant, now: Instant) -> bool {
        let was_lost = self.answer.as_ref().is_some_and(|answer| answer.lost.is_some());
        let is_news = was_lost != lost.is_some();
        let silent = lost.is_some() && now.saturating_duration_since(begun) >= SILENCE;
        self.answer = Some(ProbeAnswer { lost, silent, at: now });
        self.asking = false;
        is_news
    }

    /// Whether a question is under way.
    pub(crate) fn is_asking(&self) -> bool {
        self.asking
    }

    /// The question has ended without an answer. The next caller asks again.
    pub(crate) fn give_up(&mut self) {
        self.asking = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> Option<PullError> {
        Some(PullError::Unreachable("silence".to_owned()))
    }

    #[test]
    fn one_question_at_a_time_and_its_answer_counts_for_five_seconds() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        assert!(reach.answer(ANSWER_LIFE, now).is_none());
        assert!(reach.begin(ANSWER_LIFE, now));
        assert!(!reach.begin(ANSWER_LIFE, now), "one is under way");
        assert!(reach.end(lost(), now, now), "news");
        assert!(matches!(reach.answer(ANSWER_LIFE, now), Some(Some(_))));
        assert!(!reach.begin(ANSWER_LIFE, now + ANSWER_LIFE / 2));
        let later = now + ANSWER_LIFE;
        assert!(reach.answer(ANSWER_LIFE, later).is_none());
        assert!(reach.begin(ANSWER_LIFE, later));
        assert!(reach.end(None, later, later), "it is back");
        assert!(matches!(reach.answer(ANSWER_LIFE, later), Some(None)));
        assert!(reach.answer(DOUBT, later + DOUBT).is_none(), "a connection has failed");
        assert!(reach.begin(DOUBT, later + DOUBT));
    }

    #[test]
    fn only_silence_keeps_requests_away_and_the_first_one_after_it_asks_again() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(matches!(reach.reachability(now), Reachability::Open));
        // A refused connection costs no caller any time.
        reach.begin(ANSWER_LIFE, now);
        reach.end(lost(), now, now);
        assert!(matches!(reach.reachability(now), Reachability::Open));
        reach.begin(Duration::ZERO, now);
        reach.end(lost(), now, at(2));
        assert!(matches!(
            reach.reachability(at(3)),
            Reachability::Silent { renew: false, .. }
        ));
        assert!(matches!(
            reach.reachability(at(5)),
            Reachability::Silent { renew: true, .. }
        ));
        assert!(matches!(reach.reachability(at(7)), Reachability::Unsure));
        reach.begin(ANSWER_LIFE, at(7));
        reach.end(None, at(7), at(7));
        assert!(matches!(reach.reachability(at(7)), Reachability::Open));
    }
}
