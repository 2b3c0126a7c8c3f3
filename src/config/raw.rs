//! The settings as text. A field is a flag, a key of the file and, in capitals after `PIECEMEAL_`, an environment variable.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "these docs are the text of --help, where brackets hold the defaults"
)]

use clap::Args;
use serde::{Deserialize, Serialize};

use super::layers::Raw;

/// `piecemeal mirror`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawMirror {
    /// Where OCI clients and peers are answered; may repeat [0.0.0.0:65011]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<Vec<String>>,
    /// Where pieces are served to admitted nodes [0.0.0.0:65002]
    #[arg(long, value_name = "IP:PORT")]
    pub piece_listen: Option<String>,
    /// Where metrics, health and status are served [0.0.0.0:65013]
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<String>,
    /// Where other nodes reach the piece port, when that is not --piece-listen; may repeat
    #[arg(long, value_name = "IP:PORT")]
    pub advertise: Option<Vec<String>>,
    /// The percentage of a port's connections that one address may have once they are nearly all taken; 100: any, for a site behind one NAT [10]
    #[arg(long, value_name = "PERCENT")]
    pub address_share: Option<String>,
    /// A registry that may be mirrored, and where it answers; a name that repeats has several endpoints; may repeat
    #[arg(long, value_name = "NAME=URL")]
    pub upstream: Option<Vec<String>>,
    /// The upstream meant by a request that names none
    #[arg(long, value_name = "NAME")]
    pub default_upstream: Option<String>,
    /// Certificates to trust at an upstream besides the usual ones, PEM; may repeat
    #[arg(long, value_name = "NAME=FILE")]
    pub upstream_ca: Option<Vec<String>>,
    /// A certificate and its key to show to an upstream, PEM; may repeat
    #[arg(long, value_name = "NAME=FILE")]
    pub upstream_client_certificate: Option<Vec<String>>,
    /// Whether credentials may cross the network without TLS [false]
    #[arg(long, value_name = "true|false")]
    pub allow_plain_credentials: Option<String>,
    /// How upstreams are reached: environment (HTTPS_PROXY, NO_PROXY), none, or a proxy's URL [environment]
    #[arg(long, value_name = "HOW")]
    pub proxy: Option<String>,
    /// The hosts that are reached without that proxy, as in NO_PROXY
    #[arg(long, value_name = "HOSTS")]
    pub no_proxy: Option<String>,
    /// Redirects to storage that is nearer by another name: oss-accelerate, or FROM=TO; may repeat
    #[arg(long, value_name = "RULE")]
    pub rewrite_redirects: Option<Vec<String>>,
    /// A host, an address or a network that upstreams may lead to although it is private, of this machine or reserved; may repeat
    #[arg(long, value_name = "HOST-OR-CIDR")]
    pub allow_target: Option<Vec<String>>,
    /// How long a right counts that an upstream has granted; what is revoked takes effect within it [5m]
    #[arg(long, value_name = "DURATION")]
    pub verdict_ttl: Option<String>,
    /// How long a right that a node's credential has proven counts while an upstream is lost [24h]
    #[arg(long, value_name = "DURATION")]
    pub offline_grace: Option<String>,
    /// The site's own credentials at an upstream: file:PATH, docker-config:PATH or helper:PROGRAM; may repeat
    #[arg(long, value_name = "NAME=SOURCE")]
    pub credentials: Option<Vec<String>>,
    /// A host that tokens are asked for with those credentials, besides the registry's own; may repeat
    #[arg(long, value_name = "NAME=HOST")]
    pub token_server: Option<Vec<String>>,
    /// An upstream whose images the whole LAN is served with those credentials, and not only the site's nodes; may repeat
    #[arg(long, value_name = "NAME")]
    pub serve_site: Option<Vec<String>>,
    /// The most bytes a second from all upstreams together; 0: no limit [0]
    #[arg(long, value_name = "SIZE")]
    pub wan_limit: Option<String>,
    /// The site's scheduler, over TLS when the URL says https; absent: peers take every piece from this mirror
    #[arg(long, value_name = "URL")]
    pub scheduler: Option<String>,
    /// The site's authority.key; absent: a plain pull-through cache, without pieces
    #[arg(long, value_name = "FILE")]
    pub authority_key_file: Option<String>,
    /// A node that is shut out: its id as `piecemeal status` shows it, or file:PATH with an id a line; may repeat
    #[arg(long, value_name = "NODE")]
    pub revoke: Option<Vec<String>>,
    /// The nodes that share a LAN with this one [default]
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// The part of the pool that this node is in, such as a rack [default]
    #[arg(long, value_name = "NAME")]
    pub zone: Option<String>,
    /// Where content is kept; empty: a private temporary folder that goes with the process [/var/lib/piecemeal/mirror]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<String>,
    /// How long content is kept since its last use [24h]
    #[arg(long, value_name = "DURATION")]
    pub cache_ttl: Option<String>,
    /// The most bytes of content; 0: what the disk has [0]
    #[arg(long, value_name = "SIZE")]
    pub cache_quota: Option<String>,
    /// What is left free on the disk [1G]
    #[arg(long, value_name = "SIZE")]
    pub cache_min_free: Option<String>,
    /// How much content a second is looked through for damage, no blob more than once a day; 0: none [4M]
    #[arg(long, value_name = "SIZE")]
    pub cache_scrub: Option<String>,
    /// How old a tag's last check upstream may be [30s]
    #[arg(long, value_name = "DURATION")]
    pub tag_ttl: Option<String>,
    /// What to log, as in RUST_LOG [info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl Raw for RawMirror {
    const DEFAULTS: &'static str = include_str!("defaults/mirror.toml");
    const LIVE: &'static [&'static str] = &[
        "verdict_ttl",
        "offline_grace",
        "wan_limit",
        "revoke",
        "cache_ttl",
        "cache_quota",
        "cache_min_free",
        "tag_ttl",
        "log",
    ];
}

