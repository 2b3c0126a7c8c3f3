//! SIGHUP: every live setting takes effect in the process that runs, on what is there and under way already; a configuration
//! with a problem changes nothing.
//!
//! Each test looks at what the daemon does, not at what it says. One machine is enough, a namespace with an address that is
//! not a loopback one: what stays on a host costs no limit.

mod support;

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use support::{Blob, FakeUpstream, HOST, Image, Keys, Netns, Process, Request, Response, RogueNode, ScratchDir};

const PIECEMEAL: &str = env!("CARGO_BIN_EXE_piecemeal");
const IP: Ipv4Addr = Ipv4Addr::new(10, 88, 9, 1);
const UPSTREAM: SocketAddrV4 = SocketAddrV4::new(IP, 5000);
const MIRROR: SocketAddrV4 = SocketAddrV4::new(IP, 65011);
const SCHEDULER: SocketAddrV4 = SocketAddrV4::new(IP, 65012);
const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 65001);
const WAIT_MAX: Duration = Duration::from_secs(10);
/// The time for which a slow transfer is observed.
const SPAN: Duration = Duration::from_millis(1500);
/// The time after which a reader has certainly gone and a log line is certainly written.
const SETTLED: Duration = Duration::from_millis(500);
const MB: usize = 1_000_000;

/// The keys that have a test below, by subcommand.
const OBSERVED: [(&str, &[&str]); 4] = [
    (
        "mirror",
        &[
            "cache_ttl",
            "cache_quota",
            "cache_min_free",
            "tag_ttl",
            "wan_limit",
            "revoke",
            "verdict_ttl",
            "offline_grace",
            "log",
        ],
    ),
    (
        "peer",
        &[
            "cache_ttl",
            "cache_quota",
            "cache_min_free",
            "ratelimit",
            "mirror_grace",
            "verdict_ttl",
            "offline_grace",
            "log",
        ],
    ),
    ("scheduler", &["revoke", "log"]),
    ("up", &["cache_ttl", "cache_quota", "log"]),
];

#[test]
fn every_key_that_help_calls_live_is_observed_here() {
    for (subcommand, observed) in OBSERVED {
        let output = Command::new(PIECEMEAL).args([subcommand, "--help"]).output();
        let help = String::from_utf8(output.expect("starting the binary").stdout).expect("help is text");
        let (mut key, mut live) = (String::new(), BTreeSet::new());
        for line in help.lines().map(str::trim) {
            if let Some(flag) = line.split(' ').find_map(|word| word.strip_prefix("--")) {
                key = flag.replace('-', "_");
            }
            if line.ends_with("(live)") {
                live.insert(key.clone());
            }
        }
        let observed: BTreeSet<String> = observed.iter().map(|key| (*key).to_owned()).collect();
        assert_eq!(live, observed, "{subcommand}:\n{help}");
    }
}

// --- the machine

/// A machine with an upstream on it.
struct Machine {
    upstream: Option<FakeUpstream>,
    image: Image,
    keys: Keys,
    netns: Netns,
    dir: ScratchDir,
}

/// A daemon whose live settings are in a file. It ends before its machine does.
struct Daemon<'a> {
    process: Process,
    machine: &'a Machine,
    config: PathBuf,
    cache: PathBuf,
    /// Where clients pull.
    port: SocketAddr,
}

impl Machine {
    fn new(layers: &[usize]) -> Self {
        let (dir, netns) = (ScratchDir::new(), Netns::create("reload"));
        netns.ip(&format!("addr add {IP}/32 dev lo"));
        let image = Image::new("library/app", "v1").layer_bytes(layers);
        Self {
            upstream: Some(FakeUpstream::start(&netns, UPSTREAM, &image)),
            image,
            keys: Keys::generate(&dir.path().join("keys")),
            netns,
            dir,
        }
    }

    fn upstream(&self) -> &FakeUpstream {
        self.upstream.as_ref().expect("it is there")
    }

