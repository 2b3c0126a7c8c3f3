//! Configuration of the scheduler: typed and final, checked before any of it is used.

use std::{collections::HashSet, net::SocketAddr, sync::Arc};

use piecemeal_http::Share;
use piecemeal_proto::{AuthorityKey, NodeId};

/// `piecemeal scheduler`.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Where daemons open their session.
    pub listen: SocketAddr,
    /// What one address may have of the connections and sessions once they are nearly all taken.
    pub address_share: Share,
    pub authority_key: Arc<AuthorityKey>,
    /// Nodes that are shut out.
    pub revoked: HashSet<NodeId>,
}
