//! A running peer: the proxy over the swarm, and the part that a node has in it.

use std::{sync::Arc, time::Duration};

use piecemeal_proto::{Digest, FillId, PieceHash, wire};
use piecemeal_proxy::{
    Admission, Announcer, Cache, Destination, FillObserver, Foundation, Membership, Origin, PieceRules, Proxy,
    ProxyParts, RegistrySource, StartProxyError, Traffic,
};
use piecemeal_store::Filling;
use piecemeal_swarm::{Limiter, PieceClient, Session};
use piecemeal_upstream::{Caller, LiveDuration, NodeIdentity, Upstreams, mirror_route};
use prometheus_client::registry::Registry;
use serde_json::json;
use tracing::info;

use crate::{
    DirectFallback, DownloadPattern, PeerConfig,
    download::Parts,
    live::{LiveDownloads, PeerInventory},
    mirror_client::MirrorClient,
    mirror_first::MirrorFirst,
    prefetch::Prefetcher,
    swarm_source::SwarmSource,
};

/// The most requests that the piece port works on at once: the scheduler leases a few, the rest is slack.
const PIECE_REQUESTS_MAX: usize = 64;

/// A running peer. Dropping it leaves it running; [`Peer::shutdown`] ends it.
pub struct Peer {
    proxy: Proxy,
    session: Option<Session>,
    mirror: Option<MirrorClient>,
    limiter: Limiter,
    mirror_grace: LiveDuration,
    registries: Arc<MirrorFirst>,
    downloads: LiveDownloads,
    pool: String,
    prefetcher: Prefetcher,
}

impl Peer {
    /// Starts a peer; it answers when this returns.
    ///
    /// # Errors
    /// [`StartProxyError`]: a port in use, a cache folder that cannot be used.
    pub async fn start(config: PeerConfig) -> Result<Self, StartProxyError> {
        let mut base = Foundation::open(&config.proxy).await?;
        let limiter = Limiter::new(config.ratelimit);
        let downloads = LiveDownloads::default();
        let inventory = Arc::new(PeerInventory {
            store: base.store.clone(),
            downloads: downloads.clone(),
        });
        let joined = membership(&config, &limiter).and_then(|membership| base.join_swarm(membership, inventory));
        let (session, events) = joined.unzip();
        let announcer = Announcer::new(session.clone(), base.traffic.clone());

        let registries = Arc::new(mirror_first(&config, &base));
        let mirror = registries.mirror.as_ref().map(|(mirror, _)| mirror.clone());
        let mirror_grace = LiveDuration::new(config.mirror_grace);
        let parts = Parts {
            store: base.store.clone(),
            mirror: mirror.clone(),
            session: session.clone(),
            announcer: announcer.clone(),
            pieces: PieceClient::new(limiter.clone()),
            upstream: upstream(&base, &registries, &announcer, &limiter),
            through_mirror: through_mirror(&base, &registries, &limiter),
            traffic: base.traffic.clone(),
            live: downloads.clone(),
            direct_fallback: config.direct_fallback,
            mirror_grace: mirror_grace.clone(),
        };
        // The mirror remembers for the whole site when a tag was checked.
        let tag_ttl = LiveDuration::new(Duration::ZERO);
        // A peer does not know whether the mirror serves a repository publicly, or to this node by the site's credentials.
        let public_grace = mirror.is_some().then(|| base.offline_grace.clone());
        let source = SwarmSource {
            parts,
            registries: Arc::clone(&registries),
        };
        let content = base.content(Arc::new(source), tag_ttl, public_grace);
        base.serve_pieces(piece_rules(&config, &limiter));
        let id = base.store.node_id();
        let parts = ProxyParts {
            content: content.clone(),
            announcer: announcer.clone(),
            admission: Admission {
                nodes: None,
                own: Some(id),
                id,
            },
            peers: None,
            // Clients are on this node.
            tls: None,
        };
        let proxy = Proxy::start(base, parts, |front| front);
        let (prefetcher, prefetching) = Prefetcher::new(content.store.clone(), content.manifests, proxy.cache());
        proxy.spawn(prefetching);
        if let Some(mirror) = mirror.clone() {
            proxy.spawn(async move { mirror.check().await });
        }
        if let Some(events) = events {
            let orders = downloads
                .clone()
                .dispatch(content.store, announcer, prefetcher.clone(), events);
            proxy.spawn(orders);
        }
        let shared = &config.proxy;
        info!(listen = ?shared.listen, pieces = %shared.piece_listen, cache = %shared.cache.dir.display(), "peer ready");
        Ok(Self {
            proxy,
            session,
            mirror,
            limiter,
            mirror_grace,
            registries,
            downloads,
            pool: config.proxy.pool,
            prefetcher,
        })
    }

