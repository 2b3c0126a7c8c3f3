//! Pulls go on when something dies half-way: scheduler, peer, mirror, killed or frozen.

mod support;

use std::{
    net::SocketAddrV4,
    thread,
    time::{Duration, Instant},
};

use support::{Behaviour, Cluster, FakeUpstream, FetchOutcome, HOST, Image, ORIGIN_IP, Request, Response, Site};

const MIB: usize = 1 << 20;
const FAKE: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5001);
/// Longer than a lease lives without a byte.
const OUTAGE: Duration = Duration::from_millis(1500);

/// At 100 Mbit/s it takes some six seconds, so that half-way is a place to break things.
fn image() -> Image {
    Image::new("library/app", "v1").layer_bytes(&[30 * MIB, 20 * MIB, 14 * MIB])
}

fn site() -> support::SiteBuilder {
    Site::builder().nodes(4).wan_mbit(100).lan_mbit(400)
}

/// Starts the pull on every node and runs `act` once the WAN has carried half of the image.
fn pull_and_break(cluster: &mut Cluster, image: &Image, act: impl FnOnce(&mut Cluster)) -> Vec<FetchOutcome> {
    let before = cluster.site.wan_bytes_received();
    let started = Instant::now();
    let reference = image.reference(HOST);
    let fetches: Vec<_> = cluster
        .containerds
        .iter()
        .map(|node| node.spawn_fetch(&reference, started))
        .collect();
    wait_for_wan(cluster, before + image.total_bytes() / 2);
    act(cluster);
    fetches
        .into_iter()
        .enumerate()
        .map(|(node, fetch)| {
            let outcome = fetch.join().expect("a fetch reports its failure");
            FetchOutcome {
                node,
                elapsed: outcome.elapsed,
                ok: outcome.ok,
                output: outcome.output,
            }
        })
        .collect()
}

/// Waits until the WAN has carried so many bytes.
fn wait_for_wan(cluster: &Cluster, bytes: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while cluster.site.wan_bytes_received() < bytes {
        assert!(Instant::now() < deadline, "the WAN never carried {bytes} bytes");
        thread::sleep(Duration::from_millis(20));
    }
}

fn assert_pulled(cluster: &Cluster, image: &Image, fetches: &[FetchOutcome], nodes: impl Fn(usize) -> bool) {
    for fetch in fetches.iter().filter(|fetch| nodes(fetch.node)) {
        let log = cluster.peers[fetch.node].log_tail();
        assert!(
            fetch.ok,
            "node {} failed after {:?}: {}\n{log}",
            fetch.node, fetch.elapsed, fetch.output
        );
        for blob in image.blobs() {
            assert!(
                cluster.containerds[fetch.node].content_digest_ok(&blob.digest),
                "node {} lacks {}",
                fetch.node,
                blob.digest
            );
        }
    }
}

/// The copies of the image's blobs that the registry has sent, by its access log.
fn copies(cluster: &Cluster, image: &Image) -> f64 {
    let served: u64 = image
        .blobs()
        .map(|blob| cluster.registry.blob_bytes_served(&blob.digest))
        .sum();
    let bytes: usize = image.blobs().map(|blob| blob.bytes.len()).sum();
    served as f64 / bytes as f64
}

#[test]
fn a_killed_scheduler_stops_no_pull() {
    let mut cluster = Cluster::cold(site());
    let image = image();
    cluster.registry.push(&image);
    let fetches = pull_and_break(&mut cluster, &image, |cluster| {
        cluster.scheduler.as_mut().expect("it runs").kill()
    });
    assert_pulled(&cluster, &image, &fetches, |_| true);
    assert_eq!(copies(&cluster, &image), 1.0);
}

#[test]
fn a_frozen_scheduler_stops_no_pull() {
    let mut cluster = Cluster::cold(site());
    let image = image();
    cluster.registry.push(&image);
    let fetches = pull_and_break(&mut cluster, &image, |cluster| {
        cluster.scheduler.as_ref().expect("it runs").stop()
    });
    assert_pulled(&cluster, &image, &fetches, |_| true);
    assert_eq!(copies(&cluster, &image), 1.0);
}