    fn mirror(&self, settings: &str, flags: &[&str]) -> Daemon<'_> {
        let mut all = vec![
            ("--listen", MIRROR.to_string()),
            ("--piece-listen", format!("{IP}:65002")),
            ("--admin-listen", format!("{IP}:65013")),
            ("--upstream", format!("{HOST}=http://{UPSTREAM}")),
            ("--authority-key-file", self.keys.authority().display().to_string()),
        ];
        all.push(("--cache-dir", self.cache("mirror").display().to_string()));
        self.start("mirror", MIRROR, &all, settings, flags)
    }

    /// In source mode; what is behind it is said by more flags.
    fn peer(&self, settings: &str, flags: &[&str]) -> Daemon<'_> {
        let mut all = vec![
            ("--listen", PEER.to_string()),
            ("--piece-listen", format!("{IP}:65004")),
            ("--admin-listen", "127.0.0.1:65003".to_owned()),
            ("--upstream", format!("{HOST}=http://{UPSTREAM}")),
            ("--download-pattern", "source".to_owned()),
            ("--join-key-file", self.keys.join().display().to_string()),
        ];
        all.push(("--cache-dir", self.cache("peer").display().to_string()));
        self.start("peer", PEER, &all, settings, flags)
    }

    fn scheduler(&self, settings: &str) -> Daemon<'_> {
        let all = [
            ("--listen", SCHEDULER.to_string()),
            ("--admin-listen", format!("{IP}:65014")),
            ("--authority-key-file", self.keys.authority().display().to_string()),
        ];
        self.start("scheduler", SCHEDULER, &all, settings, &[])
    }

    fn cache(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}-cache"))
    }

    fn start(
        &self,
        subcommand: &str,
        port: SocketAddrV4,
        flags: &[(&str, String)],
        settings: &str,
        more: &[&str],
    ) -> Daemon<'_> {
        let config = self.dir.path().join(format!("{subcommand}.toml"));
        fs::write(&config, settings).expect("writing settings");
        let mut command = self.netns.command(PIECEMEAL);
        command.arg(subcommand).arg("--config").arg(&config).args(more);
        for (flag, value) in flags {
            command.args([*flag, value]);
        }
        let log = self.dir.path().join(format!("{subcommand}.log"));
        let daemon = Daemon {
            process: Process::start(subcommand, command, &log),
            machine: self,
            config,
            cache: self.cache(subcommand),
            port: port.into(),
        };
        daemon.until("it listens", || {
            self.netns.enter(|| TcpStream::connect(daemon.port).is_ok())
        });
        daemon
    }
}

impl Daemon<'_> {
    /// Puts settings into force, without waiting for it.
    fn reload(&self, settings: &str) {
        fs::write(&self.config, settings).expect("writing settings");
        self.process.signal(Signal::HUP);
    }

    /// The same, until it says so: for a test of what does not happen afterwards.
    fn reload_and_wait(&self, settings: &str, said: &str) {
        let before = self.said(said);
        self.reload(settings);
        self.until(said, || self.said(said) > before);
    }

    fn said(&self, text: &str) -> usize {
        self.process.log_text().matches(text).count()
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + WAIT_MAX;
        while !holds() {
            assert!(Instant::now() < deadline, "{what}: never\n{}", self.process.log_tail());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn request(&self, resource: &str) -> Request {
        let target = format!("/v2/{}/{resource}?ns={HOST}", self.machine.image.repository());
        Request::get(self.port, &target).patience(WAIT_MAX)
    }

    fn send(&self, request: &Request) -> Response {
        request.send_from(&self.machine.netns).expect("an answer")
    }

    fn get_tag(&self) {
        let response = self.send(&self.request("manifests/v1"));
        assert_eq!(response.status, 200, "{}", response.text());
    }

    fn get_layer(&self, index: usize) -> Response {
        self.send(&self.request(&format!("blobs/{}", self.layer(index).digest)))
    }

    /// Pulls a layer, and has it kept.
    fn keep_layer(&self, index: usize) {
        let response = self.get_layer(index);
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.body == self.layer(index).bytes);
        self.until("it is kept", || self.keeps(index));
    }

    fn layer(&self, index: usize) -> &Blob {
        &self.machine.image.layers()[index]
    }

    fn keeps(&self, index: usize) -> bool {
        is_kept(&self.cache, self.layer(index))
    }

    /// HEADs that upstream has seen for this.
    fn heads(&self, path_end: &str) -> usize {
        let is_one = |request: &&support::RecordedRequest| {
            let path = request.target.split('?').next().unwrap_or_default();
            request.method == "HEAD" && path.ends_with(path_end)
        };
        self.machine.upstream().recorded().iter().filter(is_one).count()
    }

    fn begin_layer(&self, index: usize) -> Pull {
        let digest = &self.layer(index).digest;
        Pull::begin(&self.machine.netns, self.port, &self.machine.image, digest)
    }
}