    /// Adds the peer's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.proxy.register_metrics(registry);
    }

    /// Each dependency, with what is wrong with it.
    pub async fn readiness(&self) -> Vec<(String, Option<String>)> {
        let without_scheduler = "pieces come from the mirror directly";
        let mut dependencies = self.proxy.readiness(self.session.as_ref(), without_scheduler).await;
        if let Some(mirror) = &self.mirror {
            dependencies.push(("mirror".to_owned(), mirror.problem()));
        }
        dependencies
    }

    /// The content that it holds and the bytes that it has carried, for `piecemeal status`.
    pub async fn status(&self) -> serde_json::Value {
        let own = json!({
            "role": "peer",
            "node": self.proxy.store().node_id().to_string(),
            "pool": self.pool,
            "downloads": self.downloads.status(),
            "warming": self.prefetcher.status(),
        });
        self.proxy.status(own).await
    }

    /// Takes over what can be changed while it runs: what [`Proxy::apply`] does, `ratelimit` and `mirror_grace`. The rest of `config` is
    /// not looked at.
    pub fn apply(&self, config: &PeerConfig) {
        self.proxy.apply(&config.proxy);
        self.limiter.set_rate(config.ratelimit);
        self.mirror_grace.set(config.mirror_grace);
        self.registries.set_verdict_ttl(config.proxy.client.verdict_ttl);
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

/// A peer whose pieces come from the source alone joins no swarm.
fn membership(config: &PeerConfig, limiter: &Limiter) -> Option<Membership> {
    (config.download_pattern == DownloadPattern::P2p).then(|| Membership {
        role: wire::Role::Peer,
        role_key: config.join_key.peer_role(),
        authority: config.join_key.authority(),
        may_use_upstream: config.direct_fallback == DirectFallback::Allowed,
        limiter: limiter.clone(),
    })
}

fn piece_rules(config: &PeerConfig, limiter: &Limiter) -> PieceRules {
    PieceRules {
        authority: config.join_key.authority(),
        limiter: limiter.clone(),
        accept_grants: false,
        is_revoked: Arc::new(|_| false),
        requests_max: PIECE_REQUESTS_MAX,
    }
}

/// The mirror is told by `ns` which upstream is meant.
fn mirror_first(config: &PeerConfig, base: &Foundation) -> MirrorFirst {
    let identity = NodeIdentity::new(base.store.node_key(), &config.join_key);
    let route = mirror_route(config.join_key.authority());
    let (client, names) = (&config.proxy.client, config.proxy.upstreams.iter());
    let mirror = config.mirror.as_ref().map(|url| {
        let names = names.map(|upstream| upstream.name.clone());
        let registries = Upstreams::behind_mirror(names, url, &route, identity.clone(), &base.upstreams, client);
        let (allow_plain, clock) = (client.allow_plain_credentials, base.clock.clone());
        let mirror = MirrorClient::new(url.clone(), route.clone(), identity, allow_plain, clock);
        (mirror, registries)
    });
    MirrorFirst {
        mirror,
        upstreams: base.upstreams.clone(),
        direct_fallback: config.direct_fallback,
    }
}

/// The upstream, for blobs that the mirror cannot fetch. What comes is offered to peers.
fn upstream(
    base: &Foundation,
    registries: &Arc<MirrorFirst>,
    announcer: &Announcer,
    limiter: &Limiter,
) -> RegistrySource {
    let registries = Arc::clone(registries);
    base.registry_source(
        move |at| registries.allows(&Caller::default(), at),
        Arc::new(announcer.clone()),
        limiter.clone(),
    )
}

/// The mirror's registry, for blobs that only pass through the mirror. What comes is not offered to peers.
fn through_mirror(base: &Foundation, registries: &Arc<MirrorFirst>, limiter: &Limiter) -> Option<RegistrySource> {
    let (_, at_mirror) = registries.mirror.as_ref()?;
    let is_public = Arc::clone(registries);
    let source = base.registry_source(
        move |at| is_public.allows(&Caller::default(), at),
        Arc::new(FromMirror(base.traffic.clone())),
        limiter.clone(),
    );
    Some(RegistrySource {
        upstreams: at_mirror.clone(),
        ..source
    })
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
