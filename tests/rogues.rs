//! Malicious members, registries and clients, in every combination, beside honest pulls: no private byte reaches them, no wrong byte
//! is stored, and no honest pull fails.

mod support;

use std::{
    fs,
    net::{SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use piecemeal_proto::NodeId;
use piecemeal_store::Repository;
use support::{
    Blob, ClientHarm, Cluster, FakeUpstream, HOST, Haunt, Image, MIRROR_IP, Misdeed, ORIGIN_IP, Prey, RegistryHarm,
    Request, RogueClient, RoguePeer, RogueRegistry, Site, node_ip, sha256,
};

const HONEST: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5001);
const PRIVATE: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5002);
const ROGUE: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5003);
const PRIVATE_HOST: &str = "private.test";
const ROGUE_HOST: &str = "rogue.test";
const TOKEN: &str = "Bearer secret";
/// The machine of the rogues; its honest peer does not run.
const ROGUE_NODE: usize = 3;
const HONEST_NODES: usize = 3;
/// A lie that was streamed to a client before it was found costs that client its first try.
const TRIES: usize = 2;
/// By when all honest nodes have an image that takes them two seconds alone, also beside the hoarder of leases, and after a lie that
/// cost a try: only a pull that stands still takes longer.
const PULL_MAX: Duration = Duration::from_secs(20);
/// The most bytes of the honest registry beside its one copy: a KiB for each comparison with a registry that claims the same blob.
const SAMPLES_BYTES_MAX: u64 = 16 * 1024;
/// Where a registry may not lead the mirror.
const INSIDE: &[&str] = &[
    "http://169.254.169.254/latest/meta-data/",
    "http://127.0.0.1:65013/status",
    "http://10.88.0.2:65013/status",
    "http://10.88.0.2:65014/metrics",
    "http://10.88.0.2:65011/v2/library/secret/manifests/v1?ns=private.test",
];

/// A site whose mirror knows an honest, a private and a rogue registry.
struct Story {
    cluster: Cluster,
    honest: FakeUpstream,
    _private: FakeUpstream,
    rogue: RogueRegistry,
    secret: Image,
    victim: NodeId,
}

