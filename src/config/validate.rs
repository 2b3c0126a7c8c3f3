//! Validation of settings: turns texts into the daemons' configurations, and finds contradictions.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use piecemeal_http::Share;
use piecemeal_mirror::MirrorConfig;
use piecemeal_peer::{DirectFallback, DownloadPattern, PeerConfig};
use piecemeal_proto::AuthorityKey;
use piecemeal_proxy::CacheConfig;
use piecemeal_scheduler::SchedulerConfig;
use piecemeal_upstream::{ClientConfig, UpstreamConfig};
use url::Url;

use super::{
    field::{self, Text},
    problems::Problems,
    raw::{RawMirror, RawPeer, RawScheduler, RawUp},
    upstream::{self, ClientTexts, UpstreamTexts},
};

/// A daemon's own settings, and those of its process.
#[derive(Clone, Debug)]
pub(crate) struct DaemonSettings<C> {
    pub config: C,
    pub admin_listen: SocketAddr,
    /// As in `RUST_LOG`.
    pub log: String,
}

impl RawMirror {
    /// Checks everything; `None` has left a problem.
    pub(crate) fn validate(self, problems: &mut Problems) -> Option<DaemonSettings<MirrorConfig>> {
        let listen = field::addresses(problems, "listen", self.listen);
        let piece_listen = field::address(problems, "piece_listen", self.piece_listen);
        let admin_listen = field::address(problems, "admin_listen", self.admin_listen);
        let advertise = field::advertised(problems, "advertise", self.advertise);
        let address_share = field::share(problems, "address_share", self.address_share);
        let upstreams = UpstreamTexts {
            upstream: self.upstream,
            upstream_ca: self.upstream_ca,
            upstream_client_certificate: self.upstream_client_certificate,
            credentials: self.credentials,
            token_server: self.token_server,
            serve_site: self.serve_site,
        };
        let upstreams = upstreams.validate(problems);
        let scheduler = field::service(problems, "scheduler", self.scheduler);
        let client = ClientTexts {
            verdict_ttl: self.verdict_ttl,
            allow_plain_credentials: self.allow_plain_credentials,
            proxy: self.proxy,
            no_proxy: self.no_proxy,
            rewrite_redirects: self.rewrite_redirects,
            allow_target: self.allow_target,
            listeners: listeners(
                [&listen, &advertise],
                [piece_listen, admin_listen],
                [scheduler.as_ref(), None],
            ),
        };
        let client = client.validate(problems);
        let wan_limit = field::limit(problems, "wan_limit", self.wan_limit);
        let offline_grace = field::duration_or_zero(problems, "offline_grace", self.offline_grace);
        let default_upstream = field::default_upstream(
            problems,
            "default_upstream",
            self.default_upstream,
            upstreams.as_deref(),
        );
        let revoked = field::nodes(problems, "revoke", self.revoke);
        let has_key_file = self.authority_key_file.is_some();
        let authority_key = self
            .authority_key_file
            .map(|path| field::key_file::<AuthorityKey>(problems, "authority_key_file", Some(path)));
        let pool = field::label(problems, "pool", self.pool);
        let zone = field::label(problems, "zone", self.zone);
        let cache = cache(
            problems,
            [
                self.cache_dir,
                self.cache_ttl,
                self.cache_quota,
                self.cache_min_free,
                self.cache_scrub,
            ],
        );
        let tag_ttl = field::duration_or_zero(problems, "tag_ttl", self.tag_ttl);
        let log = field::log_filter(problems, "log", self.log);

        if matches!(scheduler, Some(Some(_))) && !has_key_file {
            problems.add(
                "scheduler",
                "a scheduler admits only a mirror with its key; give --authority-key-file too",
            );
        }
        let bound = [
            ("listen", listen.as_deref().unwrap_or_default()),
            ("piece_listen", piece_listen.as_slice()),
            ("admin_listen", admin_listen.as_slice()),
        ];
        field::no_port_twice(problems, &bound);
        Some(DaemonSettings {
            config: MirrorConfig {
                listen: listen?,
                piece_listen: piece_listen?,
                advertise: advertise?,
                address_share: address_share?,
                cache: cache?,
                upstreams: upstreams?,
                default_upstream: default_upstream?,
                tag_ttl: tag_ttl?,
                client: client?,
                wan_limit: wan_limit?,
                offline_grace: offline_grace?,
                scheduler: scheduler?,
                pool: pool?,
                zone: zone?,
                authority_key: authority_key.map_or(Some(None), |key| key.map(|key| Some(Arc::new(key))))?,
                revoked: revoked?,
            },
            admin_listen: admin_listen?,
            log: log?,
        })
    }
}

