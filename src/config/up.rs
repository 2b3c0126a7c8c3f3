//! Settings of `piecemeal up`, and the whole site on loopback that they make.
//!
//! Invariant: only the peer's port for clients can be set to an address beyond loopback.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use piecemeal_http::{Share, Sockets};
use piecemeal_mirror::MirrorConfig;
use piecemeal_peer::{DirectFallback, DownloadPattern, PeerConfig};
use piecemeal_proto::AuthorityKey;
use piecemeal_proxy::{CacheConfig, ProxyConfig};
use piecemeal_scheduler::SchedulerConfig;
use piecemeal_upstream::{ClientConfig, UpstreamConfig};
use url::Url;

use super::{
    field,
    problems::Problems,
    raw::RawUp,
    upstream,
    validate::{DaemonSettings, loopback_listen},
};

/// Settings of `piecemeal up`.
#[derive(Clone, Debug)]
pub(crate) struct UpSettings {
    pub listen: Vec<SocketAddr>,
    pub upstreams: Vec<UpstreamConfig>,
    pub default_upstream: Option<String>,
    /// Empty: a temporary folder.
    pub cache_dir: PathBuf,
    pub cache_ttl: Duration,
    pub cache_quota: Option<u64>,
    /// As in `RUST_LOG`.
    pub log: String,
}

impl RawUp {
    /// Checks everything; `None` has left a problem.
    pub(crate) fn validate(self, problems: &mut Problems) -> Option<UpSettings> {
        let listen = loopback_listen(problems, self.listen);
        let upstreams = upstream::upstreams(problems, "upstream", self.upstream);
        let has_docker_hub = upstreams.iter().flatten().any(|upstream| upstream.name == DOCKER_HUB);
        let default_upstream = self
            .default_upstream
            .or_else(|| has_docker_hub.then(|| DOCKER_HUB.to_owned()));
        let default_upstream =
            field::default_upstream(problems, "default_upstream", default_upstream, upstreams.as_deref());
        let cache_dir = field::folder(problems, "cache_dir", Some(self.cache_dir.unwrap_or_default()));
        let cache_ttl = field::duration(problems, "cache_ttl", self.cache_ttl);
        let cache_quota = field::limit(problems, "cache_quota", self.cache_quota);
        let log = field::log_filter(problems, "log", self.log);
        let [mirror, scheduler, peer] = up_addresses();
        let bound = [
            ("the mirror's", mirror.as_slice()),
            ("the scheduler's", scheduler.as_slice()),
            ("the peer's", peer.as_slice()),
            ("listen", listen.as_deref().unwrap_or_default()),
        ];
        field::no_port_twice(problems, &bound);
        Some(UpSettings {
            listen: listen?,
            upstreams: upstreams?,
            default_upstream: default_upstream?,
            cache_dir: cache_dir?,
            cache_ttl: cache_ttl?,
            cache_quota: cache_quota?,
            log: log?,
        })
    }
}

/// The daemons of a site that is one machine, in the order in which they start.
#[derive(Clone, Debug)]
pub(crate) struct SiteOfOne {
    pub scheduler: DaemonSettings<SchedulerConfig>,
    pub mirror: DaemonSettings<MirrorConfig>,
    pub peer: DaemonSettings<PeerConfig>,
}

impl SiteOfOne {
    /// Takes over the live settings, and no others.
    pub(crate) fn take_live(&mut self, settings: &UpSettings) {
        for cache in [&mut self.mirror.config.proxy.cache, &mut self.peer.config.proxy.cache] {
            cache.ttl = settings.cache_ttl;
            cache.quota_bytes = settings.cache_quota;
        }
    }
}

