//! Actions of a download: everything that its task does for it, in the order in which the machine gives them.

use std::sync::Arc;

use piecemeal_proto::{SignedPieceHashes, wire::Lease};

use super::ended::Ended;

/// What the task does next.
#[derive(Clone, Debug)]
pub enum Action {
    /// Fetch these of the lease's pieces from the lease's source.
    FetchLease { lease: Lease, pieces: Vec<u32> },
    /// Stop the lease's fetch, if it goes on. The scheduler knows that the lease has ended.
    AbortLease(u64),
    /// Report to the scheduler that the lease has ended.
    EndLease { lease: u64, ended: Ended },
    /// Fetch one piece from the mirror without a lease.
    FetchPiece(u32),
    /// Fetch all missing pieces from upstream.
    FetchRest,
    /// Ask the mirror for the blob again. `suspect`: a piece that the mirror is to verify.
    Reopen { suspect: Option<u32> },
    /// Note that the mirror's piece port does not answer.
    NoteMirrorLost,
    /// Compare the stored pieces with the list, and answer with [`super::Download::handle_compared`].
    Compare(Arc<SignedPieceHashes>),
    /// Remove these pieces from the store, and answer with [`super::Download::handle_stored`].
    TakeBack(Vec<u32>),
    /// Report the want to the scheduler, and keep it for the next connection.
    SendWant,
    /// Keep the want, which has a new grant, for the next connection.
    RenewWant,
    /// Report the piece that a client waits for to the scheduler.
    SendWaiting(u32),
    /// Report to the scheduler that the blob is not wanted.
    SendUnwant,
    /// Report to the scheduler that the pieces of an unstored blob are not here any more.
    SendLost,
    /// Prove the blob and publish it, with the authority's word for its pieces. The download is over.
    Publish(Option<Arc<SignedPieceHashes>>),
    /// Discard what has landed.
    Abandon,
    /// End the download. What has landed is kept for the next one, unless it was abandoned.
    Fail(Failure),
}

/// Why a download ends without its blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The mirror has revoked the fill.
    Revoked,
    /// The mirror has begun another fill.
    OtherFill,
    /// The mirror refuses the caller, or has answered with errors for too long: its last error is the reason.
    Mirror,
    /// The fetch from upstream has failed: its error is the reason.
    Upstream,
    /// The store has ended the fill: its failure is the reason.
    Fill,
    /// The blob does not fit into the cache, and its last reader has left.
    Unread,
    /// No piece has landed for so many seconds.
    Idle { seconds: u64 },
}
