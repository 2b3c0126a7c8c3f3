//! A running mirror: the proxy over the registries, and the answers that only a mirror gives.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    http::{HeaderName, HeaderValue, Response},
    middleware::map_response,
};
use piecemeal_proto::{AuthorityKey, Digest, wire};
use piecemeal_proxy::{
    Admission, Announcer, Cache, Content, Foundation, Membership, Nodes, PieceRules, Proxy, ProxyParts,
    StartProxyError, Transfers, filling_reports,
};
use piecemeal_store::Store;
use piecemeal_swarm::{Inventory, Limiter, Session, SessionEvent};
use piecemeal_tls::{Acceptor, MakeCertificateError, ServerRole};
use piecemeal_upstream::{Caller, LiveDuration, TIME_HEADER, Upstream};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::{
    MirrorConfig,
    node::{NodePort, node_router},
};

/// The most requests that the piece port works on at once.
const PIECE_REQUESTS_MAX: usize = 4096;

/// A running mirror. Dropping it leaves it running; [`Mirror::shutdown`] ends it.
pub struct Mirror {
    proxy: Proxy,
    session: Option<Session>,
    upstream_names: Vec<String>,
    wan: Limiter,
    tag_ttl: LiveDuration,
    nodes: Option<Arc<Nodes>>,
}

/// Why a mirror cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartMirrorError {
    #[error(transparent)]
    Proxy(#[from] StartProxyError),
    #[error(transparent)]
    Certificate(#[from] MakeCertificateError),
}

impl Mirror {
    /// Starts a mirror; it answers when this returns.
    ///
    /// # Errors
    /// [`StartMirrorError`]: a port in use, a cache folder that cannot be used.
    pub async fn start(config: MirrorConfig) -> Result<Self, StartMirrorError> {
        let mut base = Foundation::open(&config.proxy).await?;
        let authority = config.authority_key.as_ref();
        let tls = authority.map(|authority| Acceptor::new(authority, ServerRole::Mirror));
        let tls = tls.transpose()?;
        let inventory = Arc::new(StoreInventory(base.store.clone()));
        let membership = authority.map(|authority| membership(authority));
        let joined = membership.and_then(|membership| base.join_swarm(membership, inventory));
        let (session, events) = joined.unzip();
        let announcer = Announcer::new(session.clone(), base.traffic.clone()).signing(config.authority_key.clone());

        let (wan, tag_ttl) = (Limiter::new(config.wan_limit), LiveDuration::new(config.tag_ttl));
        let upstreams = base.upstreams.clone();
        let source = base.registry_source(
            move |at| upstreams.allows(&Caller::default(), at),
            Arc::new(announcer.clone()),
            wan.clone(),
        );
        let content = base.content(Arc::new(source), tag_ttl.clone(), None);
        let nodes = authority.map(|authority| Arc::new(Nodes::new(authority, config.revoked.clone(), unix_seconds)));
        let admitting = authority.zip(nodes.as_ref());
        let node_routes = admitting.map_or_else(Router::new, |(authority, nodes)| {
            base.serve_pieces(piece_rules(authority, nodes));
            let port = NodePort {
                session: session.clone(),
                ..node_port(&base, &content, authority, nodes)
            };
            node_router(Arc::new(port))
        });
        let parts = ProxyParts {
            content,
            announcer: announcer.clone(),
            admission: Admission {
                nodes: nodes.clone(),
                own: None,
                id: base.store.node_id(),
            },
            peers: session.clone(),
            tls,
        };
        let (upstreams, transfers) = (base.upstreams.clone(), base.transfers.clone());
        let proxy = Proxy::start(base, parts, |front| {
            front.merge(node_routes).layer(map_response(state_time))
        });
        for upstream in upstreams.iter() {
            proxy.spawn(check(upstream.clone()));
        }
        if let Some(events) = events {
            proxy.spawn(answer_scheduler(proxy.store().clone(), transfers, announcer, events));
        }
        let shared = &config.proxy;
        info!(listen = ?shared.listen, pieces = %shared.piece_listen, cache = %shared.cache.dir.display(), "mirror ready");
        Ok(Self {
            proxy,
            session,
            upstream_names: shared.upstreams.iter().map(|upstream| upstream.name.clone()).collect(),
            wan,
            tag_ttl,
            nodes,
        })
    }

    /// Adds the mirror's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.proxy.register_metrics(registry);
    }

    /// Each dependency, with what is wrong with it.
    pub async fn readiness(&self) -> Vec<(String, Option<String>)> {
        let without_scheduler = "peers take their pieces from the mirror directly";
        self.proxy.readiness(self.session.as_ref(), without_scheduler).await
    }

    /// The content that it holds and the bytes that it has carried, for `piecemeal status`.
    pub async fn status(&self) -> serde_json::Value {
        let own = json!({ "role": "mirror", "upstreams": self.upstream_names });
        self.proxy.status(own).await
    }

    /// Takes over what can be changed while it runs: what [`Proxy::apply`] does, `wan_limit`, `tag_ttl`, the generations of `join.key`
    /// and the nodes that are shut out. The rest of `config` is not looked at.
    pub fn apply(&self, config: &MirrorConfig) {
        self.proxy.apply(&config.proxy);
        self.wan.set_rate(config.wan_limit);
        self.tag_ttl.set(config.tag_ttl);
        if let Some((nodes, authority)) = self.nodes.as_ref().zip(config.authority_key.as_ref()) {
            nodes.apply(authority, config.revoked.clone());
        }
    }

    /// The cache, for administration.
    pub fn cache(&self) -> Cache {
        self.proxy.cache()
    }

    /// Lets client streams end while pieces still come and go, then those, then stops.
    pub async fn shutdown(self) {
        self.proxy.shutdown().await;
    }
}

