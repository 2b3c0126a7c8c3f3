//! `docs/metrics.md` names every metric, and nothing that does not exist.

mod support;

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use support::{Cluster, HOST, Image, Process, Request, Site};

#[test]
fn the_documented_metrics_are_those_that_daemons_have() {
    let mut cluster = Cluster::cold(Site::builder().nodes(2).wan_mbit(100).lan_mbit(400));
    let image = Image::new("library/app", "v1").layer_bytes(&[3 << 20]);
    cluster.registry.push(&image);
    for fetch in cluster.fetch_all(&image.reference(HOST)) {
        assert!(fetch.ok, "{}", fetch.output);
    }
    // A session that ends, and nothing else, is counted only once it has happened.
    cluster.peers.pop().expect("there are two").kill();
    let deadline = Instant::now() + Duration::from_secs(10);
    let scheduler = loop {
        let metrics = cluster.scheduler.as_ref().expect("it runs").metrics();
        if metrics.contains("piecemeal_scheduler_sessions_ended_total{") {
            break metrics;
        }
        assert!(Instant::now() < deadline, "the session never ends\n{metrics}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let node = node_metrics(&cluster);
    let exposed: BTreeSet<String> = [cluster.peers[0].metrics(), cluster.mirror.metrics(), scheduler, node]
        .iter()
        .flat_map(|text| names(text))
        .collect();
    assert_eq!(exposed, documented());
}

/// Of `piecemeal node run`, on a node with nothing but an empty containerd.
fn node_metrics(cluster: &Cluster) -> String {
    let root = cluster.site.dir().join("node-root");
    fs::create_dir_all(root.join("etc/containerd")).expect("a node's root");
    let mut command = cluster.site.node(0).command(env!("CARGO_BIN_EXE_piecemeal"));
    command.args([
        "node",
        "run",
        "--upstream",
        "docker.io=https://registry-1.docker.io",
        "--root",
    ]);
    command.arg(root).args(["--admin-listen", "127.0.0.1:65017"]);
    let node_run = Process::start("node run", command, &cluster.site.dir().join("node-run.log"));
    let address: SocketAddr = "127.0.0.1:65017".parse().expect("an address");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = Request::get(address, "/metrics").send_from(cluster.site.node(0));
        match answer.map(|answer| answer.text()) {
            Ok(text) if text.contains("piecemeal_node_files") => return text,
            _ => assert!(Instant::now() < deadline, "no metrics\n{}", node_run.log_tail()),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Metric families as a query would name them, by OpenMetrics' suffixes.
fn names(exposition: &str) -> Vec<String> {
    let types = exposition
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        })
        .collect()
}

fn documented() -> BTreeSet<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let text = fs::read_to_string(file).expect("the table of metrics");
    let rows = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name.to_owned())
        .filter(|name| name.starts_with("piecemeal_"))
        // The webhook's own crate compares those.
        .filter(|name| !name.starts_with("piecemeal_webhook_"))
        .collect()
}

#[test]
fn each_pull_has_one_line_in_the_log_and_its_requests_are_counted() {
    let cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(100).lan_mbit(400));
    let image = Image::new("library/app", "v1").layer_bytes(&[3 << 20, 1 << 20]);
    cluster.registry.push(&image);
    let peer = &cluster.peers[0];
    for fetch in cluster.fetch_all(&image.reference(HOST)) {
        assert!(fetch.ok, "{}", fetch.output);
    }
    let pulled = || -> Vec<String> {
        let log = peer.log_text();
        let lines = log.lines().filter(|line| line.contains(" pulled "));
        lines.map(str::to_owned).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while pulled().is_empty() {
        assert!(Instant::now() < deadline, "no line\n{}", peer.log_tail());
        std::thread::sleep(Duration::from_millis(100));
    }
    let lines = pulled();
    let told = format!("pulled {HOST}/library/app:v1: 3 blobs, {} bytes", image.total_bytes());
    assert!(lines.len() == 1 && lines[0].contains(&told), "{told:?} in {lines:?}");
    let requests = |kind, outcome| {
        peer.metric(&format!(
            "piecemeal_requests_total{{kind=\"{kind}\",outcome=\"{outcome}\"}}"
        ))
    };
    assert_eq!((requests("blob", "miss"), requests("blob", "hit")), (3.0, 0.0));
    assert!(requests("manifest", "miss") >= 1.0);
    assert_eq!(requests("blob", "failed") + requests("manifest", "failed"), 0.0);
    let transfers = |outcome| peer.metric(&format!("piecemeal_transfers_total{{outcome=\"{outcome}\"}}"));
    assert_eq!((transfers("kept"), transfers("failed")), (3.0, 0.0));
    assert_eq!(peer.metric("piecemeal_store_blobs"), 3.0);
    assert_eq!(peer.metric("piecemeal_store_blob_bytes"), image.total_bytes() as f64);
}
