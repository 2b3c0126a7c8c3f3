//! Actions of a fill: everything that its task does for it, in the order in which the machine gives them.

use std::ops::Range;

/// What the task does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask upstream for these bytes on another connection, and answer with [`super::Fill::handle_answered`].
    Request { connection: u64, bytes: Range<u64> },
    /// Receive these bytes from the body that has just begun, and answer with [`super::Fill::handle_ended`].
    Receive { connection: u64, bytes: Range<u64> },
    /// Receive from a body to this offset from now on: another connection has taken the rest of its segment, or has given it back.
    MoveEnd { connection: u64, end: u64 },
    /// Close a connection whose body has just begun: it is not needed.
    Close(u64),
    /// Note that upstream has answered 429.
    NoteTooManyRequests,
    /// Note that upstream does not support ranges.
    NoteNoRanges,
    /// Go on with the right of another caller, and answer with [`super::Fill::handle_next_right`].
    NextRight,
    /// Let the blob's readers begin: upstream has answered.
    Open,
    /// All bytes have landed. The fill is over.
    Finish,
    /// End the fill. What has landed is kept for the next one.
    Fail(Failure),
}

/// Why a fill ends without all of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Upstream has refused or failed the first requests: its last error is the reason.
    Unanswered,
    /// Upstream's last error is the reason: it stands for every right, or upstream has failed for too long.
    Upstream,
    /// The blob does not fit into the cache, and its last reader has left.
    Unread,
}
