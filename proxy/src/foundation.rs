//! Foundation of a proxy: its ports, its store, its upstreams, and its place in the swarm.
//!
//! A daemon that cannot run fails here, before it serves a client or joins a swarm.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use piecemeal_http::bind;
use piecemeal_proto::{AuthorityPublic, NodeId, RoleKey, wire};
use piecemeal_store::{OpenStoreError, Repository, Store};
use piecemeal_swarm::{
    AuthorityClock, Inventory, Limiter, PiecePort, Session, SessionConfig, SessionEvent, piece_router, serve_pieces,
};
use piecemeal_upstream::{ClientError, LiveDuration, Upstreams};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    BlobSizes, Content, Destination, FillObserver, Manifests, Origin, ProxyConfig, RegistrySource, Rights, Source,
    Traffic, Transfers, UpstreamNames,
    daemon::{advertised, host_name, incarnation, open_store},
};

/// Why a proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartProxyError {
    #[error("cannot listen on {address}: {source} (is another program, or another piecemeal, using that port?)")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("cannot use the cache folder {dir}: {source}")]
    Store { dir: PathBuf, source: OpenStoreError },
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// The parts of a daemon that its source is built on, before clients are answered.
pub struct Foundation {
    pub config: ProxyConfig,
    pub store: Store,
    pub upstreams: Upstreams,
    pub names: UpstreamNames,
    pub traffic: Traffic,
    pub sizes: BlobSizes,
    pub transfers: Transfers,
    /// The scheduler's time, as its session tells it.
    pub clock: AuthorityClock,
    pub offline_grace: LiveDuration,
    pub stop: CancellationToken,
    pub tracker: TaskTracker,
    pub(crate) listeners: Vec<TcpListener>,
    piece_listener: Vec<TcpListener>,
}

/// A daemon's membership in its site's swarm.
pub struct Membership {
    pub role: wire::Role,
    /// The secret of the role.
    pub role_key: RoleKey,
    pub authority: AuthorityPublic,
    pub may_use_upstream: bool,
    /// The limiter of its pieces. Each hello states its rate.
    pub limiter: Limiter,
}

/// Rules for pieces: the nodes that may take them, and the rate.
pub struct PieceRules {
    /// The authority whose tickets are accepted.
    pub authority: AuthorityPublic,
    pub limiter: Limiter,
    /// Whether a grant is as good as a ticket.
    pub accept_grants: bool,
    pub is_revoked: Arc<dyn Fn(&NodeId) -> bool + Send + Sync>,
    /// The most requests that are answered at once.
    pub requests_max: usize,
}

impl Foundation {
    /// Binds the ports and opens the store.
    ///
    /// # Errors
    /// [`StartProxyError`]: a port in use, a cache folder or an upstream's certificates that cannot be used.
    pub async fn open(config: &ProxyConfig) -> Result<Self, StartProxyError> {
        let in_use = |(address, source)| StartProxyError::Bind { address, source };
        let listeners = bind(&config.listen).await.map_err(in_use)?;
        let piece_listener = bind(&[config.piece_listen]).await.map_err(in_use)?;
        let store = open_store(&config.cache)
            .await
            .map_err(|source| StartProxyError::Store {
                dir: config.cache.dir.clone(),
                source,
            })?;
        Ok(Self {
            upstreams: Upstreams::new(&config.upstreams, &config.client, store.node_id())?,
            names: UpstreamNames::new(&config.upstreams, config.default_upstream.clone()),
            config: config.clone(),
            store,
            traffic: Traffic::default(),
            sizes: BlobSizes::default(),
            transfers: Transfers::default(),
            clock: AuthorityClock::default(),
            offline_grace: LiveDuration::new(config.offline_grace),
            stop: CancellationToken::new(),
            tracker: TaskTracker::new(),
            listeners,
            piece_listener,
        })
    }

    /// The addresses of the piece port that other nodes are told; empty when only the scheduler can see it.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        advertised(&self.config.advertise, self.config.piece_listen)
    }

    /// Joins the swarm of the configured scheduler; `None` where there is none.
    pub fn join_swarm(
        &self,
        membership: Membership,
        inventory: Arc<dyn Inventory>,
    ) -> Option<(Session, mpsc::Receiver<SessionEvent>)> {
        let session = SessionConfig {
            scheduler: self.config.scheduler.as_ref()?.to_string(),
            authority: membership.authority,
            role: membership.role,
            role_key: membership.role_key,
            node_key: self.store.node_key(),
            host_name: host_name(),
            pool: self.config.pool.clone(),
            zone: self.config.zone.clone(),
            addresses: self.addresses(),
            piece_port: self.config.piece_listen.port(),
            may_use_upstream: membership.may_use_upstream,
            limiter: membership.limiter,
            incarnation: incarnation(),
        };
        Some(Session::spawn(
            session,
            inventory,
            self.clock.clone(),
            self.stop.clone(),
        ))
    }

    /// The registries as a source. `is_public`: whether a repository is known to be served without a credential.
    pub fn registry_source(
        &self,
        is_public: impl Fn(&Repository) -> bool + Send + Sync + 'static,
        observer: Arc<dyn FillObserver>,
        limiter: Limiter,
    ) -> RegistrySource {
        RegistrySource {
            store: self.store.clone(),
            upstreams: self.upstreams.clone(),
            is_public: Arc::new(is_public),
            sizes: self.sizes.clone(),
            transfers: self.transfers.clone(),
            observer,
            limiter,
        }
    }

    /// The content that the proxy serves from `source`. `tag_ttl`: as [`Manifests::new`]. `public_grace`: as [`Rights::new`].
    pub fn content(
        &self,
        source: Arc<dyn Source>,
        tag_ttl: LiveDuration,
        public_grace: Option<LiveDuration>,
    ) -> Content {
        let grace = self.offline_grace.clone();
        let access = Arc::new(Rights::new(
            self.store.clone(),
            Arc::clone(&source),
            grace,
            public_grace,
        ));
        let manifests = Manifests::new(
            self.store.clone(),
            Arc::clone(&source),
            Arc::clone(&access),
            self.sizes.clone(),
            tag_ttl,
        );
        Content {
            store: self.store.clone(),
            source,
            access,
            sizes: self.sizes.clone(),
            transfers: self.transfers.clone(),
            manifests,
        }
    }

    /// Serves pieces until the daemon stops.
    pub fn serve_pieces(&mut self, rules: PieceRules) {
        let (traffic, share) = (self.traffic.clone(), self.config.address_share);
        let router = piece_router(PiecePort {
            store: self.store.clone(),
            authority: rules.authority,
            clock: self.clock.clone(),
            limiter: rules.limiter,
            accept_grants: rules.accept_grants,
            is_revoked: rules.is_revoked,
            served: Arc::new(move |bytes| traffic.count(Origin::Local, Destination::Node, bytes)),
            requests_max: rules.requests_max,
            address_share: share,
        });
        for listener in self.piece_listener.drain(..) {
            let served = serve_pieces(listener, router.clone(), share, self.stop.clone());
            self.tracker.spawn(served);
        }
    }
}