fn is_kept(cache: &Path, blob: &Blob) -> bool {
    let hex = blob.digest.trim_start_matches("sha256:");
    cache.join("blobs/sha256").join(&hex[..2]).join(hex).is_file()
}

/// A pull that is watched while it goes on.
struct Pull {
    stream: TcpStream,
    body: Vec<u8>,
}

impl Pull {
    fn begin(netns: &Netns, port: SocketAddr, image: &Image, digest: &str) -> Self {
        let target = format!("/v2/{}/blobs/{digest}?ns={HOST}", image.repository());
        let mut stream = netns.enter(|| TcpStream::connect(port)).expect("connecting");
        write!(stream, "GET {target} HTTP/1.1\r\nHost: {port}\r\n\r\n").expect("asking");
        Self {
            stream,
            body: Vec::new(),
        }
    }

    /// The bytes that have come once this time has passed, or once there are as many as are wanted; the answer's head counts.
    fn bytes_within(&mut self, time: Duration, wanted: usize) -> usize {
        let deadline = Instant::now() + time;
        let mut buffer = vec![0; 1 << 16];
        while self.body.len() < wanted {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.stream.set_read_timeout(Some(left)).expect("setting a time limit");
            match self.stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => self.body.extend_from_slice(&buffer[..count]),
                // The time is over.
                Err(_) => {}
            }
        }
        self.body.len()
    }

    /// That the same connection brings all the rest, and soon.
    fn ends_well(mut self, blob: &Blob) {
        let wanted = blob.bytes.len();
        let has_all = |body: &[u8]| body.ends_with(&blob.bytes);
        let deadline = Instant::now() + WAIT_MAX;
        while !has_all(&self.body) && Instant::now() < deadline {
            let more = wanted.max(self.body.len() + 1);
            self.bytes_within(Duration::from_millis(100), more);
        }
        assert!(has_all(&self.body), "{} of {wanted} bytes", self.body.len());
        assert!(self.body.starts_with(b"HTTP/1.1 200"));
    }
}

// --- the cache

#[test]
fn a_shorter_cache_ttl_is_that_of_what_is_cached_already() {
    for start in [Machine::mirror, Machine::peer] {
        let machine = Machine::new(&[MB]);
        let daemon = start(&machine, "cache_ttl = '24h'", &[]);
        daemon.keep_layer(0);
        // Its last reader has gone.
        thread::sleep(SETTLED);
        daemon.reload("cache_ttl = '1ms'");
        daemon.until("the old blob goes", || !daemon.keeps(0));
        assert!(daemon.get_layer(0).body == daemon.layer(0).bytes);
        assert_eq!(
            machine.upstream().requests(&daemon.layer(0).digest),
            2,
            "it had to be pulled again"
        );
    }
}

