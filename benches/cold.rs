//! Guards the main promise: the last node of a cold site finishes near the lower bound, over one WAN copy.
//!
//! Real daemons in network namespaces. Every figure is a ratio against the goodput that was measured on the same links in
//! the same run. Prints; asserts only that every pull succeeded.
//!
//! The flash crowds run with two clients: `piecemeal pull`, which verifies every blob and keeps nothing, and containerd. On a
//! machine of two cores eight containerds alone use most of the processor; a run above 70 % reflects the machine more than
//! Piecemeal, and is marked. `cold -- WORD` runs only the parts whose name has the word. `cold -- --beside=FILE` runs the daemons
//! of another binary in turn with this tree's, so that the two meet the same machine.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Stdio},
    time::Instant,
};

use support::{
    Cluster, ClusterOptions, Containerd, HOST, Image, REGISTRY, Request, Site, SiteBuilder, hosts_toml,
    start_containerd,
};

const MIB: usize = 1 << 20;
const RUNS: u64 = 5;
/// The size of a piece of these layers. Filling the pipeline costs the time of one piece per doubling of the nodes.
const PIECE_BYTES: f64 = 256.0 * 1024.0;

/// The round trip of a WAN that is delayed by 50 ms each way, in seconds.
const ROUND_TRIP: f64 = 0.1;

/// Above this the processor, not the links, decides.
const BUSY_MAX: f64 = 0.7;

#[derive(Clone, Copy)]
enum Client {
    /// `piecemeal pull`: verifies, keeps nothing.
    Pull,
    Containerd,
}

/// A binary whose daemons are measured.
struct Program {
    name: &'static str,
    file: PathBuf,
}

impl Program {
    fn cluster(&self, site: SiteBuilder) -> Cluster {
        Cluster::cold_with(site, |options: &mut ClusterOptions| {
            options.mirror.program.clone_from(&self.file);
            options.peer.program.clone_from(&self.file);
            if let Some(scheduler) = &mut options.scheduler {
                scheduler.program.clone_from(&self.file);
            }
        })
    }
}

fn programs(arguments: &[String]) -> Vec<Program> {
    let this = Program {
        name: "this tree",
        file: env!("CARGO_BIN_EXE_piecemeal").into(),
    };
    let beside = arguments.iter().find_map(|argument| argument.strip_prefix("--beside="));
    let beside = beside.map(|file| Program {
        name: "beside",
        file: file.into(),
    });
    [Some(this), beside].into_iter().flatten().collect()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let programs = programs(&arguments);
    let word = arguments.iter().find(|argument| !argument.starts_with('-'));
    let word = word.cloned().unwrap_or_default();
    println!("Cold pulls of a 64 MiB image of 3 layers, WAN 100 Mbit/s, LAN 400 Mbit/s a node; {RUNS} runs each.\n");
    let near = || Site::builder().wan_mbit(100).lan_mbit(400);
    let far = || near().wan_delay_ms(50);
    let lossy = || far().wan_loss_percent(1.0);
    let parts: [(&str, &dyn Fn()); 6] = [
        ("answers of 1 node, WAN round trip 100 ms", &|| answers(&programs, far)),
        ("8 nodes, near", &|| flash_crowd(&programs, 8, Client::Pull, near)),
        ("8 nodes, WAN round trip 100 ms", &|| {
            flash_crowd(&programs, 8, Client::Pull, far)
        }),
        ("8 nodes, WAN round trip 100 ms and 1 % loss", &|| {
            flash_crowd(&programs, 8, Client::Pull, lossy)
        }),
        ("8 containerds, near", &|| {
            flash_crowd(&programs, 8, Client::Containerd, near)
        }),
        (
            "alone: 1 containerd through Piecemeal against 1 directly",
            &alone_against_direct,
        ),
    ];
    for (name, run) in parts.iter().filter(|(name, _)| name.contains(&word)) {
        println!("{name}");
        run();
    }
}