#[test]
fn a_killed_peer_stops_only_its_own_node() {
    let mut cluster = Cluster::cold(site());
    let image = image();
    cluster.registry.push(&image);
    let fetches = pull_and_break(&mut cluster, &image, |cluster| cluster.peers[0].kill());
    assert_pulled(&cluster, &image, &fetches, |node| node != 0);
    assert_eq!(copies(&cluster, &image), 1.0);
}

#[test]
fn a_frozen_peer_stops_only_its_own_node() {
    let mut cluster = Cluster::cold(site());
    let image = image();
    cluster.registry.push(&image);
    let started = Instant::now();
    let reference = image.reference(HOST);
    let frozen = cluster.containerds.remove(0);
    let before = cluster.site.wan_bytes_received();
    let frozen_fetch = frozen.spawn_fetch(&reference, started);
    // Its peer joins the swarm first, so that the others count on it.
    wait_for_wan(&cluster, before + image.total_bytes() / 20);
    let fetches: Vec<_> = cluster
        .containerds
        .iter()
        .map(|node| node.spawn_fetch(&reference, started))
        .collect();
    wait_for_wan(&cluster, before + image.total_bytes() * 2 / 5);
    cluster.peers[0].stop();
    for (fetch, containerd) in fetches.into_iter().zip(&cluster.containerds) {
        fetch.join().expect("a fetch reports its failure").expect_ok();
        for blob in image.blobs() {
            assert!(containerd.content_digest_ok(&blob.digest));
        }
    }
    assert_eq!(copies(&cluster, &image), 1.0);
    // Thawed, it finishes its own pull.
    cluster.peers[0].cont();
    frozen_fetch.join().expect("a fetch reports its failure").expect_ok();
    assert_eq!(copies(&cluster, &image), 1.0);
}

/// The median of three: what a kill costs depends on the moment, and on how busy the machine is.
#[test]
fn a_mirror_restarted_half_way_keeps_what_it_had() {
    let mut copies = [0, 1, 2].map(|_| copies_with_a_restart());
    copies.sort_by(f64::total_cmp);
    println!("{copies:?} copies");
    assert!(copies[1] <= 1.01, "{copies:?} copies");
}

/// What the registry's log counts here includes what its kernel had taken and never sent; what crossed the WAN is what the
/// mirror received, before it was killed and after.
fn copies_with_a_restart() -> f64 {
    let mut cluster = Cluster::cold(site());
    let image = image();
    cluster.registry.push(&image);
    let received = "piecemeal_blob_bytes_total{from=\"upstream\",to=\"store\"}";
    let (wan_before, mut first_life) = (cluster.site.wan_bytes_received(), 0.0);
    let fetches = pull_and_break(&mut cluster, &image, |cluster| {
        first_life = cluster.mirror.metric(received);
        cluster.mirror.kill();
        thread::sleep(OUTAGE);
        cluster.mirror.restart();
    });
    assert_pulled(&cluster, &image, &fetches, |_| true);
    let bytes: usize = image.blobs().map(|blob| blob.bytes.len()).sum();
    assert!(
        first_life > 0.3 * bytes as f64,
        "the mirror was killed too early to have anything to lose"
    );
    let carried = cluster.site.wan_bytes_received() - wan_before;
    assert!(
        carried as f64 <= image.total_bytes() as f64 * 1.1,
        "the WAN carried {carried} bytes"
    );
    (first_life + cluster.mirror.metric(received)) / bytes as f64
}

/// The nodes may reach the upstream here; the registry's log shows how many copies they took.
#[test]
fn with_the_mirror_gone_one_peer_fetches_what_is_missing_for_all() {
    let mut cluster = Cluster::cold_with(site().nodes_reach_upstream(true), |options| {
        options
            .peer
            .extra_args
            .extend(["--mirror-grace".to_owned(), "2s".to_owned()]);
    });
    let image = image();
    cluster.registry.push(&image);
    let fetches = pull_and_break(&mut cluster, &image, |cluster| cluster.mirror.kill());
    assert_pulled(&cluster, &image, &fetches, |_| true);
    let copies = copies(&cluster, &image);
    println!("{copies} copies");
    assert!(copies < 2.0, "{copies} copies: each node went upstream by itself");
}