#[test]
fn a_smaller_cache_quota_takes_out_what_was_used_least() {
    for start in [Machine::mirror, Machine::peer] {
        let machine = Machine::new(&[MB, MB]);
        let daemon = start(&machine, "cache_quota = '1Gi'", &[]);
        daemon.keep_layer(0);
        daemon.keep_layer(1);
        thread::sleep(SETTLED);
        daemon.reload("cache_quota = 1500000");
        daemon.until("the older blob goes", || !daemon.keeps(0));
        assert!(daemon.keeps(1), "one fits");
    }
}

#[test]
fn a_larger_cache_min_free_lets_nothing_more_in() {
    for start in [Machine::mirror, Machine::peer] {
        let machine = Machine::new(&[MB, MB]);
        let daemon = start(&machine, "cache_min_free = 0", &[]);
        daemon.keep_layer(0);
        // No disk has it.
        daemon.reload_and_wait("cache_min_free = '1000000Gi'", "cache_min_free");
        let response = daemon.get_layer(1);
        // It may have passed through.
        assert!(
            response.status != 200 || response.body == daemon.layer(1).bytes,
            "{}",
            response.status
        );
        thread::sleep(SETTLED);
        assert!(!daemon.keeps(1));
        assert_eq!(daemon.get_layer(0).status, 200, "what is here is served");
        daemon.reload("cache_min_free = 0");
        daemon.until("it is kept", || {
            daemon.get_layer(1);
            daemon.keeps(1)
        });
    }
}

// --- what is asked, and how often

#[test]
fn a_shorter_tag_ttl_has_a_tag_checked_again() {
    let machine = Machine::new(&[MB]);
    let mirror = machine.mirror("tag_ttl = '1h'", &[]);
    (0..5).for_each(|_| mirror.get_tag());
    assert_eq!(mirror.heads("/manifests/v1"), 0);
    mirror.reload("tag_ttl = '0s'");
    mirror.until("upstream is asked", || {
        mirror.get_tag();
        mirror.heads("/manifests/v1") > 0
    });
    let before = mirror.heads("/manifests/v1");
    (0..5).for_each(|_| mirror.get_tag());
    assert_eq!(mirror.heads("/manifests/v1"), before + 5);
}

/// Rights that were granted for an hour, then for nothing, then for an hour again.
fn a_verdict_ttl_is_that_of_rights_granted_already(daemon: &Daemon<'_>) {
    daemon.keep_layer(0);
    let layer = &daemon.layer(0).digest;
    let get_some = || (0..5).for_each(|_| assert_eq!(daemon.get_layer(0).status, 200));
    // The first may have to prove its right.
    get_some();
    let before = daemon.heads(layer);
    get_some();
    assert_eq!(daemon.heads(layer), before);
    daemon.reload("verdict_ttl = '1ms'");
    daemon.until("upstream is asked", || {
        daemon.get_layer(0);
        daemon.heads(layer) > before
    });
    daemon.reload_and_wait("verdict_ttl = '1h'", "verdict_ttl 1ms -> 1h");
    get_some();
    let before = daemon.heads(layer);
    get_some();
    assert_eq!(daemon.heads(layer), before);
}

#[test]
fn a_shorter_verdict_ttl_is_that_of_rights_granted_already() {
    for start in [Machine::mirror, Machine::peer] {
        let machine = Machine::new(&[MB]);
        a_verdict_ttl_is_that_of_rights_granted_already(&start(&machine, "verdict_ttl = '1h'", &[]));
    }
}

#[test]
fn a_shorter_verdict_ttl_of_a_peer_has_its_mirror_asked_again() {
    let machine = Machine::new(&[MB]);
    // It asks upstream whenever it is asked.
    let _mirror = machine.mirror("verdict_ttl = '1ms'", &[]);
    let peer = machine.peer("verdict_ttl = '1h'", &["--mirror", &format!("http://{MIRROR}")]);
    a_verdict_ttl_is_that_of_rights_granted_already(&peer);
}

