//! Content on a disk that damages it, and in a folder that others may read.

mod support;

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use support::{Blob, Cluster, HOST, Image, Netns, Request, Response, Site};

const MIRROR: &str = "10.88.0.2:65011";
const PEER: &str = "127.0.0.1:65001";
/// Of blobs up to 256 MiB.
const PIECE_BYTES: usize = 256 * 1024;
const LAYER_BYTES: usize = 1_500_000;

/// The damage to a blob's file. Each layer of the image gets one kind.
#[derive(Clone, Copy, Debug)]
enum Damage {
    FirstPiece,
    LastPiece,
    Truncated,
    /// Nothing of the blob itself is wrong.
    Trailing,
}

const DAMAGES: [Damage; 4] = [
    Damage::FirstPiece,
    Damage::LastPiece,
    Damage::Truncated,
    Damage::Trailing,
];

impl Damage {
    fn befall(self, path: &Path) {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .expect("it is kept");
        let flip = |offset| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, offset).expect("reading a byte");
            file.write_all_at(&[byte[0] ^ 1], offset).expect("writing a byte");
        };
        let layer_bytes = LAYER_BYTES as u64;
        match self {
            Self::FirstPiece => flip(1000),
            Self::LastPiece => flip(layer_bytes - 1),
            Self::Truncated => file.set_len(layer_bytes - 300_000).expect("cutting it"),
            Self::Trailing => file.write_all_at(b"garbage", layer_bytes).expect("adding to it"),
        }
    }
}

struct Client<'a> {
    netns: &'a Netns,
    server: SocketAddr,
    image: &'a Image,
}

impl Client<'_> {
    fn request(&self, blob: &Blob) -> Request {
        let target = format!("/v2/{}/blobs/{}?ns={HOST}", self.image.repository(), blob.digest);
        Request::get(self.server, &target).patience(Duration::from_secs(60))
    }

    fn get(&self, blob: &Blob) -> Response {
        self.request(blob).send_from(self.netns).expect("an answer")
    }

    fn get_range(&self, blob: &Blob, range: &str) -> Response {
        let request = self.request(blob).header("Range", &format!("bytes={range}"));
        request.send_from(self.netns).expect("an answer")
    }

    fn assert_whole(&self, blob: &Blob) {
        let answer = self.get(blob);
        assert!(answer.complete && answer.body == blob.bytes, "{}", self.server);
    }

    /// Asks until all of it is there, as runtimes do; returns how often. Every byte is right at once.
    fn resume(&self, blob: &Blob) -> usize {
        let mut got = Vec::new();
        for tries in 1..=5 {
            let answer = self.get_range(blob, &format!("{}-", got.len()));
            // Damage that shows before the first byte is an error.
            if answer.status == 503 {
                continue;
            }
            got.extend_from_slice(&answer.body);
            assert!(blob.bytes.starts_with(&got), "{}: wrong bytes", self.server);
            if answer.complete && got.len() == blob.bytes.len() {
                return tries;
            }
        }
        panic!("{}: {} bytes and no more", self.server, got.len());
    }
}

/// Where a blob is kept; a client may have all of it a moment before.
fn kept(cache_dir: &Path, blob: &Blob) -> PathBuf {
    let hex = blob.digest.trim_start_matches("sha256:");
    let path = cache_dir.join("blobs/sha256").join(&hex[..2]).join(hex);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} is not kept", blob.digest);
        thread::sleep(Duration::from_millis(20));
    }
    path
}

fn cluster(nodes: usize) -> (Cluster, Image) {
    let cluster = Cluster::cold(Site::builder().nodes(nodes).wan_mbit(200).lan_mbit(1000));
    let image = Image::new("library/app", "v1").layer_bytes(&[LAYER_BYTES; 4]);
    cluster.registry.push(&image);
    (cluster, image)
}

#[test]
fn a_client_that_asks_again_gets_no_wrong_byte_and_only_what_is_wrong_is_fetched() {
    let (cluster, image) = cluster(1);
    let at = |server: &str| Client {
        netns: cluster.site.node(0),
        server: server.parse().expect("an address"),
        image: &image,
    };
    let (mirror, peer) = (cluster.mirror.cache_dir(), cluster.peers[0].cache_dir());
    for (client, cache_dir) in [(at(MIRROR), mirror), (at(PEER), peer)] {
        for (layer, damage) in image.layers().iter().zip(DAMAGES) {
            client.assert_whole(layer);
            let served = cluster.registry.blob_bytes_served(&layer.digest);
            damage.befall(&kept(&cache_dir, layer));
            let tries = client.resume(layer);
            match damage {
                Damage::FirstPiece | Damage::LastPiece => assert!(tries > 1, "{damage:?} was not there"),
                Damage::Truncated | Damage::Trailing => {}
            }
            client.assert_whole(layer);
            let part = client.get_range(layer, "1000-1001");
            assert_eq!(
                (part.status, &part.body[..]),
                (206, &layer.bytes[1000..=1001]),
                "{damage:?}"
            );
            let head = Request::head(
                client.server,
                &format!("/v2/{}/blobs/{}?ns={HOST}", image.repository(), layer.digest),
            );
            let head = head.send_from(client.netns).expect("an answer");
            assert_eq!(head.headers.get("content-length"), Some("1500000"), "{damage:?}");
            let again = cluster.registry.blob_bytes_served(&layer.digest) - served;
            let wrong = match damage {
                _ if client.server.ip().is_loopback() => 0,
                Damage::FirstPiece | Damage::LastPiece => 1,
                Damage::Truncated => 2,
                Damage::Trailing => 0,
            };
            assert!(
                again <= wrong * PIECE_BYTES as u64,
                "{damage:?} at {}: {again} bytes crossed the WAN",
                client.server
            );
        }
    }
    assert!(cluster.mirror.metric("piecemeal_damaged_blobs_total") >= 4.0);
}

