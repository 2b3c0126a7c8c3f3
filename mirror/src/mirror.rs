//! A running mirror: the parts put together.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Response},
    middleware::map_response,
};
use piecemeal_http::{Clients, Share, bind};
use piecemeal_proto::{AuthorityKey, Digest, wire};
use piecemeal_proxy::{
    Admission, Announcer, BlobSizes, Cache, CacheParts, Content, Destination, Front, Manifests, Nodes, Origin, Pulls,
    Rights, Suspicions, Traffic, Transfers, UpstreamBlobs, UpstreamNames, advertised, filling_reports, front_router,
    host_name, incarnation, keep_clean, open_store, rebound, register_store, scrub, store_problem, store_status,
    traffic_status,
};
use piecemeal_store::{OpenStoreError, Store};
use piecemeal_swarm::{
    AuthorityClock, Inventory, Limiter, PiecePort, Session, SessionConfig, SessionEvent, piece_router, serve_pieces,
};
use piecemeal_tls::{Acceptor, MakeCertificateError, ServerRole};
use piecemeal_upstream::{Caller, ClientError, LiveDuration, TIME_HEADER, Upstream, Upstreams};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    MirrorConfig,
    node::{NodePort, node_router},
};

/// The most requests that the piece port works on at once.
const PIECE_REQUESTS_MAX: usize = 4096;

/// A running mirror. Dropping it leaves it running; [`Mirror::shutdown`] ends it.
pub struct Mirror {
    clients: Clients,
    stop: CancellationToken,
    tracker: TaskTracker,
    store: Store,
    traffic: Traffic,
    session: Option<Session>,
    pulls: Pulls,
    rights: Arc<Rights>,
    transfers: Transfers,
    upstreams: Upstreams,
    upstream_names: Vec<String>,
    wan: Limiter,
    tag_ttl: LiveDuration,
    offline_grace: LiveDuration,
    cache: Cache,
    nodes: Option<Arc<Nodes>>,
}

/// Why a daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartMirrorError {
    #[error("cannot listen on {address}: {source} (is another program, or another piecemeal, using that port?)")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("cannot use the cache folder {dir}: {source}")]
    Store { dir: PathBuf, source: OpenStoreError },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Certificate(#[from] MakeCertificateError),
}

