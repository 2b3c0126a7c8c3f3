//! Configuration of a peer: typed and final, checked before any of it is used.

use std::{net::SocketAddr, time::Duration};

use piecemeal_http::Share;
use piecemeal_proto::JoinKey;
use piecemeal_proxy::CacheConfig;
use piecemeal_upstream::{ClientConfig, UpstreamConfig};
use url::Url;

/// Where a peer's pieces come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownloadPattern {
    /// From other peers and the mirror, by the scheduler's leases.
    P2p,
    /// From the mirror, or from upstream when there is none. No scheduler exists.
    Source,
}

/// Whether a peer may go to the upstream itself when the mirror is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectFallback {
    Allowed,
    Never,
}

/// `piecemeal peer`.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Where containerd pulls from: loopback.
    pub listen: Vec<SocketAddr>,
    /// Where pieces are served to other admitted nodes.
    pub piece_listen: SocketAddr,
    /// Where other nodes reach the piece port; empty: `piece_listen`, or what the scheduler observes when that is a wildcard.
    pub advertise: Vec<SocketAddr>,
    /// What one address may have of a port's connections once they are nearly all taken.
    pub address_share: Share,
    pub cache: CacheConfig,
    /// The mirror's registry port.
    pub mirror: Option<Url>,
    pub scheduler: Option<Url>,
    pub upstreams: Vec<UpstreamConfig>,
    pub default_upstream: Option<String>,
    pub pool: String,
    pub zone: String,
    pub join_key: JoinKey,
    /// The most network bytes a second, up and down summed; `None`: no limit.
    pub ratelimit: Option<u64>,
    pub download_pattern: DownloadPattern,
    pub direct_fallback: DirectFallback,
    /// How long streams wait for a lost mirror before they go upstream.
    pub mirror_grace: Duration,
    pub client: ClientConfig,
    /// While an upstream is lost, how long a right counts that this node's credentials have proven.
    pub offline_grace: Duration,
}
