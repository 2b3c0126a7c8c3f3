//! The main use: the nodes of a site pull an image through their peers, and the WAN carries it once.

mod support;

use support::{Cluster, HOST, Image, Request, Site, skopeo};

const MIB: usize = 1 << 20;

/// Three layers, 64 MB in all.
fn image() -> Image {
    Image::new("library/app", "v1").layer_bytes(&[30 * MIB, 20 * MIB, 14 * MIB])
}

/// Every node has every blob of the image, as containerd verified it.
fn assert_every_node_has(cluster: &Cluster, image: &Image) {
    for (node, containerd) in cluster.containerds.iter().enumerate() {
        for blob in image.blobs() {
            assert!(
                containerd.content_digest_ok(&blob.digest),
                "node {node} lacks {}",
                blob.digest
            );
        }
    }
}

/// By the registry's own access log.
fn assert_served_once(cluster: &Cluster, image: &Image) {
    for blob in image.blobs() {
        assert_eq!(
            cluster.registry.blob_bytes_served(&blob.digest),
            blob.bytes.len() as u64,
            "{}",
            blob.digest
        );
    }
}

fn pull_everywhere(cluster: &Cluster, image: &Image) {
    for fetch in cluster.fetch_all(&image.reference(HOST)) {
        assert!(
            fetch.ok,
            "node {} failed after {:?}: {}\n{}",
            fetch.node,
            fetch.elapsed,
            fetch.output,
            cluster.peers[fetch.node].log_tail()
        );
    }
    assert_every_node_has(cluster, image);
}

#[test]
fn four_nodes_pull_a_cold_image_over_one_wan_copy() {
    let cluster = Cluster::cold(Site::builder().nodes(4).wan_mbit(100).lan_mbit(400));
    let image = image();
    cluster.registry.push(&image);
    let before = cluster.site.wan_bytes_received();
    pull_everywhere(&cluster, &image);
    assert_served_once(&cluster, &image);
    let carried = cluster.site.wan_bytes_received() - before;
    let most = image.total_bytes() as f64 * 1.06;
    assert!(
        carried as f64 <= most,
        "the WAN carried {carried} bytes for an image of {}",
        image.total_bytes()
    );
    let from_peers: f64 = cluster
        .peers
        .iter()
        .map(|peer| peer.metric("piecemeal_blob_bytes_total{from=\"peer\",to=\"store\"}"))
        .sum();
    assert!(from_peers > 0.0, "the peers have not fed each other");
}

#[test]
fn a_single_node_pulls_over_one_wan_copy() {
    let cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(100).lan_mbit(400));
    let image = image();
    cluster.registry.push(&image);
    pull_everywhere(&cluster, &image);
    assert_served_once(&cluster, &image);
}

#[test]
fn in_source_pattern_every_node_pulls_from_the_mirror_over_one_wan_copy() {
    let cluster = Cluster::cold_with(Site::builder().nodes(4).wan_mbit(100).lan_mbit(400), |options| {
        options.scheduler = None;
        options.peer.download_pattern = "source".to_owned();
    });
    let image = image();
    cluster.registry.push(&image);
    pull_everywhere(&cluster, &image);
    assert_served_once(&cluster, &image);
    let blobs: usize = image.blobs().map(|blob| blob.bytes.len()).sum();
    for peer in &cluster.peers {
        let from_mirror = peer.metric("piecemeal_blob_bytes_total{from=\"mirror\",to=\"store\"}");
        assert_eq!(from_mirror, blobs as f64, "a piece crossed the LAN twice");
    }
}

#[test]
fn tiny_and_many_layers_are_pulled_too() {
    let cluster = Cluster::cold(Site::builder().nodes(3).wan_mbit(100).lan_mbit(400));
    let mut sizes = vec![1];
    sizes.extend((1..=30).map(|layer| layer * 131_071));
    assert!(sizes.iter().all(|&bytes| bytes < 4 * MIB));
    let image = Image::new("library/tiny", "v1").layer_bytes(&sizes).in_index();
    cluster.registry.push(&image);
    pull_everywhere(&cluster, &image);
    assert_served_once(&cluster, &image);
}

/// containerd 1.6 refuses a descriptor of size zero by itself, so that another client has to ask.
#[test]
fn an_empty_layer_is_served_like_any_other() {
    let cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(100).lan_mbit(400));
    let image = Image::new("library/empty", "v1").layer_bytes(&[0, 1]);
    cluster.registry.push(&image);
    let empty = &image.layers()[0];
    let target = format!("/v2/library/empty/blobs/{}?ns={HOST}", empty.digest);
    let peer = "127.0.0.1:65001".parse().expect("an address");
    let ask = |request: Request| request.send_from(cluster.site.node(0)).expect("the peer answers");
    for answer in [
        ask(Request::get(peer, &target)),
        ask(Request::get(peer, &target).header("Range", "bytes=0-")),
    ] {
        assert_eq!(
            (answer.status, &*answer.body),
            (200, &[][..]),
            "containerd's chunked fetch gives up on a 416"
        );
        assert_eq!(answer.headers.get("docker-content-digest"), Some(&*empty.digest));
        assert_eq!(answer.headers.get("content-length"), Some("0"));
    }
    assert_eq!(
        ask(Request::head(peer, &target)).headers.get("content-length"),
        Some("0")
    );
}

#[test]
fn what_a_site_has_it_pulls_again_without_the_wan() {
    let cluster = Cluster::cold(Site::builder().nodes(2).wan_mbit(100).lan_mbit(400));
    let image = image();
    cluster.registry.push(&image);
    pull_everywhere(&cluster, &image);
    for containerd in &cluster.containerds {
        containerd.remove_all_content();
    }
    cluster.site.block_wan();
    pull_everywhere(&cluster, &image);
    assert_served_once(&cluster, &image);
}

#[test]
fn containerd_unpacks_what_it_pulled() {
    let cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(100).lan_mbit(400));
    let image = Image::new("library/unpacked", "v1").layer_bytes(&[3 * MIB, MIB]);
    cluster.registry.push(&image);
    cluster.containerds[0].pull(&image.reference(HOST)).expect_ok();
}

#[test]
fn skopeo_names_the_upstream_in_the_path() {
    let cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(100).lan_mbit(400));
    let image = Image::new("library/skopeo", "v1")
        .layer_bytes(&[5 * MIB, MIB])
        .in_index();
    cluster.registry.push(&image);
    let dir = cluster.site.dir().join("skopeo");
    let reference = format!("127.0.0.1:65001/{HOST}/{}:{}", image.repository(), image.tag());
    skopeo::copy_to_dir(cluster.site.node(0), &reference, &dir).expect_ok();
    for blob in image.layers() {
        let hex = blob.digest.trim_start_matches("sha256:");
        let copied = std::fs::read(dir.join(hex)).expect("skopeo names files by digest");
        assert_eq!(support::sha256(&copied), blob.digest);
    }
}

#[test]
fn a_wan_with_delay_and_loss_still_carries_one_copy() {
    let cluster = Cluster::cold(
        Site::builder()
            .nodes(3)
            .wan_mbit(100)
            .lan_mbit(400)
            .wan_delay_ms(25)
            .wan_loss_percent(0.2),
    );
    let image = image();
    cluster.registry.push(&image);
    pull_everywhere(&cluster, &image);
    assert_served_once(&cluster, &image);
}
