//!
//! Messages of the brain: events go in, commands come out.
//!
//! Invariant: an id is never used again while the brain lives.

use std::{ops::Range, sync::Arc, time::Duration};

use piecemeal_proto::{Digest, FillId, NodeId, PieceMap, PieceSet, SignedPieceHashes};

/// Time since an arbitrary start. It never runs backwards.
pub type Time = Duration;

/// Id of one connection of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u32);

/// Id of one lease. Another brain starts with other ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Fetches pieces and serves them.
    Peer,
    /// Only serves them. Its statements of fills and hashes are the authority's.
    Mirror,
}

/// A daemon that has connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub node: NodeId,
    /// The daemon signed its hello, which proves its node id. Without a signature the id is a mere claim, and what the daemon
    /// does is not held against the node.
    pub signed: bool,
    pub role: Role,
    /// Members of different pools cannot reach each other.
    pub pool: String,
    /// Sources in the receiver's own zone are preferred among equals.
    pub zone: String,
    pub may_use_upstream: bool,
    pub features: Features,
}

/// Commands that the daemon understands beyond those that every release does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// [`Command::PieceHashes`].
    pub piece_hashes: bool,
    /// [`Command::Drop`].
    pub drop: bool,
    /// [`Command::Clients`].
    pub clients: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A daemon connected. It replaces an older connection of the same node.
    Joined {
        member: MemberId,
        info: Member,
    },
    Left {
        member: MemberId,
    },
    /// Any message of the daemon, an empty heartbeat too.
    Heard {
        member: MemberId,
    },
    /// The member wants the blob and already holds the pieces `have` of `fill`. A repeated want replaces the earlier one. A
    /// peer that knows of no fill states `FillId(0)`. A mirror wants nothing: its want states fill, map and pieces alone.
    Want {
        member: MemberId,
        digest: Digest,
        map: PieceMap,
        fill: FillId,
        have: PieceSet,
        /// The pieces that it has room for; `None`: all.
        window: Option<Range<u32>>,
    },
    /// The member does not want the blob any more; it may go on serving the pieces that it holds.
    Unwant {
        member: MemberId,
        digest: Digest,
    },
    /// The member holds the verified pieces from `first`, one for each hash.
    Have {
        member: MemberId,
        digest: Digest,
        map: PieceMap,
        fill: FillId,
        first: u32,
        hashes: Vec<Option<[u8; 32]>>,
    },
    /// The member holds the whole verified blob, which is good under any fill.
    Complete {
        member: MemberId,
        digest: Digest,
    },
    /// The member holds nothing of the blob any more.
    Lost {
        member: MemberId,
        digest: Digest,
    },
    /// By a mirror: the blob's own digest is proven over this fill.
    Proven {
        member: MemberId,
        digest: Digest,
        fill: FillId,
    },
    /// By a mirror: this fill was bad.
    Revoke {
        member: MemberId,
        digest: Digest,
        fill: FillId,
    },
    /// By a peer: it held every piece of this fill, and the whole had another digest.
    Doubt {
        member: MemberId,
        digest: Digest,
        fill: FillId,
    },
    /// The hashes of all pieces of a proven blob. The session has checked that the authority signed them.
    PieceHashes {
        member: MemberId,
        list: Arc<SignedPieceHashes>,
    },
    /// By the receiver of the lease.
    LeaseEnded {
        member: MemberId,
        lease: LeaseId,
        outcome: Outcome,
    },
    /// Whether a client is connected to the member that waits for the blob, which the member wants. Until it says so, one is.
    Client {
        member: MemberId,
        digest: Digest,
        connected: bool,
    },
    /// A connected client waits in this piece. The latest [`WAITING_MAX`](piecemeal_proto::wire::WAITING_MAX) of a member and blob count.
    Waiting {
        member: MemberId,
        digest: Digest,
        piece: u32,
    },
}

/// Outcome of a lease for its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds every piece of the lease.
    Done,
    /// The source did not answer.
    Unreachable,
    /// The source answered, then sent nothing for a second.
    Stalled,
    /// The source sent other bytes than the hash says.
    Corrupt { piece: u32 },
    /// The source does not hold the piece.
    Missing { piece: u32 },
    /// The source refused to serve.
    Refused,
    /// The receiver itself gave up.
    Cancelled,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Lease {
        to: MemberId,
        lease: Lease,
    },
    /// Stop to fetch; pieces that have landed stay. The receiver does not answer, though a `LeaseEnded` may be on its way.
    Cancel {
        to: MemberId,
        lease: LeaseId,
    },
    Revoked {
        to: MemberId,
        digest: Digest,
        fill: FillId,
    },
    /// Report `Have`, with hashes, for all pieces that you hold of the blob.
    Describe {
        to: MemberId,
        digest: Digest,
    },
    /// Drop these pieces of the fill, whether or not they have landed; then report what you hold in a `Want`.
    Drop {
        to: MemberId,
        digest: Digest,
        fill: FillId,
        pieces: Arc<[Range<u32>]>,
    },
    /// To a mirror: the clients of a blob.
    Clients {
        to: MemberId,
        digest: Digest,
        /// Whether a client is connected to any member that wants the blob; `None`: as stated before.
        connected: Option<bool>,
        /// Pieces that a client waits for and no member holds: the mirror fetches them next. At most [`WAITING_MAX`](piecemeal_proto::wire::WAITING_MAX).
        waiting: Vec<u32>,
    },
    /// To keep beside the blob, which the member wants or holds.
    PieceHashes {
        to: MemberId,
        list: Arc<SignedPieceHashes>,
    },
}

/// A peer whose claim for a piece's hash was used, until the authority stated another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conviction {
    pub node: NodeId,
    /// As [`Member::signed`].
    pub signed: bool,
    pub digest: Digest,
    /// The first piece with a wrong hash.
    pub piece: u32,
}

/// Fetch pieces `first..first + count` from `source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub id: LeaseId,
    pub digest: Digest,
    /// The fill in force and its cut: a receiver drops the pieces that it holds of another fill.
    pub fill: FillId,
    pub map: PieceMap,
    pub first: u32,
    pub count: u32,
    pub source: Source,
    pub priority: Priority,
    /// One for each piece; all are known unless the source is upstream.
    pub hashes: Vec<Option<[u8; 32]>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Member(MemberId),
    Upstream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    Normal,
    /// A connected client waits for it: before anything that is queued.
    Waiting,
}

impl Command {
    /// The member that the command is for.
    pub fn to(&self) -> MemberId {
        match self {
            Self::Lease { to, .. }
            | Self::Cancel { to, .. }
            | Self::Revoked { to, .. }
            | Self::Describe { to, .. }
            | Self::Drop { to, .. }
            | Self::Clients { to, .. }
            | Self::PieceHashes { to, .. } => *to,
        }
    }
}
