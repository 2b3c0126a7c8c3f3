//! Configuration of a mirror: typed and final, checked before any of it is used.

use std::{collections::HashSet, sync::Arc, time::Duration};

use piecemeal_proto::{AuthorityKey, NodeId};
use piecemeal_proxy::ProxyConfig;

/// `piecemeal mirror`.
#[derive(Clone, Debug)]
pub struct MirrorConfig {
    pub proxy: ProxyConfig,
    /// The most bytes a second that fills may take from upstream; `None`: no limit.
    pub wan_limit: Option<u64>,
    /// The age of a tag's last check upstream from which on it is checked again.
    pub tag_ttl: Duration,
    /// `None`: a plain pull-through cache; nodes cannot ask for pieces.
    pub authority_key: Option<Arc<AuthorityKey>>,
    /// Nodes that are shut out.
    pub revoked: HashSet<NodeId>,
}
