//! The settings as text. A field is a flag, a key of the file and, in capitals after `PIECEMEAL_`, an environment variable.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "these docs are the text of --help, where brackets hold the defaults"
)]

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{key::Raw, shared::RawShared};

/// `piecemeal mirror`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawMirror {
    #[command(flatten)]
    #[serde(skip)]
    pub shared: RawShared,
    /// The address that OCI clients and peers pull from; may be repeated [0.0.0.0:65011]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<Vec<String>>,
    /// The address that serves metrics, health and status [0.0.0.0:65013]
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<String>,
    /// A registry to mirror, and its URL; may be repeated, also with the same name for several endpoints
    #[arg(long, value_name = "NAME=URL")]
    pub upstream: Option<Vec<String>>,
    /// The site's own credentials for an upstream: file:PATH, docker-config:PATH or helper:PROGRAM; may be repeated
    #[arg(long, value_name = "NAME=SOURCE")]
    pub credentials: Option<Vec<String>>,
    /// A token server that may receive those credentials, in addition to the registry's own; may be repeated
    #[arg(long, value_name = "NAME=HOST")]
    pub token_server: Option<Vec<String>>,
    /// An upstream whose images, fetched with those credentials, every client on the LAN may pull, not only the site's nodes; may be repeated
    #[arg(long, value_name = "NAME")]
    pub serve_site: Option<Vec<String>>,
    /// Bandwidth limit of all upstreams together, in bytes per second; 0: no limit [0]
    #[arg(long, value_name = "SIZE")]
    pub wan_limit: Option<String>,
    /// The site's scheduler; an https URL uses TLS; absent: peers take every piece from this mirror
    #[arg(long, value_name = "URL")]
    pub scheduler: Option<String>,
    /// The site's authority.key; absent: a plain pull-through cache, without pieces
    #[arg(long, value_name = "FILE")]
    pub authority_key_file: Option<String>,
    /// A node to shut out: its id as `piecemeal status` shows it, or file:PATH with one id per line; may be repeated
    #[arg(long, value_name = "NODE")]
    pub revoke: Option<Vec<String>>,
    /// The cache folder; empty: a private temporary folder, deleted when the process ends [/var/lib/piecemeal/mirror]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<String>,
    /// The cache's maximum size in bytes; 0: limited by the disk only [0]
    #[arg(long, value_name = "SIZE")]
    pub cache_quota: Option<String>,
    /// The time for which a tag is served before it is checked upstream again [30s]
    #[arg(long, value_name = "DURATION")]
    pub tag_ttl: Option<String>,
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

    fn shared(&self) -> Option<&RawShared> {
        Some(&self.shared)
    }

    fn with_shared(self, shared: RawShared) -> Self {
        Self { shared, ..self }
    }
}

