//! Table of the connected members: where each member's orders go, and where its piece port answers.
//!
//! Invariant: a node has at most one session.

use std::{collections::HashMap, sync::Arc};

use lru::LruCache;
use piecemeal_proto::{NodeId, wire};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    admission::{Admitted, AdmittedBy},
    brain::{MemberId, Role},
    outbox::Outgoing,
    session_end::SessionEnd,
};

/// A daemon with a session.
pub(crate) struct ConnectedMember {
    pub(crate) node: NodeId,
    pub(crate) role: Role,
    pub(crate) pool: String,
    pub(crate) incarnation: u64,
    /// The daemon signed its hello, which proves its node id.
    pub(crate) signed: bool,
    /// The key that admitted it.
    pub(crate) by: AdmittedBy,
    pub(crate) host_name: String,
    pub(crate) release: String,
    /// The source that leases name for this member.
    pub(crate) source: Arc<wire::Source>,
    pub(crate) outbox: mpsc::Sender<Outgoing>,
    /// Ends the session; so does dropping it.
    pub(crate) end: oneshot::Sender<SessionEnd>,
    /// When the latest report came.
    pub(crate) heard: Instant,
}

#[derive(Default)]
pub(crate) struct Members {
    by_id: HashMap<MemberId, ConnectedMember>,
    by_node: HashMap<NodeId, MemberId>,
    signed: SignedNodes,
}

/// The nodes that have signed a hello, at most [`SIGNED_MAX`]: no unsigned hello is accepted under their ids.
struct SignedNodes(LruCache<NodeId, ()>);

impl Default for SignedNodes {
    fn default() -> Self {
        // Unbounded, and bounded where it grows: a table of this size would be allocated at once.
        Self(LruCache::unbounded())
    }
}

impl Members {
    pub(crate) fn get(&self, member: MemberId) -> Option<&ConnectedMember> {
        self.by_id.get(&member)
    }

    pub(crate) fn get_mut(&mut self, member: MemberId) -> Option<&mut ConnectedMember> {
        self.by_id.get_mut(&member)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (MemberId, &ConnectedMember)> {
        self.by_id.iter().map(|(&member, connected)| (member, connected))
    }

    /// The member that `node` is already.
    pub(crate) fn of_node(&self, node: NodeId) -> Option<(MemberId, &ConnectedMember)> {
        let &member = self.by_node.get(&node)?;
        Some((member, self.get(member)?))
    }

    /// Whether the node is remembered to have signed a hello.
    pub(crate) fn has_signed(&self, node: &NodeId) -> bool {
        self.signed.0.contains(node)
    }

    /// The node must not be connected yet.
    pub(crate) fn insert(&mut self, member: MemberId, connected: ConnectedMember) {
        if connected.signed {
            self.signed.0.put(connected.node, ());
            if self.signed.0.len() > SIGNED_MAX {
                self.signed.0.pop_lru();
            }
        }
        let other = self.by_node.insert(connected.node, member);
        assert!(other.is_none(), "an older session is removed first");
        self.by_id.insert(member, connected);
    }

    pub(crate) fn remove(&mut self, member: MemberId) -> Option<ConnectedMember> {
        let connected = self.by_id.remove(&member)?;
        self.by_node.remove(&connected.node);
        Some(connected)
    }
}

impl ConnectedMember {
    pub(crate) fn new(admitted: Admitted, outbox: mpsc::Sender<Outgoing>, end: oneshot::Sender<SessionEnd>) -> Self {
        let member = admitted.member;
        let kind = match member.role {
            Role::Peer => wire::SourceKind::Peer,
            Role::Mirror => wire::SourceKind::Mirror,
        };
        let source = wire::Source {
            kind: kind.into(),
            node: member.node.0.to_vec(),
            addresses: admitted.addresses,
        };
        Self {
            node: member.node,
            role: member.role,
            pool: member.pool,
            incarnation: admitted.incarnation,
            signed: member.signed,
            by: admitted.by,
            host_name: admitted.host_name,
            release: admitted.release,
            source: Arc::new(source),
            outbox,
            end,
            heard: Instant::now(),
        }
    }

    /// Whether a new session of the same node, in `role` with `incarnation`, replaces this one. A mirror's key outweighs a
    /// signature, and a signature outweighs any incarnation: otherwise peers, which share one `join.key`, could replace the
    /// mirror, or each other, by an id alone.
    pub(crate) fn yields_to(&self, role: Role, signed: bool, incarnation: u64) -> bool {
        match (self.role, role) {
            (Role::Peer, Role::Mirror) => true,
            (Role::Mirror, Role::Peer) => false,
            _ if self.signed != signed => signed,
            _ => self.incarnation < incarnation,
        }
    }
}

/// Several times the nodes that one scheduler is built for.
const SIGNED_MAX: usize = 65_536;
