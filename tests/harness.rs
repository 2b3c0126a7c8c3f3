//! The emulated site, its registry and its clients: what the end-to-end tests measure with must be measured first.

mod support;

use std::{
    fs::{self, File},
    io::Read,
    net::{TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    panic,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use support::{
    DockerRegistry, FakeUpstream, HOST, Image, MIRROR_WAN_IP, Netns, REGISTRY, Request, ScratchDir, Site, hosts_toml,
    skopeo, start_containerd,
};

#[test]
fn two_nodes_pull_an_image_directly_and_every_byte_is_accounted_for() {
    let site = Site::builder()
        .nodes(2)
        .wan_mbit(400)
        .nodes_reach_upstream(true)
        .build();
    let registry = DockerRegistry::start(site.origin(), REGISTRY);
    let image = Image::new("library/app", "v1")
        .layer_bytes(&[3 << 20, (2 << 20) + 1, 4096])
        .in_index();
    registry.push(&image);
    let wan_before = site.wan_bytes_received();

    for node in 0..2 {
        let containerd = start_containerd(&site, node);
        containerd.write_hosts(HOST, &hosts_toml(&format!("http://{REGISTRY}")));
        containerd.pull(&image.reference(HOST)).expect_ok();
        for blob in image.blobs().chain(image.manifests()) {
            assert!(containerd.content_digest_ok(&blob.digest), "{} is damaged", blob.digest);
        }
        containerd.remove_all_content();
        assert!(
            image.blobs().all(|blob| !containerd.has_blob(&blob.digest)),
            "content is left"
        );
    }

    for blob in image.blobs() {
        assert_eq!(registry.blob_requests(&blob.digest), 2, "GETs of {}", blob.digest);
        assert_eq!(
            registry.blob_bytes_served(&blob.digest),
            2 * blob.size,
            "bytes of {}",
            blob.digest
        );
    }
    let wan_bytes = site.wan_bytes_received() - wan_before;
    let payload = 2 * image.total_bytes();
    assert!(
        (payload..payload * 11 / 10).contains(&wan_bytes),
        "{wan_bytes} B over the WAN for {payload} B"
    );
}

#[test]
fn a_node_that_may_not_reach_the_upstream_fails_at_once() {
    let site = Site::builder().nodes(1).build();
    let registry = DockerRegistry::start(site.origin(), REGISTRY);
    let image = Image::new("library/app", "v1").layer_bytes(&[1 << 20]);
    registry.push(&image);
    let containerd = start_containerd(&site, 0);
    containerd.write_hosts(HOST, &hosts_toml("http://127.0.0.1:65001"));

    let outcome = containerd.fetch(&image.reference(HOST));

    assert!(!outcome.ok, "the node reached the upstream: {}", outcome.output);
    assert!(
        outcome.elapsed < Duration::from_secs(3),
        "failed only after {:?}: {}",
        outcome.elapsed,
        outcome.output
    );
    assert_eq!(registry.blob_requests(image.digest()), 0);
}

#[test]
fn a_blocked_wan_is_silent_and_comes_back() {
    let site = Site::builder().nodes(0).build();
    let _upstream = FakeUpstream::start(site.origin(), REGISTRY, &Image::new("library/app", "v1"));
    let ping = Request::get(REGISTRY.into(), "/v2/").patience(Duration::from_millis(500));

    assert_eq!(ping.send_from(site.mirror()).expect("the WAN is up").status, 200);
    site.block_wan();
    let received = site.wan_bytes_received();
    ping.send_from(site.mirror()).expect_err("the WAN is blocked");
    assert_eq!(site.wan_bytes_received(), received);
    site.unblock_wan();
    assert_eq!(ping.send_from(site.mirror()).expect("the WAN is up again").status, 200);
}

#[test]
fn links_have_the_rates_that_were_asked_for() {
    let site = Site::builder().nodes(2).wan_mbit(100).lan_mbit(400).build();

    // What is left of the rate after 66 bytes of headers for each 1448 of payload.
    assert_rate_is_about(95.6, || site.measure_goodput_wan());
    assert_rate_is_about(382.5, || site.measure_goodput_lan(0, 1));
}

#[test]
fn the_relay_delays_and_keeps_the_rate() {
    let site = Site::builder().nodes(0).wan_mbit(100).wan_delay_ms(50).build();
    let listener = site
        .mirror()
        .enter(|| TcpListener::bind((MIRROR_WAN_IP, 0)))
        .expect("listening");
    let address = listener.local_addr().expect("a listener has an address");

    let round_trip = || {
        let asked = Instant::now();
        TcpStream::connect(address).expect("connecting over the WAN");
        asked.elapsed()
    };
    let shortest = site
        .origin()
        .enter(|| (0..5).map(|_| round_trip()).min().expect("several attempts"));
    println!("the shortest round trip took {shortest:?}");
    assert!((Duration::from_millis(100)..Duration::from_millis(110)).contains(&shortest));

    // A TUN carries no Ethernet header.
    let ((), cpu) = relay_cpu_during(|| assert_rate_is_about(96.5, || site.measure_goodput_wan()));
    println!("the relay took {:.1} % of a core", cpu * 100.0);
}

#[test]
fn the_relay_loses_packets_and_tcp_copes() {
    let site = Site::builder()
        .nodes(0)
        .wan_mbit(50)
        .wan_delay_ms(5)
        .wan_loss_percent(2.0)
        .seed(7)
        .build();
    let upstream_bytes = 4 << 20;
    let image = Image::new("library/app", "v1").layer_bytes(&[upstream_bytes]);
    let _upstream = FakeUpstream::start(site.origin(), REGISTRY, &image);
    let layer = &image.layers()[0];

    let path = format!("/v2/library/app/blobs/{}", layer.digest);
    let response = Request::get(REGISTRY.into(), &path)
        .send_from(site.mirror())
        .expect("the WAN carries TCP");

    assert!(response.complete && response.body == layer.bytes);
    let sent_twice = retransmitted_segments(&site);
    println!("{sent_twice} segments of {} were sent again", upstream_bytes / 1448);
    assert!((20..400).contains(&sent_twice), "{sent_twice} segments were sent again");
}

#[test]
fn images_are_reproducible_and_of_exact_size() {
    let sizes = [0, 1, 4095, 4096, 4097, 70_000, 1 << 20, (1 << 20) + 511];
    let (image, again) = (
        Image::new("a/b", "v1").layer_bytes(&sizes),
        Image::new("a/b", "v1").layer_bytes(&sizes),
    );
    assert_eq!(image.digest(), again.digest());
    assert_ne!(image.digest(), Image::new("a/c", "v1").layer_bytes(&sizes).digest());
    for (layer, size) in image.layers().iter().zip(sizes) {
        assert_eq!(layer.size, size as u64);
        assert_eq!(layer.bytes.len(), size);
    }
    let shared = Image::new("a/c", "v2").seed(7).layer_bytes(&[8192]);
    assert_eq!(
        shared.layers()[0].digest,
        Image::new("a/b", "v1").seed(7).layer_bytes(&[8192]).layers()[0].digest
    );
}

#[test]
fn skopeo_copies_from_a_registry_and_reads_the_saved_layout() {
    let site = Site::builder().nodes(0).wan_mbit(400).build();
    let registry = DockerRegistry::start(site.origin(), REGISTRY);
    let image = Image::new("library/app", "v1").layer_bytes(&[1 << 20, 1 << 16]);
    registry.push(&image);
    let scratch = ScratchDir::new();

    let copied = scratch.path().join("copied");
    skopeo::copy_to_dir(site.mirror(), &image.reference(&REGISTRY.to_string()), &copied).expect_ok();
    for blob in image.blobs() {
        assert_eq!(
            fs::read(copied.join(blob.digest.trim_start_matches("sha256:"))).unwrap(),
            blob.bytes
        );
    }

    let layout = scratch.path().join("layout");
    image.save_oci_layout(&layout);
    let inspected = Command::new("skopeo")
        .args(["inspect", "--raw"])
        .arg(format!("oci:{}:v1", layout.display()))
        .output();
    assert_eq!(support::sha256(&inspected.unwrap().stdout), image.digest());
}

#[test]
fn a_registry_forgets_a_deleted_blob_and_keeps_the_rest_over_a_restart() {
    let site = Site::builder().nodes(0).wan_mbit(400).build();
    let mut registry = DockerRegistry::start(site.origin(), REGISTRY);
    let image = Image::new("library/app", "v1").layer_bytes(&[8192, 16384]);
    registry.push(&image);
    let get = |digest: &str| Request::get(REGISTRY.into(), &format!("/v2/library/app/blobs/{digest}"));
    let [gone, kept] = [0, 1].map(|index| &image.layers()[index]);

    registry.delete_blob("library/app", &gone.digest);
    registry.stop();
    get(&kept.digest)
        .send_from(site.mirror())
        .expect_err("the registry is down");
    registry.start_again();

    assert_eq!(get(&gone.digest).send_from(site.mirror()).unwrap().status, 404);
    assert_eq!(get(&kept.digest).send_from(site.mirror()).unwrap().body, kept.bytes);
    assert_eq!(registry.blob_bytes_served(&gone.digest), 0);
    assert_eq!(registry.blob_bytes_served(&kept.digest), kept.size);
}

#[test]
fn nothing_is_left_behind_even_by_a_failed_test() {
    for fails in [false, true] {
        let traces = Mutex::new(None);
        let ended = panic::catch_unwind(|| {
            let site = Site::builder().nodes(1).wan_delay_ms(1).build();
            *traces.lock().unwrap() = Some(Traces::of(&site));
            let _containerd = start_containerd(&site, 0);
            let _registry = DockerRegistry::start(site.origin(), REGISTRY);
            // The test keeps no handle of this process: only its namespace knows it.
            let orphaned = site.node(0).command("sh").args(["-c", "sleep 1000 &"]).status();
            assert!(orphaned.expect("running a shell").success());
            assert!(!fails, "on purpose, to see what is cleaned up");
        });
        assert_eq!(ended.is_err(), fails);
        traces.into_inner().unwrap().unwrap().assert_gone();
    }
}

#[test]
fn what_a_killed_test_left_is_removed() {
    // Creating a first namespace removes stale ones; here it must be over before there is one.
    let _first = Netns::create("first");
    // No process has this id: Linux ends at 4194304.
    let name = "pm4194305-0-node1";
    let added = Command::new("ip").args(["netns", "add", name]).status();
    assert!(added.expect("running ip").success());
    let mut command = Command::new("ip");
    command.args(["netns", "exec", name, "sh", "-c", "echo inside; exec sleep 1000"]);
    let mut left = command.stdout(Stdio::piped()).spawn().expect("running ip");
    let mut said = [0; 6];
    left.stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut said)
        .expect("the process gets into the namespace");

    Netns::remove_stale();

    assert!(!left.wait().unwrap().success(), "the process was not killed");
    assert!(!Path::new("/run/netns").join(name).exists());
}

/// What a site leaves on the machine while it exists.
struct Traces {
    paths: Vec<PathBuf>,
    /// Held open, so that the kernel gives their inode numbers to no other test's namespaces.
    namespaces: Vec<File>,
}

impl Traces {
    fn of(site: &Site) -> Self {
        let mut paths = [site.origin(), site.mirror(), site.node(0)].map(Netns::path).to_vec();
        let namespaces = paths
            .iter()
            .map(|path| File::open(path).expect("opening a namespace"))
            .collect();
        paths.push(site.dir().to_owned());
        Self { paths, namespaces }
    }

    fn assert_gone(&self) {
        for path in &self.paths {
            assert!(!path.exists(), "{} is left", path.display());
        }
        let inode = |namespace: &File| namespace.metadata().expect("a namespace is a file").ino();
        let ours: Vec<u64> = self.namespaces.iter().map(inode).collect();
        for process in fs::read_dir("/proc").expect("listing processes").flatten() {
            // Other processes come and go meanwhile.
            let Ok(namespace) = fs::metadata(process.path().join("ns/net")) else {
                continue;
            };
            assert!(
                !ours.contains(&namespace.ino()),
                "{} still runs",
                process.path().display()
            );
        }
    }
}

/// Asserts a rate in Mbit/s; `measure` returns bytes per second. A busy machine slows a transfer down and never speeds one
/// up, so a slow one is measured again.
fn assert_rate_is_about(expected: f64, measure: impl Fn() -> f64) {
    let mut measured = Vec::new();
    for _ in 0..5 {
        let rate = measure() * 8e-6;
        measured.push(rate);
        assert!(
            rate < expected * 1.05,
            "measured {rate:.1} Mbit/s, expected at most about {expected}"
        );
        if rate > expected * 0.95 {
            return println!("measured {rate:.1} Mbit/s, expected about {expected}");
        }
    }
    panic!("measured {measured:.1?} Mbit/s, expected about {expected}");
}

/// TCP segments that the origin sent again, by the kernel's own count for the namespace.
fn retransmitted_segments(site: &Site) -> u64 {
    let snmp = site
        .origin()
        .enter(|| fs::read_to_string("/proc/thread-self/net/snmp"))
        .expect("reading the counters");
    let mut tcp = snmp
        .lines()
        .filter_map(|line| line.strip_prefix("Tcp: "))
        .map(|line| line.split(' '));
    let counters = tcp.next().zip(tcp.next()).expect("a line of names and one of values");
    let counter = counters.0.zip(counters.1).find(|(name, _)| *name == "RetransSegs");
    counter
        .and_then(|(_, value)| value.parse().ok())
        .expect("the kernel counts retransmissions")
}

/// Runs `work`; also returns the share of one core that the relay's threads took meanwhile.
fn relay_cpu_during<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let (before, started) = (relay_cpu_seconds(), Instant::now());
    let result = work();
    (result, (relay_cpu_seconds() - before) / started.elapsed().as_secs_f64())
}

fn relay_cpu_seconds() -> f64 {
    let threads = fs::read_dir("/proc/self/task").expect("listing threads").flatten();
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    let ticks = stats.filter_map(|stat| {
        // User and system time are the 14th and the 15th field; the name in parentheses is the second.
        let (_, fields) = stat.split_once("(wan-relay) ")?;
        Some(
            fields
                .split(' ')
                .skip(11)
                .take(2)
                .filter_map(|field| field.parse::<u64>().ok())
                .sum::<u64>(),
        )
    });
    ticks.sum::<u64>() as f64 / 100.0
}