#[test]
fn another_node_gets_a_spoilt_blob_wrong_at_most_once() {
    let (cluster, image) = cluster(2);
    let client = |node| Client {
        netns: cluster.site.node(node),
        server: MIRROR.parse().expect("an address"),
        image: &image,
    };
    let layer = &image.layers()[0];
    client(0).assert_whole(layer);
    Damage::FirstPiece.befall(&kept(&cluster.mirror.cache_dir(), layer));
    assert_ne!(client(1).get(layer).body, layer.bytes, "no look has been taken yet");
    client(1).resume(layer);
    client(1).assert_whole(layer);
    client(0).assert_whole(layer);
}

/// What others than the owner may do with whatever lies in a folder.
fn open_to_others(folder: &Path) -> Vec<PathBuf> {
    let mut open = Vec::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        if metadata.permissions().mode() & 0o077 != 0 {
            open.push(path.clone());
        }
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).expect("a folder");
            todo.extend(entries.map(|entry| entry.expect("an entry").path()));
        }
    }
    open
}

fn open_up(folder: &Path) {
    let mut todo = vec![folder.to_owned()];
    while let Some(path) = todo.pop() {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a folder");
            todo.extend(entries.map(|entry| entry.expect("an entry").path()));
        }
    }
}

#[test]
fn no_other_user_of_the_machine_reads_what_a_daemon_keeps_even_in_a_folder_that_was_there() {
    let site = Site::builder().nodes(1).wan_mbit(200).lan_mbit(1000);
    let scratch = support::ScratchDir::new();
    let folders = ["mirror", "peer"].map(|name| scratch.folder(name));
    for folder in &folders {
        open_up(folder);
    }
    let mut cluster = Cluster::cold_with(site, |options| {
        let [mirror, peer] = folders.clone();
        options.mirror.cache_dir = Some(mirror);
        options.peer.cache_dir = Some(peer);
    });
    let image = Image::new("library/app", "v1").layer_bytes(&[LAYER_BYTES]);
    cluster.registry.push(&image);
    cluster.containerds[0].fetch(&image.reference(HOST)).expect_ok();
    for folder in &folders {
        assert!(folder.join("index.db-wal").exists());
        assert_eq!(open_to_others(folder), [] as [PathBuf; 0]);
        open_up(folder);
    }
    cluster.mirror.restart();
    cluster.peers[0].restart();
    for folder in &folders {
        assert_eq!(open_to_others(folder), [] as [PathBuf; 0], "after a restart");
    }
    assert!(
        cluster
            .mirror
            .log_text()
            .contains("that other users of this machine could read")
    );
    cluster.containerds[0].remove_all_content();
    cluster.containerds[0].fetch(&image.reference(HOST)).expect_ok();
}