impl Mirror {
    /// Starts a mirror; it answers when this returns.
    ///
    /// # Errors
    /// [`StartMirrorError`]: a port in use, a cache folder that cannot be used.
    pub async fn start(config: MirrorConfig) -> Result<Self, StartMirrorError> {
        let listeners = bind(&config.listen)
            .await
            .map_err(|(address, source)| StartMirrorError::Bind { address, source })?;
        let pieces = bind(&[config.piece_listen])
            .await
            .map_err(|(address, source)| StartMirrorError::Bind { address, source })?;
        let store = open_store(&config.cache)
            .await
            .map_err(|source| StartMirrorError::Store {
                dir: config.cache.dir.clone(),
                source,
            })?;
        let authority = config.authority_key.as_deref();
        let tls = authority.map(|authority| Acceptor::new(authority, ServerRole::Mirror));
        let tls = tls.transpose()?;
        let (clients, stop, tracker) = (Clients::default(), CancellationToken::new(), TaskTracker::new());
        let traffic = Traffic::default();
        let pulls = Pulls::new(traffic.clone());
        let (suspicions, suspects) = Suspicions::new();
        let scrub_limiter = Limiter::new(config.cache.scrub_rate);
        let clock = AuthorityClock::default();
        let addresses = advertised(&config.advertise, config.piece_listen);

        let session = session_config(&config, &store, &addresses).map(|session| {
            Session::spawn(
                session,
                Arc::new(StoreInventory(store.clone())),
                clock.clone(),
                stop.clone(),
            )
        });
        let (session, events) = session.unzip();
        let announcer = Announcer::new(session.clone(), traffic.clone()).signing(config.authority_key.clone());

        let upstreams = Upstreams::new(&config.upstreams, &config.client, store.node_id())?;
        let (wan, tag_ttl, offline_grace) = (
            Limiter::new(config.wan_limit),
            LiveDuration::new(config.tag_ttl),
            LiveDuration::new(config.offline_grace),
        );
        let rights = Rights::new(store.clone(), Arc::new(upstreams.clone()), offline_grace.clone(), None);
        let access = Arc::new(rights);
        let (sizes, transfers) = (BlobSizes::default(), Transfers::default());
        let blobs = Arc::new(UpstreamBlobs {
            store: store.clone(),
            upstreams: upstreams.clone(),
            access: access.clone(),
            sizes: sizes.clone(),
            transfers: transfers.clone(),
            observer: Arc::new(announcer.clone()),
            limiter: wan.clone(),
        });
        for upstream in upstreams.iter() {
            let (stopped, checked) = (stop.clone(), check(upstream.clone()));
            tracker.spawn(async move { stopped.run_until_cancelled(checked).await });
        }
        let tags = Manifests::new(
            store.clone(),
            Arc::new(upstreams.clone()),
            access.clone(),
            sizes.clone(),
            tag_ttl.clone(),
        );
        let names: Vec<String> = config.upstreams.iter().map(|upstream| upstream.name.clone()).collect();
        let upstream_names = UpstreamNames::new(names.clone(), config.default_upstream.clone());
        let content = Content {
            store: store.clone(),
            source: blobs,
            access: access.clone(),
            sizes,
            transfers: transfers.clone(),
            tags,
        };
        let cache = Cache::new(CacheParts {
            store: store.clone(),
            content: content.clone(),
            names: upstream_names.clone(),
            // A node of the site, so that the site's own credentials are used.
            caller: Caller {
                node: Some(store.node_id()),
                ..Caller::default()
            },
            session: session.clone(),
            stop: stop.clone(),
        });
        let nodes = config
            .authority_key
            .as_ref()
            .map(|authority| Arc::new(Nodes::new(authority, config.revoked.clone(), unix_seconds)));
        let front = Front {
            content: content.clone(),
            names: upstream_names.clone(),
            pulls: pulls.clone(),
            suspicions,
            admission: Admission {
                nodes: nodes.clone(),
                own: None,
                id: store.node_id(),
            },
        };
        let mut router = front_router(Arc::new(front));
        if let Some((authority, nodes)) = config.authority_key.as_ref().zip(nodes.as_ref()) {
            router = router.merge(node_router(Arc::new(NodePort {
                store: store.clone(),
                content: content.clone(),
                names: upstream_names,
                authority: Arc::clone(authority),
                nodes: Arc::clone(nodes),
                piece_addresses: if addresses.is_empty() {
                    vec![config.piece_listen]
                } else {
                    addresses
                },
                now: unix_seconds,
            })));
            let port = piece_port(&store, authority, nodes, clock, &traffic, config.address_share);
            let router = piece_router(port);
            for listener in pieces {
                tracker.spawn(serve_pieces(
                    listener,
                    router.clone(),
                    config.address_share,
                    stop.clone(),
                ));
            }
        }
        let router = router.layer(map_response(state_time));
        clients.serve(listeners, &router, tls.as_ref(), config.address_share);
        tracker.spawn(keep_clean(
            store.clone(),
            announcer.clone(),
            pulls.clone(),
            stop.clone(),
        ));
        tracker.spawn(scrub(store.clone(), scrub_limiter, suspects, stop.clone()));
        if let Some(events) = events {
            tracker.spawn(answer_scheduler(store.clone(), announcer, events, stop.clone()));
        }
        info!(listen = ?config.listen, pieces = %config.piece_listen, cache = %config.cache.dir.display(), "mirror ready");
        Ok(Self {
            clients,
            stop,
            tracker,
            store,
            traffic,
            session,
            pulls,
            rights: access,
            transfers,
            upstreams,
            upstream_names: names,
            wan,
            tag_ttl,
            offline_grace,
            cache,
            nodes,
        })
    }