/// `piecemeal scheduler`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawScheduler {
    /// Where mirrors and peers open their session [0.0.0.0:65012]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// Where metrics, health and status are served [0.0.0.0:65014]
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<String>,
    /// The percentage of a port's connections that one address may have once they are nearly all taken; 100: any, for a site behind one NAT [10]
    #[arg(long, value_name = "PERCENT")]
    pub address_share: Option<String>,
    /// The site's authority.key
    #[arg(long, value_name = "FILE")]
    pub authority_key_file: Option<String>,
    /// A node that is shut out: its id as `piecemeal status` shows it, or file:PATH with an id a line; may repeat
    #[arg(long, value_name = "NODE")]
    pub revoke: Option<Vec<String>>,
    /// What to log, as in RUST_LOG [info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl Raw for RawScheduler {
    const DEFAULTS: &'static str = include_str!("defaults/scheduler.toml");
    const LIVE: &'static [&'static str] = &["revoke", "log"];
}

/// `piecemeal peer`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawPeer {
    /// Where containerd pulls from; may repeat [127.0.0.1:65001, and [::1]:65001 where there is IPv6]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<Vec<String>>,
    /// Where pieces are served to other nodes [0.0.0.0:65002]
    #[arg(long, value_name = "IP:PORT")]
    pub piece_listen: Option<String>,
    /// Where metrics, health and status are served [127.0.0.1:65003]
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<String>,
    /// Where other nodes reach the piece port, when that is not --piece-listen; may repeat
    #[arg(long, value_name = "IP:PORT")]
    pub advertise: Option<Vec<String>>,
    /// The percentage of a port's connections that one address may have once they are nearly all taken; 100: any, for a site behind one NAT [10]
    #[arg(long, value_name = "PERCENT")]
    pub address_share: Option<String>,
    /// The site's mirror; over TLS when the URL says https
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// The site's scheduler; over TLS when the URL says https
    #[arg(long, value_name = "URL")]
    pub scheduler: Option<String>,
    /// A registry that may be pulled from, and where it answers; may repeat
    #[arg(long, value_name = "NAME=URL")]
    pub upstream: Option<Vec<String>>,
    /// The upstream meant by a request that names none
    #[arg(long, value_name = "NAME")]
    pub default_upstream: Option<String>,
    /// Certificates to trust at an upstream besides the usual ones, PEM; may repeat
    #[arg(long, value_name = "NAME=FILE")]
    pub upstream_ca: Option<Vec<String>>,
    /// A certificate and its key to show to an upstream, PEM; may repeat
    #[arg(long, value_name = "NAME=FILE")]
    pub upstream_client_certificate: Option<Vec<String>>,
    /// Whether credentials may cross the network without TLS [false]
    #[arg(long, value_name = "true|false")]
    pub allow_plain_credentials: Option<String>,
    /// How upstreams are reached: environment (HTTPS_PROXY, NO_PROXY), none, or a proxy's URL [environment]
    #[arg(long, value_name = "HOW")]
    pub proxy: Option<String>,
    /// The hosts that are reached without that proxy, as in NO_PROXY
    #[arg(long, value_name = "HOSTS")]
    pub no_proxy: Option<String>,
    /// Redirects to storage that is nearer by another name: oss-accelerate, or FROM=TO; may repeat
    #[arg(long, value_name = "RULE")]
    pub rewrite_redirects: Option<Vec<String>>,
    /// A host, an address or a network that upstreams may lead to although it is private, of this machine or reserved; may repeat
    #[arg(long, value_name = "HOST-OR-CIDR")]
    pub allow_target: Option<Vec<String>>,
    /// How long a right counts that an upstream has granted; what is revoked takes effect within it [5m]
    #[arg(long, value_name = "DURATION")]
    pub verdict_ttl: Option<String>,
    /// How long a right that a node's credential has proven counts while an upstream is lost [24h]
    #[arg(long, value_name = "DURATION")]
    pub offline_grace: Option<String>,
    /// The site's join.key
    #[arg(long, value_name = "FILE")]
    pub join_key_file: Option<String>,
    /// The nodes that share a LAN with this one [default]
    #[arg(long, value_name = "NAME")]
    pub pool: Option<String>,
    /// The part of the pool that this node is in, such as a rack [default]
    #[arg(long, value_name = "NAME")]
    pub zone: Option<String>,
    /// p2p: pieces from other peers and the mirror; source: from the mirror alone, without a scheduler [p2p]
    #[arg(long, value_name = "p2p|source")]
    pub download_pattern: Option<String>,
    /// The most network bytes a second, up and down together; 0: no limit [0]
    #[arg(long, value_name = "SIZE")]
    pub ratelimit: Option<String>,
    /// Whether this node may go upstream itself while the mirror is lost [allowed]
    #[arg(long, value_name = "allowed|never")]
    pub direct_fallback: Option<String>,
    /// How long a lost mirror is waited for [30s]
    #[arg(long, value_name = "DURATION")]
    pub mirror_grace: Option<String>,
    /// Where content is kept; empty: a private temporary folder that goes with the process [/var/lib/piecemeal/peer]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<String>,
    /// How long content is kept since its last use [24h]
    #[arg(long, value_name = "DURATION")]
    pub cache_ttl: Option<String>,
    /// The most bytes of content; 0: what the disk has [4Gi]
    #[arg(long, value_name = "SIZE")]
    pub cache_quota: Option<String>,
    /// What is left free on the disk [1G]
    #[arg(long, value_name = "SIZE")]
    pub cache_min_free: Option<String>,
    /// How much content a second is looked through for damage, no blob more than once a day; 0: none [4M]
    #[arg(long, value_name = "SIZE")]
    pub cache_scrub: Option<String>,
    /// What to log, as in RUST_LOG [info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl Raw for RawPeer {
    const DEFAULTS: &'static str = include_str!("defaults/peer.toml");
    const LIVE: &'static [&'static str] = &[
        "verdict_ttl",
        "offline_grace",
        "ratelimit",
        "mirror_grace",
        "cache_ttl",
        "cache_quota",
        "cache_min_free",
        "log",
    ];
}

