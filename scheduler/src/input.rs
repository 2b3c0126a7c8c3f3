//! Input of placement: messages of sessions and of the admin port to the task that owns the brain.
//!
//! Invariant: events and prefetch requests carry their share of the memory that may wait for placement.

use std::sync::Arc;

use piecemeal_proto::wire;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::{
    admission::{Admitted, RefuseHelloError},
    brain::{Event, MemberId},
    outbox::Outgoing,
    session_end::SessionEnd,
    status::Snapshot,
};

pub(crate) enum Input {
    Join(Join),
    /// In the order in which the daemon reported them.
    Events {
        member: MemberId,
        events: Vec<Event>,
        budget: OwnedSemaphorePermit,
    },
    Leave {
        member: MemberId,
    },
    /// A mirror asks the peers of its pool to prefetch content.
    Warm {
        mirror: MemberId,
        warm: Arc<wire::Warm>,
        budget: OwnedSemaphorePermit,
    },
    /// The rules of admission have changed.
    Admission,
    Status {
        reply: oneshot::Sender<Snapshot>,
    },
    /// Asks the task for a sign of life.
    Ping {
        reply: oneshot::Sender<()>,
    },
    #[cfg(test)]
    Fail,
}

/// An admitted daemon asks to become a member.
pub(crate) struct Join {
    pub(crate) admitted: Admitted,
    pub(crate) outbox: mpsc::Sender<Outgoing>,
    /// Ends the session; so does dropping it.
    pub(crate) end: oneshot::Sender<SessionEnd>,
    pub(crate) reply: oneshot::Sender<Result<MemberId, RefuseHelloError>>,
}
