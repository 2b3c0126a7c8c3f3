//! A running peer: the parts put together.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use piecemeal_http::{Clients, bind};
use piecemeal_proto::{Digest, FillId, PieceHash, wire};
use piecemeal_proxy::{
    Admission, Announcer, BlobSizes, Cache, CacheParts, Content, Destination, FillObserver, Front, Manifests, Origin,
    Pulls, Rights, Suspicions, Traffic, Transfers, UpstreamBlobs, UpstreamNames, advertised, front_router, host_name,
    incarnation, keep_clean, open_store, rebound, register_store, scrub, store_problem, store_status, traffic_status,
};
use piecemeal_store::{Filling, OpenStoreError, Store};
use piecemeal_swarm::{
    AuthorityClock, Limiter, PieceClient, PiecePort, Session, SessionConfig, piece_router, serve_pieces,
};
use piecemeal_upstream::{Caller, ClientError, LiveDuration, NodeIdentity, Upstreams, mirror_http_client};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    DirectFallback, DownloadPattern, PeerConfig,
    download::Parts,
    live::{LiveDownloads, PeerInventory},
    mirror_client::MirrorClient,
    prefetch::Prefetcher,
    swarm_content::{MirrorFirst, SwarmBlobs},
};

/// The most requests that the piece port works on at once: the scheduler leases a few, the rest is slack.
const PIECE_REQUESTS_MAX: usize = 64;

/// A running peer. Dropping it leaves it running; [`Peer::shutdown`] ends it.
pub struct Peer {
    clients: Clients,
    stop: CancellationToken,
    tracker: TaskTracker,
    store: Store,
    traffic: Traffic,
    pulls: Pulls,
    rights: Arc<Rights>,
    transfers: Transfers,
    upstreams: Upstreams,
    session: Option<Session>,
    mirror: Option<MirrorClient>,
    limiter: Limiter,
    mirror_grace: LiveDuration,
    offline_grace: LiveDuration,
    source: Arc<MirrorFirst>,
    downloads: LiveDownloads,
    pool: String,
    cache: Cache,
    prefetcher: Prefetcher,
}