#[test]
fn with_mirror_and_scheduler_gone_the_pull_still_ends() {
    let mut cluster = Cluster::cold_with(site().nodes_reach_upstream(true), |options| {
        options
            .peer
            .extra_args
            .extend(["--mirror-grace".to_owned(), "2s".to_owned()]);
    });
    let image = image();
    cluster.registry.push(&image);
    let fetches = pull_and_break(&mut cluster, &image, |cluster| {
        cluster.scheduler.as_mut().expect("it runs").kill();
        cluster.mirror.kill();
    });
    assert_pulled(&cluster, &image, &fetches, |_| true);
}

#[test]
fn damaged_content_of_one_peer_reaches_no_other_node() {
    let cluster = Cluster::cold(site());
    let image = image();
    cluster.registry.push(&image);
    cluster.containerds[0].fetch(&image.reference(HOST)).expect_ok();
    for layer in image.layers() {
        let hex = layer.digest.trim_start_matches("sha256:");
        let file = cluster.peers[0]
            .cache_dir()
            .join("blobs/sha256")
            .join(&hex[..2])
            .join(hex);
        let mut bytes = std::fs::read(&file).expect("the peer has kept it");
        for position in (0..bytes.len()).step_by(64 * 1024) {
            bytes[position] ^= 1;
        }
        std::fs::write(&file, bytes).expect("the test may write there");
    }
    let started = Instant::now();
    let others = &cluster.containerds[1..];
    let fetches: Vec<_> = others
        .iter()
        .map(|node| node.spawn_fetch(&image.reference(HOST), started))
        .collect();
    for (fetch, containerd) in fetches.into_iter().zip(others) {
        fetch.join().expect("a fetch reports its failure").expect_ok();
        for blob in image.blobs() {
            assert!(containerd.content_digest_ok(&blob.digest));
        }
    }
    let noticed = cluster.peers[1..]
        .iter()
        .any(|peer| peer.log_text().contains("corrupt piece"));
    assert!(
        noticed,
        "no peer was even offered a damaged piece: the test shows nothing"
    );
    assert_eq!(copies(&cluster, &image), 1.0);
}

const PEER: &str = "127.0.0.1:65001";
const MIRROR: &str = "10.88.0.2:65011";

/// Asks one node's peer, or the mirror, for a blob.
fn ask(cluster: &Cluster, server: &str, image: &Image, digest: &str) -> (Response, Duration) {
    let started = Instant::now();
    let target = format!("/v2/{}/{digest}?ns={HOST}", image.repository());
    let response = Request::get(server.parse().expect("an address"), &target)
        .patience(Duration::from_secs(60))
        .send_from(cluster.site.node(0))
        .expect("a status line");
    (response, started.elapsed())
}

/// Clients that have a 200 go to no other place.
#[test]
fn what_the_mirror_cannot_get_is_refused_at_once_and_promised_to_no_client() {
    let mut cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(200).lan_mbit(1000));
    let image = Image::new("library/app", "v1").layer_bytes(&[2 * MIB]);
    cluster.registry.push(&image);
    let (manifest, _) = ask(&cluster, PEER, &image, "manifests/v1");
    assert_eq!(manifest.status, 200, "the peer knows the layer's size");
    cluster.registry.process().kill();
    let layer = format!("blobs/{}", image.layers()[0].digest);
    for server in [MIRROR, PEER, PEER] {
        let (refused, took) = ask(&cluster, server, &image, &layer);
        assert_eq!(refused.status, 503, "{server}: {}", refused.text());
        assert!(took < Duration::from_millis(1500), "{server}: {took:?}");
    }
    let log = cluster.peers[0].log_text();
    assert!(log.contains("cannot be fetched from origin.test now"), "{log}");
}