impl RawScheduler {
    /// Checks everything; `None` has left a problem.
    pub(crate) fn validate(self, problems: &mut Problems) -> Option<DaemonSettings<SchedulerConfig>> {
        let listen = field::address(problems, "listen", self.listen);
        let admin_listen = field::address(problems, "admin_listen", self.admin_listen);
        let address_share = field::share(problems, "address_share", self.address_share);
        let authority_key = field::key_file::<AuthorityKey>(problems, "authority_key_file", self.authority_key_file);
        let revoked = field::nodes(problems, "revoke", self.revoke);
        let log = field::log_filter(problems, "log", self.log);
        field::no_port_twice(
            problems,
            &[("listen", listen.as_slice()), ("admin_listen", admin_listen.as_slice())],
        );
        Some(DaemonSettings {
            config: SchedulerConfig {
                listen: listen?,
                address_share: address_share?,
                authority_key: Arc::new(authority_key?),
                revoked: revoked?,
            },
            admin_listen: admin_listen?,
            log: log?,
        })
    }
}

impl RawPeer {
    /// Checks everything; `None` has left a problem.
    pub(crate) fn validate(self, problems: &mut Problems) -> Option<DaemonSettings<PeerConfig>> {
        let listen = loopback_listen(problems, self.listen);
        let piece_listen = field::address(problems, "piece_listen", self.piece_listen);
        let admin_listen = field::address(problems, "admin_listen", self.admin_listen);
        let advertise = field::advertised(problems, "advertise", self.advertise);
        let address_share = field::share(problems, "address_share", self.address_share);
        let mirror = field::service(problems, "mirror", self.mirror);
        let scheduler = field::service(problems, "scheduler", self.scheduler);
        let upstreams = UpstreamTexts {
            upstream: self.upstream,
            upstream_ca: self.upstream_ca,
            upstream_client_certificate: self.upstream_client_certificate,
            ..UpstreamTexts::default()
        };
        let upstreams = upstreams.validate(problems);
        let client = ClientTexts {
            verdict_ttl: self.verdict_ttl,
            allow_plain_credentials: self.allow_plain_credentials,
            proxy: self.proxy,
            no_proxy: self.no_proxy,
            rewrite_redirects: self.rewrite_redirects,
            allow_target: self.allow_target,
            listeners: listeners(
                [&listen, &advertise],
                [piece_listen, admin_listen],
                [mirror.as_ref(), scheduler.as_ref()],
            ),
        };
        let client = client.validate(problems);
        let offline_grace = field::duration_or_zero(problems, "offline_grace", self.offline_grace);
        let default_upstream = field::default_upstream(
            problems,
            "default_upstream",
            self.default_upstream,
            upstreams.as_deref(),
        );
        let join_key = field::key_file(problems, "join_key_file", self.join_key_file);
        let pool = field::label(problems, "pool", self.pool);
        let zone = field::label(problems, "zone", self.zone);
        let download_pattern = field::choice(problems, "download_pattern", self.download_pattern, &DOWNLOAD_PATTERNS);
        let ratelimit = field::limit(problems, "ratelimit", self.ratelimit);
        let direct_fallback = field::choice(problems, "direct_fallback", self.direct_fallback, &DIRECT_FALLBACKS);
        let mirror_grace = field::duration_or_zero(problems, "mirror_grace", self.mirror_grace);
        let cache = cache(
            problems,
            [
                self.cache_dir,
                self.cache_ttl,
                self.cache_quota,
                self.cache_min_free,
                self.cache_scrub,
            ],
        );
        let log = field::log_filter(problems, "log", self.log);

        if let (Some(pattern), Some(mirror), Some(scheduler)) = (download_pattern, &mirror, &scheduler) {
            contradictions(
                problems,
                pattern,
                direct_fallback,
                mirror.is_some(),
                scheduler.is_some(),
            );
        }
        let bound = [
            ("listen", listen.as_deref().unwrap_or_default()),
            ("piece_listen", piece_listen.as_slice()),
            ("admin_listen", admin_listen.as_slice()),
        ];
        field::no_port_twice(problems, &bound);
        Some(DaemonSettings {
            config: PeerConfig {
                listen: listen?,
                piece_listen: piece_listen?,
                advertise: advertise?,
                address_share: address_share?,
                cache: cache?,
                mirror: mirror?,
                scheduler: scheduler?,
                upstreams: upstreams?,
                default_upstream: default_upstream?,
                pool: pool?,
                zone: zone?,
                join_key: join_key?,
                ratelimit: ratelimit?,
                download_pattern: download_pattern?,
                direct_fallback: direct_fallback?,
                mirror_grace: mirror_grace?,
                client: client?,
                offline_grace: offline_grace?,
            },
            admin_listen: admin_listen?,
            log: log?,
        })
    }
}

