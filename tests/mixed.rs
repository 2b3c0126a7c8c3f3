//! Members of the last release beside those of this tree, in both directions: a site is upgraded one daemon at a time.

mod support;

use std::{fs, path::PathBuf};

use support::{Cluster, ClusterOptions, HOST, Image, Peer, PeerOptions, Request, Site, SiteBuilder, last_release};

const MIB: usize = 1 << 20;
const NODES: usize = 3;

fn site() -> SiteBuilder {
    Site::builder().nodes(NODES).wan_mbit(100).lan_mbit(400)
}

fn image(name: &str, seed: u64) -> Image {
    Image::new(name, "v1").seed(seed).layer_bytes(&[12 * MIB, 3 * MIB])
}

/// Every node pulls, and the registry sends every blob once.
fn assert_pulled_once(cluster: &Cluster, image: &Image) {
    cluster.registry.push(image);
    for fetch in cluster.fetch_all(&image.reference(HOST)) {
        assert!(
            fetch.ok,
            "node {} failed: {}\n{}\n{}",
            fetch.node,
            fetch.output,
            cluster.peers[fetch.node].log_tail(),
            cluster.mirror.log_tail()
        );
    }
    for blob in image.blobs() {
        assert!(
            cluster
                .containerds
                .iter()
                .all(|node| node.content_digest_ok(&blob.digest))
        );
        assert_eq!(
            cluster.registry.blob_bytes_served(&blob.digest),
            blob.size,
            "{}",
            blob.digest
        );
    }
}

/// Bytes that the node's peer had from other peers.
fn from_peers(cluster: &Cluster, node: usize) -> f64 {
    cluster.peers[node].metric(r#"piecemeal_blob_bytes_total{from="peer",to="store"}"#)
}

/// Replaces a node's peer by one of another release, in the same folder.
fn replace(cluster: &mut Cluster, node: usize, program: PathBuf) {
    cluster.peers[node].terminate();
    start(cluster, node, program);
}

/// Like [`replace`], without what the folder has.
fn replace_emptied(cluster: &mut Cluster, node: usize, program: PathBuf) {
    cluster.peers[node].terminate();
    fs::remove_dir_all(cluster.peers[node].cache_dir()).expect("emptying the cache");
    start(cluster, node, program);
}

fn start(cluster: &mut Cluster, node: usize, program: PathBuf) {
    let mut options = PeerOptions::new(&cluster.keys);
    options.program = program;
    cluster.peers[node] = Peer::start(&cluster.site, node, options);
}

fn this_tree() -> PathBuf {
    env!("CARGO_BIN_EXE_piecemeal").into()
}

#[test]
fn peers_of_the_last_release_pull_through_a_mirror_and_a_scheduler_of_this_one() {
    let cluster = Cluster::cold_with(site(), |options| options.peer.program = last_release());
    assert_pulled_once(&cluster, &image("library/app", 10));
    assert!(
        (0..NODES).any(|node| from_peers(&cluster, node) > 0.0),
        "no piece went between peers"
    );
}

#[test]
fn peers_of_this_release_pull_through_a_mirror_and_a_scheduler_of_the_last_one() {
    let cluster = Cluster::cold_with(site(), |options: &mut ClusterOptions| {
        options.mirror.program = last_release();
        if let Some(scheduler) = &mut options.scheduler {
            scheduler.program = last_release();
        }
    });
    assert_pulled_once(&cluster, &image("library/app", 20));
    assert!(
        (0..NODES).any(|node| from_peers(&cluster, node) > 0.0),
        "no piece went between peers"
    );
}

#[test]
fn a_mirror_of_either_release_works_with_a_scheduler_of_the_other() {
    let cluster = Cluster::cold_with(site(), |options| options.mirror.program = last_release());
    assert_pulled_once(&cluster, &image("library/app", 30));
    drop(cluster);
    let cluster = Cluster::cold_with(site(), |options| {
        if let Some(scheduler) = &mut options.scheduler {
            scheduler.program = last_release();
        }
    });
    assert_pulled_once(&cluster, &image("library/app", 40));
}

#[test]
fn a_pool_is_upgraded_node_by_node_and_taken_back() {
    let mut cluster = Cluster::cold_with(site(), |options| options.peer.program = last_release());
    assert_pulled_once(&cluster, &image("library/before", 50));
    replace(&mut cluster, 0, this_tree());
    // Peers of both releases feed each other.
    assert_pulled_once(&cluster, &image("library/mixed", 60));
    replace(&mut cluster, 1, this_tree());
    replace(&mut cluster, 2, this_tree());
    assert_pulled_once(&cluster, &image("library/after", 70));
    // What was cached before is there still.
    let layer = &image("library/before", 50).layers()[0].digest.clone();
    let target = format!("/v2/library/before/blobs/{layer}?ns={HOST}");
    let answer = Request::get("127.0.0.1:65001".parse().expect("an address"), &target).send_from(cluster.site.node(0));
    assert_eq!(answer.expect("an answer").status, 200);
    assert_eq!(cluster.registry.blob_bytes_served(layer), 12 * MIB as u64);
    // The last release does not read this one's index: it starts with an empty folder.
    replace_emptied(&mut cluster, 0, last_release());
    assert_pulled_once(&cluster, &image("library/back", 80));
}
