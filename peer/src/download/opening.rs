//! Opening of one blob at the mirror: when the mirror is asked again, and when upstream is asked instead. Pure.
//!
//! Upstream is the last resort: a mirror that is configured has been lost for its grace before, and upstream is allowed.

use std::time::Duration;

use piecemeal_upstream::ANSWER_TIMEOUT;

use super::machine::{REFUSED_PATIENCE, REOPEN_DELAY};

/// How long a mirror that answers with errors is asked again: a fault of a moment may pass, and no client waits longer for a status line.
const ERROR_PATIENCE: Duration = ANSWER_TIMEOUT;

/// The decisions about one blob that is not open yet.
///
/// The caller follows [`Opening::poll`], and hands in why an answer did not open the blob. Time is counted from any start and never runs
/// backwards.
#[derive(Clone, Debug)]
pub struct Opening {
    may_use_upstream: bool,
    /// When the first question was asked.
    since: Duration,
    /// Since when the mirror has answered with nothing but errors.
    failing_since: Option<Duration>,
    step: OpeningStep,
}

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpeningStep {
    /// Ask the mirror for the blob.
    Ask,
    /// Wait until this time.
    Wait(Duration),
    /// Fetch the blob from upstream, outside the swarm.
    UseUpstream,
    /// Give up: the last error is the reason.
    Fail,
}

/// Why the mirror's answer does not open the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unopened {
    /// There is no answer. `lost`: for how long there was none, if that is known.
    Lost { lost: Option<Duration> },
    /// The mirror is there, and upstream has not answered it yet: the question is open.
    Pending,
    /// The mirror has answered with an error that may pass.
    Unavailable,
    /// The mirror's answer stands. It may be that upstream cannot be reached: that is the mirror's word, and no mirror that is lost.
    Refused,
}

impl Opening {
    pub fn new(now: Duration, mirror_configured: bool, may_use_upstream: bool) -> Self {
        let mut opening = Self {
            may_use_upstream,
            since: now,
            failing_since: None,
            step: OpeningStep::Ask,
        };
        if !mirror_configured {
            opening.step = opening.without_mirror();
        }
        opening
    }

    /// What to do now. After [`OpeningStep::Ask`], [`Opening::handle_unopened`] follows, or the blob is open.
    pub fn poll(&self, now: Duration) -> OpeningStep {
        match self.step {
            OpeningStep::Wait(until) if now >= until => OpeningStep::Ask,
            step => step,
        }
    }

    /// The mirror was asked, and the blob is not open. `mirror_grace`: how long the mirror may be lost before upstream is asked.
    pub fn handle_unopened(&mut self, now: Duration, unopened: Unopened, mirror_grace: Duration) {
        let again = OpeningStep::Wait(now + REOPEN_DELAY);
        self.failing_since = match unopened {
            Unopened::Unavailable => self.failing_since.or(Some(now)),
            _ => None,
        };
        let is_early = now.saturating_sub(self.since) < REFUSED_PATIENCE;
        let has_failed = |since| now.saturating_sub(since) >= ERROR_PATIENCE;
        self.step = match unopened {
            Unopened::Lost { lost } if lost.is_some_and(|lost| lost >= mirror_grace) => self.without_mirror(),
            Unopened::Lost { .. } => again,
            Unopened::Pending if is_early => again,
            Unopened::Unavailable if is_early && !self.failing_since.is_some_and(has_failed) => again,
            Unopened::Pending | Unopened::Unavailable | Unopened::Refused => OpeningStep::Fail,
        };
    }

