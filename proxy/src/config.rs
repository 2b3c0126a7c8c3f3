//! Configuration that a mirror and a peer share: typed and final, checked before any of it is used.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use piecemeal_http::{Share, Sockets};
use piecemeal_upstream::{ClientConfig, UpstreamConfig};
use url::Url;

/// The settings of the proxy that a mirror and a peer both are.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// The addresses that OCI clients connect to; at a peer on loopback.
    pub listen: Vec<SocketAddr>,
    /// The sockets of the ports. The process puts those here that it was handed.
    pub sockets: Sockets,
    /// The address of the piece port, for admitted nodes.
    pub piece_listen: SocketAddr,
    /// Addresses by which other nodes reach the piece port; empty: `piece_listen`, or what the scheduler observes when that is a
    /// wildcard.
    pub advertise: Vec<SocketAddr>,
    /// One address's share of a port's connections once they are nearly all taken.
    pub address_share: Share,
    pub cache: CacheConfig,
    pub upstreams: Vec<UpstreamConfig>,
    /// The upstream meant by a request that names none.
    pub default_upstream: Option<String>,
    pub client: ClientConfig,
    /// While an upstream is lost, how long a right counts that a node's credential has proven.
    pub offline_grace: Duration,
    /// `None`: there is no swarm, and peers take every piece from the mirror.
    pub scheduler: Option<Url>,
    pub pool: String,
    pub zone: String,
}

/// A content store's place and bounds.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// In settings it may be empty; the process then puts a temporary folder here before it starts the daemon.
    pub dir: PathBuf,
    /// The time for which content is kept since its last use.
    pub ttl: Duration,
    /// The most bytes of blobs; `None`: as many as the disk has above `free_bytes_min`.
    pub quota_bytes: Option<u64>,
    /// The bytes that are left free on the disk.
    pub free_bytes_min: u64,
    /// The rate of scrubbing, in bytes a second; `None`: only suspects are verified.
    pub scrub_rate: Option<u64>,
}
