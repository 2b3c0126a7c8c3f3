//!
//! Configuration and events of a session.
//!
//! Invariant: an event is checked before it is sent.

use std::{net::SocketAddr, ops::Range, sync::Arc};

use async_trait::async_trait;
use piecemeal_proto::{AuthorityPublic, Digest, FillId, NodeKey, RoleKey, SignedPieceHashes, wire};

use crate::Limiter;

/// Identity of this daemon, and address of its scheduler.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The scheduler's URL, `http://host:65012` or `https://host:65012`.
    pub scheduler: String,
    /// The authority that the scheduler must belong to, when the URL is `https`.
    pub authority: AuthorityPublic,
    pub role: wire::Role,
    /// The secret of the role: proves that the daemon belongs to the site.
    pub role_key: RoleKey,
    /// The daemon's own key.
    pub node_key: Arc<NodeKey>,
    /// The node's name as its administrator knows it; may be empty.
    pub host_name: String,
    pub pool: String,
    pub zone: String,
    /// Addresses of the piece port. Empty: the address that the scheduler observes, with `piece_port`.
    pub addresses: Vec<SocketAddr>,
    pub piece_port: u16,
    pub may_use_upstream: bool,
    /// The limiter of its pieces. Each hello states its rate.
    pub limiter: Limiter,
    /// Higher than at any earlier start; each connection adds one.
    pub incarnation: u64,
}

/// An event from the scheduler, checked.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionEvent {
    /// The scheduler has welcomed this daemon, or speaks again after a silence. After a welcome the inventory follows.
    Up,
    /// The scheduler was silent for a second, or the connection is gone: leases may be lost, and wants do not arrive.
    Down,
    /// The digest, the source and its addresses, the range and the number of hashes are well formed, and the ticket is text.
    Lease(wire::Lease),
    Cancel(u64),
    Revoked {
        digest: Digest,
        fill: FillId,
    },
    /// These pieces of a fill are not to be kept or offered. They lie within [`piecemeal_proto::PIECE_COUNT_MAX`].
    Drop {
        digest: Digest,
        fill: FillId,
        pieces: Vec<Range<u32>>,
    },
    /// The hashes of all pieces of a blob. The authority has signed them.
    PieceHashes(SignedPieceHashes),
    /// Asks for `Have`, with hashes, of all pieces of a blob that are here.
    Describe(Digest),
    WantRefused {
        digest: Digest,
        reason: String,
    },
    /// To a mirror. The pieces are at most [`wire::WAITING_MAX`], and lie within [`piecemeal_proto::PIECE_COUNT_MAX`].
    Clients {
        digest: Digest,
        /// Whether a client is connected at any node that wants the blob; `None`: as stated before.
        connected: Option<bool>,
        /// Pieces that a client waits for and no node has.
        waiting: Vec<u32>,
    },
    /// An image that this node should have ahead of its use. Its names and digests are well formed, and not too many.
    Warm(wire::Warm),
}

/// The local content, read at each connection.
#[async_trait]
pub trait Inventory: Send + Sync {
    /// The complete blobs.
    async fn complete(&self) -> Vec<Digest>;
    /// `Want` and `Have` for blobs in flight.
    async fn live(&self) -> Vec<wire::report::Report>;
}
