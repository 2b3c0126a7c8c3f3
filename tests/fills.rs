//! One download of a blob for all who read it, whatever they do meanwhile; and what is on disk is what is served.

mod support;

use std::{
    fs,
    io::Read,
    net::{SocketAddr, SocketAddrV4},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use support::{Behaviour, Cluster, FakeUpstream, HOST, Image, ORIGIN_IP, REGISTRY, Request, Response, Site, sha256};

const PEER: &str = "127.0.0.1:65001";
const MIRROR: &str = "10.88.0.2:65011";
const FAKE: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5001);
const MIB: usize = 1 << 20;

struct Story {
    cluster: Cluster,
    upstream: FakeUpstream,
    image: Image,
}

fn story(layers: &[usize]) -> Story {
    story_with(layers, 400, &[])
}

fn story_with(layers: &[usize], wan_mbit: u32, mirror_flags: &[&str]) -> Story {
    let site = Site::builder().nodes(1).wan_mbit(wan_mbit).lan_mbit(2000);
    let cluster = Cluster::cold_with(site, |options| {
        let upstream = vec![format!("{HOST}=http://{FAKE}")];
        options.mirror.upstreams.clone_from(&upstream);
        options.peer.upstreams = upstream;
        options
            .mirror
            .extra_args
            .extend(mirror_flags.iter().map(|flag| (*flag).to_owned()));
    });
    let image = Image::new("library/app", "v1").layer_bytes(layers);
    let upstream = FakeUpstream::start(cluster.site.origin(), FAKE, &image);
    Story {
        cluster,
        upstream,
        image,
    }
}

impl Story {
    fn layer(&self, index: usize) -> &support::Blob {
        &self.image.layers()[index]
    }

    fn target(&self, repository: &str, digest: &str) -> String {
        format!("/v2/{repository}/blobs/{digest}?ns={HOST}")
    }

    fn request(&self, method: &'static str, port: &str, repository: &str, digest: &str) -> Request {
        Request::new(method, address(port), &self.target(repository, digest)).patience(Duration::from_secs(60))
    }

    fn send(&self, request: &Request) -> Response {
        request.send_from(self.cluster.site.node(0)).expect("an answer")
    }

    fn get(&self, port: &str, digest: &str) -> Response {
        self.send(&self.request("GET", port, "library/app", digest))
    }

    /// Lets the sizes be known, as a client's pull does.
    fn read_manifest(&self, repository: &str) {
        for port in [MIRROR, PEER] {
            let request = Request::get(address(port), &format!("/v2/{repository}/manifests/v1?ns={HOST}"));
            assert_eq!(self.send(&request).status, 200);
        }
    }

    fn cached(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.cluster
            .mirror
            .cache_dir()
            .join("blobs/sha256")
            .join(&hex[..2])
            .join(hex)
    }

    /// Behind the mirror's back, once it has published the blob.
    fn flip_a_byte(&self, digest: &str, offset: usize) {
        let file = self.cached(digest);
        self.until("it is published", || file.is_file());
        let mut bytes = fs::read(&file).expect("reading the cached blob");
        bytes[offset] ^= 1;
        fs::write(&file, bytes).expect("damaging it");
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(
                Instant::now() < deadline,
                "{what}: never\n{}",
                self.cluster.mirror.log_tail()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

#[test]
fn two_hundred_clients_on_one_cold_blob_cost_one_download() {
    let story = story(&[24 * MIB]);
    let layer = story.layer(0);
    story.read_manifest("library/app");
    let (mirror, target) = (story.cluster.site.mirror(), story.target("library/app", &layer.digest));
    thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| {
                let request = Request::get(address(MIRROR), &target).patience(Duration::from_secs(120));
                let response = request.send_from(mirror).expect("an answer");
                assert!(response.status == 200 && response.complete);
                assert_eq!(sha256(&response.body), layer.digest);
            });
        }
    });
    assert_eq!(story.upstream.body_bytes(&layer.digest), layer.size);
}

