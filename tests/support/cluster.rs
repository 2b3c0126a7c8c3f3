//! A whole site, running: registry, mirror, scheduler, and on every node a peer and a containerd that pulls from it.

use std::{
    net::SocketAddrV4,
    thread,
    time::{Duration, Instant},
};

use super::{
    containerd::Containerd,
    outcome::CommandOutcome,
    piecemeal::{Keys, Mirror, MirrorOptions, Peer, PeerOptions, Scheduler, SchedulerOptions},
    registry::{DockerRegistry, RegistryAuth},
    site::{ORIGIN_IP, Site, SiteBuilder},
};

/// Everything of a site. Fields are dropped in order: clients first, the network last.
#[derive(Debug)]
pub struct Cluster {
    pub containerds: Vec<Containerd>,
    pub peers: Vec<Peer>,
    /// None when the options asked for none.
    pub scheduler: Option<Scheduler>,
    pub mirror: Mirror,
    pub registry: DockerRegistry,
    pub keys: Keys,
    pub site: Site,
}

/// How the daemons of a cluster are started; the same for every peer.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// `None` starts no scheduler; peer and mirror then get no `--scheduler` flag.
    pub scheduler: Option<SchedulerOptions>,
    pub mirror: MirrorOptions,
    pub peer: PeerOptions,
}

/// How one node's fetch went. `elapsed` counts from the moment that all nodes were told to start.
#[derive(Clone, Debug)]
pub struct FetchOutcome {
    /// The index from 0.
    pub node: usize,
    pub elapsed: Duration,
    pub ok: bool,
    pub output: String,
}

impl Cluster {
    /// Starts everything with empty caches and an empty registry.
    pub fn cold(site: SiteBuilder) -> Self {
        Self::cold_with(site, |_| {})
    }

    /// Like [`Self::cold`], with options changed first.
    pub fn cold_with(site: SiteBuilder, change: impl FnOnce(&mut ClusterOptions)) -> Self {
        Self::guarded(site, |_| RegistryAuth::Nothing, change)
    }

    /// Like [`Self::cold_with`], with a registry that asks its clients for something.
    pub fn guarded<'a>(
        site: SiteBuilder,
        auth: impl FnOnce(&Site) -> RegistryAuth<'a>,
        change: impl FnOnce(&mut ClusterOptions),
    ) -> Self {
        let site = site.build();
        let keys = Keys::generate(&site.dir().join("keys"));
        let mut options = ClusterOptions {
            scheduler: Some(SchedulerOptions::new(&keys)),
            mirror: MirrorOptions::new(&keys),
            peer: PeerOptions::new(&keys),
        };
        change(&mut options);
        options.mirror.with_scheduler &= options.scheduler.is_some();
        options.peer.with_scheduler &= options.scheduler.is_some();

        let auth = auth(&site);
        let registry = DockerRegistry::start_guarded(site.origin(), REGISTRY, &auth);
        let scheduler = options.scheduler.map(|options| Scheduler::start(&site, options));
        let mirror = Mirror::start(&site, options.mirror);
        let peers = on_every_node(&site, |node| Peer::start(&site, node, options.peer.clone()));
        let containerds = on_every_node(&site, |node| {
            let containerd = start_containerd(&site, node);
            containerd.write_hosts(HOST, &hosts_toml(PEER_URL));
            containerd
        });
        Self {
            containerds,
            peers,
            scheduler,
            mirror,
            registry,
            keys,
            site,
        }
    }

    /// Ends the mirror and every peer, and starts them again: what they kept only in memory is forgotten.
    pub fn restart_daemons(&mut self) {
        for peer in &mut self.peers {
            peer.terminate();
        }
        self.mirror.terminate();
        self.mirror.restart();
        for peer in &mut self.peers {
            peer.restart();
        }
    }

    /// Fetches an image on every node at once.
    pub fn fetch_all(&self, reference: &str) -> Vec<FetchOutcome> {
        let started = Instant::now();
        let fetches: Vec<_> = self
            .containerds
            .iter()
            .map(|node| node.spawn_fetch(reference, started))
            .collect();
        let outcomes = fetches
            .into_iter()
            .map(|fetch| fetch.join().expect("a fetch reports its failure"));
        outcomes
            .enumerate()
            .map(|(node, outcome)| FetchOutcome::new(node, outcome))
            .collect()
    }
}

impl FetchOutcome {
    fn new(node: usize, outcome: CommandOutcome) -> Self {
        Self {
            node,
            elapsed: outcome.elapsed,
            ok: outcome.ok,
            output: outcome.output,
        }
    }
}

/// Starts a node's containerd in a folder of the site.
pub fn start_containerd(site: &Site, node: usize) -> Containerd {
    Containerd::start(site.node(node), &site.dir().join(format!("containerd{}", node + 1)))
}

/// The hosts.toml that sends pulls of [`HOST`] to a mirror, and to the registry when that fails.
pub fn hosts_toml(mirror_url: &str) -> String {
    format!("server = \"http://{REGISTRY}\"\n[host.\"{mirror_url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n")
}

/// Does the same on all nodes at once, since most of starting something is waiting.
fn on_every_node<T: Send>(site: &Site, start: impl Fn(usize) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let start = &start;
        let starting: Vec<_> = (0..site.nodes().len())
            .map(|node| scope.spawn(move || start(node)))
            .collect();
        starting
            .into_iter()
            .map(|node| node.join().expect("starting on a node"))
            .collect()
    })
}

/// The registry host in the names of test images.
pub const HOST: &str = "origin.test";
/// Where that registry really is.
pub const REGISTRY: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5000);
/// Where containerd finds its node's peer.
pub const PEER_URL: &str = "http://127.0.0.1:65001";
