//! One upstream: its settings, and what the daemon has learned of it.

use std::sync::{Arc, Once, Weak};

use piecemeal_store::Repository;
use reqwest::header::HeaderValue;
use url::Url;

use crate::{Caller, LiveDuration, NodeIdentity, PullError};
use crate::{
    auth::Tokens, breaker::CircuitBreakers, concurrency::Concurrency, endpoint::Endpoint, head::Heads, limits::Limits,
    metrics::RequestMetrics, pings::Pings, public::PublicManifests, rewrite::Rewrites, routes::Routes,
    site_credentials::SiteCredentials, verdicts::Verdicts,
};

/// A registry that is pulled from: an upstream, or for a peer its mirror.
pub struct Upstream {
    /// For tasks that go on when the caller has left.
    pub(crate) me: Weak<Self>,
    pub(crate) name: String,
    /// The configured name: a pattern, where one stands for it.
    pub(crate) label: String,
    pub(crate) asked: RequestMetrics,
    /// In the order in which they are asked.
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    /// This node's identity, when the registry is the site's mirror: requests are signed with it, and `?ns=` names the upstream.
    pub(crate) node: Option<NodeIdentity>,
    /// The HTTP clients for the registry and its redirects' targets.
    pub(crate) routes: Arc<Routes>,
    /// Hosts whose tokens may be asked for with the held password, besides the registry's own.
    pub(crate) token_servers: Vec<String>,
    pub(crate) tokens: Tokens,
    pub(crate) breakers: CircuitBreakers,
    pub(crate) verdicts: Verdicts,
    /// What was learnt of HEAD.
    pub(crate) heads: Heads,
    /// Public manifests that probes ask for.
    pub(crate) public: PublicManifests,
    pub(crate) pings: Pings,
    /// The time for which a right counts as proven.
    pub(crate) allowed_life: LiveDuration,
    /// The site's own user and password here.
    pub(crate) held: Option<SiteCredentials>,
    /// Whether those are used for all callers, or for the site's nodes only.
    pub(crate) serves_site: bool,
    pub(crate) allow_plain_credentials: bool,
    pub(crate) rewrites: Arc<Rewrites>,
    /// Logs once that this upstream's challenges are not passed on.
    pub(crate) withheld: Once,
    /// The same, for a held password that was not sent to a token server elsewhere.
    pub(crate) kept_home: Once,
    /// This daemon, as `Via` names it.
    pub(crate) via: String,
    pub(crate) concurrency: Concurrency,
    pub(crate) limits: Limits,
}

impl Upstream {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The connections of fills.
    pub fn concurrency(&self) -> &Concurrency {
        &self.concurrency
    }

    /// Limits on what this upstream may make the mirror hold.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn request_url(&self, endpoint: &Endpoint, at: &Repository, path: &str) -> Result<Url, PullError> {
        let mut url = endpoint
            .v2(&format!("{}{}/{path}", endpoint.prefix(), at.name))
            .ok_or_else(|| self.bad_url(endpoint))?;
        if self.node.is_some() {
            url.query_pairs_mut().append_pair("ns", &at.upstream);
        }
        Ok(url)
    }

    pub(crate) fn bad_url(&self, endpoint: &Endpoint) -> PullError {
        PullError::BadGateway(format!("{}: {} is no registry's URL", self.name, endpoint.url))
    }

    /// The hosts that a request has passed, with this one.
    pub(crate) fn via(&self, caller: &Caller) -> HeaderValue {
        let path = match &caller.via {
            Some(before) => format!("{before}, {}", self.via),
            None => self.via.clone(),
        };
        HeaderValue::from_str(&path).unwrap_or_else(|_| HeaderValue::from_static("1.1 piecemeal"))
    }

    pub(crate) fn bad(&self, at: &Repository, problem: &str) -> PullError {
        PullError::BadGateway(format!("{} answered {problem} ({})", self.name, at.name))
    }
}