#[test]
fn a_client_that_leaves_stops_no_download_and_leaves_nothing_behind() {
    let story = story_with(&[12 * MIB], 50, &[]);
    let layer = story.layer(0);
    story.read_manifest("library/app");
    for port in [PEER, MIRROR] {
        let node = story.cluster.site.node(0);
        let target = story.target("library/app", &layer.digest);
        node.enter(|| {
            use std::io::Write;
            let mut stream = std::net::TcpStream::connect(address(port)).expect("connecting");
            write!(stream, "GET {target} HTTP/1.1\r\nHost: {port}\r\n\r\n").expect("asking");
            // Half of it, and gone.
            let mut half = vec![0; 6 * MIB];
            stream.read_exact(&mut half).expect("half of it");
        });
        story.until("the blob is complete", || story.cached(&layer.digest).is_file());
    }
    assert!(story.get(PEER, &layer.digest).body == layer.bytes);
    assert_eq!(story.upstream.body_bytes(&layer.digest), layer.size);
    let partial = story.cluster.mirror.cache_dir().join("partial");
    let left = fs::read_dir(&partial).map_or(0, |entries| {
        entries.flatten().filter(|entry| entry.path().is_file()).count()
    });
    assert_eq!(left, 0, "something is left in {}", partial.display());
}

#[test]
fn the_first_bytes_come_before_the_last_have_left_the_upstream() {
    let story = story(&[16 * MIB]);
    let layer = story.layer(0);
    story.upstream.behave(
        &layer.digest,
        Behaviour::Stall {
            at: 4 << 20,
            seconds: 6,
        },
    );
    for port in [MIRROR, PEER] {
        let range = story
            .request("GET", port, "library/app", &layer.digest)
            .header("Range", "bytes=0-999");
        let response = story.send(&range);
        assert_eq!(response.status, 206);
        assert!(response.body == layer.bytes[..1000]);
        let sent = story.upstream.body_bytes(&layer.digest);
        assert!(sent < layer.size, "the whole blob was waited for");
    }
    assert!(story.get(PEER, &layer.digest).body == layer.bytes);
}

#[test]
fn ranges_of_a_cold_blob_are_exact_come_ahead_of_the_rest_and_cost_nothing_more() {
    let story = story_with(&[24 * MIB], 50, &[]);
    let layer = story.layer(0);
    let size = layer.bytes.len();
    story.read_manifest("library/app");
    let cases = [
        ("bytes=20000000-".to_owned(), 20_000_000..size),
        ("bytes=23000000-23000999".to_owned(), 23_000_000..23_001_000),
        ("bytes=-70000".to_owned(), size - 70_000..size),
    ];
    let asked = Instant::now();
    let far = story.send(
        &story
            .request("GET", PEER, "library/app", &layer.digest)
            .header("Range", &cases[1].0),
    );
    assert!(far.body == layer.bytes[cases[1].1.clone()]);
    let sent = story.upstream.body_bytes(&layer.digest);
    println!(
        "a range at the end came after {:?} and {sent} bytes of {size}",
        asked.elapsed()
    );
    assert!(
        sent < layer.size,
        "a range at the end waited for all that comes before it"
    );
    thread::scope(|scope| {
        for port in [MIRROR, PEER] {
            for (range, expected) in &cases {
                let story = &story;
                scope.spawn(move || {
                    let request = story
                        .request("GET", port, "library/app", &layer.digest)
                        .header("Range", range);
                    let response = story.send(&request);
                    assert_eq!(response.status, 206, "{port} {range}");
                    assert!(response.body == layer.bytes[expected.clone()], "{port} {range}");
                });
            }
        }
    });
    story.until("the blob is complete", || story.cached(&layer.digest).is_file());
    assert_eq!(story.upstream.body_bytes(&layer.digest), layer.size);
}

