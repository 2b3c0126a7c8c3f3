//! Table of the connected members: where each member's orders go, and where its piece port answers.

use std::{collections::HashMap, sync::Arc};

use lru::LruCache;
use piecemeal_proto::{NodeId, wire};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    admission::AdmittedBy,
    brain::{MemberId, Role},
    outbox::Outgoing,
    session_end::SessionEnd,
};

/// One session in force.
pub(crate) struct Entry {
    pub(crate) node: NodeId,
    pub(crate) role: Role,
    pub(crate) pool: String,
    pub(crate) incarnation: u64,
    /// The daemon has signed: it is the node.
    pub(crate) signed: bool,
    pub(crate) by: AdmittedBy,
    pub(crate) host_name: String,
    pub(crate) release: String,
    /// What leases say of it.
    pub(crate) source: Arc<wire::Source>,
    pub(crate) outbox: mpsc::Sender<Outgoing>,
    /// Ends the session; so does dropping it.
    pub(crate) end: oneshot::Sender<SessionEnd>,
    pub(crate) heard: Instant,
}

/// Every session in force, at most one a node.
#[derive(Default)]
pub(crate) struct Members {
    by_id: HashMap<MemberId, Entry>,
    by_node: HashMap<NodeId, MemberId>,
    signed: Signed,
}

/// The nodes that have signed: under their ids no unsigned hello is taken.
struct Signed(LruCache<NodeId, ()>);

impl Default for Signed {
    fn default() -> Self {
        // Unbounded, and bounded where it grows: a table of this size would be allocated at once.
        Self(LruCache::unbounded())
    }
}

impl Members {
    pub(crate) fn get(&self, member: MemberId) -> Option<&Entry> {
        self.by_id.get(&member)
    }

    pub(crate) fn get_mut(&mut self, member: MemberId) -> Option<&mut Entry> {
        self.by_id.get_mut(&member)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (MemberId, &Entry)> {
        self.by_id.iter().map(|(&member, entry)| (member, entry))
    }

    /// The session that `node` has already.
    pub(crate) fn of_node(&self, node: NodeId) -> Option<(MemberId, &Entry)> {
        let &member = self.by_node.get(&node)?;
        Some((member, self.get(member)?))
    }

    /// Whether the node has signed a hello, not so long ago that it is forgotten.
    pub(crate) fn has_signed(&self, node: &NodeId) -> bool {
        self.signed.0.contains(node)
    }

    /// The node must not be connected yet.
    pub(crate) fn insert(&mut self, member: MemberId, entry: Entry) {
        if entry.signed {
            self.signed.0.put(entry.node, ());
            if self.signed.0.len() > SIGNED_MAX {
                self.signed.0.pop_lru();
            }
        }
        let other = self.by_node.insert(entry.node, member);
        assert!(other.is_none(), "an older session is removed first");
        self.by_id.insert(member, entry);
    }

    pub(crate) fn remove(&mut self, member: MemberId) -> Option<Entry> {
        let entry = self.by_id.remove(&member)?;
        self.by_node.remove(&entry.node);
        Some(entry)
    }
}

impl Entry {
    /// Whether a connection of the same node, in `role` with `incarnation`, replaces this one. A mirror's key outweighs a
    /// signature, and a signature any incarnation: peers, who share one `join.key`, could otherwise put out the mirror, or each
    /// other, by an id alone.
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