#[test]
fn a_peers_offline_grace_for_a_private_image_ends_and_begins_again() {
    let mut machine = Machine::new(&[MB]);
    let upstream = machine.upstream.take().expect("it is there");
    upstream.require_token("secret", &format!("http://{UPSTREAM}/token"));
    let flags = ["--verdict-ttl", "10ms", "--allow-plain-credentials", "true"];
    let peer = machine.peer("offline_grace = '24h'", &flags);
    let layer = &machine.image.layers()[0];
    let status = || {
        let request = peer.request(&format!("blobs/{}", layer.digest));
        peer.send(&request.header("Authorization", "Bearer secret")).status
    };
    peer.until("it is kept", || status() == 200);
    // The upstream is gone.
    drop(upstream);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(status(), 200);
    peer.reload("offline_grace = '0s'");
    peer.until("it is not served", || status() != 200);
    peer.reload("offline_grace = '24h'");
    peer.until("it is served again", || status() == 200);
}

#[test]
fn a_mirrors_offline_grace_for_a_private_image_ends_and_begins_again() {
    let mut machine = Machine::new(&[MB]);
    let upstream = machine.upstream.take().expect("it is there");
    upstream.require_token("secret", &format!("http://{UPSTREAM}/token"));
    let flags = ["--verdict-ttl", "10ms", "--allow-plain-credentials", "true"];
    let mirror = machine.mirror("offline_grace = '24h'", &flags);
    // The peer has no grace of its own: it serves what the mirror permits.
    let url = format!("http://{MIRROR}");
    let more = ["--mirror", &url, "--direct-fallback", "never", "--offline-grace", "0s"];
    let peer = machine.peer("", &[&flags[..], &more].concat());
    let layer = &machine.image.layers()[0];
    let status = || {
        let request = peer.request(&format!("blobs/{}", layer.digest));
        peer.send(&request.header("Authorization", "Bearer secret")).status
    };
    assert_eq!(status(), 200);
    drop(upstream);
    thread::sleep(Duration::from_millis(50));
    assert_eq!(status(), 200);
    mirror.reload("offline_grace = '0s'");
    mirror.until("it is not served", || status() != 200);
    mirror.reload("offline_grace = '24h'");
    mirror.until("it is served again", || status() == 200);
}

#[test]
fn a_shorter_mirror_grace_ends_a_wait_that_goes_on() {
    let machine = Machine::new(&[MB]);
    let peer = machine.peer("mirror_grace = '1h'", &["--mirror", "http://127.0.0.1:9"]);
    // Lets the size be known, as a client's pull does.
    peer.get_tag();
    let mut pull = peer.begin_layer(0);
    pull.bytes_within(SPAN, MB);
    assert_eq!(machine.upstream().requests(&peer.layer(0).digest), 0, "it waits");
    peer.reload("mirror_grace = '0s'");
    pull.ends_well(peer.layer(0));
}

// --- how fast

/// A limit that is lifted and set again.
fn a_limit_holds_for_what_is_under_way(daemon: &Daemon<'_>, key: &str) {
    // At 100 kB/s a layer takes 80 s, and what is looked at would be 150 kB.
    let little = MB;
    daemon.get_tag();
    let mut pull = daemon.begin_layer(0);
    let bytes = pull.bytes_within(SPAN, usize::MAX);
    assert!(bytes < little, "{bytes} bytes in {SPAN:?}");
    daemon.reload(&format!("{key} = 0"));
    pull.ends_well(daemon.layer(0));

    daemon.reload_and_wait(&format!("{key} = '100k'"), &format!("{key} 0 -> 100k"));
    let bytes = daemon.begin_layer(1).bytes_within(SPAN, usize::MAX);
    assert!(bytes < little, "{bytes} bytes in {SPAN:?}");
}