fn image(seed: u64) -> Image {
    Image::new("library/app", &format!("v{seed}"))
        .seed(seed)
        .layer_bytes(&[30 * MIB, 20 * MIB, 14 * MIB])
}

/// The last node's time over the bound, and how many copies of the blobs the WAN carried.
fn flash_crowd(programs: &[Program], nodes: usize, client: Client, site: impl Fn() -> SiteBuilder) {
    let mut ratios = vec![Vec::new(); programs.len()];
    for run in 0..RUNS {
        for (program, ratios) in programs.iter().zip(&mut ratios) {
            let cluster = program.cluster(site().nodes(nodes));
            ratios.push(crowd(&cluster, run, program.name, client));
        }
    }
    for (program, ratios) in programs.iter().zip(ratios) {
        print_ratios(&format!("{}: last node / bound", program.name), ratios);
    }
}

/// One pull by all nodes of a cold cluster.
fn crowd(cluster: &Cluster, run: u64, name: &str, client: Client) -> f64 {
    let image = image(run);
    cluster.registry.push(&image);
    let wan = cluster.site.measure_goodput_wan();
    let lan = cluster.site.measure_goodput_lan(0, 1);
    let bound = bound(image.total_bytes() as f64, cluster.site.nodes().len() as f64, wan, lan);
    let before = Cpu::now();
    let seconds = match client {
        Client::Pull => pull_everywhere(cluster, &image),
        Client::Containerd => fetch_everywhere(cluster, &image),
    };
    let busy = Cpu::now().share_since(before);
    let first = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let last = seconds.iter().copied().fold(0.0, f64::max);
    let served: u64 = image
        .blobs()
        .map(|blob| cluster.registry.blob_bytes_served(&blob.digest))
        .sum();
    let blobs: usize = image.blobs().map(|blob| blob.bytes.len()).sum();
    println!(
        "  run {run}, {name}: last node {last:.2} s, first {first:.2} s, bound {bound:.2} s (goodput WAN {:.2}, LAN {:.1} MB/s), ratio {:.3}, {:.3} copies, CPU {:.0} %{}",
        wan / 1e6,
        lan / 1e6,
        last / bound,
        served as f64 / blobs as f64,
        busy * 100.0,
        if busy > BUSY_MAX { " (too busy to count)" } else { "" }
    );
    last / bound
}

/// How long a node's client waits for a cold manifest, for the head of a cold layer's answer, and for its first byte, in round trips of
/// the WAN; and how many requests the registry had by then.
fn answers(programs: &[Program], site: impl Fn() -> SiteBuilder) {
    let peer = SocketAddr::from(([127, 0, 0, 1], 65001));
    for run in 0..RUNS {
        for program in programs {
            let cluster = program.cluster(site().nodes(1));
            let image = image(200 + run);
            cluster.registry.push(&image);
            let before = cluster.registry.log_text().lines().count();
            let round_trips = |path: &str, body_bytes: usize| {
                let target = format!("/v2/{}/{path}?ns={HOST}", image.repository());
                let started = Instant::now();
                let answer = Request::get(peer, &target).send_and_hang_up(cluster.site.node(0), body_bytes);
                answer.expect("an answer");
                started.elapsed().as_secs_f64() / ROUND_TRIP
            };
            let manifest = round_trips(&format!("manifests/{}", image.tag()), 1);
            let layer = |number: usize| format!("blobs/{}", image.layers()[number].digest);
            let (head, byte) = (round_trips(&layer(0), 0), round_trips(&layer(1), 1));
            let asked = cluster.registry.log_text().lines().count() - before;
            println!(
                "  run {run}, {}: manifest {manifest:.2}, a layer's head {head:.2}, a layer's first byte {byte:.2} round trips, {asked} requests",
                program.name
            );
        }
    }
    println!();
}

