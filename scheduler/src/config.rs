//!
//! Configuration of the scheduler.
//!
//! Invariant: it is typed and final, and checked before any of it is used.

use std::{collections::HashSet, net::SocketAddr, sync::Arc};

use piecemeal_http::Share;
use piecemeal_proto::{AuthorityKey, NodeId};

/// Configuration of `piecemeal scheduler`.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Address on which daemons open their sessions.
    pub listen: SocketAddr,
    /// Share of the connections and sessions that one address may have once they are nearly all taken.
    pub address_share: Share,
    pub authority_key: Arc<AuthorityKey>,
    /// Nodes that are shut out.
    pub revoked: HashSet<NodeId>,
}