/// Whatever the registry does before its first byte: an error that it answers is an error here, and an answer that is still open is waited for.
#[test]
fn a_client_is_promised_a_blob_only_while_its_answer_is_open() {
    let cluster = Cluster::cold_with(Site::builder().nodes(1).wan_mbit(200).lan_mbit(1000), |options| {
        let upstream = vec![format!("{HOST}=http://{FAKE}")];
        options.mirror.upstreams.clone_from(&upstream);
        options.peer.upstreams = upstream;
    });
    let image = Image::new("library/app", "v1").layer_bytes(&[100_000, 200_000, 300_000, 400_000, 500_000]);
    let upstream = FakeUpstream::start(cluster.site.origin(), FAKE, &image);
    let (manifest, _) = ask(&cluster, PEER, &image, "manifests/v1");
    assert_eq!(manifest.status, 200);
    let late = Duration::from_millis(4000);
    let stories = [
        (Behaviour::Status(500), [502, 503]),
        (Behaviour::Status(503), [502, 503]),
        (Behaviour::Html200, [502, 503]),
        (Behaviour::Busy { seconds: 30 }, [429, 429]),
        (Behaviour::Late { millis: 4000 }, [200, 200]),
    ];
    for (layer, (behaviour, status)) in image.layers().iter().zip(stories) {
        upstream.behave(&layer.digest, behaviour.clone());
        let (answer, took) = ask(&cluster, PEER, &image, &format!("blobs/{}", layer.digest));
        assert!(
            status.contains(&answer.status),
            "{behaviour:?}: {} {}",
            answer.status,
            answer.text()
        );
        if answer.status == 200 {
            assert!(answer.complete && answer.body == layer.bytes, "{behaviour:?}");
            assert!(took >= late, "{took:?}");
        } else {
            assert!(took < Duration::from_secs(4), "{behaviour:?}: {took:?}");
        }
    }
}

/// The mirror loses its disk in the middle of a pull, and fills the blob again under another id.
#[test]
fn a_stream_goes_on_from_its_offset_when_the_mirror_begins_another_fill() {
    let mut cluster = Cluster::cold(Site::builder().nodes(2).wan_mbit(60).lan_mbit(1000));
    let image = Image::new("library/app", "v1").layer_bytes(&[20 * MIB]);
    cluster.registry.push(&image);
    let layer = &image.layers()[0];
    let before = cluster.site.wan_bytes_received();
    let target = format!("/v2/{}/blobs/{}?ns={HOST}", image.repository(), layer.digest);
    let request = Request::get(PEER.parse().expect("an address"), &target).patience(Duration::from_secs(60));
    let (manifest, _) = ask(&cluster, PEER, &image, "manifests/v1");
    assert_eq!(manifest.status, 200);
    let nodes: Vec<_> = cluster.site.nodes().iter().collect();
    let answers = thread::scope(|scope| {
        let clients: Vec<_> = nodes
            .iter()
            .map(|node| scope.spawn(|| request.send_from(node).expect("an answer")))
            .collect();
        let deadline = Instant::now() + Duration::from_secs(30);
        while cluster.site.wan_bytes_received() < before + 9 * MIB as u64 {
            assert!(Instant::now() < deadline, "the pull never gets half-way");
            thread::sleep(Duration::from_millis(20));
        }
        let mirror = &mut cluster.mirror;
        mirror.kill();
        let cache = mirror.cache_dir();
        for name in ["index.db", "index.db-wal", "index.db-shm"] {
            let _ = std::fs::remove_file(cache.join(name));
        }
        std::fs::remove_dir_all(cache.join("partial")).expect("it has begun");
        mirror.restart();
        let answers = clients.into_iter().map(|client| client.join().expect("it ends"));
        answers.collect::<Vec<_>>()
    });
    for answer in answers {
        assert_eq!(answer.status, 200);
        assert!(
            answer.complete && answer.body == layer.bytes,
            "{} of {} bytes came",
            answer.body.len(),
            layer.bytes.len()
        );
    }
    let told = cluster
        .peers
        .iter()
        .any(|peer| peer.log_text().contains("has begun another fill"));
    assert!(told, "no peer met another fill: the test shows nothing");
}
