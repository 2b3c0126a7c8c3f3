//! Fault of a request or of a body, as far as the course of a fill depends on it.

use piecemeal_upstream::PullError;

/// Why a request or a body has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Upstream refuses the right of the request: another caller may get another answer, a later request does not.
    Refused,
    /// Upstream asks to come back later: 429. Another caller may get another answer.
    TooManyRequests,
    /// The store has failed.
    Store,
    /// Anything that a later request may not meet.
    Passing,
}

impl Fault {
    /// Whether it concerns one right only.
    pub(super) fn is_refusal(self) -> bool {
        matches!(self, Self::Refused | Self::TooManyRequests)
    }

    /// Whether there is no sense in another try with the same right.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Refused | Self::Store)
    }
}

impl From<&PullError> for Fault {
    fn from(error: &PullError) -> Self {
        match error {
            PullError::TooManyRequests { .. } => Self::TooManyRequests,
            PullError::Store(_) => Self::Store,
            error if error.is_verdict() => Self::Refused,
            _ => Self::Passing,
        }
    }
}