fn story() -> Story {
    let secret = Image::new("library/secret", "v1")
        .seed(5001)
        .layer_bytes(&[900_000, 40_000]);
    let first = Image::new("library/first", "v1").seed(5011).layer_bytes(&[1000]);
    let mut cluster = Cluster::cold_with(
        Site::builder().nodes(HONEST_NODES + 1).wan_mbit(60).lan_mbit(400),
        |options| {
            let upstreams = [(HOST, HONEST), (PRIVATE_HOST, PRIVATE), (ROGUE_HOST, ROGUE)];
            let upstreams = upstreams.map(|(name, address)| format!("{name}=http://{address}"));
            options.mirror.upstreams = upstreams.to_vec();
            options.peer.upstreams = upstreams.to_vec();
            for all in [&mut options.mirror.extra_args, &mut options.peer.extra_args] {
                all.extend(["--allow-plain-credentials".to_owned(), "true".to_owned()]);
            }
        },
    );
    let origin = cluster.site.origin();
    let honest = FakeUpstream::start(origin, HONEST, &first);
    let private = FakeUpstream::start(origin, PRIVATE, &secret);
    private.require_token("secret", &format!("http://{PRIVATE}/nothing-for-strangers"));
    let rogue = RogueRegistry::start(origin, ROGUE, INSIDE);
    let victim = node_id(&cluster, 0);
    cluster.peers[ROGUE_NODE].kill();
    let story = Story {
        cluster,
        honest,
        _private: private,
        rogue,
        secret,
        victim,
    };
    // From here on it is cached, at the mirror and at a node that has the right to it.
    for path in paths(&story.secret, PRIVATE_HOST) {
        let answer = Request::get(PEER.parse().expect("an address"), &path).header("Authorization", TOKEN);
        let answer = answer.send_from(story.cluster.site.node(0)).expect("an answer");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
    story
}

/// The id under which the scheduler knows the peer of a node.
fn node_id(cluster: &Cluster, node: usize) -> NodeId {
    let status = cluster.scheduler.as_ref().expect("there is one").admin("/status");
    let status: serde_json::Value = serde_json::from_slice(&status.body).expect("JSON");
    let address = format!("{}:65002", node_ip(node));
    let members = status["members"].as_array().expect("members");
    let member = members
        .iter()
        .find(|member| member["addresses"].to_string().contains(&address))
        .unwrap_or_else(|| panic!("no member at {address} in {status}"));
    member["node"].as_str().expect("an id").parse().expect("a node's id")
}

fn paths(image: &Image, host: &str) -> Vec<String> {
    let at = |resource: String| format!("/v2/{}/{resource}?ns={host}", image.repository());
    let mut paths = vec![
        at(format!("manifests/{}", image.tag())),
        at(format!("manifests/{}", image.digest())),
    ];
    paths.extend(image.blobs().map(|blob| at(format!("blobs/{}", blob.digest))));
    paths
}

/// The rogues of a round.
#[derive(Debug)]
struct Round {
    number: u64,
    peer: Option<Misdeed>,
    registry: Option<RegistryHarm>,
    client: Option<ClientHarm>,
}

/// Every combination of the three, `times` times, each time with the next kind of each.
fn rounds(times: u64) -> Vec<Round> {
    let (mut peers, mut registries, mut clients) = (
        Misdeed::ALL.iter().copied().cycle(),
        RegistryHarm::ALL.iter().copied().cycle(),
        ClientHarm::ALL.iter().copied().cycle(),
    );
    let combinations = (0..times * 7).map(|number| (number, number % 7 + 1));
    combinations
        .map(|(number, bits)| Round {
            number,
            peer: (bits & 1 != 0).then(|| peers.next()).flatten(),
            registry: (bits & 2 != 0).then(|| registries.next()).flatten(),
            client: (bits & 4 != 0).then(|| clients.next()).flatten(),
        })
        .collect()
}

/// The rogues that are running.
struct Rogues {
    peer: Option<RoguePeer>,
    clients: Vec<RogueClient>,
}

impl Story {
    fn unleash(&self, round: &Round, image: &Image) -> Rogues {
        let netns = self.cluster.site.node(ROGUE_NODE);
        let haunt = self.haunt(image);
        let prey: Vec<Prey> = [(HOST, image), (PRIVATE_HOST, &self.secret)]
            .iter()
            .flat_map(|(host, image)| image.layers().iter().map(|layer| prey(host, image, layer)))
            .collect();
        let peer = round.peer.map(|misdeed| {
            let keys = &self.cluster.keys;
            RoguePeer::start(
                &self.cluster.site,
                ROGUE_NODE,
                keys,
                misdeed,
                round.number,
                &prey,
                self.victim,
            )
        });
        self.rogue.harms_by(round.registry.unwrap_or(RegistryHarm::Refuses));
        // A registry harms by what it answers: a client has to ask it.
        let enticing = round.registry.map(|_| ClientHarm::EnticesToRogue);
        let clients = round.client.into_iter().chain(enticing);
        let clients = clients
            .map(|harm| RogueClient::start(netns, harm, round.number, &haunt))
            .collect();
        Rogues { peer, clients }
    }

    fn haunt(&self, image: &Image) -> Haunt {
        let at = |port: u16| SocketAddr::from((MIRROR_IP, port));
        let pieces = (0..HONEST_NODES).map(|node| SocketAddr::from((node_ip(node), 65002)));
        let shared = paths(image, HOST);
        // The rogue registry claims all of it.
        let mut rogue = paths(&self.secret, ROGUE_HOST);
        rogue.extend(paths(image, ROGUE_HOST));
        rogue.push(format!("/v2/library/any/tags/list?ns={ROGUE_HOST}"));
        Haunt {
            registries: vec![at(65011)],
            ports: [65002, 65012, 65013, 65014].map(at).into_iter().chain(pieces).collect(),
            shared,
            private: paths(&self.secret, PRIVATE_HOST),
            rogue,
            digests: self
                .secret
                .blobs()
                .chain(image.blobs())
                .map(|blob| blob.digest.clone())
                .collect(),
        }
    }

    /// Every honest node pulls, trying again as a kubelet would.
    fn pull(&self, round: &Round, image: &Image) {
        let reference = image.reference(HOST);
        thread::scope(|scope| {
            for node in 0..HONEST_NODES {
                let reference = &reference;
                scope.spawn(move || {
                    let containerd = &self.cluster.containerds[node];
                    let mut failures = Vec::new();
                    while failures.len() < TRIES {
                        let outcome = containerd.fetch(reference);
                        if outcome.ok {
                            break;
                        }
                        failures.push(outcome.output);
                        containerd.remove_all_content();
                        thread::sleep(Duration::from_secs(1));
                    }
                    assert!(
                        failures.len() < TRIES,
                        "{round:?}: node {node} failed: {failures:#?}\n{}\n{}",
                        self.cluster.peers[node].log_tail(),
                        self.cluster.mirror.log_tail()
                    );
                    for blob in image.blobs() {
                        assert!(containerd.content_digest_ok(&blob.digest), "{round:?}: {}", blob.digest);
                    }
                });
            }
        });
        for layer in image.layers() {
            let sent = self.honest.body_bytes(&layer.digest);
            let samples = sent.checked_sub(layer.size);
            assert!(
                samples.is_some_and(|samples| samples <= SAMPLES_BYTES_MAX),
                "{round:?}: {sent} bytes of {} over the WAN, which has {}",
                layer.digest,
                layer.size
            );
        }
    }

    fn assert_nothing_leaked(&self, round: &Round, rogues: &Rogues) {
        let loot = rogues
            .peer
            .iter()
            .flat_map(RoguePeer::loot)
            .chain(rogues.clients.iter().flat_map(RogueClient::loot));
        for body in loot {
            for blob in self.secret.layers().iter().chain(self.secret.manifests()) {
                assert!(!shows(&body, blob), "{round:?}: {} leaked", blob.digest);
            }
        }
    }

    /// Everything that an honest member keeps has its digest, and none of what is on its way is a rogue's.
    fn assert_nothing_wrong_is_kept(&self, round: &Round) {
        let peers = self.cluster.peers[..HONEST_NODES].iter().map(|peer| peer.cache_dir());
        for cache in peers.chain([self.cluster.mirror.cache_dir()]) {
            for file in files(&cache.join("blobs")) {
                // One that is evicted meanwhile is not kept.
                let Ok(bytes) = fs::read(&file) else { continue };
                let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                assert_eq!(
                    sha256(&bytes),
                    format!("sha256:{name}"),
                    "{round:?}: {}",
                    file.display()
                );
            }
            assert!(
                !has_rogues_piece(&cache),
                "{round:?}: a rogue's piece is kept in {}",
                cache.display()
            );
        }
    }

    fn assert_all_live(&self, round: &Round) {
        let answer = self.cluster.mirror.admin("/livez").status;
        assert_eq!(answer, 200, "{round:?}: the mirror");
        let scheduler = self.cluster.scheduler.as_ref().expect("there is one");
        assert_eq!(scheduler.admin("/livez").status, 200, "{round:?}: the scheduler");
        for log in [self.cluster.mirror.log_text(), scheduler.log_text()] {
            assert!(!log.contains("panicked"), "{round:?}: {log}");
        }
    }
}

fn prey(host: &str, image: &Image, layer: &Blob) -> Prey {
    Prey {
        at: Repository {
            upstream: host.to_owned(),
            name: image.repository().to_owned(),
        },
        digest: layer.digest.parse().expect("a digest"),
    }
}

/// Whether bytes of the blob are in the body, as they are or in base64. All layers begin alike: the middle tells them apart.
fn shows(body: &[u8], blob: &Blob) -> bool {
    let middle = blob.bytes.len() / 2 / 3 * 3;
    let part = &blob.bytes[middle..blob.bytes.len().min(middle + 48)];
    let encoded = BASE64.encode(part);
    let has = |part: &[u8]| body.windows(part.len()).any(|window| window == part);
    has(part) || has(encoded.as_bytes())
}

/// Whether a piece that a rogue made up is in a blob on its way.
fn has_rogues_piece(cache: &Path) -> bool {
    files(&cache.join("partial")).iter().any(|file| {
        let bytes = fs::read(file).unwrap_or_default();
        let mut pages = bytes.chunks(4096);
        pages.any(|page| page.len() == 4096 && page.iter().all(|&byte| byte == 0x41))
    })
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn no_combination_of_rogues_leaks_a_private_byte_spoils_a_store_or_fails_a_pull() {
    let story = story();
    for round in rounds(3) {
        let name = format!("library/app{}", round.number);
        let image = Image::new(&name, "v1")
            .seed(10 * round.number)
            .layer_bytes(&[8 << 20, 1 << 20]);
        story.honest.add_image(&image);
        let rogues = story.unleash(&round, &image);
        // The rogues are already active when the pull begins.
        thread::sleep(Duration::from_millis(500));
        let started = Instant::now();
        story.pull(&round, &image);
        assert!(
            started.elapsed() < PULL_MAX,
            "{round:?}: the honest pulls took {:?}",
            started.elapsed()
        );
        println!(
            "{round:?}: {:?}, the rogue peer was welcomed {} times, leased {} and asked {} times, clients asked {} times, the registry {} in all",
            started.elapsed(),
            rogues.peer.as_ref().map_or(0, RoguePeer::welcomes),
            rogues.peer.as_ref().map_or(0, RoguePeer::leases),
            rogues.peer.as_ref().map_or(0, RoguePeer::asked),
            rogues.clients.iter().map(RogueClient::requests).sum::<usize>(),
            story.rogue.asked(),
        );
        story.assert_all_live(&round);
        story.assert_nothing_leaked(&round, &rogues);
        story.assert_nothing_wrong_is_kept(&round);
        let welcomed = rogues.peer.as_ref().map(|peer| peer.welcomes() > 0);
        // A node's id is taken from that node alone.
        let expected = round.peer.map(|misdeed| misdeed != Misdeed::Impersonates);
        assert_eq!(welcomed, expected, "{round:?}: whether the scheduler let the rogue in");
        assert!(
            rogues.clients.iter().all(|client| client.requests() > 0),
            "{round:?}: no client"
        );
    }
}

#[test]
fn a_piece_that_was_taken_on_a_rogues_word_is_dropped_once_the_mirror_states_another_hash() {
    let mut cluster = Cluster::cold(Site::builder().nodes(2).wan_mbit(10).lan_mbit(400));
    let image = Image::new("library/app", "v1").layer_bytes(&[8 << 20]);
    cluster.registry.push(&image);
    cluster.peers[1].kill();
    let layer = &image.layers()[0];
    let target = format!("/v2/library/app/blobs/{}?ns={HOST}", layer.digest);
    let get = || {
        let request = Request::get(PEER.parse().expect("an address"), &target).patience(WAIT_MAX);
        request.send_from(cluster.site.node(0)).expect("an answer")
    };
    let cache = cluster.peers[0].cache_dir();
    let rogue = RoguePeer::start(
        &cluster.site,
        1,
        &cluster.keys,
        Misdeed::StatesOneHash,
        // It signs.
        2,
        &[prey(HOST, &image, layer)],
        NodeId([0; 16]),
    );
    thread::scope(|scope| {
        let client = scope.spawn(get);
        until("the fill has begun", || {
            rogue.welcomes() > 0 && !rogue.loot().is_empty() && !files(&cache.join("partial")).is_empty()
        });
        // While the mirror brings nothing, only the rogue has stated a hash for the piece.
        cluster.mirror.stop();
        until("the rogue's piece is here", || has_rogues_piece(&cache));
        cluster.mirror.cont();
        until("the piece is dropped", || !has_rogues_piece(&cache));
        let is_done = files(&cache.join("blobs"))
            .iter()
            .any(|file| file.ends_with(&layer.digest[7..]));
        assert!(!is_done, "it was dropped only when the blob proved to be wrong");
        // The lie was streamed as soon as it was its turn.
        let answer = client.join().expect("a client");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(!answer.complete && answer.body != layer.bytes);
    });
    let again = get();
    assert!(again.complete && again.body == layer.bytes, "the next try");
    assert!(!has_rogues_piece(&cache));
    assert_eq!(cluster.registry.blob_bytes_served(&layer.digest), layer.size);
}

const PEER: &str = "127.0.0.1:65001";
/// For what takes seconds on a machine with nothing else to do.
const WAIT_MAX: Duration = Duration::from_secs(30);
