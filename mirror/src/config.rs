//! Configuration of a mirror: typed and final, checked before any of it is used.

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use piecemeal_http::Share;
use piecemeal_proto::{AuthorityKey, NodeId};
use url::Url;

use piecemeal_proxy::CacheConfig;
use piecemeal_upstream::{ClientConfig, UpstreamConfig};

/// `piecemeal mirror`.
#[derive(Clone, Debug)]
pub struct MirrorConfig {
    /// Where the registry answers OCI clients.
    pub listen: Vec<SocketAddr>,
    /// Where pieces are served to admitted nodes.
    pub piece_listen: SocketAddr,
    /// Where other nodes reach the piece port; empty: `piece_listen`, or what the scheduler observes when that is a wildcard.
    pub advertise: Vec<SocketAddr>,
    /// What one address may have of a port's connections once they are nearly all taken.
    pub address_share: Share,
    pub cache: CacheConfig,
    pub upstreams: Vec<UpstreamConfig>,
    pub client: ClientConfig,
    /// The most bytes a second that fills may take from upstream; `None`: no limit.
    pub wan_limit: Option<u64>,
    /// While an upstream is lost, how long a right counts that a node's credential has proven.
    pub offline_grace: Duration,
    /// The upstream meant by a request that names none.
    pub default_upstream: Option<String>,
    /// How old a tag's last check upstream may be before it is checked again.
    pub tag_ttl: Duration,
    /// `None`: peers take every piece from this mirror.
    pub scheduler: Option<Url>,
    pub pool: String,
    pub zone: String,
    /// `None`: a plain pull-through cache; nodes cannot ask for pieces.
    pub authority_key: Option<Arc<AuthorityKey>>,
    /// Nodes that are shut out.
    pub revoked: HashSet<NodeId>,
}
