//! Upstreams of a daemon by name.
//!
//! Invariant: a name has one upstream at a time. Of the registries that only a pattern stands for, the [`WILD_MAX`] last used are
//! kept.

use std::{
    collections::BTreeMap,
    fs,
    hash::{BuildHasher as _, RandomState},
    io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Once},
    time::Duration,
};

use lru::LruCache;
use parking_lot::Mutex;
use piecemeal_proto::{AuthorityPublic, Digest, NodeId};
use piecemeal_store::Repository;
use piecemeal_tls::{ServerRole, client_config};
use prometheus_client::registry::Registry;
use reqwest::{
    ClientBuilder,
    header::{ACCEPT_ENCODING, HeaderMap, HeaderValue},
};
use url::Url;

use crate::{Caller, ClientConfig, LiveDuration, NodeIdentity, PullError, UpstreamConfig};
use crate::{
    answer::innermost,
    auth::Tokens,
    breaker::CircuitBreakers,
    concurrency::Concurrency,
    endpoint::Endpoint,
    head::Heads,
    limits::Limits,
    metrics::RequestMetrics,
    pings::Pings,
    public::PublicManifests,
    rewrite::{RewriteRule, Rewrites},
    route::Route,
    routes::{Recipe, Routes, Rules},
    site_credentials::SiteCredentials,
    token_servers::TokenServers,
    trust::{self, Identity},
    upstream::Upstream,
    verdicts::Verdicts,
};

/// The longest time for a connection to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest pause of a body before it is given up; it is resumed by Range.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer asks its mirror more often than the mirror asks upstream, so that both together remember little longer than one alone.
const AT_MIRROR_DIVISOR: u32 = 30;
/// The longest time that a connection is kept without a request. NATs and load balancers forget it after a minute or more.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// A connection without a byte is probed after this time and then at the next constant's interval; the kernel closes it when this many
/// probes are lost.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// The most header fields of one answer: registries behind several proxies send more than a hundred.
const ANSWER_HEADERS_MAX: usize = 512;
/// The most registries that the names with a `*` stand for at one time.
const WILD_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("more than none");

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is invalid: {problem}")]
    Content { path: PathBuf, problem: String },
    #[error("the HTTP client cannot be made: {0}")]
    Build(String),
}

/// A node's HTTP clients for its site's mirror: redirects by hand, no proxy, no automatic decoding. Over TLS they trust
/// that mirror only.
///
/// # Panics
/// Only when reqwest was built for another rustls.
pub fn mirror_route(authority: AuthorityPublic) -> Route {
    let tls = client_config(authority, ServerRole::Mirror);
    let builder = || client_builder().no_proxy().tls_backend_preconfigured(tls.clone());
    Route::new(builder).expect("a client that has its TLS configuration can always be built")
}

