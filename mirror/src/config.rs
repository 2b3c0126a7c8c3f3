//! What a mirror is told: typed and final, checked before any of it is used.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use piecemeal_proto::AuthorityKey;
use url::Url;

/// A registry that may be mirrored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// The registry's `host` or `host:port`, as clients name it: `docker.io`.
    pub name: String,
    /// Where it answers: `https://registry-1.docker.io`.
    pub url: Url,
}

/// A content store's place and bounds.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    pub dir: PathBuf,
    /// How long content is kept since its last use.
    pub ttl: Duration,
    /// The most bytes of blobs; `None`: as many as the disk has above `free_bytes_min`.
    pub quota_bytes: Option<u64>,
    /// The bytes that are left free on the disk.
    pub free_bytes_min: u64,
}

/// `piecemeal mirror`.
#[derive(Clone, Debug)]
pub struct MirrorConfig {
    /// Where the registry answers OCI clients.
    pub listen: Vec<SocketAddr>,
    /// Where pieces are served to admitted nodes.
    pub piece_listen: SocketAddr,
    /// Where other nodes reach the piece port; empty: `piece_listen`, or what the scheduler observes when that is a wildcard.
    pub advertise: Vec<SocketAddr>,
    pub cache: CacheConfig,
    pub upstreams: Vec<UpstreamConfig>,
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
}
