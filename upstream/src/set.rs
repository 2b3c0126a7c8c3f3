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
use piecemeal_proto::{AuthorityPublic, NodeId};
use piecemeal_store::Repository;
use piecemeal_tls::{ServerRole, client_config};
use prometheus_client::registry::Registry;
use reqwest::{Certificate, ClientBuilder, Identity};
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
    routes::{Recipe, Routes, Rules},
    site_credentials::SiteCredentials,
    upstream::Upstream,
    verdicts::Verdicts,
};

/// The longest time for a connection to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest pause of a body before it is given up; it is resumed by Range.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer asks its mirror more often than the mirror asks upstream, so that both together remember little longer than one alone.
const AT_MIRROR_DIVISOR: u32 = 30;
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

/// A node's HTTP client for its site's mirror: redirects by hand, no proxy, no automatic decoding. Over TLS it trusts that
/// mirror only.
///
/// # Panics
/// Only when reqwest was built for another rustls.
pub fn mirror_http_client(authority: AuthorityPublic) -> reqwest::Client {
    client_builder()
        .no_proxy()
        .tls_backend_preconfigured(client_config(authority, ServerRole::Mirror))
        .build()
        .expect("a client that has its TLS configuration can always be built")
}

fn client_builder() -> ClientBuilder {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(STALL_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_nodelay(true)
        .http1_only()
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

    /// Clients of the site's mirror, which is told which registry is meant and which node asks. `http`: from
    /// [`mirror_http_client`].
    pub fn behind_mirror(
        names: impl Iterator<Item = String>,
        mirror: &Url,
        http: &reqwest::Client,
        node: NodeIdentity,
        common: &ClientConfig,
    ) -> Self {
        let maker = Maker {
            via: via(node.node()),
            allowed_life: LiveDuration::new(common.verdict_ttl / AT_MIRROR_DIVISOR),
            node: Some(node),
            allow_plain_credentials: common.allow_plain_credentials,
            rewrites: Arc::default(),
            asked: RequestMetrics::default(),
        };
        let configs: Vec<_> = names
            .map(|name| UpstreamConfig::new(name, vec![mirror.clone()]))
            .collect();
        match Self::made(&configs, maker, |_| Ok(Routes::to_mirror(http.clone()))) {
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
    let certificates = match &config.ca_file {
        Some(path) => Certificate::from_pem_bundle(&read(path)?).map_err(content(path))?,
        None => Vec::new(),
    };
    let identity = match &config.client_certificate_file {
        Some(path) => Some(Identity::from_pem(&read(path)?).map_err(content(path))?),
        None => None,
    };
    // Hosts in other settings are allowed by the administrator too.
    let token_servers = config.token_servers.iter().filter_map(|host| host.parse().ok());
    let rewritten = common.rewrites.iter().filter_map(RewriteRule::target);
    let rules = Rules {
        upstream: config.name.clone(),
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
        certificates,
        identity,
        proxy: common.proxy.clone(),
        rules: Arc::new(rules),
    };
    let is_wild = config.name.starts_with('*') && config.urls.iter().any(|url| url.as_str().contains('*'));
    Routes::new(recipe, is_wild).map_err(|error| ClientError::Build(innermost(&error)))
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    fs::read(path).map_err(|source| ClientError::Read {
        path: path.to_owned(),
        source,
    })
}

fn content(path: &Path) -> impl Fn(reqwest::Error) -> ClientError + '_ {
    |error| ClientError::Content {
        path: path.to_owned(),
        problem: innermost(&error),
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
        let http = mirror_http_client(AuthorityKey::from_seed([1; 32]).public());
        let upstreams = Upstreams::made(&[pattern], maker, |_| Ok(Routes::to_mirror(http.clone()))).unwrap();
        let get = |n: usize| upstreams.get(&format!("t{n}.cr.test")).unwrap();
        let (first, second) = (get(0), get(1));
        for n in 2..=WILD_MAX.get() {
            get(n);
        }
        assert!(Arc::ptr_eq(&second, &get(1)), "what is not the oldest stays");
        assert!(!Arc::ptr_eq(&first, &get(0)), "the oldest went");
    }
}