#[test]
fn a_file_that_was_truncated_or_removed_behind_our_back_is_fetched_again() {
    let story = story(&[900_000, 300_000]);
    for layer in story.image.layers() {
        assert!(story.get(MIRROR, &layer.digest).body == layer.bytes);
        story.until("it is published", || story.cached(&layer.digest).is_file());
    }
    let [truncated, removed] = [story.layer(0), story.layer(1)];
    fs::OpenOptions::new()
        .write(true)
        .open(story.cached(&truncated.digest))
        .and_then(|file| file.set_len(0))
        .expect("truncating");
    fs::remove_file(story.cached(&removed.digest)).expect("removing");
    for layer in [truncated, removed] {
        for _ in 0..2 {
            let head = story.send(&story.request("HEAD", MIRROR, "library/app", &layer.digest));
            let stated = head.headers.get("content-length").map(str::to_owned);
            let get = story.get(MIRROR, &layer.digest);
            assert_eq!((head.status, get.status), (200, 200));
            assert_eq!(stated.as_deref(), Some(&*layer.size.to_string()));
            assert!(get.complete && get.body == layer.bytes, "{} bytes", get.body.len());
        }
    }
}

#[test]
fn a_flipped_byte_is_found_when_it_is_read_and_fetched_again() {
    let story = story(&[3 * MIB]);
    let layer = story.layer(0);
    assert!(story.get(MIRROR, &layer.digest).body == layer.bytes);
    story.flip_a_byte(&layer.digest, MIB + 7);
    // The peer takes pieces, each of which is verified; the first try may end short, never whole and wrong.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let got = story.get(PEER, &layer.digest);
        if got.status == 200 && got.complete {
            assert_eq!(sha256(&got.body), layer.digest);
            break;
        }
        assert!(
            Instant::now() < deadline,
            "it is broken for ever\n{}",
            story.cluster.mirror.log_tail()
        );
        thread::sleep(Duration::from_millis(500));
    }
    assert!(story.cluster.mirror.metric("piecemeal_damaged_blobs_total") >= 1.0);
    assert!(story.get(MIRROR, &layer.digest).body == layer.bytes);
}

#[test]
fn a_client_that_asks_again_for_what_it_got_damaged_gets_it_whole() {
    let story = story(&[3 * MIB]);
    let layer = story.layer(0);
    assert!(story.get(MIRROR, &layer.digest).body == layer.bytes);
    story.flip_a_byte(&layer.digest, 2 * MIB + 7);
    // The client hashes what it gets, and asks again for what it has had.
    let deadline = Instant::now() + Duration::from_secs(60);
    while sha256(&story.get(MIRROR, &layer.digest).body) != layer.digest {
        assert!(Instant::now() < deadline, "it is broken for ever");
        thread::sleep(Duration::from_millis(200));
    }
    assert!(story.cluster.mirror.metric("piecemeal_damaged_blobs_total") >= 1.0);
    let piece_bytes = 256 * 1024;
    assert_eq!(
        story.upstream.body_bytes(&layer.digest),
        layer.size + piece_bytes,
        "the damaged piece is fetched again, once"
    );
}

#[test]
fn a_download_that_a_kill_interrupted_goes_on_after_the_restart() {
    let mut story = story_with(&[12 * MIB], 50, &[]);
    story.read_manifest("library/app");
    let (digest, size) = (story.layer(0).digest.clone(), story.layer(0).size);
    let cut = Request::get(address(MIRROR), &story.target("library/app", &digest));
    let node = story.cluster.site.node(0).clone();
    let reader = thread::spawn(move || drop(cut.send_from(&node)));
    story.until("half of it has come", || story.upstream.body_bytes(&digest) > size / 2);
    story.cluster.mirror.restart();
    reader.join().expect("the reader ends with the mirror");
    let whole = story.get(MIRROR, &digest);
    assert!(whole.complete && whole.body == story.layer(0).bytes, "{}", whole.status);
    let sent = story.upstream.body_bytes(&digest);
    // Bytes in the buffers of both kernels are lost with the connection.
    assert!(sent < size + (4 << 20), "{sent} bytes for a blob of {size}");
    let missing = story.get(MIRROR, &sha256(b"nowhere"));
    assert_eq!(missing.status, 404);
    assert!(missing.text().contains("BLOB_UNKNOWN"), "{}", missing.text());
}

