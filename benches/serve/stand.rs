//! A site on links that are no limit, with every server that is compared, each asked over its own machine's loopback.

use std::{fs, net::SocketAddr, path::PathBuf, process::Command, sync::OnceLock, thread, time::Instant};

use crate::{
    client::Connection,
    nginx::Nginx,
    support::{
        Blob, DockerRegistry, HOST, Image, Keys, MIRROR_IP, Mirror, MirrorOptions, Netns, ORIGIN_IP, Peer, PeerOptions,
        REGISTRY, Scheduler, SchedulerOptions, Site,
    },
};

/// Fields are dropped in order: the network last.
pub(crate) struct Stand {
    big: OnceLock<Stored>,
    peer: Peer,
    mirror: Mirror,
    scheduler: Scheduler,
    nginx: Nginx,
    registry: DockerRegistry,
    registry_pid: u32,
    keys: Keys,
    site: Site,
    started: Instant,
}

/// Who is compared.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    /// Where it is asked from.
    pub(crate) netns: Netns,
    pub(crate) address: SocketAddr,
    pub(crate) pids: Vec<u32>,
}

/// An image at the registry. Its bytes are forgotten.
pub(crate) struct Stored {
    repository: String,
    tag: String,
    digest: String,
    pub(crate) manifest_bytes: u64,
    /// Digests and sizes.
    layers: Vec<(String, u64)>,
}

impl Stand {
    pub(crate) fn start() -> Self {
        let site = Site::builder()
            .nodes(NODES)
            .wan_mbit(FAST_MBIT)
            .lan_mbit(FAST_MBIT)
            .nodes_reach_upstream(true)
            .build();
        let keys = Keys::generate(&site.dir().join("keys"));
        let mut registry = DockerRegistry::start(site.origin(), REGISTRY);
        let registry_pid = registry.process().pid();
        Self {
            big: OnceLock::new(),
            scheduler: Scheduler::start(&site, SchedulerOptions::new(&keys)),
            mirror: Mirror::start(&site, MirrorOptions::new(&keys)),
            peer: Peer::start(&site, 0, PeerOptions::new(&keys)),
            nginx: Nginx::start(site.origin(), (ORIGIN_IP, 8080).into()),
            registry,
            registry_pid,
            keys,
            site,
            started: Instant::now(),
        }
    }