/// Where this process listens and where it meets the site's other daemons, as far as that is known: no upstream leads there.
fn listeners(
    lists: [&Option<Vec<SocketAddr>>; 2],
    single: [Option<SocketAddr>; 2],
    services: [Option<&Option<Url>>; 2],
) -> Vec<SocketAddr> {
    let at = |url: &Url| {
        let address: IpAddr = url.host_str()?.trim_matches(['[', ']']).parse().ok()?;
        Some(SocketAddr::new(address, url.port_or_known_default()?))
    };
    let services = services.into_iter().flatten().flatten().filter_map(at);
    let lists = lists.into_iter().flatten().flatten().copied();
    lists.chain(single.into_iter().flatten()).chain(services).collect()
}

/// Notes contradictions between the settings of where a peer gets pieces.
fn contradictions(
    problems: &mut Problems,
    pattern: DownloadPattern,
    fallback: Option<DirectFallback>,
    has_mirror: bool,
    has_scheduler: bool,
) {
    let is_p2p = pattern == DownloadPattern::P2p;
    if !is_p2p && has_scheduler {
        problems.add(
            "download_pattern",
            "source works without a scheduler; drop --scheduler, or choose p2p",
        );
    }
    if is_p2p && !has_scheduler {
        let problem = "p2p needs a scheduler; give --scheduler, or choose source (--download-pattern source)";
        problems.add("download_pattern", problem);
    }
    if is_p2p && !has_mirror {
        let problem = "p2p needs a mirror, which brings each blob into the site once; give --mirror, or choose source";
        problems.add("download_pattern", problem);
    }
    if !is_p2p && !has_mirror && fallback == Some(DirectFallback::Never) {
        problems.add(
            "direct_fallback",
            "without a mirror, never leaves no source to pull from; give --mirror",
        );
    }
}

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
        for cache in [&mut self.mirror.config.cache, &mut self.peer.config.cache] {
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
    let (pool, zone) = ("default".to_owned(), "default".to_owned());
    let client = ClientConfig {
        listeners: settings
            .listen
            .iter()
            .copied()
            .chain(up_addresses().into_iter().flatten())
            .collect(),
        ..ClientConfig::default()
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
                listen: vec![mirror_listen],
                piece_listen: mirror_pieces,
                advertise: Vec::new(),
                address_share: Share::ALL,
                cache: cache("mirror"),
                upstreams: settings.upstreams.clone(),
                default_upstream: settings.default_upstream.clone(),
                tag_ttl: UP_TAG_TTL,
                client: client.clone(),
                wan_limit: None,
                offline_grace: UP_OFFLINE_GRACE,
                scheduler: Some(url(scheduler_listen)),
                pool: pool.clone(),
                zone: zone.clone(),
                authority_key: Some(authority_key),
                revoked: HashSet::new(),
            },
            admin_listen: mirror_admin,
            log: log.clone(),
        },
        peer: DaemonSettings {
            config: PeerConfig {
                listen: settings.listen.clone(),
                piece_listen: peer_pieces,
                advertise: Vec::new(),
                address_share: Share::ALL,
                cache: cache("peer"),
                mirror: Some(url(mirror_listen)),
                scheduler: Some(url(scheduler_listen)),
                upstreams: settings.upstreams.clone(),
                default_upstream: settings.default_upstream.clone(),
                pool,
                zone,
                join_key,
                ratelimit: None,
                download_pattern: DownloadPattern::P2p,
                direct_fallback: DirectFallback::Allowed,
                mirror_grace: UP_MIRROR_GRACE,
                client,
                offline_grace: UP_OFFLINE_GRACE,
            },
            admin_listen: peer_admin,
            log,
        },
    }
}