/// `piecemeal webhook`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawWebhook {
    /// Where the API server asks, over HTTPS [0.0.0.0:65015]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// Where metrics and health are served [0.0.0.0:65016]
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<String>,
    /// What is accelerated: a host, a pattern such as *.example.com, cri-xxx or cri-xxx=host1+host2; may repeat
    #[arg(long, value_name = "REGISTRY")]
    pub registry: Option<Vec<String>>,
    /// The region of instances whose hosts are not given; empty: any []
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    /// How an image's name says that it is accelerated [rename]
    #[arg(long, value_name = "rename|mirror|localhost")]
    pub name_style: Option<String>,
    /// The port of the nodes' peers, as it stands in accelerated names [65001]
    #[arg(long, value_name = "PORT")]
    pub peer_port: Option<String>,
    /// Whether an image without a pull secret stays as it is; auto: where its registry was named by an instance's id [auto]
    #[arg(long, value_name = "auto|true|false")]
    pub require_pull_secret: Option<String>,
    /// What the copy of a pull secret is called [acr-credential-{secret}-p2p]
    #[arg(long, value_name = "TEMPLATE")]
    pub secret_name: Option<String>,
    /// Whether copies also carry credentials for registries that are not accelerated [false]
    #[arg(long, value_name = "true|false")]
    pub keep_unrelated: Option<String>,
    /// How long a copy stays that no pod names [24h]
    #[arg(long, value_name = "DURATION")]
    pub secrets_keep: Option<String>,
    /// A namespace whose pull secrets may be read; none: all; may repeat
    #[arg(long, value_name = "NAME")]
    pub secrets_namespaces: Option<Vec<String>>,
    /// A namespace whose pods are left alone, besides the webhook's own; may repeat [kube-system, kube-public, kube-node-lease]
    #[arg(long, value_name = "NAME")]
    pub exclude_namespaces: Option<Vec<String>>,
    /// The webhook's own namespace
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// What the names of its own objects begin with [piecemeal]
    #[arg(long, value_name = "NAME")]
    pub release: Option<String>,
    /// Its MutatingWebhookConfiguration [piecemeal]
    #[arg(long, value_name = "NAME")]
    pub webhook_configuration: Option<String>,
    /// The Service that the API server reaches it by [piecemeal-webhook]
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// own: a certificate authority of its own, renewed by itself; files: renewed by somebody else [own]
    #[arg(long, value_name = "own|files")]
    pub certificates: Option<String>,
    /// Where tls.crt and tls.key are, with --certificates files
    #[arg(long, value_name = "DIR")]
    pub certificates_dir: Option<String>,
    /// Another name that its own certificate is for; may repeat
    #[arg(long, value_name = "NAME")]
    pub certificate_name: Option<Vec<String>>,
    /// How long a new certificate authority of its own is published before it signs [60s]
    #[arg(long, value_name = "DURATION")]
    pub certificate_announce: Option<String>,
    /// Where it records the registries that it has accelerated [RELEASE-hosts]
    #[arg(long, value_name = "NAME")]
    pub hosts_config_map: Option<String>,
    /// What to log, as in RUST_LOG [info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl Raw for RawWebhook {
    const DEFAULTS: &'static str = include_str!("defaults/webhook.toml");
    const LIVE: &'static [&'static str] = &["log"];
}