#[test]
fn a_wan_limit_is_lifted_and_set_under_a_pull() {
    let machine = Machine::new(&[8 * MB, 8 * MB]);
    let mirror = machine.mirror("wan_limit = '100k'", &[]);
    a_limit_holds_for_what_is_under_way(&mirror, "wan_limit");
}

#[test]
fn a_ratelimit_is_lifted_and_set_under_a_pull_from_upstream() {
    let machine = Machine::new(&[8 * MB, 8 * MB]);
    let peer = machine.peer("ratelimit = '100k'", &[]);
    a_limit_holds_for_what_is_under_way(&peer, "ratelimit");
}

#[test]
fn a_ratelimit_is_lifted_and_set_under_a_pull_of_pieces() {
    let machine = Machine::new(&[8 * MB, 8 * MB]);
    let _mirror = machine.mirror("", &[]);
    let peer = machine.peer("ratelimit = '100k'", &["--mirror", &format!("http://{MIRROR}")]);
    a_limit_holds_for_what_is_under_way(&peer, "ratelimit");
}

// --- revoked nodes

#[test]
fn a_node_is_shut_out_and_let_in_again() {
    let machine = Machine::new(&[MB]);
    let scheduler = machine.scheduler("");
    let mirror = machine.mirror("", &["--scheduler", &format!("http://{SCHEDULER}")]);
    let node = RogueNode::new(&machine.keys, 7);
    let status = || mirror.send(&node.signed(mirror.request("manifests/v1"))).status;
    assert_eq!(status(), 200);
    mirror.reload(&format!("revoke = ['{}']", node.node()));
    mirror.until("the mirror refuses it", || status() == 403);
    mirror.reload("");
    mirror.until("the mirror takes it again", || status() == 200);

    let own = RogueNode::of_daemon(&machine.keys, &mirror.cache);
    scheduler.until("the mirror is connected", || {
        mirror.said("connected to the scheduler") == 1
    });
    scheduler.reload(&format!("revoke = '{}'", own.node()));
    scheduler.until("its session ends", || mirror.said("this node is shut out") > 0);
}

// --- the log

#[test]
fn the_log_says_more_and_then_less() {
    let machine = Machine::new(&[MB]);
    let scheduler = machine.scheduler("log = 'info'");
    let mirror = machine.mirror("log = 'info'", &[]);
    let peer = machine.peer("log = 'info'", &[]);
    let daemons = [&scheduler, &mirror, &peer];
    // Something new each time, which has to be asked upstream; whatever a scheduler makes of it.
    let pokes = Cell::new(0);
    let poke = |daemon: &Daemon<'_>| {
        pokes.set(pokes.get() + 1);
        let request = daemon.request(&format!("manifests/{}", pokes.get()));
        drop(request.send_from(&machine.netns));
    };
    let debug_lines = |daemon: &Daemon<'_>| daemon.said(" DEBUG ") + daemon.said(" TRACE ");
    for daemon in daemons {
        poke(daemon);
        assert_eq!(debug_lines(daemon), 0);
        daemon.reload("log = 'trace'");
        daemon.until("it says more", || {
            poke(daemon);
            debug_lines(daemon) > 0
        });
    }
    for daemon in daemons {
        daemon.reload_and_wait("log = 'info'", "log trace -> info");
    }
    // What was under way has been said.
    thread::sleep(SETTLED);
    let before = daemons.map(debug_lines);
    daemons.into_iter().for_each(poke);
    thread::sleep(SETTLED);
    assert_eq!(daemons.map(debug_lines), before);
}

// --- the configuration as a whole