fn cache(problems: &mut Problems, [dir, ttl, quota, min_free, scrub]: [Text; 5]) -> Option<CacheConfig> {
    let dir = field::folder(problems, "cache_dir", dir);
    let ttl = field::duration(problems, "cache_ttl", ttl);
    let quota_bytes = field::limit(problems, "cache_quota", quota);
    let free_bytes_min = field::size(problems, "cache_min_free", min_free);
    let scrub_rate = field::limit(problems, "cache_scrub", scrub);
    Some(CacheConfig {
        dir: dir?,
        ttl: ttl?,
        quota_bytes: quota_bytes?,
        free_bytes_min: free_bytes_min?,
        scrub_rate: scrub_rate?,
    })
}

/// The addresses that containerd pulls from. `[::1]` of the defaults is left out on a machine without IPv6: it is an error
/// only where the setting names it.
fn loopback_listen(problems: &mut Problems, texts: Option<Vec<String>>) -> Option<Vec<SocketAddr>> {
    let mut listen = field::addresses(problems, "listen", texts)?;
    if !problems.is_chosen("listen") && !has_ipv6_loopback() {
        listen.retain(SocketAddr::is_ipv4);
    }
    Some(listen)
}

fn has_ipv6_loopback() -> bool {
    UdpSocket::bind("[::1]:0").is_ok()
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

const DOWNLOAD_PATTERNS: [(&str, DownloadPattern); 2] =
    [("p2p", DownloadPattern::P2p), ("source", DownloadPattern::Source)];
const DIRECT_FALLBACKS: [(&str, DirectFallback); 2] =
    [("allowed", DirectFallback::Allowed), ("never", DirectFallback::Never)];
const DOCKER_HUB: &str = "docker.io";
const UP_FREE_BYTES_MIN: u64 = 1_000_000_000;
const UP_SCRUB_RATE: u64 = 4_000_000;
const UP_TAG_TTL: Duration = Duration::from_secs(30);
const UP_MIRROR_GRACE: Duration = Duration::from_secs(30);
const UP_OFFLINE_GRACE: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::{
        super::{Layers, Raw, load},
        *,
    };

    /// The defaults, with what has none.
    fn validate<R: Raw, T>(flags: R, validate: fn(R, &mut Problems) -> Option<T>) -> T {
        let mut problems = Problems::default();
        let layers = Layers {
            file: None,
            env: Vec::new(),
            flags,
        };
        let value = validate(load(&layers, &mut problems).raw(), &mut problems);
        problems.finish(value).expect("the defaults are good").0
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_defaults_of_a_mirror_are_those_that_are_promised() {
        let flags = RawMirror {
            upstream: Some(vec!["a.test=http://a.test".to_owned()]),
            ..RawMirror::default()
        };
        let settings = validate(flags, RawMirror::validate);
        let config = settings.config;
        assert_eq!(config.listen, [address("0.0.0.0:65011")]);
        assert_eq!(config.piece_listen, address("0.0.0.0:65002"));
        assert_eq!(settings.admin_listen, address("0.0.0.0:65013"));
        assert_eq!(
            (config.cache.ttl, config.tag_ttl),
            (Duration::from_hours(24), Duration::from_secs(30))
        );
        assert_eq!(
            (config.cache.quota_bytes, config.cache.free_bytes_min),
            (None, 1_000_000_000)
        );
        assert_eq!(
            config.client.listeners,
            ["0.0.0.0:65011", "0.0.0.0:65002", "0.0.0.0:65013"].map(address)
        );
        assert!(config.scheduler.is_none() && config.authority_key.is_none() && config.default_upstream.is_none());
        assert_eq!(config.cache.dir, Path::new("/var/lib/piecemeal/mirror"));
    }

    #[test]
    fn the_defaults_of_a_peer_are_those_that_are_promised() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("join.key");
        std::fs::write(&key, AuthorityKey::from_seed([1; 32]).join_key().to_text()).unwrap();
        let flags = RawPeer {
            upstream: Some(vec!["a.test=http://a.test".to_owned()]),
            mirror: Some("http://10.0.0.1:65011".to_owned()),
            scheduler: Some("http://10.0.0.1:65012".to_owned()),
            join_key_file: Some(key.display().to_string()),
            ..RawPeer::default()
        };
        let settings = validate(flags, RawPeer::validate);
        let config = settings.config;
        let both = [address("127.0.0.1:65001"), address("[::1]:65001")];
        assert_eq!(config.listen, both[..config.listen.len()]);
        assert_eq!(settings.admin_listen, address("127.0.0.1:65003"));
        assert_eq!(
            (config.cache.quota_bytes, config.cache.ttl),
            (Some(4 << 30), Duration::from_hours(24))
        );
        for service in ["10.0.0.1:65011", "10.0.0.1:65012", "127.0.0.1:65003"] {
            assert!(config.client.listeners.contains(&address(service)), "{service}");
        }
        assert_eq!((config.ratelimit, config.mirror_grace), (None, Duration::from_secs(30)));
        assert_eq!(config.download_pattern, DownloadPattern::P2p);
        assert_eq!(config.direct_fallback, DirectFallback::Allowed);
        assert_eq!(config.cache.dir, Path::new("/var/lib/piecemeal/peer"));
    }

    #[test]
    fn a_site_of_one_needs_nothing_and_speaks_over_the_ports_of_a_real_one() {
        let settings = validate(RawUp::default(), RawUp::validate);
        assert_eq!(settings.default_upstream.as_deref(), Some("docker.io"));
        assert_eq!(settings.upstreams.len(), 7);
        let site = site_of_one(&settings, Path::new("/x"), AuthorityKey::from_seed([1; 32]));
        let peer = site.peer.config;
        assert_eq!(
            peer.mirror.map(String::from).as_deref(),
            Some("http://127.0.0.1:65011/")
        );
        assert_eq!(
            peer.scheduler.map(String::from).as_deref(),
            Some("http://127.0.0.1:65012/")
        );
        assert_eq!(peer.piece_listen, address("127.0.0.1:65002"));
        assert_eq!(site.mirror.config.piece_listen, address("127.0.0.2:65002"));
        assert_eq!(
            (peer.cache.dir, site.mirror.config.cache.dir),
            ("/x/peer".into(), "/x/mirror".into())
        );
    }
}