/// `piecemeal scheduler`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawScheduler {
    /// The address that mirrors and peers open their sessions to [0.0.0.0:65012]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// The address that serves metrics, health and status [0.0.0.0:65014]
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<String>,
    /// The percentage of a port's connections that one client address may hold once nearly all are taken; 100: no limit, for a site behind one NAT [10]
    #[arg(long, value_name = "PERCENT")]
    pub address_share: Option<String>,
    /// The site's authority.key
    #[arg(long, value_name = "FILE")]
    pub authority_key_file: Option<String>,
    /// A node to shut out: its id as `piecemeal status` shows it, or file:PATH with one id per line; may be repeated
    #[arg(long, value_name = "NODE")]
    pub revoke: Option<Vec<String>>,
    /// The log filter, in the syntax of RUST_LOG [info]
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
    #[command(flatten)]
    #[serde(skip)]
    pub shared: RawShared,
    /// The address that containerd pulls from; may be repeated [127.0.0.1:65001, and [::1]:65001 where there is IPv6]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<Vec<String>>,
    /// The address that serves metrics, health and status [127.0.0.1:65003]
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<String>,
    /// The site's mirror; an https URL uses TLS
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// The site's scheduler; an https URL uses TLS
    #[arg(long, value_name = "URL")]
    pub scheduler: Option<String>,
    /// A registry to pull from, and its URL; may be repeated
    #[arg(long, value_name = "NAME=URL")]
    pub upstream: Option<Vec<String>>,
    /// The site's join.key
    #[arg(long, value_name = "FILE")]
    pub join_key_file: Option<String>,
    /// p2p: pieces from other peers and the mirror; source: from the mirror only, without a scheduler [p2p]
    #[arg(long, value_name = "p2p|source")]
    pub download_pattern: Option<String>,
    /// Bandwidth limit in bytes per second, upload and download together; 0: no limit [0]
    #[arg(long, value_name = "SIZE")]
    pub ratelimit: Option<String>,
    /// Whether this node may pull from upstreams itself while the mirror is unreachable [allowed]
    #[arg(long, value_name = "allowed|never")]
    pub direct_fallback: Option<String>,
    /// The time to wait for an unreachable mirror [30s]
    #[arg(long, value_name = "DURATION")]
    pub mirror_grace: Option<String>,
    /// The cache folder; empty: a private temporary folder, deleted when the process ends [/var/lib/piecemeal/peer]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<String>,
    /// The cache's maximum size in bytes; 0: limited by the disk only [4Gi]
    #[arg(long, value_name = "SIZE")]
    pub cache_quota: Option<String>,
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

    fn shared(&self) -> Option<&RawShared> {
        Some(&self.shared)
    }

    fn with_shared(self, shared: RawShared) -> Self {
        Self { shared, ..self }
    }
}