fn fetch_everywhere(cluster: &Cluster, image: &Image) -> Vec<f64> {
    let fetches = cluster.fetch_all(&image.reference(HOST));
    assert!(fetches.iter().all(|fetch| fetch.ok), "{fetches:?}");
    fetches.iter().map(|fetch| fetch.elapsed.as_secs_f64()).collect()
}

fn pull_everywhere(cluster: &Cluster, image: &Image) -> Vec<f64> {
    let reference = format!("127.0.0.1:65001/{HOST}/{}:{}", image.repository(), image.tag());
    let started = Instant::now();
    let pulls: Vec<_> = cluster
        .site
        .nodes()
        .iter()
        .map(|node| {
            let mut command = node.command(env!("CARGO_BIN_EXE_piecemeal"));
            command.args(["pull", &reference, "--json"]).stdout(Stdio::null());
            command.spawn().expect("the client starts")
        })
        .collect();
    let end = |mut pull: Child| {
        assert!(pull.wait().expect("the client ends").success(), "a pull failed");
        started.elapsed().as_secs_f64()
    };
    std::thread::scope(|scope| {
        let ends: Vec<_> = pulls.into_iter().map(|pull| scope.spawn(|| end(pull))).collect();
        ends.into_iter()
            .map(|end| end.join().expect("a pull succeeds"))
            .collect()
    })
}

fn print_ratios(what: &str, mut ratios: Vec<f64>) {
    ratios.sort_by(f64::total_cmp);
    println!(
        "  {what}: median {:.3}, worst {:.3}\n",
        ratios[ratios.len() / 2],
        ratios[ratios.len() - 1]
    );
}

/// `max{F/U_w, F/d, N·F/(U_m + N·u)} + lg N · P/u`: no way of spreading pieces is faster.
fn bound(image_bytes: f64, nodes: f64, wan: f64, lan: f64) -> f64 {
    let fluid = (image_bytes / wan)
        .max(image_bytes / lan)
        .max(nodes * image_bytes / (lan + nodes * lan));
    fluid + nodes.log2().floor() * PIECE_BYTES / lan
}

/// One node through its peer and mirror against one node that pulls from the registry itself, in turn.
fn alone_against_direct() {
    let mut ratios = Vec::new();
    for run in 0..RUNS {
        let image = image(100 + run);
        let ours = {
            let cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(100).lan_mbit(400));
            cluster.registry.push(&image);
            fetch(&cluster.containerds[0], &image)
        };
        let direct = {
            let site = Site::builder()
                .nodes(1)
                .wan_mbit(100)
                .lan_mbit(400)
                .nodes_reach_upstream(true)
                .build();
            let registry = support::DockerRegistry::start(site.origin(), REGISTRY);
            registry.push(&image);
            let containerd = start_containerd(&site, 0);
            containerd.write_hosts(HOST, &hosts_toml(&format!("http://{REGISTRY}")));
            fetch(&containerd, &image)
        };
        println!(
            "  run {run}: through Piecemeal {ours:.2} s, directly {direct:.2} s, ratio {:.3}",
            ours / direct
        );
        ratios.push(ours / direct);
    }
    print_ratios("through us / directly", ratios);
}

fn fetch(containerd: &Containerd, image: &Image) -> f64 {
    let started = Instant::now();
    containerd.fetch(&image.reference(HOST)).expect_ok();
    started.elapsed().as_secs_f64()
}

/// The machine's processor time, from /proc/stat: above 70 % busy the result reflects the machine more than Piecemeal.
#[derive(Clone, Copy)]
struct Cpu {
    busy: u64,
    all: u64,
}

impl Cpu {
    fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields: Vec<u64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        let all = fields.iter().sum();
        Self {
            busy: all - fields.get(3..5).map_or(0, |idle| idle.iter().sum()),
            all,
        }
    }

    fn share_since(self, before: Self) -> f64 {
        (self.busy - before.busy) as f64 / (self.all - before.all).max(1) as f64
    }
}
