//! The emulated site: its rates, its delay and its loss, and that nothing of it is left. No other test would fail without them.

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

use support::{DockerRegistry, FakeUpstream, Image, MIRROR_WAN_IP, Netns, REGISTRY, Request, Site, start_containerd};

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
