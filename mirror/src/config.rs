//! Configuration of a mirror: typed and final, checked before any of it is used.

use std::{collections::HashSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use piecemeal_proto::{AuthorityKey, NodeId};
use piecemeal_swarm::Share;
use url::Url;

use crate::{ClientConfig, CredentialSource};

/// A registry that may be mirrored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// The registry's `host` or `host:port`, as clients name it: `docker.io`. `*.example.com` stands for every registry below
    /// that domain.
    pub name: String,
    /// Where it answers, in the order of preference: `https://registry-1.docker.io`. A `*` for the host's beginning stands for
    /// what the name's stands for.
    pub urls: Vec<Url>,
    /// Certificates to trust there besides the usual ones, PEM.
    pub ca_file: Option<PathBuf>,
    /// A certificate and its key to show there, PEM.
    pub client_certificate_file: Option<PathBuf>,
    /// The site's own credentials there.
    pub credentials: Option<CredentialSource>,
    /// Token servers that those credentials may be sent to, besides the registry's own.
    pub token_servers: Vec<String>,
    /// Whether all clients on the LAN are served with those credentials, or admitted nodes only.
    pub serves_site: bool,
}

impl UpstreamConfig {
    /// One that needs nothing but its address.
    pub fn new(name: String, urls: Vec<Url>) -> Self {
        Self {
            name,
            urls,
            ca_file: None,
            client_certificate_file: None,
            credentials: None,
            token_servers: Vec::new(),
            serves_site: false,
        }
    }

    /// The registry `name` that this pattern stands for; `None` when its URL would make no sense.
    pub(crate) fn for_name(&self, name: &str) -> Option<Self> {
        let wild = name.strip_suffix(self.name.strip_prefix('*')?)?;
        let url = |url: &Url| -> Option<Url> {
            let mut url = url.clone();
            let host = url.host_str()?.replacen('*', wild, 1);
            url.set_host(Some(&host)).ok()?;
            Some(url)
        };
        Some(Self {
            name: name.to_owned(),
            urls: self.urls.iter().map(url).collect::<Option<_>>()?,
            ..self.clone()
        })
    }
}

/// A content store's place and bounds.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// In settings it may be empty; the process then puts a temporary folder here before it starts the daemon.
    pub dir: PathBuf,
    /// How long content is kept since its last use.
    pub ttl: Duration,
    /// The most bytes of blobs; `None`: as many as the disk has above `free_bytes_min`.
    pub quota_bytes: Option<u64>,
    /// The bytes that are left free on the disk.
    pub free_bytes_min: u64,
    /// The rate of scrubbing, in bytes a second; `None`: only suspects are verified.
    pub scrub_rate: Option<u64>,
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