/// A whole site on loopback, with its folders in `dir`.
pub(crate) fn site_of_one(settings: &UpSettings, dir: &Path, key: AuthorityKey) -> SiteOfOne {
    let [
        [mirror_listen, mirror_pieces, mirror_admin],
        [scheduler_listen, scheduler_admin, _],
        [_, peer_pieces, peer_admin],
    ] = up_addresses();
    let join_key = key.join_key();
    let authority_key = Arc::new(key);
    let cache = |name: &str| CacheConfig {
        dir: dir.join(name),
        ttl: settings.cache_ttl,
        quota_bytes: settings.cache_quota,
        free_bytes_min: UP_FREE_BYTES_MIN,
        scrub_rate: Some(UP_SCRUB_RATE),
    };
    let url = |address: SocketAddr| -> Url { format!("http://{address}").parse().expect("an address makes a URL") };
    let client = ClientConfig {
        listeners: settings
            .listen
            .iter()
            .copied()
            .chain(up_addresses().into_iter().flatten())
            .collect(),
        ..ClientConfig::default()
    };
    let proxy = ProxyConfig {
        listen: settings.listen.clone(),
        sockets: Sockets::default(),
        piece_listen: peer_pieces,
        advertise: Vec::new(),
        address_share: Share::ALL,
        cache: cache("peer"),
        upstreams: settings.upstreams.clone(),
        default_upstream: settings.default_upstream.clone(),
        client,
        offline_grace: UP_OFFLINE_GRACE,
        scheduler: Some(url(scheduler_listen)),
        pool: "default".to_owned(),
        zone: "default".to_owned(),
    };
    let log = settings.log.clone();
    SiteOfOne {
        scheduler: DaemonSettings {
            config: SchedulerConfig {
                listen: scheduler_listen,
                address_share: Share::ALL,
                authority_key: Arc::clone(&authority_key),
                revoked: HashSet::new(),
            },
            admin_listen: scheduler_admin,
            log: log.clone(),
        },
        mirror: DaemonSettings {
            config: MirrorConfig {
                proxy: ProxyConfig {
                    listen: vec![mirror_listen],
                    piece_listen: mirror_pieces,
                    cache: cache("mirror"),
                    ..proxy.clone()
                },
                tag_ttl: UP_TAG_TTL,
                wan_limit: None,
                authority_key: Some(authority_key),
                revoked: HashSet::new(),
            },
            admin_listen: mirror_admin,
            log: log.clone(),
        },
        peer: DaemonSettings {
            config: PeerConfig {
                proxy,
                mirror: Some(url(mirror_listen)),
                join_key,
                ratelimit: None,
                download_pattern: DownloadPattern::P2p,
                direct_fallback: DirectFallback::Allowed,
                mirror_grace: UP_MIRROR_GRACE,
            },
            admin_listen: peer_admin,
            log,
        },
    }
}

/// Of mirror (registry, pieces, admin), scheduler (gRPC, admin, unused) and peer (unused, pieces, admin). Unused ones have port 0.
fn up_addresses() -> [[SocketAddr; 3]; 3] {
    let loopback = |host: u8, port: u16| SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), port));
    // The piece ports of one machine differ by address, since they have one number.
    [
        [loopback(1, 65011), loopback(2, 65002), loopback(1, 65013)],
        [loopback(1, 65012), loopback(1, 65014), loopback(1, 0)],
        [loopback(1, 0), loopback(1, 65002), loopback(1, 65003)],
    ]
}

const DOCKER_HUB: &str = "docker.io";
const UP_FREE_BYTES_MIN: u64 = 1_000_000_000;
const UP_SCRUB_RATE: u64 = 4_000_000;
const UP_TAG_TTL: Duration = Duration::from_secs(30);
const UP_MIRROR_GRACE: Duration = Duration::from_secs(30);
const UP_OFFLINE_GRACE: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::{super::Layers, *};
    use crate::config::load;

    #[test]
    fn a_site_of_one_needs_nothing_and_speaks_over_the_ports_of_a_real_one() {
        let mut problems = Problems::default();
        let layers = Layers {
            file: None,
            env: Vec::new(),
            flags: RawUp::default(),
        };
        let settings = load(&layers, &mut problems).raw().validate(&mut problems);
        let (settings, _) = problems.finish(settings).expect("the defaults are good");
        let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
        assert_eq!(settings.default_upstream.as_deref(), Some("docker.io"));
        assert_eq!(settings.upstreams.len(), 7);
        let site = site_of_one(&settings, Path::new("/x"), AuthorityKey::from_seed([1; 32]));
        let peer = site.peer.config;
        assert_eq!(
            peer.mirror.map(String::from).as_deref(),
            Some("http://127.0.0.1:65011/")
        );
        assert_eq!(
            peer.proxy.scheduler.map(String::from).as_deref(),
            Some("http://127.0.0.1:65012/")
        );
        assert_eq!(peer.proxy.piece_listen, address("127.0.0.1:65002"));
        assert_eq!(site.mirror.config.proxy.piece_listen, address("127.0.0.2:65002"));
        assert_eq!(
            (peer.proxy.cache.dir, site.mirror.config.proxy.cache.dir),
            ("/x/peer".into(), "/x/mirror".into())
        );
    }
}
