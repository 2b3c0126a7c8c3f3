//! Blobs that there is no room for pass through: clients get them, and nothing is kept.

mod support;

use std::{path::Path, thread, time::Duration};

use support::{Cluster, HOST, Image, MIRROR_IP, Request, Site};

const MIB: usize = 1 << 20;
/// Larger than the window through which it passes.
const LAYER: usize = 72 * MIB;

fn image() -> Image {
    Image::new("library/large", "v1").layer_bytes(&[LAYER])
}

fn pull_everywhere(cluster: &Cluster, image: &Image) {
    for outcome in cluster.fetch_all(&image.reference(HOST)) {
        assert!(outcome.ok, "node {}: {}", outcome.node, outcome.output);
    }
}

fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn a_layer_larger_than_the_nodes_quota_passes_through_them_and_they_share_it_all_the_same() {
    let site = Site::builder().nodes(3).wan_mbit(200).lan_mbit(1000);
    let cluster = Cluster::cold_with(site, |options| {
        let quota = ["--cache-quota", "8Mi"].map(str::to_owned);
        options.peer.extra_args.extend(quota);
    });
    let image = image();
    cluster.registry.push(&image);
    pull_everywhere(&cluster, &image);
    let layer = &image.layers()[0].digest;
    assert_eq!(
        cluster.registry.blob_bytes_served(layer),
        LAYER as u64,
        "once over the WAN"
    );
    let shared: f64 = cluster
        .peers
        .iter()
        .map(|peer| peer.metric(r#"piecemeal_blob_bytes_total{from="local",to="node"}"#))
        .sum();
    assert!(
        shared > 0.1 * LAYER as f64,
        "peers handed each other only {shared} bytes"
    );
    for peer in &cluster.peers {
        let kept = bytes_below(&peer.cache_dir().join("blobs")) + bytes_below(&peer.cache_dir().join("partial"));
        assert!(kept < 8 * MIB as u64, "{kept} bytes are kept");
    }
}

/// As containerd resumes, and as it fetches in parallel.
#[test]
fn a_range_far_inside_a_blob_that_is_not_kept_is_served_when_its_turn_comes() {
    let site = Site::builder().nodes(1).wan_mbit(400).lan_mbit(1000);
    let cluster = Cluster::cold_with(site, |options| {
        let floor = ["--cache-min-free", "4000000G"].map(str::to_owned);
        options.mirror.extra_args.extend(floor);
    });
    let image = image();
    cluster.registry.push(&image);
    let mirror = "10.88.0.2:65011".parse().expect("an address");
    let node = cluster.site.node(0);
    let manifest = Request::get(mirror, &format!("/v2/library/large/manifests/v1?ns={HOST}"));
    assert_eq!(manifest.send_from(node).expect("an answer").status, 200);
    let layer = &image.layers()[0];
    let start = LAYER * 3 / 4;
    let got = Request::get(mirror, &format!("/v2/library/large/blobs/{}?ns={HOST}", layer.digest))
        .header("Range", &format!("bytes={start}-"))
        .patience(Duration::from_secs(60))
        .send_from(node)
        .expect("an answer");
    assert_eq!(got.status, 206);
    assert!(
        got.complete && got.body == layer.bytes[start..],
        "{} bytes",
        got.body.len()
    );
}

#[test]
fn a_mirror_without_room_passes_on_what_it_cannot_keep() {
    let site = Site::builder().nodes(2).wan_mbit(200).lan_mbit(1000);
    let cluster = Cluster::cold_with(site, |options| {
        // More than any disk has.
        let floor = ["--cache-min-free", "4000000G"].map(str::to_owned);
        options.mirror.extra_args.extend(floor);
    });
    let image = image();
    cluster.registry.push(&image);
    pull_everywhere(&cluster, &image);
    let kept = cluster.mirror.cache_dir();
    assert_eq!(bytes_below(&kept.join("blobs")) + bytes_below(&kept.join("partial")), 0);
    let layer = &image.layers()[0].digest;
    let copies = cluster.registry.blob_bytes_served(layer) as f64 / LAYER as f64;
    assert!(copies < 2.1, "at worst a copy each: {copies}");
    let ready = cluster.mirror.admin("/readyz");
    assert!(ready.text().contains("store: no space"), "{}", ready.text());
    // The nodes have room, and the next pull needs no upstream.
    cluster.site.block_wan();
    pull_everywhere(&cluster, &image);
}

#[test]
fn more_blobs_than_may_pass_at_a_time_wait_for_each_other_and_none_is_refused() {
    let site = Site::builder().nodes(0).wan_mbit(50);
    let cluster = Cluster::cold_with(site, |options| {
        let floor = ["--cache-min-free", "4000000G"].map(str::to_owned);
        options.mirror.extra_args.extend(floor);
    });
    let image = Image::new("library/many", "v1").layer_bytes(&[MIB; 10]);
    cluster.registry.push(&image);
    let answers: Vec<_> = thread::scope(|scope| {
        let pull = |digest: &str| {
            let target = format!("/v2/library/many/blobs/{digest}?ns={HOST}");
            Request::get((MIRROR_IP, 65011).into(), &target)
                .send_from(cluster.site.mirror())
                .expect("the mirror answers")
        };
        let pulls = image
            .layers()
            .iter()
            .map(|layer| scope.spawn(move || pull(&layer.digest)));
        let pulls: Vec<_> = pulls.collect();
        pulls
            .into_iter()
            .map(|pull| pull.join().expect("a pull ends"))
            .collect()
    });
    for (answer, layer) in answers.iter().zip(image.layers()) {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.body, layer.bytes);
    }
}