    pub(crate) fn site(&self) -> &Site {
        &self.site
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn mirror(&self) -> Server {
        Server {
            name: "mirror",
            netns: self.site.mirror().clone(),
            address: (MIRROR_IP, 65011).into(),
            pids: vec![self.mirror.pid()],
        }
    }

    pub(crate) fn peer(&self) -> Server {
        peer_server(&self.site, 0, &self.peer)
    }

    pub(crate) fn nginx(&self) -> Server {
        Server {
            name: "nginx",
            netns: self.site.origin().clone(),
            address: self.nginx.address(),
            pids: self.nginx.pids(),
        }
    }

    pub(crate) fn registry(&self) -> Server {
        Server {
            name: "docker-registry",
            netns: self.site.origin().clone(),
            address: self.registry.address(),
            pids: vec![self.registry_pid],
        }
    }

    /// All that are compared, nginx last but one.
    pub(crate) fn servers(&self) -> [Server; 4] {
        [self.mirror(), self.peer(), self.nginx(), self.registry()]
    }

    pub(crate) fn scheduler_pid(&self) -> u32 {
        self.scheduler.pid()
    }

    /// The mirror with what it has cached, and nothing of what it has been through.
    pub(crate) fn restart_mirror(&mut self) {
        self.mirror.restart();
    }

    pub(crate) fn restart_scheduler(&mut self) {
        self.scheduler.restart();
    }

    /// Until [`Stand::restart_peer`] nobody has anything from it.
    pub(crate) fn kill_peer(&mut self) {
        self.peer.kill();
    }

    pub(crate) fn restart_peer(&mut self) {
        self.peer.restart();
    }

    /// Starts another peer, without anything in its cache, on a node from 1 on.
    pub(crate) fn start_peer(&self, node: usize, cache_dir: PathBuf) -> Peer {
        let options = PeerOptions {
            cache_dir: Some(cache_dir),
            ..PeerOptions::new(&self.keys)
        };
        Peer::start(&self.site, node, options)
    }

    /// An image of one layer of 1 GiB and one of 64 MiB, which everybody serves from what he keeps.
    pub(crate) fn big(&self) -> &Stored {
        self.big.get_or_init(|| {
            eprintln!("making 1 GiB and storing it at every server");
            let image = Image::new("library/big", "v1").layer_bytes(&[1 << 30, 64 << 20]);
            self.everybody_has(&image)
        })
    }

    /// Puts an image where everybody serves it from what he keeps.
    pub(crate) fn everybody_has(&self, image: &Image) -> Stored {
        let stored = self.push(image);
        for manifest in image.manifests() {
            self.nginx.put(&stored.by_digest(), &manifest.bytes);
            self.nginx.put(&stored.by_tag(), &manifest.bytes);
        }
        for (layer, blob) in image.layers().iter().enumerate() {
            self.nginx.put(&stored.layer(layer), &blob.bytes);
        }
        for server in [self.mirror(), self.peer()] {
            server.pull(&stored);
        }
        // What waits to be written would be written while something is measured.
        rustix::fs::sync();
        stored
    }

    /// Puts an image into the registry alone.
    pub(crate) fn push(&self, image: &Image) -> Stored {
        let blobs: Vec<&Blob> = image.blobs().collect();
        thread::scope(|scope| {
            for part in blobs.chunks(blobs.len().div_ceil(PUSHES)) {
                scope.spawn(move || {
                    for blob in part {
                        self.registry.push_blob(image.repository(), blob);
                    }
                });
            }
        });
        let manifest = image.manifests().last().expect("an image has a manifest");
        for name in [&manifest.digest, image.tag()] {
            self.registry.put_manifest(image.repository(), name, manifest);
        }
        Stored {
            repository: image.repository().to_owned(),
            tag: image.tag().to_owned(),
            digest: manifest.digest.clone(),
            manifest_bytes: manifest.size,
            layers: image
                .layers()
                .iter()
                .map(|blob| (blob.digest.clone(), blob.size))
                .collect(),
        }
    }

    /// Gives a machine's way out to the LAN or, at the origin, to the WAN another rate.
    pub(crate) fn shape(&self, netns: &Netns, device: &str, mbit: u32) {
        netns.tc(&format!(
            "qdisc replace dev {device} root tbf rate {mbit}mbit burst 96kb latency 50ms"
        ));
    }

    /// # Panics
    /// When the bench has taken longer than it may: something hangs, or the machine has too much else to do.
    pub(crate) fn check_time(&self) {
        let elapsed = self.started.elapsed().as_secs();
        assert!(elapsed < SECONDS_MAX, "the bench has taken {elapsed} s already");
    }
}

impl Server {
    pub(crate) fn connect(&self) -> Connection {
        Connection::open(&self.netns, self.address)
    }

    /// The manifest by its tag, and then every layer, as a client pulls.
    pub(crate) fn pull(&self, image: &Stored) {
        let mut connection = self.connect();
        connection.get(&image.by_tag());
        connection.get(&image.by_digest());
        for layer in 0..image.layers.len() {
            connection.get(&image.layer(layer));
        }
    }
}

impl Stored {
    pub(crate) fn by_tag(&self) -> String {
        format!("/v2/{}/manifests/{}?ns={HOST}", self.repository, self.tag)
    }

    pub(crate) fn by_digest(&self) -> String {
        format!("/v2/{}/manifests/{}?ns={HOST}", self.repository, self.digest)
    }

    /// The layer at this place.
    pub(crate) fn layer(&self, index: usize) -> String {
        format!("/v2/{}/blobs/{}?ns={HOST}", self.repository, self.layers[index].0)
    }

    pub(crate) fn layer_bytes(&self, index: usize) -> u64 {
        self.layers[index].1
    }

    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }
}

/// A peer as its own node sees it.
pub(crate) fn peer_server(site: &Site, node: usize, peer: &Peer) -> Server {
    Server {
        name: "peer",
        netns: site.node(node).clone(),
        address: SocketAddr::from(([127, 0, 0, 1], 65001)),
        pids: vec![peer.pid()],
    }
}

/// What the programs call themselves.
pub(crate) fn versions() -> String {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program)
            .arg(argument)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask bench serve` installs what is needed"));
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().next().unwrap_or_default().to_owned()
    };
    [
        said(env!("CARGO_BIN_EXE_piecemeal"), "--version"),
        said("nginx", "-v"),
        said("docker-registry", "--version"),
        said("wrk", "-v"),
    ]
    .join("; ")
}

/// Removes a peer's cache, since a run of the bench makes many of a gibibyte.
pub(crate) fn remove(cache_dir: &PathBuf) {
    fs::remove_dir_all(cache_dir).expect("removing a cache");
}

const NODES: usize = 3;
pub(crate) const FAST_MBIT: u32 = 10_000;
const PUSHES: usize = 4;
const SECONDS_MAX: u64 = 12 * 60;