/// A file system of its own for a cache folder, in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, mebibytes: u32) -> Self {
        let size = format!("size={mebibytes}m");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&path)
            .status()
            .expect("mount runs");
        assert!(status.success(), "mounting {}", path.display());
        Self(path)
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("partial/ballast")
    }

    /// Another program takes all the room that is left.
    fn fill(&self) {
        let mut ballast = fs::File::create(self.ballast()).expect("a file");
        while ballast.write_all(&[1; 64 * 1024]).is_ok() {}
        while ballast.write_all(&[1; 512]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).expect("it is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    Mirror,
    Peer,
}

/// Two nodes pull while the disk of the mirror, or of a peer, runs full; then it has room again.
fn a_disk_runs_full(who: Who, wan_mbit: u32, layers: &[usize]) {
    let scratch = support::ScratchDir::new();
    let image_bytes = layers.iter().sum::<usize>() as u64;
    // Room for both images.
    let mebibytes = u32::try_from((2 * image_bytes) >> 20).expect("a small disk") + 30;
    let small = SmallDisk::mount(scratch.folder("small"), mebibytes);
    let site = Site::builder().nodes(2).wan_mbit(wan_mbit).lan_mbit(1000);
    let mut cluster = Cluster::cold_with(site, |options| {
        let floor = ["--cache-min-free", "0"].map(str::to_owned);
        options.mirror.extra_args.extend(floor.clone());
        options.peer.extra_args.extend(floor);
        if who == Who::Mirror {
            options.mirror.cache_dir = Some(small.0.clone());
        }
    });
    if who == Who::Peer {
        let mut options = support::PeerOptions::new(&cluster.keys);
        options.extra_args.extend(["--cache-min-free", "0"].map(str::to_owned));
        options.cache_dir = Some(small.0.clone());
        drop(cluster.peers.remove(0));
        cluster.peers.insert(0, support::Peer::start(&cluster.site, 0, options));
    }
    let image = |name| Image::new(name, "v1").layer_bytes(layers);
    let images = ["library/first", "library/second"].map(image);
    images.iter().for_each(|image| cluster.registry.push(image));
    let readyz = |cluster: &Cluster| match who {
        Who::Mirror => cluster.mirror.admin("/readyz").text(),
        Who::Peer => cluster.peers[0].admin("/readyz").text(),
    };

    let before = cluster.site.wan_bytes_received();
    let outcomes = thread::scope(|scope| {
        let pulls = scope.spawn(|| cluster.fetch_all(&images[0].reference(HOST)));
        while cluster.site.wan_bytes_received() < before + image_bytes / 3 {
            thread::sleep(Duration::from_millis(20));
        }
        small.fill();
        pulls.join().expect("each pull ends")
    });
    for outcome in outcomes {
        assert!(outcome.ok, "{who:?}, node {}: {}", outcome.node, outcome.output);
        println!("{who:?}: node {} in {:?}", outcome.node, outcome.elapsed);
        assert!(outcome.elapsed < Duration::from_secs(30), "{:?}", outcome.elapsed);
    }
    let served: u64 = images[0]
        .layers()
        .iter()
        .map(|layer| cluster.registry.blob_bytes_served(&layer.digest))
        .sum();
    println!("{who:?}: {:.2} copies", served as f64 / image_bytes as f64);
    assert!(
        served < image_bytes * 3 / 2,
        "{served} bytes crossed the WAN for {image_bytes}"
    );
    let said = readyz(&cluster);
    assert!(said.contains("store: the disk does not take"), "{said}");

    small.free();
    for outcome in cluster.fetch_all(&images[1].reference(HOST)) {
        assert!(outcome.ok, "{who:?}, node {}: {}", outcome.node, outcome.output);
    }
    let said = readyz(&cluster);
    assert!(said.contains("store: ok"), "{said}");
}

#[test]
fn a_mirror_whose_disk_runs_full_in_the_middle_of_a_pull_passes_the_rest_on() {
    a_disk_runs_full(Who::Mirror, 40, &[12_000_000, 8_000_000]);
}

#[test]
fn a_peer_whose_disk_runs_full_in_the_middle_of_a_pull_passes_the_rest_on() {
    a_disk_runs_full(Who::Peer, 40, &[12_000_000, 8_000_000]);
}

/// The rest of the layer is larger than the window: nodes read it from the mirror's registry port.
#[test]
fn a_mirror_whose_disk_runs_full_passes_on_more_than_it_has_memory_for() {
    a_disk_runs_full(Who::Mirror, 100, &[55_000_000]);
}

#[test]
fn a_cache_folder_that_is_removed_or_loses_its_index_needs_no_person() {
    let (mut cluster, image) = cluster(1);
    let reference = image.reference(HOST);
    cluster.containerds[0].fetch(&reference).expect_ok();
    for folder in [cluster.mirror.cache_dir(), cluster.peers[0].cache_dir()] {
        for part in ["blobs", "partial"] {
            fs::remove_dir_all(folder.join(part)).expect("it is there");
        }
    }
    cluster.containerds[0].remove_all_content();
    cluster.containerds[0].fetch(&reference).expect_ok();
    for layer in image.layers() {
        kept(&cluster.mirror.cache_dir(), layer);
        kept(&cluster.peers[0].cache_dir(), layer);
    }

    cluster.mirror.terminate();
    cluster.peers[0].terminate();
    for folder in [cluster.mirror.cache_dir(), cluster.peers[0].cache_dir()] {
        fs::write(folder.join("index.db"), [9; 50_000]).expect("it is there");
    }
    let served = |cluster: &Cluster| -> u64 {
        let layers = image.layers().iter();
        layers
            .map(|layer| cluster.registry.blob_bytes_served(&layer.digest))
            .sum()
    };
    let before = served(&cluster);
    cluster.mirror.restart();
    cluster.peers[0].restart();
    let ready = cluster.mirror.admin("/readyz").text();
    assert!(ready.contains("index, lost before this start"), "{ready}");
    assert_eq!(cluster.mirror.metric("piecemeal_store_indexes_lost_total"), 1.0);
    cluster.containerds[0].remove_all_content();
    cluster.containerds[0].fetch(&reference).expect_ok();
    let again = served(&cluster) - before;
    assert!(again < 100_000, "what was here crossed the WAN again: {again} bytes");
}