    fn without_mirror(&self) -> OpeningStep {
        match self.may_use_upstream {
            true => OpeningStep::UseUpstream,
            false => OpeningStep::Fail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);
    const START: Duration = Duration::from_secs(100);

    /// Asks until there is another step than to wait, at a mirror that has answered last at `START`; returns that step, when it came,
    /// and how often the mirror was asked.
    fn follow(mut opening: Opening, answer: impl Fn(Duration) -> Unopened) -> (OpeningStep, Duration, u32) {
        let (mut now, mut asked) = (START, 0);
        loop {
            match opening.poll(now) {
                OpeningStep::Ask => {
                    asked += 1;
                    opening.handle_unopened(now, answer(now - START), GRACE);
                }
                OpeningStep::Wait(until) => {
                    assert!(until > now, "time passes");
                    now = until;
                }
                step => return (step, now - START, asked),
            }
        }
    }

    fn lost(time: Duration) -> Unopened {
        Unopened::Lost { lost: Some(time) }
    }

    #[test]
    fn a_lost_mirror_is_asked_for_its_grace_and_then_upstream_where_it_is_allowed() {
        let asked = 1 + u32::try_from(GRACE.as_millis() / REOPEN_DELAY.as_millis()).unwrap();
        let end = follow(Opening::new(START, true, true), lost);
        assert_eq!(end, (OpeningStep::UseUpstream, GRACE, asked));
        let end = follow(Opening::new(START, true, false), lost);
        assert_eq!(end, (OpeningStep::Fail, GRACE, asked));
    }

    #[test]
    fn a_mirror_that_was_lost_long_before_is_asked_once() {
        let end = follow(Opening::new(START, true, true), |time| lost(time + GRACE));
        assert_eq!(end, (OpeningStep::UseUpstream, Duration::ZERO, 1));
    }

    #[test]
    fn a_mirror_that_has_answered_meanwhile_has_its_whole_grace() {
        let answered_at = Duration::from_secs(3);
        let end = follow(Opening::new(START, true, true), |time| match time < answered_at {
            true => lost(time),
            false => Unopened::Lost {
                lost: time.checked_sub(answered_at).filter(|lost| !lost.is_zero()),
            },
        });
        assert_eq!((end.0, end.1), (OpeningStep::UseUpstream, answered_at + GRACE));
    }

    #[test]
    fn a_mirror_that_waits_for_upstream_is_asked_for_ten_seconds_and_upstream_is_not() {
        let asked = 1 + u32::try_from(REFUSED_PATIENCE.as_millis() / REOPEN_DELAY.as_millis()).unwrap();
        let end = follow(Opening::new(START, true, true), |_| Unopened::Pending);
        assert_eq!(end, (OpeningStep::Fail, REFUSED_PATIENCE, asked));
    }

    #[test]
    fn a_mirror_that_answers_with_errors_is_asked_no_longer_than_a_client_waits_and_upstream_is_not() {
        let asked = 1 + u32::try_from(ERROR_PATIENCE.as_millis() / REOPEN_DELAY.as_millis()).unwrap();
        let end = follow(Opening::new(START, true, true), |_| Unopened::Unavailable);
        assert_eq!(end, (OpeningStep::Fail, ERROR_PATIENCE, asked));
    }

    /// Any order of answers ends within ten seconds of the first question that the mirror answers to the end, and errors in a row within two.
    #[test]
    fn errors_count_in_a_row_and_an_open_question_begins_them_again() {
        let open_until = Duration::from_secs(3);
        let end = follow(Opening::new(START, true, true), |time| match time < open_until {
            true => Unopened::Pending,
            false => Unopened::Unavailable,
        });
        assert_eq!((end.0, end.1), (OpeningStep::Fail, open_until + ERROR_PATIENCE));
        let by_turns = |time: Duration| match time.as_secs() % 2 {
            0 => Unopened::Unavailable,
            _ => Unopened::Pending,
        };
        let end = follow(Opening::new(START, true, true), by_turns);
        assert_eq!((end.0, end.1), (OpeningStep::Fail, REFUSED_PATIENCE));
    }

    #[test]
    fn a_mirror_that_comes_back_with_an_error_is_not_lost_any_more() {
        let back = Duration::from_secs(4);
        let end = follow(Opening::new(START, true, true), |time| match time < back {
            true => lost(time),
            false => Unopened::Refused,
        });
        assert_eq!((end.0, end.1), (OpeningStep::Fail, back));
    }

    #[test]
    fn a_refusal_is_final() {
        let end = follow(Opening::new(START, true, true), |_| Unopened::Refused);
        assert_eq!(end, (OpeningStep::Fail, Duration::ZERO, 1));
    }

    #[test]
    fn without_a_mirror_upstream_is_asked_at_once_where_it_is_allowed() {
        assert_eq!(Opening::new(START, false, true).poll(START), OpeningStep::UseUpstream);
        assert_eq!(Opening::new(START, false, false).poll(START), OpeningStep::Fail);
    }
}
