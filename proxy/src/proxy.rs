//! A running proxy: the parts that a mirror and a peer have alike.
//!
//! It stops in one order: clients first, then what feeds them, then the store.

use std::{sync::Arc, time::Instant};

use axum::Router;
use piecemeal_http::Clients;
use piecemeal_store::Store;
use piecemeal_swarm::{Limiter, Session};
use piecemeal_tls::Acceptor;
use piecemeal_upstream::{Caller, LiveDuration, Upstreams};
use prometheus_client::registry::Registry;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Admission, Announcer, Cache, CacheParts, Content, Foundation, Front, Logins, PassedBy, ProxyConfig, Pulls,
    Suspicions, Traffic,
    daemon::{keep_clean, rebound, store_problem, store_status, traffic_status},
    front_router, register_store, scrub,
};

/// The parts that a mirror and a peer give their proxy.
pub struct ProxyParts {
    pub content: Content,
    pub announcer: Announcer,
    pub admission: Admission,
    /// The session that takes administrators' orders for peers; `None` where there are no peers.
    pub peers: Option<Session>,
    /// `None`: clients are answered without TLS.
    pub tls: Option<Acceptor>,
}

/// A running proxy. Dropping it leaves it running; [`Proxy::shutdown`] ends it.
pub struct Proxy {
    clients: Clients,
    stop: CancellationToken,
    tracker: TaskTracker,
    store: Store,
    upstreams: Upstreams,
    traffic: Traffic,
    content: Content,
    pulls: Pulls,
    passed_by: PassedBy,
    cache: Cache,
    offline_grace: LiveDuration,
}

impl Proxy {
    /// Starts the proxy on its foundation; it answers when this returns. `routes`: adds a daemon's own routes to the front's.
    pub fn start(base: Foundation, parts: ProxyParts, routes: impl FnOnce(Router) -> Router) -> Self {
        let pulls = Pulls::new(base.traffic.clone());
        let passed_by = PassedBy::default();
        let (suspicions, suspects) = Suspicions::new();
        let cache = Cache::new(CacheParts {
            store: base.store.clone(),
            content: parts.content.clone(),
            names: base.names.clone(),
            // A node of the site, so that the site's own credentials are used.
            caller: Caller {
                node: Some(base.store.node_id()),
                ..Caller::default()
            },
            session: parts.peers,
            stop: base.stop.clone(),
        });
        let front = Front {
            content: parts.content.clone(),
            names: base.names,
            pulls: pulls.clone(),
            suspicions,
            admission: parts.admission,
            logins: Logins::default(),
            passed_by: passed_by.clone(),
        };
        let router = routes(front_router(Arc::new(front)));
        let clients = Clients::default();
        clients.serve(base.listeners, &router, parts.tls.as_ref(), base.config.address_share);
        let (store, stop) = (base.store, base.stop);
        let cleaning = keep_clean(store.clone(), parts.announcer, pulls.clone(), stop.clone());
        base.tracker.spawn(cleaning);
        let limiter = Limiter::new(base.config.cache.scrub_rate);
        base.tracker
            .spawn(scrub(store.clone(), limiter, suspects, stop.clone()));
        Self {
            clients,
            stop,
            tracker: base.tracker,
            store,
            upstreams: base.upstreams,
            traffic: base.traffic,
            content: parts.content,
            pulls,
            passed_by,
            cache,
            offline_grace: base.offline_grace,
        }
    }

    /// Runs `work` until it ends or the daemon stops.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move { stop.run_until_cancelled(work).await });
    }

    /// Adds the proxy's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.traffic.register(registry);
        self.upstreams.register(registry);
        self.pulls.register(registry);
        self.passed_by.register(registry);
        self.content.access.register(registry);
        self.content.transfers.register(registry);
        register_store(&self.store, registry);
    }

    /// Each dependency, with what is wrong with it. `without_scheduler`: where pieces come from while the scheduler is lost.
    pub async fn readiness(&self, session: Option<&Session>, without_scheduler: &str) -> Vec<(String, Option<String>)> {
        let mut dependencies = vec![("store".to_owned(), store_problem(&self.store).await)];
        if let Some(session) = session {
            let problem = session.problem();
            let problem = problem.map(|why| format!("{why}; {without_scheduler}"));
            dependencies.push(("scheduler".to_owned(), problem));
        }
        dependencies
    }

    /// The content that it holds, the bytes that it has carried and the tags that it cannot check, added to a daemon's own `status`.
    pub async fn status(&self, mut status: serde_json::Value) -> serde_json::Value {
        status["store"] = store_status(&self.store).await;
        status["bytes"] = traffic_status(&self.traffic);
        let unchecked = self.content.manifests.unchecked.status(Instant::now());
        if !unchecked.is_empty() {
            status["unchecked_tags"] = unchecked.into();
        }
        status
    }

    /// Takes over what can be changed while it runs: the cache's bounds, `offline_grace` and the clients' `verdict_ttl`.
    pub fn apply(&self, config: &ProxyConfig) {
        rebound(&self.store, &config.cache, &self.tracker);
        self.offline_grace.set(config.offline_grace);
        self.upstreams.set_verdict_ttl(config.client.verdict_ttl);
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The cache, for administration.
    pub fn cache(&self) -> Cache {
        self.cache.clone()
    }

    /// Lets client streams end while pieces still come and go, then those, then stops.
    pub async fn shutdown(self) {
        self.clients.drain().await;
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
        self.store.close().await;
    }
}
