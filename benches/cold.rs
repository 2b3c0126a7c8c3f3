//! Guards the main promise: the last node of a cold site finishes near the lower bound, over one WAN copy.
//!
//! Real containerds in network namespaces. Every figure is a ratio against the goodput that was measured on the same links in
//! the same run. Prints; asserts only that every pull succeeded.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use support::{Cluster, Containerd, HOST, Image, REGISTRY, Site, SiteBuilder, hosts_toml, start_containerd};

const MIB: usize = 1 << 20;
const RUNS: u64 = 5;
/// Of layers of this size; what filling the pipeline costs is this much per doubling of the nodes.
const PIECE_BYTES: f64 = 256.0 * 1024.0;

fn main() {
    println!("Cold pulls of a 64 MiB image of 3 layers, WAN 100 Mbit/s, LAN 400 Mbit/s a node; {RUNS} runs each.\n");
    flash_crowd("8 nodes", 8, || Site::builder().wan_mbit(100).lan_mbit(400));
    flash_crowd("8 nodes, WAN round trip 100 ms", 8, || Site::builder().wan_mbit(100).lan_mbit(400).wan_delay_ms(50));
    alone_against_direct();
}

fn image(seed: u64) -> Image {
    Image::new("library/app", &format!("v{seed}")).seed(seed).layer_bytes(&[30 * MIB, 20 * MIB, 14 * MIB])
}

/// The last node's time over the bound, and how many copies of the blobs the WAN carried.
fn flash_crowd(name: &str, nodes: usize, site: impl Fn() -> SiteBuilder) {
    println!("{name}");
    let mut ratios = Vec::new();
    for run in 0..RUNS {
        let cluster = Cluster::cold(site().nodes(nodes));
        let image = image(run);
        cluster.registry.push(&image);
        let wan = cluster.site.measure_goodput_wan();
        let lan = cluster.site.measure_goodput_lan(0, 1);
        let bound = bound(image.total_bytes() as f64, nodes as f64, wan, lan);
        let idle = Cpu::now();
        let fetches = cluster.fetch_all(&image.reference(HOST));
        let busy = Cpu::now().share_since(idle);
        let failed = fetches.iter().filter(|fetch| !fetch.ok).count();
        assert_eq!(failed, 0, "{fetches:?}");
        let seconds = |fetch: Option<Duration>| fetch.map_or(0.0, |elapsed| elapsed.as_secs_f64());
        let last = seconds(fetches.iter().map(|fetch| fetch.elapsed).max());
        let first = seconds(fetches.iter().map(|fetch| fetch.elapsed).min());
        let served: u64 = image.blobs().map(|blob| cluster.registry.blob_bytes_served(&blob.digest)).sum();
        let blobs: usize = image.blobs().map(|blob| blob.bytes.len()).sum();
        println!(
            "  run {run}: last node {last:.2} s, first {first:.2} s, bound {bound:.2} s (goodput WAN {:.2}, LAN {:.1} MB/s), ratio {:.3}, {:.3} copies, CPU {:.0} %",
            wan / 1e6,
            lan / 1e6,
            last / bound,
            served as f64 / blobs as f64,
            busy * 100.0
        );
        ratios.push(last / bound);
    }
    ratios.sort_by(f64::total_cmp);
    println!("  last node / bound: median {:.3}, worst {:.3}\n", ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
}

/// `max{F/U_w, F/d, N·F/(U_m + N·u)} + lg N · P/u`: no way of spreading pieces is faster.
fn bound(image_bytes: f64, nodes: f64, wan: f64, lan: f64) -> f64 {
    let fluid = (image_bytes / wan).max(image_bytes / lan).max(nodes * image_bytes / (lan + nodes * lan));
    fluid + nodes.log2().floor() * PIECE_BYTES / lan
}

/// One node through its peer and mirror against one node that pulls from the registry itself, in turn.
fn alone_against_direct() {
    println!("1 node through Piecemeal against 1 node directly");
    let mut ratios = Vec::new();
    for run in 0..RUNS {
        let image = image(100 + run);
        let ours = {
            let cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(100).lan_mbit(400));
            cluster.registry.push(&image);
            fetch(&cluster.containerds[0], &image)
        };
        let direct = {
            let site = Site::builder().nodes(1).wan_mbit(100).lan_mbit(400).nodes_reach_upstream(true).build();
            let registry = support::DockerRegistry::start(site.origin(), REGISTRY);
            registry.push(&image);
            let containerd = start_containerd(&site, 0);
            containerd.write_hosts(HOST, &hosts_toml(&format!("http://{REGISTRY}")));
            fetch(&containerd, &image)
        };
        println!("  run {run}: through Piecemeal {ours:.2} s, directly {direct:.2} s, ratio {:.3}", ours / direct);
        ratios.push(ours / direct);
    }
    ratios.sort_by(f64::total_cmp);
    println!("  through us / directly: median {:.3}, worst {:.3}\n", ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
}

fn fetch(containerd: &Containerd, image: &Image) -> f64 {
    let started = Instant::now();
    containerd.fetch(&image.reference(HOST)).expect_ok();
    started.elapsed().as_secs_f64()
}

/// The machine's processor time, from /proc/stat: above 70 % busy a run says more of the machine than of us.
#[derive(Clone, Copy)]
struct Cpu {
    busy: u64,
    all: u64,
}

impl Cpu {
    fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields: Vec<u64> = stat.lines().next().unwrap_or_default().split_whitespace().filter_map(|field| field.parse().ok()).collect();
        let all = fields.iter().sum();
        Self { busy: all - fields.get(3..5).map_or(0, |idle| idle.iter().sum()), all }
    }

    fn share_since(self, before: Self) -> f64 {
        (self.busy - before.busy) as f64 / (self.all - before.all).max(1) as f64
    }
}