#[test]
fn base_layers_that_are_here_cross_the_wan_no_more_under_whatever_name() {
    let story = story(&[2 * MIB, 400_000]);
    story.read_manifest("library/app");
    let derived = Image::new("library/derived", "v1")
        .seed(77)
        .layer_bytes(&[2 * MIB, 500_000]);
    let base = Image::new("library/base", "v1").seed(77).layer_bytes(&[2 * MIB]);
    assert_eq!(derived.layers()[0].digest, base.layers()[0].digest);
    story.upstream.add_image(&base);
    story.upstream.add_image(&derived);
    for image in [&base, &derived] {
        story.read_manifest(image.repository());
        for layer in image.layers() {
            let got = story.send(&story.request("GET", PEER, image.repository(), &layer.digest));
            assert!(got.body == layer.bytes);
        }
    }
    assert_eq!(
        story.upstream.body_bytes(&base.layers()[0].digest),
        base.layers()[0].size
    );
}

/// The life of content is counted by its digest: the use by one repository keeps it for the other.
#[test]
fn a_shared_layer_lives_on_while_any_repository_uses_it() {
    let story = story_with(&[400_000], 400, &["--cache-ttl", "4s", "--tag-ttl", "0s"]);
    let image = |repository: &str| Image::new(repository, "v1").seed(5).layer_bytes(&[300_000]);
    let (one, other) = (image("library/one"), image("library/other"));
    let shared = one.layers()[0].clone();
    story.upstream.add_image(&one);
    story.upstream.add_image(&other);
    let pull = |image: &Image| {
        let got = story.send(&story.request("GET", MIRROR, image.repository(), &shared.digest));
        assert!(
            got.status == 200 && got.complete && got.body == shared.bytes,
            "{}",
            got.status
        );
    };
    pull(&one);
    // Longer than the life of unused content; one of the two is never asked for again.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(8) {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| pull(&other));
            }
        });
        thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(
        story.upstream.body_bytes(&shared.digest),
        shared.size,
        "it was evicted while it was used"
    );
}

/// At the mirror the reader goes on with what the second registry sends; a peer's reader with the fill that both have made.
#[test]
fn a_registry_that_stops_in_the_middle_is_taken_over_from_without_a_break_for_one_copy_of_both() {
    const SLOW: &str = "slow.test";
    let site = Site::builder().nodes(1).wan_mbit(400).lan_mbit(2000);
    let cluster = Cluster::cold_with(site, |options| {
        let upstreams = vec![format!("{HOST}=http://{REGISTRY}"), format!("{SLOW}=http://{FAKE}")];
        options.mirror.upstreams.clone_from(&upstreams);
        options.peer.upstreams = upstreams;
    });
    let image = Image::new("library/app", "v1").layer_bytes(&[12 * MIB, 11 * MIB]);
    cluster.registry.push(&image);
    let slow = FakeUpstream::start(cluster.site.origin(), FAKE, &image);
    for (layer, port) in image.layers().iter().zip([MIRROR, PEER]) {
        let stall = Behaviour::Stall {
            at: 3 * MIB as u64,
            seconds: 600,
        };
        slow.behave(&layer.digest, stall);
        let target = |registry: &str| format!("/v2/library/app/blobs/{}?ns={registry}", layer.digest);
        Request::get(address(port), &target(SLOW))
            .send_and_hang_up(cluster.site.node(0), MIB)
            .expect("the beginning of the blob");
        let pulled = Request::get(address(port), &target(HOST))
            .patience(Duration::from_secs(60))
            .send_from(cluster.site.node(0))
            .expect("an answer");
        assert!(
            pulled.complete && pulled.body == layer.bytes,
            "{port}: {} bytes",
            pulled.body.len()
        );
        let (first, second) = (
            slow.body_bytes(&layer.digest),
            cluster.registry.blob_bytes_served(&layer.digest),
        );
        // Each comparison is 64 KiB at most, and a piece that the slow one has begun is fetched again.
        let most = layer.size + MIB as u64;
        assert!(
            first > 0 && first + second <= most,
            "{port}: {first} and {second} of {}",
            layer.size
        );
    }
}
