//! Settings that a mirror and a peer share, as text.
//!
//! Invariant: a setting that is absent is `None`: its default comes from the lowest layer.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "these docs are the text of --help, where brackets hold the defaults"
)]

use clap::Args;
use serde::{Deserialize, Serialize};

/// Settings of the proxy that mirror and peer both are.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawShared {
    /// The address that serves pieces to admitted nodes [0.0.0.0:65002]
    #[arg(long, value_name = "IP:PORT")]
    pub piece_listen: Option<String>,
    /// The address at which other nodes reach the piece port, if it differs from --piece-listen; may be repeated
    #[arg(long, value_name = "IP:PORT")]
    pub advertise: Option<Vec<String>>,
    /// The percentage of a port's connections that one client address may hold once nearly all are taken; 100: no limit, for a site behind one NAT [10]
    #[arg(long, value_name = "PERCENT")]
    pub address_share: Option<String>,
    /// The upstream for requests that name none
    #[arg(long, value_name = "NAME")]
    pub default_upstream: Option<String>,
    /// CA certificates to trust for an upstream in addition to the system's, PEM; may be repeated
    #[arg(long, value_name = "NAME=FILE")]
    pub upstream_ca: Option<Vec<String>>,
    /// A client certificate and its key to present to an upstream, PEM; may be repeated
    #[arg(long, value_name = "NAME=FILE")]
    pub upstream_client_certificate: Option<Vec<String>>,
    /// Whether credentials may cross the network without TLS [false]
    #[arg(long, value_name = "true|false")]
    pub allow_plain_credentials: Option<String>,
    /// The proxy for upstreams: environment (HTTPS_PROXY, NO_PROXY), none, or a URL [environment]
    #[arg(long, value_name = "HOW")]
    pub proxy: Option<String>,
    /// The hosts to reach without that proxy, as in NO_PROXY
    #[arg(long, value_name = "HOSTS")]
    pub no_proxy: Option<String>,
    /// A rule that replaces a redirect's host with one that is nearer: oss-accelerate, or FROM=TO; may be repeated
    #[arg(long, value_name = "RULE")]
    pub rewrite_redirects: Option<Vec<String>>,
    /// A private, loopback or reserved host, address or network that upstreams may redirect to or name as token server; may be repeated
    #[arg(long, value_name = "HOST-OR-CIDR")]
    pub allow_target: Option<Vec<String>>,
    /// The time for which an upstream's grant of access is reused; a revocation takes effect within it [5m]
    #[arg(long, value_name = "DURATION")]
    pub verdict_ttl: Option<String>,
    /// While an upstream is unreachable, how long a node may still pull private images that it was authorised for [24h]
    #[arg(long, value_name = "DURATION")]
    pub offline_grace: Option<String>,
    /// The nodes that share a LAN with this one [default]
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// The part of the pool that contains this node, such as a rack [default]
    #[arg(long, value_name = "NAME")]
    pub zone: Option<String>,
    /// The time for which content is kept after its last use [24h]
    #[arg(long, value_name = "DURATION")]
    pub cache_ttl: Option<String>,
    /// The disk space to leave free, in bytes [1G]
    #[arg(long, value_name = "SIZE")]
    pub cache_min_free: Option<String>,
    /// The bytes per second to verify in the background, each blob at most once a day; 0: none [4M]
    #[arg(long, value_name = "SIZE")]
    pub cache_scrub: Option<String>,
    /// The log filter, in the syntax of RUST_LOG [info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}