fn client_builder() -> ClientBuilder {
    // A digest is of the bytes as they are: without it, some proxies compress whatever they pass on.
    let unencoded = (ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(STALL_TIMEOUT)
        .pool_idle_timeout(IDLE_MAX)
        .tcp_keepalive(KEEPALIVE)
        .tcp_keepalive_interval(KEEPALIVE_INTERVAL)
        .tcp_keepalive_retries(KEEPALIVE_PROBES)
        .tcp_nodelay(true)
        .http1_only()
        .http1_max_headers(ANSWER_HEADERS_MAX)
        .default_headers(HeaderMap::from_iter([unencoded]))
        .user_agent(concat!("piecemeal/", env!("CARGO_PKG_VERSION")))
}

/// The configured upstreams by name.
#[derive(Clone)]
pub struct Upstreams(Arc<Set>);

struct Set {
    named: BTreeMap<String, Arc<Upstream>>,
    patterns: Vec<Pattern>,
    /// Upstreams made from a pattern, when they were first asked for.
    wild: Mutex<LruCache<String, Arc<Upstream>>>,
    maker: Maker,
}

/// A name that begins with `*`, and its registries.
struct Pattern {
    config: UpstreamConfig,
    routes: Arc<Routes>,
    /// Of all the names together: an attacker may own one.
    limits: Limits,
}

/// Maker of upstreams: everything that they share.
struct Maker {
    node: Option<NodeIdentity>,
    via: String,
    /// Shared by all of them, those of a pattern that are still to come included.
    allowed_life: LiveDuration,
    allow_plain_credentials: bool,
    rewrites: Arc<Rewrites>,
    asked: RequestMetrics,
}

impl Upstreams {
    /// Clients of the registries themselves. `id`: this daemon.
    ///
    /// # Errors
    /// [`ClientError`]: a certificate or key that cannot be used.
    pub fn new(configs: &[UpstreamConfig], common: &ClientConfig, id: NodeId) -> Result<Self, ClientError> {
        let maker = Maker {
            node: None,
            via: via(id),
            allowed_life: LiveDuration::new(common.verdict_ttl),
            allow_plain_credentials: common.allow_plain_credentials,
            rewrites: Arc::new(Rewrites::new(common.rewrites.clone())),
            asked: RequestMetrics::default(),
        };
        Self::made(configs, maker, |config| routes(config, common))
    }

    /// Clients of the site's mirror, which is told which registry is meant and which node asks. `route`: from
    /// [`mirror_route`]. `direct`: this node's own clients of the registries, whose metrics count the mirror's failures too.
    pub fn behind_mirror(
        names: impl Iterator<Item = String>,
        mirror: &Url,
        route: &Route,
        node: NodeIdentity,
        direct: &Self,
        common: &ClientConfig,
    ) -> Self {
        let maker = Maker {
            via: via(node.node()),
            allowed_life: LiveDuration::new(common.verdict_ttl / AT_MIRROR_DIVISOR),
            node: Some(node),
            allow_plain_credentials: common.allow_plain_credentials,
            rewrites: Arc::default(),
            asked: direct.0.maker.asked.clone(),
        };
        let configs: Vec<_> = names
            .map(|name| UpstreamConfig::new(name, vec![mirror.clone()]))
            .collect();
        match Self::made(&configs, maker, |_| Ok(Routes::to_mirror(route.clone()))) {
            Ok(upstreams) => upstreams,
            Err(error) => unreachable!("the client is there already: {error}"),
        }
    }

    fn made(
        configs: &[UpstreamConfig],
        maker: Maker,
        routes: impl Fn(&UpstreamConfig) -> Result<Routes, ClientError>,
    ) -> Result<Self, ClientError> {
        let mut set = Set {
            named: BTreeMap::new(),
            patterns: Vec::new(),
            wild: Mutex::new(LruCache::sparse(WILD_MAX)),
            maker,
        };
        for config in configs {
            let routes = Arc::new(routes(config)?);
            if config.name.starts_with('*') {
                let config = config.clone();
                let limits = Limits::of_pattern();
                set.patterns.push(Pattern { config, routes, limits });
            } else {
                let upstream = set.maker.make(config, &config.name, routes, Limits::of_registry());
                set.named.insert(config.name.clone(), upstream);
            }
        }
        Ok(Self(Arc::new(set)))
    }

    /// Remembers manifests that upstreams have served without a credential, before the daemon began: by upstream and repository. It
    /// is for the beginning, since the first ones stay.
    pub fn note_public(&self, known: impl IntoIterator<Item = (Repository, Digest)>) {
        for (at, digest) in known {
            // An upstream may have been taken out of the settings.
            if let Ok(upstream) = self.get(&at.upstream) {
                upstream.public.note(&at.name, &format!("manifests/{digest}"));
            }
        }
    }

    /// # Errors
    /// [`PullError::UnknownUpstream`].
    pub fn get(&self, name: &str) -> Result<Arc<Upstream>, PullError> {
        if let Some(upstream) = self.0.named.get(name) {
            return Ok(Arc::clone(upstream));
        }
        let unknown = || PullError::UnknownUpstream(name.to_owned());
        let pattern = self
            .0
            .patterns
            .iter()
            .find(|pattern| matches_pattern(&pattern.config.name, name));
        let pattern = pattern.ok_or_else(unknown)?;
        let mut wild = self.0.wild.lock();
        if let Some(upstream) = wild.get(name) {
            return Ok(Arc::clone(upstream));
        }
        let config = pattern.config.for_name(name).ok_or_else(unknown)?;
        let upstream = self.0.maker.make(
            &config,
            &pattern.config.name,
            Arc::clone(&pattern.routes),
            pattern.limits.clone(),
        );
        // Requests that still use the evicted upstream keep it alive.
        wild.put(name.to_owned(), Arc::clone(&upstream));
        Ok(upstream)
    }

    /// All that have a name of their own.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.0.named.values()
    }

    /// Whether the repository's upstream has recently served the caller from it.
    pub fn allows(&self, caller: &Caller, at: &Repository) -> bool {
        self.get(&at.upstream).is_ok_and(|upstream| upstream.allows(caller, at))
    }

    /// Whether the repository's upstream is lost. An unknown upstream is not.
    pub async fn is_lost(&self, at: &Repository) -> bool {
        match self.get(&at.upstream) {
            Ok(upstream) => upstream.is_lost().await,
            Err(_) => false,
        }
    }

    /// Changes [`ClientConfig::verdict_ttl`], for rights that count already too.
    pub fn set_verdict_ttl(&self, verdict_ttl: Duration) {
        let maker = &self.0.maker;
        let divisor = maker.node.as_ref().map_or(1, |_| AT_MIRROR_DIVISOR);
        maker.allowed_life.set(verdict_ttl / divisor);
    }

    /// Registers the clients' metrics.
    pub fn register(&self, registry: &mut Registry) {
        self.0.maker.rewrites.register(registry);
        self.0.maker.asked.register(registry);
    }
}