/// Why a peer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartPeerError {
    #[error("cannot listen on {address}: {source} (is another program, or another piecemeal, using that port?)")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("cannot use the cache folder {dir}: {source}")]
    Store { dir: PathBuf, source: OpenStoreError },
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Peer {
    /// Starts a peer; it answers when this returns.
    ///
    /// # Errors
    /// [`StartPeerError`]: a port in use, a cache folder that cannot be used.
    pub async fn start(config: PeerConfig) -> Result<Self, StartPeerError> {
        let in_use = |(address, source)| StartPeerError::Bind { address, source };
        let listeners = bind(&config.listen).await.map_err(in_use)?;
        let piece_listeners = bind(&[config.piece_listen]).await.map_err(in_use)?;
        let store = open_store(&config.cache)
            .await
            .map_err(|source| StartPeerError::Store {
                dir: config.cache.dir.clone(),
                source,
            })?;
        let (clients, stop, tracker) = (Clients::default(), CancellationToken::new(), TaskTracker::new());
        let (traffic, clock, limiter) = (
            Traffic::default(),
            AuthorityClock::default(),
            Limiter::new(config.ratelimit),
        );

        let pulls = Pulls::new(traffic.clone());
        let (suspicions, suspects) = Suspicions::new();
        let scrub_limiter = Limiter::new(config.cache.scrub_rate);
        let downloads = LiveDownloads::default();
        let inventory = PeerInventory {
            store: store.clone(),
            downloads: downloads.clone(),
        };
        let session = session_config(&config, &store, &limiter)
            .map(|session| Session::spawn(session, Arc::new(inventory), clock.clone(), stop.clone()));
        let (session, events) = session.unzip();
        let announcer = Announcer::new(session.clone(), traffic.clone());

        let identity = NodeIdentity::new(store.node_key(), &config.join_key);
        let allow_plain = config.client.allow_plain_credentials;
        let http = mirror_http_client(config.join_key.authority());
        let mirror = config
            .mirror
            .clone()
            .map(|url| MirrorClient::new(url, http.clone(), identity.clone(), allow_plain, clock.clone()));
        let upstreams = Upstreams::new(&config.upstreams, &config.client, store.node_id())?;
        let registries = registries_at_mirror(&config, &http, identity);
        let source = Arc::new(MirrorFirst {
            mirror: mirror.clone().zip(registries.clone()),
            upstreams: upstreams.clone(),
            direct_fallback: config.direct_fallback,
        });
        // A peer does not know whether the mirror serves a repository publicly, or to this node by the site's credentials.
        let grace = LiveDuration::new(config.offline_grace);
        let rights = Rights::new(
            store.clone(),
            Arc::clone(&source) as _,
            grace.clone(),
            mirror.is_some().then(|| grace.clone()),
        );
        let access = Arc::new(rights);
        let (sizes, transfers) = (BlobSizes::default(), Transfers::default());
        let upstream = UpstreamBlobs {
            store: store.clone(),
            upstreams: upstreams.clone(),
            access: access.clone(),
            sizes: sizes.clone(),
            transfers: transfers.clone(),
            observer: Arc::new(announcer.clone()),
            limiter: limiter.clone(),
        };
        let through_mirror = registries.map(|registries| UpstreamBlobs {
            upstreams: registries,
            observer: Arc::new(FromMirror(traffic.clone())),
            ..upstream.clone()
        });
        let mirror_grace = LiveDuration::new(config.mirror_grace);
        let parts = Parts {
            store: store.clone(),
            mirror: mirror.clone(),
            session: session.clone(),
            announcer: announcer.clone(),
            pieces: PieceClient::new(limiter.clone()),
            upstream,
            through_mirror,
            traffic: traffic.clone(),
            live: downloads.clone(),
            direct_fallback: config.direct_fallback,
            mirror_grace: mirror_grace.clone(),
        };
        let blobs = SwarmBlobs {
            parts,
            source: Arc::clone(&source),
        };
        // The mirror remembers for the whole site when a tag was checked.
        let tag_ttl = LiveDuration::new(Duration::ZERO);
        let tags = Manifests::new(
            store.clone(),
            Arc::clone(&source) as _,
            access.clone(),
            sizes.clone(),
            tag_ttl,
        );
        let names = config.upstreams.iter().map(|upstream| upstream.name.clone());
        let names = UpstreamNames::new(names, config.default_upstream.clone());
        let content = Content {
            store: store.clone(),
            source: Arc::new(blobs),
            access: access.clone(),
            sizes,
            transfers: transfers.clone(),
            tags,
        };
        let cache = Cache::new(CacheParts {
            store: store.clone(),
            content: content.clone(),
            names: names.clone(),
            caller: Caller {
                node: Some(store.node_id()),
                ..Caller::default()
            },
            session: None,
            stop: stop.clone(),
        });
        let (prefetcher, prefetching) = Prefetcher::new(store.clone(), content.tags.clone(), cache.clone());
        let stopped = stop.clone();
        tracker.spawn(async move { stopped.run_until_cancelled(prefetching).await });
        let front = Front {
            content,
            names,
            pulls: pulls.clone(),
            suspicions,
            admission: Admission {
                nodes: None,
                own: Some(store.node_id()),
                id: store.node_id(),
            },
        };
        // Without TLS: clients are on this node.
        clients.serve(listeners, &front_router(Arc::new(front)), None, config.address_share);
        let pieces = piece_router(piece_port(&config, &store, clock, &limiter, &traffic));
        for listener in piece_listeners {
            tracker.spawn(serve_pieces(
                listener,
                pieces.clone(),
                config.address_share,
                stop.clone(),
            ));
        }
        tracker.spawn(keep_clean(
            store.clone(),
            announcer.clone(),
            pulls.clone(),
            stop.clone(),
        ));
        tracker.spawn(scrub(store.clone(), scrub_limiter, suspects, stop.clone()));
        if let Some(mirror) = mirror.clone() {
            let stopped = stop.clone();
            tracker.spawn(async move { stopped.run_until_cancelled(mirror.check()).await });
        }
        if let Some(events) = events {
            tracker.spawn(downloads.clone().dispatch(
                store.clone(),
                announcer,
                prefetcher.clone(),
                events,
                stop.clone(),
            ));
        }
        info!(listen = ?config.listen, pieces = %config.piece_listen, cache = %config.cache.dir.display(), "peer ready");
        Ok(Self {
            clients,
            stop,
            tracker,
            store,
            traffic,
            pulls,
            rights: access,
            transfers,
            upstreams,
            session,
            mirror,
            limiter,
            mirror_grace,
            offline_grace: grace,
            source,
            downloads,
            pool: config.pool,
            cache,
            prefetcher,
        })
    }

    /// Adds the peer's metrics.
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
            let problem = problem.map(|why| format!("{why}; pieces come from the mirror directly"));
            dependencies.push(("scheduler".to_owned(), problem));
        }
        if let Some(mirror) = &self.mirror {
            dependencies.push(("mirror".to_owned(), mirror.problem()));
        }
        dependencies
    }

    /// What it holds and has carried, for `piecemeal status`.
    pub async fn status(&self) -> serde_json::Value {
        json!({
            "role": "peer",
            "node": self.store.node_id().to_string(),
            "pool": self.pool,
            "downloads": self.downloads.status(),
            "warming": self.prefetcher.status(),
            "store": store_status(&self.store).await,
            "bytes": traffic_status(&self.traffic),
        })
    }

    /// Takes over what can be changed while it runs: the cache's bounds, `ratelimit`, `mirror_grace`, `offline_grace` and the
    /// clients' `verdict_ttl`. The rest of `config` is not looked at.
    pub fn apply(&self, config: &PeerConfig) {
        rebound(&self.store, &config.cache, &self.tracker);
        self.limiter.set_rate(config.ratelimit);
        self.mirror_grace.set(config.mirror_grace);
        self.offline_grace.set(config.offline_grace);
        self.source.set_verdict_ttl(config.client.verdict_ttl);
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

/// Counts the bytes that come through the mirror's registry; they are not offered to peers.
struct FromMirror(Traffic);

impl FillObserver for FromMirror {
    fn opened(&self, _filling: &Filling) {}

    fn landed(&self, _filling: &Filling, _piece: u32, _hash: PieceHash) {}

    fn proven(&self, _digest: &Digest, _fill: FillId) {}

    fn revoked(&self, _digest: &Digest, _fill: FillId) {}

    fn received(&self, bytes: usize) {
        self.0.count(Origin::Mirror, Destination::Store, bytes as u64);
    }
}

/// The mirror as a registry, told by `ns` which upstream is meant.
fn registries_at_mirror(config: &PeerConfig, http: &reqwest::Client, identity: NodeIdentity) -> Option<Upstreams> {
    let names = config.upstreams.iter().map(|upstream| upstream.name.clone());
    let mirror = config.mirror.as_ref()?;
    Some(Upstreams::behind_mirror(names, mirror, http, identity, &config.client))
}

fn session_config(config: &PeerConfig, store: &Store, limiter: &Limiter) -> Option<SessionConfig> {
    let scheduler = config
        .scheduler
        .as_ref()
        .filter(|_| config.download_pattern == DownloadPattern::P2p)?;
    Some(SessionConfig {
        scheduler: scheduler.to_string(),
        authority: config.join_key.authority(),
        role: wire::Role::Peer,
        role_key: config.join_key.peer_role(),
        node_key: store.node_key(),
        host_name: host_name(),
        pool: config.pool.clone(),
        zone: config.zone.clone(),
        addresses: advertised(&config.advertise, config.piece_listen),
        piece_port: config.piece_listen.port(),
        may_use_upstream: config.direct_fallback == DirectFallback::Allowed,
        limiter: limiter.clone(),
        incarnation: incarnation(),
    })
}

fn piece_port(
    config: &PeerConfig,
    store: &Store,
    clock: AuthorityClock,
    limiter: &Limiter,
    traffic: &Traffic,
) -> PiecePort {
    let traffic = traffic.clone();
    PiecePort {
        store: store.clone(),
        authority: config.join_key.authority(),
        clock,
        limiter: limiter.clone(),
        accept_grants: false,
        is_revoked: Arc::new(|_| false),
        served: Arc::new(move |bytes| traffic.count(Origin::Local, Destination::Node, bytes)),
        requests_max: PIECE_REQUESTS_MAX,
        address_share: config.address_share,
    }
}
