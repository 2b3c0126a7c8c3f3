//! Challenges of a registry at `/v2/`: which of them clients get, and when the registry is asked again.
//!
//! Clients that ping (podman, skopeo, CRI-O, Docker) show a credential later only if the answer has a challenge. A challenge with
//! Bearer also makes those without a credential fetch a token, from where they are. So the challenge of a registry that serves callers
//! without a credential is not passed on: what is public costs a client no token, and needs no way to a token server.
//!
//! Invariant: one question is asked at a time, and its answer counts for all clients.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// The time for which an answer to the question counts.
pub(crate) const PING_LIFE: Duration = Duration::from_secs(5 * 60);
/// The same for a mirror's answer, which the mirror itself remembers.
pub(crate) const PING_LIFE_AT_MIRROR: Duration = Duration::from_secs(10);
/// The wait after a question without an answer.
const PING_RETRY: Duration = Duration::from_secs(10);
/// The time for which the refusal of a caller without a credential counts.
const REFUSED_LIFE: Duration = Duration::from_secs(10 * 60);

/// Pings of one upstream.
#[derive(Default)]
pub(crate) struct Pings(watch::Sender<State>);

#[derive(Debug, Default)]
struct State {
    /// As the registry answered last.
    known: Known,
    /// The time at which the question is due again.
    due: Option<Instant>,
    is_asking: bool,
    /// The last time that the registry refused a caller without a credential.
    refused: Option<Instant>,
}

/// An answer to the question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    /// The challenge, if there is one that a client may get.
    challenge: Option<String>,
    /// Whether its token server gives a token without a credential.
    gives_tokens: bool,
}

/// A question that is under way. Dropped before it has an answer, it is due again after [`PING_RETRY`].
pub(crate) struct Question<'a> {
    pings: &'a Pings,
    life: Duration,
    known: Option<Known>,
}

impl Question<'_> {
    /// `challenge`: the one that a client may get. `gives_tokens`: whether the token server gives one without a credential.
    pub(crate) fn answer(mut self, challenge: Option<String>, gives_tokens: bool) {
        self.known = Some(Known {
            challenge,
            gives_tokens,
        });
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        self.pings.0.send_modify(|state| {
            state.is_asking = false;
            state.due = Some(now + if self.known.is_some() { self.life } else { PING_RETRY });
            if let Some(known) = self.known.take() {
                state.known = known;
            }
        });
    }
}

impl State {
    /// Whether the question is to be asked now; the next caller waits for this one.
    fn begin(&mut self, now: Instant) -> bool {
        let is_due = !self.is_asking && self.due.is_none_or(|due| due <= now);
        self.is_asking |= is_due;
        is_due
    }

    /// The challenge for clients. `serves_public`: the registry has served a caller without a credential.
    fn for_clients(&self, serves_public: bool, now: Instant) -> Option<&str> {
        let challenge = self.known.challenge.as_deref()?;
        let is_refused = self
            .refused
            .is_some_and(|at| now.saturating_duration_since(at) < REFUSED_LIFE);
        // Other schemes cost a client without a credential nothing.
        let is_bearer = challenge.to_ascii_lowercase().contains("bearer");
        let is_private = !serves_public && (!self.known.gives_tokens || is_refused);
        (!is_bearer || is_private).then_some(challenge)
    }
}

impl Pings {
    /// Begins the question if it is due.
    pub(crate) fn begin(&self, now: Instant) -> bool {
        self.0.send_if_modified(|state| state.begin(now))
    }

    /// `life`: the time for which its answer will count.
    pub(crate) fn question(&self, life: Duration) -> Question<'_> {
        Question {
            pings: self,
            life,
            known: None,
        }
    }

    /// Ends when no question is under way.
    pub(crate) async fn answered(&self) {
        let mut state = self.0.subscribe();
        // The sender lives as long as this.
        let _ = state.wait_for(|state| !state.is_asking).await;
    }

    /// The registry's challenge, as it came.
    pub(crate) fn challenge(&self) -> Option<String> {
        self.0.borrow().known.challenge.clone()
    }

    /// The challenge for clients. `serves_public`: the registry has served a caller without a credential.
    pub(crate) fn challenge_for_clients(&self, serves_public: bool, now: Instant) -> Option<String> {
        self.0.borrow().for_clients(serves_public, now).map(str::to_owned)
    }

    /// The registry has refused a caller without a credential.
    pub(crate) fn refused(&self, now: Instant) {
        self.0.send_if_modified(|state| {
            state.refused = Some(now);
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASIC: &str = r#"Basic realm="clients""#;
    const BEARER: &str = r#"Bearer realm="https://auth.test/token",service="a.test""#;

    fn state(challenge: Option<&str>, gives_tokens: bool, refused: Option<Instant>) -> State {
        State {
            known: Known {
                challenge: challenge.map(str::to_owned),
                gives_tokens,
            },
            refused,
            ..State::default()
        }
    }

    #[test]
    fn clients_get_the_challenge_of_what_is_private_and_none_of_what_is_public() {
        let now = Instant::now();
        let at = |seconds| Some(now - Duration::from_secs(seconds));
        for (challenge, gives_tokens, refused, serves_public, passed_on) in [
            (None, false, at(1), false, false),
            (Some(BASIC), false, None, false, true),
            (Some(BASIC), false, None, true, true),
            (Some(BEARER), false, None, false, true),
            (Some(BEARER), false, None, true, false),
            (Some(BEARER), true, None, false, false),
            (Some(BEARER), true, at(599), false, true),
            (Some(BEARER), true, at(600), false, false),
            (Some(BEARER), true, at(1), true, false),
        ] {
            let state = state(challenge, gives_tokens, refused);
            let passed = state.for_clients(serves_public, now);
            assert_eq!(passed, challenge.filter(|_| passed_on), "{state:?} {serves_public}");
        }
    }

    #[test]
    fn one_question_is_asked_at_a_time_and_its_answer_counts_for_its_life() {
        let (pings, now) = (Pings::default(), Instant::now());
        assert!(pings.begin(now) && !pings.begin(now));
        pings.question(PING_LIFE).answer(Some(BASIC.to_owned()), false);
        assert!(!pings.begin(now + PING_LIFE / 2) && pings.begin(now + PING_LIFE * 2));
        drop(pings.question(PING_LIFE));
        assert_eq!(pings.challenge().as_deref(), Some(BASIC), "what was known stays");
        assert!(!pings.begin(now + PING_RETRY / 2) && pings.begin(now + PING_RETRY * 2));
    }
}