#[test]
fn with_any_problem_nothing_is_applied_and_every_problem_is_named() {
    let machine = Machine::new(&[MB]);
    let mirror = machine.mirror("tag_ttl = '1h'", &[]);
    mirror.get_tag();
    for bad in [
        "tag_ttl = '0s'\ncache_ttl = 'soon'\nwan_limit = '5X'",
        "tag_ttl = '0s'\ncache_ttl = '1s'\nwan_limt = '5M'",
        "tag_ttl = '0s'\ncache_ttl",
    ] {
        mirror.reload_and_wait(bad, "the running configuration is kept");
        (0..3).for_each(|_| mirror.get_tag());
        assert_eq!(mirror.heads("/manifests/v1"), 0, "{bad}");
    }
    for problem in [
        "cache_ttl (in ",
        "wan_limit (in ",
        "wan_limt (in ",
        "no such key",
        "is not TOML",
    ] {
        assert_eq!(mirror.said(problem), 1, "{problem}\n{}", mirror.process.log_tail());
    }
    fs::remove_file(&mirror.config).expect("removing the settings");
    mirror.process.signal(Signal::HUP);
    mirror.until("it says so", || mirror.said("cannot read") > 0);
    mirror.reload("tag_ttl = '0s'");
    mirror.until("a good one is applied", || {
        mirror.get_tag();
        mirror.heads("/manifests/v1") > 0
    });
}

#[test]
fn what_needs_a_restart_is_named_until_there_is_one_and_the_rest_applied_once() {
    let machine = Machine::new(&[MB]);
    let mirror = machine.mirror("zone = 'a'\ntag_ttl = '1h'", &[]);
    mirror.get_tag();
    let settings = "zone = 'secret-b'\ntag_ttl = '0s'";
    mirror.reload_and_wait(settings, "restart to apply what else has changed: zone");
    mirror.get_tag();
    assert_eq!(mirror.heads("/manifests/v1"), 1);
    assert_eq!(mirror.said("applied: tag_ttl 1h -> 0s"), 1);

    // The second time there is nothing new, and the zone is still the old one.
    mirror.reload_and_wait(settings, "restart to apply what else has changed: zone");
    assert_eq!(mirror.said("applied: "), 1);
    mirror.reload_and_wait("zone = 'a'\ntag_ttl = '0s'", "nothing to reload");
    assert_eq!(mirror.said("secret-b"), 0, "a value that may be private is not logged");
}

#[test]
fn a_flag_still_wins_over_the_file() {
    let machine = Machine::new(&[MB]);
    let mirror = machine.mirror("tag_ttl = '1h'", &["--tag-ttl", "1h"]);
    mirror.get_tag();
    mirror.reload_and_wait("tag_ttl = '0s'", "nothing to reload");
    mirror.get_tag();
    assert_eq!(mirror.heads("/manifests/v1"), 0);
}

#[test]
fn a_whole_site_in_one_process_takes_over_what_is_live() {
    let machine = Machine::new(&[MB, MB]);
    let flags = [
        ("--listen", PEER.to_string()),
        ("--upstream", format!("{HOST}=http://{UPSTREAM}")),
        ("--cache-dir", machine.cache("up").display().to_string()),
    ];
    let up = machine.start("up", PEER, &flags, "log = 'info'", &[]);
    let keeps = |daemon: &str, index: usize| is_kept(&up.cache.join(daemon), up.layer(index));
    let pull_both = || {
        for index in 0..2 {
            assert_eq!(up.get_layer(index).status, 200);
            up.until("both keep it", || keeps("mirror", index) && keeps("peer", index));
        }
        thread::sleep(SETTLED);
    };
    up.until("it is ready", || up.said("connected to the scheduler") == 2);
    pull_both();
    up.reload("log = 'info'\ncache_quota = 1500000");
    up.until("the older one goes", || !keeps("mirror", 0) && !keeps("peer", 0));
    assert!(keeps("mirror", 1) && keeps("peer", 1));
    up.reload("log = 'info'\ncache_ttl = '1ms'");
    up.until("all goes", || !keeps("mirror", 1) && !keeps("peer", 1));

    assert_eq!(up.said(" DEBUG "), 0);
    up.reload("log = 'debug'");
    up.until("it says more", || {
        up.get_layer(0);
        up.said(" DEBUG ") > 0
    });
}
