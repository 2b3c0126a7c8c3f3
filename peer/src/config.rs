//! Configuration of a peer: typed and final, checked before any of it is used.

use std::time::Duration;

use piecemeal_proto::JoinKey;
use piecemeal_proxy::ProxyConfig;
use url::Url;

/// Source of a peer's pieces.
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
    pub proxy: ProxyConfig,
    /// The mirror's registry port.
    pub mirror: Option<Url>,
    pub join_key: JoinKey,
    /// The most network bytes a second, up and down summed; `None`: no limit.
    pub ratelimit: Option<u64>,
    pub download_pattern: DownloadPattern,
    pub direct_fallback: DirectFallback,
    /// The time for which streams wait for a lost mirror before they go upstream.
    pub mirror_grace: Duration,
}
