//! Validation of settings: turns texts into the daemons' configurations, and finds contradictions.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
};

use piecemeal_http::Sockets;
use piecemeal_mirror::MirrorConfig;
use piecemeal_peer::{DirectFallback, DownloadPattern, PeerConfig};
use piecemeal_proto::AuthorityKey;
use piecemeal_proxy::{CacheConfig, ProxyConfig};
use piecemeal_scheduler::SchedulerConfig;
use url::Url;

use super::{
    field::{self, Text},
    problems::Problems,
    raw::{RawMirror, RawPeer, RawScheduler},
    shared::RawShared,
    upstream::{ClientTexts, UpstreamTexts},
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
        let admin_listen = field::address(problems, "admin_listen", self.admin_listen);
        let scheduler = field::service(problems, "scheduler", self.scheduler);
        let own = Own {
            listen: listen.as_deref(),
            admin_listen,
            mirror: None,
            scheduler: scheduler.as_ref(),
            upstreams: UpstreamTexts {
                upstream: self.upstream,
                credentials: self.credentials,
                token_server: self.token_server,
                serve_site: self.serve_site,
                ..UpstreamTexts::default()
            },
            cache_dir: self.cache_dir,
            cache_quota: self.cache_quota,
        };
        let shared = self.shared.validate(problems, own);
        let wan_limit = field::limit(problems, "wan_limit", self.wan_limit);
        let revoked = field::nodes(problems, "revoke", self.revoke);
        let has_key_file = self.authority_key_file.is_some();
        let authority_key = self
            .authority_key_file
            .map(|path| field::key_file::<AuthorityKey>(problems, "authority_key_file", Some(path)));
        let tag_ttl = field::duration_or_zero(problems, "tag_ttl", self.tag_ttl);
        if matches!(scheduler, Some(Some(_))) && !has_key_file {
            problems.add(
                "scheduler",
                "a scheduler admits only a mirror with its key; give --authority-key-file too",
            );
        }
        let shared = shared?;
        Some(DaemonSettings {
            config: MirrorConfig {
                proxy: shared.proxy,
                tag_ttl: tag_ttl?,
                wan_limit: wan_limit?,
                authority_key: authority_key.map_or(Some(None), |key| key.map(|key| Some(Arc::new(key))))?,
                revoked: revoked?,
            },
            admin_listen: admin_listen?,
            log: shared.log,
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
        let admin_listen = field::address(problems, "admin_listen", self.admin_listen);
        let mirror = field::service(problems, "mirror", self.mirror);
        let scheduler = field::service(problems, "scheduler", self.scheduler);
        let own = Own {
            listen: listen.as_deref(),
            admin_listen,
            mirror: mirror.as_ref(),
            scheduler: scheduler.as_ref(),
            upstreams: UpstreamTexts {
                upstream: self.upstream,
                ..UpstreamTexts::default()
            },
            cache_dir: self.cache_dir,
            cache_quota: self.cache_quota,
        };
        let shared = self.shared.validate(problems, own);
        let join_key = field::key_file(problems, "join_key_file", self.join_key_file);
        let download_pattern = field::choice(problems, "download_pattern", self.download_pattern, &DOWNLOAD_PATTERNS);
        let ratelimit = field::limit(problems, "ratelimit", self.ratelimit);
        let direct_fallback = field::choice(problems, "direct_fallback", self.direct_fallback, &DIRECT_FALLBACKS);
        let mirror_grace = field::duration_or_zero(problems, "mirror_grace", self.mirror_grace);
        if let (Some(pattern), Some(mirror), Some(scheduler)) = (download_pattern, &mirror, &scheduler) {
            contradictions(
                problems,
                pattern,
                direct_fallback,
                mirror.is_some(),
                scheduler.is_some(),
            );
        }
        let shared = shared?;
        Some(DaemonSettings {
            config: PeerConfig {
                proxy: shared.proxy,
                mirror: mirror?,
                join_key: join_key?,
                ratelimit: ratelimit?,
                download_pattern: download_pattern?,
                direct_fallback: direct_fallback?,
                mirror_grace: mirror_grace?,
            },
            admin_listen: admin_listen?,
            log: shared.log,
        })
    }
}

/// Settings that the shared ones are checked together with: a daemon's own addresses, and the texts whose defaults are its own.
struct Own<'a> {
    listen: Option<&'a [SocketAddr]>,
    admin_listen: Option<SocketAddr>,
    mirror: Option<&'a Option<Url>>,
    scheduler: Option<&'a Option<Url>>,
    upstreams: UpstreamTexts,
    cache_dir: Text,
    cache_quota: Text,
}

/// [`RawShared`], checked.
struct Shared {
    proxy: ProxyConfig,
    log: String,
}