impl Maker {
    fn make(&self, config: &UpstreamConfig, label: &str, routes: Arc<Routes>, limits: Limits) -> Arc<Upstream> {
        Arc::new_cyclic(|me| Upstream {
            me: me.clone(),
            name: config.name.clone(),
            label: label.to_owned(),
            asked: self.asked.clone(),
            endpoints: config.urls.iter().cloned().map(Endpoint::new).map(Arc::new).collect(),
            node: self.node.clone(),
            routes,
            token_servers: config.token_servers.clone(),
            tokens: Tokens::default(),
            asked_for_tokens: TokenServers::default(),
            breakers: CircuitBreakers::default(),
            verdicts: Verdicts::default(),
            heads: Heads::default(),
            public: PublicManifests::new(random()),
            pings: Pings::default(),
            allowed_life: self.allowed_life.clone(),
            held: config.credentials.clone().map(SiteCredentials::new),
            serves_site: config.serves_site,
            allow_plain_credentials: self.allow_plain_credentials,
            rewrites: Arc::clone(&self.rewrites),
            withheld: Once::new(),
            kept_home: Once::new(),
            via: self.via.clone(),
            concurrency: Concurrency::default(),
            limits,
        })
    }
}

/// `*.example.com` stands for every name that ends with `.example.com`, and `*-vpc.example.com` for its `-vpc` ones.
pub fn matches_pattern(pattern: &str, name: &str) -> bool {
    pattern
        .strip_prefix('*')
        .is_some_and(|suffix| name.len() > suffix.len() && name.ends_with(suffix))
}

/// A number that no caller can guess: the standard library seeds its hasher from the system.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// This daemon as `Via` names it.
pub fn via(id: NodeId) -> String {
    format!("1.1 piecemeal-{id}")
}

fn routes(config: &UpstreamConfig, common: &ClientConfig) -> Result<Routes, ClientError> {
    let authorities = match &config.ca_file {
        Some(path) => trust::certificates(&read(path)?).map_err(content(path))?,
        None => Vec::new(),
    };
    let identity = match &config.client_certificate_file {
        Some(path) => Some(Identity::from_pem(&read(path)?).map_err(content(path))?),
        None => None,
    };
    let tls = trust::client_config(authorities, identity).map_err(|error| ClientError::Build(error.to_string()))?;
    // Hosts in other settings are allowed by the administrator too.
    let token_servers = config.token_servers.iter().filter_map(|host| host.parse().ok());
    let rewritten = common.rewrites.iter().filter_map(RewriteRule::target);
    let rules = Rules {
        upstream: led_by(config),
        allowed: common
            .allowed_targets
            .iter()
            .cloned()
            .chain(token_servers)
            .chain(rewritten)
            .collect(),
        listeners: common.listeners.clone(),
    };
    let recipe = Recipe {
        base: client_builder,
        tls,
        proxy: common.proxy.clone(),
        rules: Arc::new(rules),
    };
    let is_wild = config.name.starts_with('*') && config.urls.iter().any(|url| url.as_str().contains('*'));
    Routes::new(recipe, is_wild).map_err(|error| ClientError::Build(innermost(&error)))
}

/// The registry as an error names it that tells where it leads: with its own host, where that is another than its name.
fn led_by(config: &UpstreamConfig) -> String {
    let host = config.urls.first().and_then(Url::host_str).unwrap_or_default();
    match config.name.split(':').next() == Some(host) {
        true => config.name.clone(),
        false => format!("{} (at {host})", config.name),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    fs::read(path).map_err(|source| ClientError::Read {
        path: path.to_owned(),
        source,
    })
}

fn content(path: &Path) -> impl Fn(String) -> ClientError + '_ {
    |problem| ClientError::Content {
        path: path.to_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::AuthorityKey;

    use super::*;

    #[test]
    fn a_full_table_of_names_gives_up_its_oldest_alone() {
        let maker = Maker {
            node: None,
            via: "1.1 test".to_owned(),
            allowed_life: LiveDuration::new(Duration::from_secs(1)),
            allow_plain_credentials: false,
            rewrites: Arc::default(),
            asked: RequestMetrics::default(),
        };
        let pattern = UpstreamConfig::new("*.cr.test".to_owned(), vec!["http://*.cr.test".parse().unwrap()]);
        let route = mirror_route(AuthorityKey::from_seed([1; 32]).public());
        let upstreams = Upstreams::made(&[pattern], maker, |_| Ok(Routes::to_mirror(route.clone()))).unwrap();
        let get = |n: usize| upstreams.get(&format!("t{n}.cr.test")).unwrap();
        let (first, second) = (get(0), get(1));
        for n in 2..=WILD_MAX.get() {
            get(n);
        }
        assert!(Arc::ptr_eq(&second, &get(1)), "what is not the oldest stays");
        assert!(!Arc::ptr_eq(&first, &get(0)), "the oldest went");
    }
}