fn membership(authority: &AuthorityKey) -> Membership {
    Membership {
        role: wire::Role::Mirror,
        role_key: authority.mirror_role(),
        authority: authority.public(),
        may_use_upstream: true,
        limiter: Limiter::new(None),
    }
}

fn piece_rules(authority: &AuthorityKey, nodes: &Arc<Nodes>) -> PieceRules {
    let nodes = Arc::clone(nodes);
    PieceRules {
        authority: authority.public(),
        limiter: Limiter::new(None),
        accept_grants: true,
        is_revoked: Arc::new(move |node| nodes.is_revoked(node)),
        requests_max: PIECE_REQUESTS_MAX,
    }
}

fn node_port(base: &Foundation, content: &Content, authority: &Arc<AuthorityKey>, nodes: &Arc<Nodes>) -> NodePort {
    let mut piece_addresses = base.addresses();
    if piece_addresses.is_empty() {
        piece_addresses.push(base.config.piece_listen);
    }
    NodePort {
        store: base.store.clone(),
        content: content.clone(),
        names: base.names.clone(),
        authority: Arc::clone(authority),
        nodes: Arc::clone(nodes),
        session: None,
        piece_addresses,
        now: unix_seconds,
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

async fn answer_scheduler(
    store: Store,
    transfers: Transfers,
    announcer: Announcer,
    mut events: mpsc::Receiver<SessionEvent>,
) {
    while let Some(event) = events.recv().await {
        match event {
            SessionEvent::Describe(digest) => announcer.describe(&store, &digest).await,
            SessionEvent::Up => info!("connected to the scheduler"),
            SessionEvent::Down => warn!("the scheduler is lost; peers take their pieces from here"),
            SessionEvent::Clients {
                digest,
                connected,
                waiting,
            } => {
                if let Some(connected) = connected {
                    transfers.note_clients(&digest, connected);
                }
                if let Some(filling) = store.filling(&digest) {
                    waiting.into_iter().for_each(|piece| filling.note_wait_elsewhere(piece));
                }
            }
            // A mirror requests no blob, so that it is leased nothing.
            SessionEvent::Lease(_)
            | SessionEvent::Cancel(_)
            | SessionEvent::Revoked { .. }
            | SessionEvent::Drop { .. }
            | SessionEvent::PieceHashes(_)
            | SessionEvent::WantRefused { .. }
            | SessionEvent::Warm(_) => {}
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