impl RawShared {
    fn validate(self, problems: &mut Problems, own: Own<'_>) -> Option<Shared> {
        let piece_listen = field::address(problems, "piece_listen", self.piece_listen);
        let advertise = field::advertised(problems, "advertise", self.advertise);
        let address_share = field::share(problems, "address_share", self.address_share);
        let upstreams = UpstreamTexts {
            upstream_ca: self.upstream_ca,
            upstream_client_certificate: self.upstream_client_certificate,
            ..own.upstreams
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
                [own.listen, advertise.as_deref()],
                [piece_listen, own.admin_listen],
                [own.mirror, own.scheduler],
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
        let pool = field::label(problems, "pool", self.pool);
        let zone = field::label(problems, "zone", self.zone);
        let dir = field::folder(problems, "cache_dir", own.cache_dir);
        let ttl = field::duration(problems, "cache_ttl", self.cache_ttl);
        let quota_bytes = field::limit(problems, "cache_quota", own.cache_quota);
        let free_bytes_min = field::size(problems, "cache_min_free", self.cache_min_free);
        let scrub_rate = field::limit(problems, "cache_scrub", self.cache_scrub);
        let log = field::log_filter(problems, "log", self.log);
        let bound = [
            ("listen", own.listen.unwrap_or_default()),
            ("piece_listen", piece_listen.as_slice()),
            ("admin_listen", own.admin_listen.as_slice()),
        ];
        field::no_port_twice(problems, &bound);
        let proxy = ProxyConfig {
            listen: own.listen?.to_vec(),
            sockets: Sockets::default(),
            piece_listen: piece_listen?,
            advertise: advertise?,
            address_share: address_share?,
            cache: CacheConfig {
                dir: dir?,
                ttl: ttl?,
                quota_bytes: quota_bytes?,
                free_bytes_min: free_bytes_min?,
                scrub_rate: scrub_rate?,
            },
            upstreams: upstreams?,
            default_upstream: default_upstream?,
            client: client?,
            offline_grace: offline_grace?,
            scheduler: own.scheduler?.clone(),
            pool: pool?,
            zone: zone?,
        };
        Some(Shared { proxy, log: log? })
    }
}

/// The addresses at which this process listens and those of the site's other daemons, as far as they are known: no upstream leads
/// there.
fn listeners(
    lists: [Option<&[SocketAddr]>; 2],
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

/// The addresses that containerd pulls from. `[::1]` of the defaults is left out on a machine without IPv6: it is an error
/// only where the setting names it.
pub(super) fn loopback_listen(problems: &mut Problems, texts: Option<Vec<String>>) -> Option<Vec<SocketAddr>> {
    let mut listen = field::addresses(problems, "listen", texts)?;
    if !problems.is_chosen("listen") && !has_ipv6_loopback() {
        listen.retain(SocketAddr::is_ipv4);
    }
    Some(listen)
}

fn has_ipv6_loopback() -> bool {
    UdpSocket::bind("[::1]:0").is_ok()
}

const DOWNLOAD_PATTERNS: [(&str, DownloadPattern); 2] =
    [("p2p", DownloadPattern::P2p), ("source", DownloadPattern::Source)];
const DIRECT_FALLBACKS: [(&str, DirectFallback); 2] =
    [("allowed", DirectFallback::Allowed), ("never", DirectFallback::Never)];
#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

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
        let (proxy, config) = (settings.config.proxy.clone(), settings.config);
        assert_eq!(proxy.listen, [address("0.0.0.0:65011")]);
        assert_eq!(proxy.piece_listen, address("0.0.0.0:65002"));
        assert_eq!(settings.admin_listen, address("0.0.0.0:65013"));
        assert_eq!(
            (proxy.cache.ttl, config.tag_ttl),
            (Duration::from_hours(24), Duration::from_secs(30))
        );
        assert_eq!(
            (proxy.cache.quota_bytes, proxy.cache.free_bytes_min),
            (None, 1_000_000_000)
        );
        assert_eq!(
            proxy.client.listeners,
            ["0.0.0.0:65011", "0.0.0.0:65002", "0.0.0.0:65013"].map(address)
        );
        assert!(proxy.scheduler.is_none() && config.authority_key.is_none() && proxy.default_upstream.is_none());
        assert_eq!(proxy.cache.dir, Path::new("/var/lib/piecemeal/mirror"));
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
        let (proxy, config) = (settings.config.proxy.clone(), settings.config);
        let both = [address("127.0.0.1:65001"), address("[::1]:65001")];
        assert_eq!(proxy.listen, both[..proxy.listen.len()]);
        assert_eq!(settings.admin_listen, address("127.0.0.1:65003"));
        assert_eq!(
            (proxy.cache.quota_bytes, proxy.cache.ttl),
            (Some(4 << 30), Duration::from_hours(24))
        );
        for service in ["10.0.0.1:65011", "10.0.0.1:65012", "127.0.0.1:65003"] {
            assert!(proxy.client.listeners.contains(&address(service)), "{service}");
        }
        assert_eq!((config.ratelimit, config.mirror_grace), (None, Duration::from_secs(30)));
        assert_eq!(config.download_pattern, DownloadPattern::P2p);
        assert_eq!(config.direct_fallback, DirectFallback::Allowed);
        assert_eq!(proxy.cache.dir, Path::new("/var/lib/piecemeal/peer"));
    }
}
