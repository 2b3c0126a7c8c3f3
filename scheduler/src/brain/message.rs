//! Events that go into the brain, and commands that come out of it.

use std::{ops::Range, sync::Arc, time::Duration};

use piecemeal_proto::{Digest, FillId, NodeId, PieceMap, PieceSet, SignedPieceHashes};

/// Since an arbitrary start; never runs backwards.
pub type Time = Duration;

/// One connection of a daemon. Never used again for another connection while the brain lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u32);

/// One order to fetch. Never used again while the brain lives; another brain starts elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes pieces and gives them.
    Peer,
    /// Only gives them; its word for fills and hashes is the authority's.
    Mirror,
}

/// A daemon that has connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub node: NodeId,
    /// It has signed: it is the node. The id of one that has not is its word alone, and what it does is not held against the node.
    pub signed: bool,
    pub role: Role,
    /// Members of different pools cannot reach each other.
    pub pool: String,
    /// Sources in the receiver's own zone are preferred among equals.
    pub zone: String,
    pub may_use_upstream: bool,
    pub features: Features,
}

/// What may be commanded of a member beyond what every release understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// [`Command::PieceHashes`].
    pub piece_hashes: bool,
    /// [`Command::Drop`].
    pub drop: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Replaces an older connection of the same node.
    Joined {
        member: MemberId,
        info: Member,
    },
    Left {
        member: MemberId,
    },
    /// Any message, an empty heartbeat too.
    Heard {
        member: MemberId,
    },
    /// It wants the blob and already holds the pieces `have` of `fill`. Repeated: the truth as of now.
    /// A peer that knows of no fill says `FillId(0)`. From a mirror it only states fill, map and pieces.
    Want {
        member: MemberId,
        digest: Digest,
        map: PieceMap,
        fill: FillId,
        have: PieceSet,
        /// It has room for these alone; `None`: for all.
        window: Option<Range<u32>>,
    },
    /// It does not want the blob any more; it may go on serving what it holds.
    Unwant {
        member: MemberId,
        digest: Digest,
    },
    /// It holds the verified pieces from `first`, one a hash.
    Have {
        member: MemberId,
        digest: Digest,
        map: PieceMap,
        fill: FillId,
        first: u32,
        hashes: Vec<Option<[u8; 32]>>,
    },
    /// It holds the whole verified blob, which is good under any fill.
    Complete {
        member: MemberId,
        digest: Digest,
    },
    /// It holds nothing of the blob any more.
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
    /// By a mirror: that download was bad.
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
    /// By the receiver.
    LeaseEnded {
        member: MemberId,
        lease: LeaseId,
        outcome: Outcome,
    },
    /// A connected client has had no byte for a second: it waits in this piece.
    Waiting {
        member: MemberId,
        digest: Digest,
        piece: u32,
    },
}

/// How a lease ended for its receiver.
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
    /// The source would not serve.
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
    /// Stop fetching; whatever has landed stays. Not answered, though a `LeaseEnded` may be on its way.
    Cancel {
        to: MemberId,
        lease: LeaseId,
    },
    Revoked {
        to: MemberId,
        digest: Digest,
        fill: FillId,
    },
    /// Report `Have`, with hashes, for all that you hold of the blob.
    Describe {
        to: MemberId,
        digest: Digest,
    },
    /// Drop these pieces of the fill, whether or not they have landed; then say again what you hold (`Want`).
    Drop {
        to: MemberId,
        digest: Digest,
        fill: FillId,
        pieces: Arc<[Range<u32>]>,
    },
    /// For a member that wants or holds the blob: to be kept beside it.
    PieceHashes {
        to: MemberId,
        list: Arc<SignedPieceHashes>,
    },
}

/// A peer whose word for a piece's hash was used, until the authority stated another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conviction {
    pub node: NodeId,
    /// As [`Member::signed`].
    pub signed: bool,
    pub digest: Digest,
    /// The first such piece.
    pub piece: u32,
}

/// Fetch pieces `first..first + count` from `source`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub id: LeaseId,
    pub digest: Digest,
    /// The fill in force and its cut: a receiver that holds pieces of another drops them.
    pub fill: FillId,
    pub map: PieceMap,
    pub first: u32,
    pub count: u32,
    pub source: Source,
    pub priority: Priority,
    /// One a piece, all known unless the source is upstream.
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
            | Self::PieceHashes { to, .. } => *to,
        }
    }
}