/// `piecemeal webhook`.
#[derive(Args, Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RawWebhook {
    /// The address that the API server calls, over HTTPS [0.0.0.0:65015]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// The address that serves metrics and health [0.0.0.0:65016]
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<String>,
    /// A registry to accelerate: a host, a pattern such as *.example.com, cri-xxx or cri-xxx=host1+host2; may be repeated
    #[arg(long, value_name = "REGISTRY")]
    pub registry: Option<Vec<String>>,
    /// The region of instances that are named without hosts; empty: any []
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,
    /// The style of accelerated images' names [rename]
    #[arg(long, value_name = "rename|mirror|localhost")]
    pub name_style: Option<String>,
    /// The port of the nodes' peers, as written in accelerated names [65001]
    #[arg(long, value_name = "PORT")]
    pub peer_port: Option<String>,
    /// Whether images without a pull secret stay unchanged; auto: only those of instances named by id [auto]
    #[arg(long, value_name = "auto|true|false")]
    pub require_pull_secret: Option<String>,
    /// The name of a pull secret's copy [acr-credential-{secret}-p2p]
    #[arg(long, value_name = "TEMPLATE")]
    pub secret_name: Option<String>,
    /// Whether copies also carry credentials for registries that are not accelerated [false]
    #[arg(long, value_name = "true|false")]
    pub keep_unrelated: Option<String>,
    /// The time for which a copy is kept after no pod names it [24h]
    #[arg(long, value_name = "DURATION")]
    pub secrets_keep: Option<String>,
    /// A namespace whose pull secrets may be read; absent: all; may be repeated
    #[arg(long, value_name = "NAME")]
    pub secrets_namespaces: Option<Vec<String>>,
    /// A namespace whose pods are never changed, in addition to the webhook's own; may be repeated [kube-system, kube-public, kube-node-lease]
    #[arg(long, value_name = "NAME")]
    pub exclude_namespaces: Option<Vec<String>>,
    /// The webhook's own namespace
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The prefix of the names of the webhook's own objects [piecemeal]
    #[arg(long, value_name = "NAME")]
    pub release: Option<String>,
    /// The name of the webhook's MutatingWebhookConfiguration [piecemeal]
    #[arg(long, value_name = "NAME")]
    pub webhook_configuration: Option<String>,
    /// The Service through which the API server reaches the webhook [piecemeal-webhook]
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// own: from the webhook's own authority, which renews them; files: read from --certificates-dir and renewed outside the webhook [own]
    #[arg(long, value_name = "own|files")]
    pub certificates: Option<String>,
    /// The folder with tls.crt and tls.key, for --certificates files
    #[arg(long, value_name = "DIR")]
    pub certificates_dir: Option<String>,
    /// An additional DNS name of the webhook's own certificate; may be repeated
    #[arg(long, value_name = "NAME")]
    pub certificate_name: Option<Vec<String>>,
    /// The time for which the webhook publishes a new authority of its own before that signs certificates [60s]
    #[arg(long, value_name = "DURATION")]
    pub certificate_announce: Option<String>,
    /// The ConfigMap that records the registries of accelerated images [RELEASE-hosts]
    #[arg(long, value_name = "NAME")]
    pub hosts_config_map: Option<String>,
    /// The log filter, in the syntax of RUST_LOG [info]
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
    /// A registry to pull from through the peer, and its URL, as in the peer's configuration; may be repeated
    #[arg(long, value_name = "NAME=URL")]
    pub upstream: Option<Vec<String>>,
    /// A file with hosts that the webhook has recorded, one per line; those that match an --upstream pattern get files too
    #[arg(long, value_name = "FILE")]
    pub hosts_file: Option<String>,
    /// The port of this node's peer, as written in accelerated names [65001]
    #[arg(long, value_name = "PORT")]
    pub peer_port: Option<String>,
    /// Whether this node has no peer; accelerated names then lead to the registries only [false]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub without_peer: Option<String>,
    /// The names of a registry that lead to the peer; original: every pull of that registry on this node [accelerated]
    #[arg(long, value_name = "accelerated|original|both")]
    pub names: Option<String>,
    /// A container runtime to set up: containerd, k3s, rke2, crio, podman, docker, or auto for those that are found; may be repeated [auto]
    #[arg(long, value_name = "RUNTIME")]
    pub runtime: Option<Vec<String>>,
    /// The root of the node's file system, if this runs in a container [/]
    #[arg(long, value_name = "DIR")]
    pub root: Option<String>,
    /// Whether to add the one missing line to containerd's configuration and restart containerd, once on this node [false]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub allow_runtime_restart: Option<String>,
    /// The interval between checks of the runtimes and files [10s]
    #[arg(long, value_name = "DURATION")]
    pub interval: Option<String>,
    /// The address that serves metrics, health and status [0.0.0.0:65017]
    #[arg(long, value_name = "IP:PORT")]
    pub admin_listen: Option<String>,
    /// The log filter, in the syntax of RUST_LOG [info]
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
    /// The address that clients pull from; may be repeated [127.0.0.1:65001, and [::1]:65001 where there is IPv6]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<Vec<String>>,
    /// A registry to pull from, and its URL; may be repeated [the well-known public ones]
    #[arg(long, value_name = "NAME=URL")]
    pub upstream: Option<Vec<String>>,
    /// The upstream for requests that name none [docker.io]
    #[arg(long, value_name = "NAME")]
    pub default_upstream: Option<String>,
    /// The folder for content and keys; absent or empty: a private temporary folder, deleted when the process ends
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<String>,
    /// The time for which content is kept after its last use [24h]
    #[arg(long, value_name = "DURATION")]
    pub cache_ttl: Option<String>,
    /// The maximum cache size of the mirror and of the peer, in bytes each; 0: limited by the disk only [0]
    #[arg(long, value_name = "SIZE")]
    pub cache_quota: Option<String>,
    /// The log filter, in the syntax of RUST_LOG [warn]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl Raw for RawUp {
    const DEFAULTS: &'static str = include_str!("defaults/up.toml");
    const LIVE: &'static [&'static str] = &["cache_ttl", "cache_quota", "log"];
}
