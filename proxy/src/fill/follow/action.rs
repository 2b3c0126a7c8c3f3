//! Actions of a transfer behind a leader: everything that its task does for it, and the facts that it answers with.
//!
//! Plain values: they hold no time and no handle.

/// What the task does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Look which transfer leads, and answer with [`super::machine::Following::handle_leader`].
    FindLeader,
    /// Wait for the leader's first bytes, and answer with [`super::machine::Following::handle_first_bytes`].
    AwaitBytes,
    /// Ask this upstream whether it has the blob, and answer with [`super::machine::Following::handle_reply`].
    AskUpstream,
    /// Compare so many of the leader's bytes with this upstream's, and answer with [`super::machine::Following::handle_reply`].
    Compare(u64),
    /// Let the readers read what the leader fills.
    Follow,
    /// Let the readers wait for another fill: the leader's has failed.
    StartOver,
    /// Leave the leader, and take a place to fill apart. [`super::machine::Following::handle_done`] answers this and the next three.
    TakePlace,
    /// Ask this upstream for the whole blob. The leader's bytes are used no further.
    OpenBody,
    /// Take room in memory for it.
    TakeRoom,
    /// Receive and prove it.
    Receive,
    /// Take over what the leader has of it from its beginning on, receive the rest and prove it.
    TakeOver,
    /// Compare what the leader fills with the proven blob, and answer with [`super::machine::Following::handle_rival`].
    Judge,
    /// The same with the transfer that leads now.
    JudgeNext,
    /// End the leader that was judged.
    EndLeader(Reason),
    /// Nothing is left to decide.
    End(End),
}

/// Why a leader is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// It has sent other bytes than the blob's.
    OtherBytes,
    /// It has sent nothing while this upstream has sent the whole blob.
    Silent,
    /// It has sent the blob's bytes so slowly that this upstream has taken over, and the blob is to be kept.
    Slow,
}

/// How the decisions end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The transfer leads: it fills the kept blob.
    Lead,
    /// The leader has brought the blob.
    Followed,
    /// The blob was filled apart, and a leader goes on.
    Apart,
    /// The blob was filled apart, and no leader is left: it is kept.
    Keep,
    /// Too many blobs are filled apart.
    Crowded,
    /// This upstream's last error is the reason.
    Failed,
}

/// The transfer that leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leader {
    /// No other one: this transfer leads.
    Own,
    /// Another upstream's, in a public repository.
    Public,
    /// Another upstream's, in a private repository.
    Private,
}

/// This upstream's reply to a question about the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// It has the blob, or the bytes that were compared.
    Has,
    /// It has other bytes than the leader.
    Other,
    Refuses,
    Fails,
}

/// What the leader's transfer fills, beside the proven blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rival {
    /// What has come, in bytes. `None`: it fills nothing.
    pub(super) arrived: Option<u64>,
    /// All pieces that it has are the blob's.
    pub(super) agrees: bool,
    /// It lacks pieces that the proven blob still has: the blob can be kept in its place.
    pub(super) lacks: bool,
}