    /// Adds the mirror's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.traffic.register(registry);
        self.upstreams.register(registry);
        self.pulls.register(registry);
        self.rights.register(registry);
        self.transfers.register(registry);
        register_store(&self.store, registry);
    }

    /// Each dependency, with what is wrong with it.
    pub async fn readiness(&self) -> Vec<(String, Option<String>)> {
        let mut dependencies = vec![("store".to_owned(), store_problem(&self.store).await)];
        if let Some(session) = &self.session {
            let problem = session.problem();
            let problem = problem.map(|why| format!("{why}; peers take their pieces from the mirror directly"));
            dependencies.push(("scheduler".to_owned(), problem));
        }
        dependencies
    }

    /// What it holds and has carried, for `piecemeal status`.
    pub async fn status(&self) -> serde_json::Value {
        json!({ "role": "mirror", "upstreams": self.upstream_names, "store": store_status(&self.store).await, "bytes": traffic_status(&self.traffic) })
    }

    /// Takes over what can be changed while it runs: the cache's bounds, `wan_limit`, `tag_ttl`, `offline_grace`, the clients'
    /// `verdict_ttl`, the generations of `join.key` and the nodes that are shut out. The rest of `config` is not looked at.
    pub fn apply(&self, config: &MirrorConfig) {
        rebound(&self.store, &config.cache, &self.tracker);
        self.wan.set_rate(config.wan_limit);
        self.tag_ttl.set(config.tag_ttl);
        self.offline_grace.set(config.offline_grace);
        self.upstreams.set_verdict_ttl(config.client.verdict_ttl);
        if let Some((nodes, authority)) = self.nodes.as_ref().zip(config.authority_key.as_ref()) {
            nodes.apply(authority, config.revoked.clone());
        }
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

/// Logs a broken upstream at the start rather than at the first pull, and measures its latency.
async fn check(upstream: Arc<Upstream>) {
    let name = upstream.name();
    match upstream.check().await {
        Ok(()) => info!(upstream = name, "{name} answers"),
        Err(error) => warn!(upstream = name, %error, "{error}"),
    }
}

/// The complete blobs of a store; what is in flight is described when asked.
struct StoreInventory(Store);

#[async_trait]
impl Inventory for StoreInventory {
    async fn complete(&self) -> Vec<Digest> {
        self.0.complete_digests()
    }

    async fn live(&self) -> Vec<wire::report::Report> {
        let partials = self.0.partials();
        partials
            .iter()
            .filter_map(|digest| self.0.filling(digest))
            .flat_map(|filling| filling_reports(&filling))
            .collect()
    }
}

fn session_config(config: &MirrorConfig, store: &Store, addresses: &[SocketAddr]) -> Option<SessionConfig> {
    let (scheduler, authority) = config.scheduler.as_ref().zip(config.authority_key.as_ref())?;
    Some(SessionConfig {
        scheduler: scheduler.to_string(),
        authority: authority.public(),
        role: wire::Role::Mirror,
        role_key: authority.mirror_role(),
        node_key: store.node_key(),
        host_name: host_name(),
        pool: config.pool.clone(),
        zone: config.zone.clone(),
        addresses: addresses.to_vec(),
        piece_port: config.piece_listen.port(),
        may_use_upstream: true,
        limiter: Limiter::new(None),
        incarnation: incarnation(),
    })
}

fn piece_port(
    store: &Store,
    authority: &AuthorityKey,
    nodes: &Arc<Nodes>,
    clock: AuthorityClock,
    traffic: &Traffic,
    address_share: Share,
) -> PiecePort {
    let (traffic, nodes) = (traffic.clone(), Arc::clone(nodes));
    PiecePort {
        store: store.clone(),
        authority: authority.public(),
        clock,
        limiter: Limiter::new(None),
        accept_grants: true,
        is_revoked: Arc::new(move |node| nodes.is_revoked(node)),
        served: Arc::new(move |bytes| traffic.count(Origin::Local, Destination::Node, bytes)),
        requests_max: PIECE_REQUESTS_MAX,
        address_share,
    }
}

async fn answer_scheduler(
    store: Store,
    announcer: Announcer,
    mut events: mpsc::Receiver<SessionEvent>,
    stop: CancellationToken,
) {
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.recv() => event,
        };
        match event {
            Some(SessionEvent::Describe(digest)) => announcer.describe(&store, &digest).await,
            Some(SessionEvent::Up) => info!("connected to the scheduler"),
            Some(SessionEvent::Down) => warn!("the scheduler is lost; peers take their pieces from here"),
            // A mirror requests no blob, so that it is leased nothing.
            Some(
                SessionEvent::Lease(_)
                | SessionEvent::Cancel(_)
                | SessionEvent::Revoked { .. }
                | SessionEvent::Drop { .. }
                | SessionEvent::PieceHashes(_)
                | SessionEvent::WantRefused { .. }
                | SessionEvent::Warm(_),
            ) => {}
            None => return,
        }
    }
}

/// Adds the mirror's time to an answer: nodes sign by it.
async fn state_time(mut response: Response<Body>) -> Response<Body> {
    let time = HeaderName::from_static(TIME_HEADER);
    response.headers_mut().insert(time, HeaderValue::from(unix_seconds()));
    response
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