/// `piecemeal node …`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawNode {
    /// A registry that pulls are to reach through the peer, and where it answers: as the peer has it; may repeat
    #[arg(long, value_name = "NAME=URL")]
    pub upstream: Option<Vec<String>>,
    /// Hosts that the webhook has met, a line each; those that an --upstream pattern stands for get files too
    #[arg(long, value_name = "FILE")]
    pub hosts_file: Option<String>,
    /// The port of this node's peer, as it stands in accelerated names [65001]
    #[arg(long, value_name = "PORT")]
    pub peer_port: Option<String>,
    /// This node has no peer: accelerated names lead to the registries alone [false]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub without_peer: Option<String>,
    /// Which names of a registry lead to the peer; original: every pull of it on this node [accelerated]
    #[arg(long, value_name = "accelerated|original|both")]
    pub names: Option<String>,
    /// A runtime to set up: containerd, k3s, rke2, crio, podman, docker, or auto for those that are found; may repeat [auto]
    #[arg(long, value_name = "RUNTIME")]
    pub runtime: Option<Vec<String>>,
    /// Where the node's file system is, when this runs in a container [/]
    #[arg(long, value_name = "DIR")]
    pub root: Option<String>,
    /// Whether containerd may be given its one missing line and be restarted, once on this node [false]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub allow_runtime_restart: Option<String>,
    /// How often everything is looked at again [10s]
    #[arg(long, value_name = "DURATION")]
    pub interval: Option<String>,
    /// Where metrics, health and status are served [0.0.0.0:65017]
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<String>,
    /// What to log, as in RUST_LOG [info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl Raw for RawNode {
    const DEFAULTS: &'static str = include_str!("defaults/node.toml");
    const LIVE: &'static [&'static str] = &["log"];
}

/// `piecemeal up`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawUp {
    /// Where to pull from; may repeat [127.0.0.1:65001, and [::1]:65001 where there is IPv6]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<Vec<String>>,
    /// A registry that may be pulled from, and where it answers; may repeat [the well-known public ones]
    #[arg(long, value_name = "NAME=URL")]
    pub upstream: Option<Vec<String>>,
    /// The upstream meant by a request that names none [docker.io]
    #[arg(long, value_name = "NAME")]
    pub default_upstream: Option<String>,
    /// Where content and keys are kept; absent or empty: a private temporary folder that goes with the process
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<String>,
    /// How long content is kept since its last use [24h]
    #[arg(long, value_name = "DURATION")]
    pub cache_ttl: Option<String>,
    /// The most bytes of content, in the mirror and in the peer each; 0: what the disk has [0]
    #[arg(long, value_name = "SIZE")]
    pub cache_quota: Option<String>,
    /// What to log, as in RUST_LOG [warn]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl Raw for RawUp {
    const DEFAULTS: &'static str = include_str!("defaults/up.toml");
    const LIVE: &'static [&'static str] = &["cache_ttl", "cache_quota", "log"];
}
