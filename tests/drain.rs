//! A daemon that is told to stop lets its clients end first.

mod support;

use std::{
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use support::{Cluster, HOST, Image, Process, Request, Response, Site, sha256};

const MIB: usize = 1 << 20;
const PEER: &str = "127.0.0.1:65001";
const MIRROR: &str = "10.88.0.2:65011";

/// Tells a daemon to stop while it sends a blob that takes seconds to come over the WAN; what the client got, how the daemon
/// ended, and whether it took another client meanwhile.
fn stop_while_sending(port: &str, daemon: impl Fn(&mut Cluster) -> &mut Process) {
    let mut cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(20).lan_mbit(1000));
    let image = Image::new("library/app", "v1").layer_bytes(&[6 * MIB]);
    cluster.registry.push(&image);
    let layer = &image.layers()[0];
    let address: SocketAddr = port.parse().expect("an address");
    let node = cluster.site.node(0).clone();
    let manifest = Request::get(address, &format!("/v2/library/app/manifests/v1?ns={HOST}"));
    assert_eq!(manifest.send_from(&node).expect("an answer").status, 200);
    let target = format!("/v2/library/app/blobs/{}?ns={HOST}", layer.digest);
    let get = Request::get(address, &target).patience(Duration::from_secs(60));
    let wan_before = cluster.site.wan_bytes_received();
    let client = {
        let (get, node) = (get.clone(), node.clone());
        thread::spawn(move || -> Response { get.send_from(&node).expect("an answer") })
    };
    until("the blob is on its way", || {
        cluster.site.wan_bytes_received() - wan_before > layer.size / 10
    });
    let stopping = daemon(&mut cluster);
    stopping.signal(rustix::process::Signal::TERM);
    until("its port is closed", || {
        node.enter(|| TcpStream::connect(address)).is_err()
    });
    assert!(get.send_from(&node).is_err(), "no new connection is let in");
    assert!(
        !client.is_finished(),
        "the blob was there before anything could be shown"
    );
    let got = client.join().expect("a client");
    assert!(
        got.complete && sha256(&got.body) == layer.digest,
        "{} bytes",
        got.body.len()
    );
    until("it ends", || !stopping.is_running());
    assert!(stopping.log_text().contains("stopped"), "{}", stopping.log_tail());
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: never");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_mirror_that_is_told_to_stop_sends_what_it_has_begun_to_send() {
    stop_while_sending(MIRROR, |cluster| &mut cluster.mirror);
}

#[test]
fn a_peer_that_is_told_to_stop_still_gets_the_pieces_that_its_client_waits_for() {
    stop_while_sending(PEER, |cluster| &mut cluster.peers[0]);
}
