//! Outcome of one fetch, for the scheduler and for the download itself.

use piecemeal_proto::wire::Outcome;

/// How a fetch has ended: the outcome for the scheduler, and the piece that it concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub outcome: Outcome,
    pub piece: u32,
}

impl From<Outcome> for Ended {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, piece: 0 }
    }
}
