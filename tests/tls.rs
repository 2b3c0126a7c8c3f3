//! Where URLs say `https`, peers talk to mirror and scheduler over TLS with the site's own authority; on the same ports others
//! go on without.

mod support;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use support::{
    Cluster, ClusterOptions, FakeUpstream, HOST, Image, Keys, MIRROR_IP, Netns, ORIGIN_IP, Peer, PeerOptions, Request,
    Site, SiteBuilder, mirror_url, scheduler_url, skopeo,
};

const MIB: usize = 1 << 20;

fn site(nodes: usize) -> SiteBuilder {
    Site::builder().nodes(nodes).wan_mbit(100).lan_mbit(400)
}

fn over_tls(options: &mut ClusterOptions) {
    options.mirror.scheduler_url = scheduler_url("https");
    options.peer.mirror_url = mirror_url("https");
    options.peer.scheduler_url = scheduler_url("https");
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn mirror() -> SocketAddr {
    (MIRROR_IP, 65011).into()
}

fn assert_served_once(cluster: &Cluster, image: &Image) {
    for blob in image.blobs() {
        let served = cluster.registry.blob_bytes_served(&blob.digest);
        assert_eq!(served, blob.bytes.len() as u64, "{}", blob.digest);
    }
}

#[test]
fn nodes_pull_a_cold_image_over_tls_and_one_wan_copy() {
    let cluster = Cluster::cold_with(site(3), over_tls);
    let image = Image::new("library/app", "v1").layer_bytes(&[12 * MIB, 5 * MIB, 700]);
    cluster.registry.push(&image);
    for fetch in cluster.fetch_all(&image.reference(HOST)) {
        let log = cluster.peers[fetch.node].log_tail();
        assert!(fetch.ok, "node {}: {}\n{log}", fetch.node, fetch.output);
    }
    assert_served_once(&cluster, &image);
    let from_peers: f64 = cluster
        .peers
        .iter()
        .map(|peer| peer.metric("piecemeal_blob_bytes_total{from=\"peer\",to=\"store\"}"))
        .sum();
    assert!(from_peers > 0.0, "the peers have not fed each other");
}

#[test]
fn who_listens_in_reads_names_over_http_and_nothing_over_tls() {
    let mut cluster = Cluster::cold(site(1));
    for scheme in ["http", "https"] {
        let to_mirror = Tap::start(cluster.site.mirror(), 65011);
        let to_scheduler = Tap::start(cluster.site.mirror(), 65012);
        let mut options = PeerOptions::new(&cluster.keys);
        options.mirror_url = format!("{scheme}://{}", to_mirror.address);
        options.scheduler_url = format!("{scheme}://{}", to_scheduler.address);
        cluster.peers.clear();
        cluster.peers.push(Peer::start(&cluster.site, 0, options));

        let image = Image::new(&format!("library/over-{scheme}"), "v1").layer_bytes(&[3 * MIB]);
        cluster.registry.push(&image);
        cluster.containerds[0].fetch(&image.reference(HOST)).expect_ok();
        assert_served_once(&cluster, &image);
        // The repository's name is in every request to the mirror, the pool's in the hello to the scheduler.
        for (tap, secret) in [(to_mirror, image.repository()), (to_scheduler, "site-a")] {
            let connections = tap.connections();
            assert!(!connections.is_empty(), "no connection came to {}", tap.address);
            let is_plain = scheme == "http";
            assert_eq!(
                connections.iter().any(|heard| contains(heard, secret.as_bytes())),
                is_plain,
                "{secret} over {scheme}"
            );
            let all_tls = connections.iter().all(|heard| heard.starts_with(&[0x16, 3]));
            assert_eq!(all_tls, !is_plain, "{}", tap.address);
        }
    }
}

#[test]
fn clients_without_the_sites_key_pull_from_the_same_port() {
    let cluster = Cluster::cold_with(site(1), over_tls);
    let image = Image::new("library/app", "v1").layer_bytes(&[MIB]);
    cluster.registry.push(&image);
    let layer = &image.layers()[0];
    let target = format!("/v2/library/app/blobs/{}?ns={HOST}", layer.digest);
    let plain = Request::get(mirror(), &target).send_from(cluster.site.node(0));
    let plain = plain.expect("the mirror answers over http");
    assert_eq!((plain.status, plain.body == layer.bytes), (200, true));

    // Told not to verify, it tries TLS first.
    let reference = format!("{}/{HOST}/library/app:v1", mirror());
    let dir = cluster.site.dir().join("skopeo");
    skopeo::copy_to_dir(cluster.site.node(0), &reference, &dir).expect_ok();
    assert_served_once(&cluster, &image);
}

#[test]
fn tls_is_spoken_where_the_sites_key_is() {
    let cluster = Cluster::cold(site(1));
    // A handshake that makes no sense.
    let hello = [0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0];
    let answer = |to: SocketAddr| {
        cluster.site.node(0).enter(|| {
            let mut stream = TcpStream::connect(to).expect("it listens");
            stream.write_all(&hello).expect("it takes a hello");
            let mut answer = Vec::new();
            // Until it hangs up, in whatever way.
            let _ = stream.read_to_end(&mut answer);
            answer
        })
    };
    const ALERT: u8 = 0x15;
    for port in [mirror(), (MIRROR_IP, 65012).into()] {
        assert_eq!(answer(port).first(), Some(&ALERT), "{port}");
    }
    assert!(answer(address("127.0.0.1:65001")).starts_with(b"HTTP/1.1 400"));
}

/// A peer of another site on the last node of a running one.
fn stranger(cluster: &mut Cluster, extra_args: &[&str]) -> Peer {
    let keys = Keys::generate(&cluster.site.dir().join("other-keys"));
    let mut options = PeerOptions::new(&keys);
    options.mirror_url = mirror_url("https");
    options.scheduler_url = scheduler_url("https");
    options.extra_args = extra_args.iter().map(ToString::to_string).collect();
    let node = cluster.peers.len() - 1;
    cluster.peers.truncate(node);
    Peer::start_unready(&cluster.site, node, options)
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: that never came");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_peer_of_another_site_gets_nothing_and_says_why() {
    let mut cluster = Cluster::cold_with(site(1), over_tls);
    let image = Image::new("library/app", "v1").layer_bytes(&[MIB]);
    cluster.registry.push(&image);
    let served = |cluster: &Cluster| -> Vec<String> {
        let metrics = cluster.mirror.metrics();
        let counted = [
            "piecemeal_blob_bytes",
            "piecemeal_requests",
            "piecemeal_verdicts",
            "piecemeal_transfers",
        ];
        let lines = metrics
            .lines()
            .filter(|line| counted.iter().any(|name| line.starts_with(name)));
        lines.map(str::to_owned).collect()
    };
    let before = served(&cluster);
    assert!(before.len() > 10, "{before:?}");
    let stranger = stranger(&mut cluster, &["--direct-fallback", "never"]);
    for server in ["mirror", "scheduler"] {
        let why = format!("the {server}'s certificate is not of this site");
        wait_for(&why, || {
            let log = stranger.log_text();
            log.lines().any(|line| line.contains("ERROR") && line.contains(&why))
        });
        wait_for(&why, || {
            let ready = Request::get(address("127.0.0.1:65003"), "/readyz").send_from(cluster.site.node(0));
            ready.is_ok_and(|ready| ready.status == 503 && ready.text().contains(&why))
        });
    }
    for target in [
        format!("/v2/library/app/manifests/v1?ns={HOST}"),
        format!("/v2/library/app/blobs/{}?ns={HOST}", image.layers()[0].digest),
    ] {
        let refused = Request::get(address("127.0.0.1:65001"), &target).send_from(cluster.site.node(0));
        let refused = refused.expect("the peer answers");
        assert_eq!(refused.status, 503, "{target}: {}", refused.text());
    }
    for blob in image.blobs() {
        assert_eq!(cluster.registry.blob_bytes_served(&blob.digest), 0);
    }
    assert_eq!(served(&cluster), before, "the mirror has served something");
    let scheduler = cluster.scheduler.as_ref().expect("it runs");
    assert_eq!(
        scheduler.metric("piecemeal_scheduler_refused_total{reason=\"proof\"}"),
        0.0
    );
}

#[test]
fn a_peer_of_another_site_falls_back_as_if_the_mirror_were_lost() {
    let mut cluster = Cluster::cold_with(site(1).nodes_reach_upstream(true), over_tls);
    let image = Image::new("library/app", "v1").layer_bytes(&[MIB]);
    cluster.registry.push(&image);
    let stranger = stranger(&mut cluster, &["--mirror-grace", "1s"]);
    wait_for("a peer that listens", || {
        Request::get(address("127.0.0.1:65001"), "/v2/")
            .send_from(cluster.site.node(0))
            .is_ok()
    });
    cluster.containerds[0].fetch(&image.reference(HOST)).expect_ok();
    let carried = stranger.metric("piecemeal_blob_bytes_total{from=\"upstream\",to=\"store\"}");
    let blobs: usize = image.blobs().map(|blob| blob.bytes.len()).sum();
    assert_eq!(carried, blobs as f64, "the peer has fetched it from upstream itself");
}

/// The mirror may pass it on without TLS here: the registry has none.
#[test]
fn a_clients_credential_goes_to_the_mirror_over_tls_alone() {
    let image = Image::new("library/private", "v1").layer_bytes(&[MIB]);
    let registry = SocketAddrV4::new(ORIGIN_IP, 5001);
    let host = "private.test";
    for (scheme, status) in [("http", 403), ("https", 200)] {
        let cluster = Cluster::cold_with(site(1), |options| {
            options.peer.mirror_url = mirror_url(scheme);
            options.peer.scheduler_url = scheduler_url(scheme);
            let upstream = format!("{host}=http://{registry}");
            options.mirror.upstreams.push(upstream.clone());
            options.peer.upstreams.push(upstream);
            let plain = ["--allow-plain-credentials".to_owned(), "true".to_owned()];
            options.mirror.extra_args.extend(plain);
        });
        let upstream = FakeUpstream::start(cluster.site.origin(), registry, &image);
        upstream.require_token("secret", &format!("http://{registry}/token"));
        for target in [
            format!("/v2/library/private/manifests/v1?ns={host}"),
            format!("/v2/library/private/blobs/{}?ns={host}", image.layers()[0].digest),
        ] {
            let request = Request::get(address("127.0.0.1:65001"), &target).header("Authorization", "Bearer secret");
            let answer = request.send_from(cluster.site.node(0)).expect("the peer answers");
            assert_eq!(answer.status, status, "{scheme} {target}: {}", answer.text());
        }
    }
}

/// Carries connections to a port of the mirror's machine, and keeps what both sides said.
struct Tap {
    address: SocketAddrV4,
    listener: TcpListener,
    heard: Arc<Mutex<Vec<Heard>>>,
    accepting: Option<JoinHandle<()>>,
}

/// What one side of a connection has said.
type Heard = Arc<Mutex<Vec<u8>>>;

impl Tap {
    fn start(netns: &Netns, port: u16) -> Self {
        let target = SocketAddrV4::new(MIRROR_IP, port);
        let listener = netns
            .enter(|| TcpListener::bind((MIRROR_IP, 0)))
            .expect("listening as the tap");
        let Ok(SocketAddr::V4(address)) = listener.local_addr() else {
            panic!("an IPv4 listener has such an address");
        };
        let heard = Arc::default();
        let accepting = thread::spawn({
            let (listener, heard) = (listener.try_clone().expect("sharing the listener"), Arc::clone(&heard));
            let netns = netns.clone();
            move || {
                while let Ok((client, _)) = listener.accept() {
                    let server = netns.enter(|| TcpStream::connect(target)).expect("it listens");
                    let back = (server.try_clone(), client.try_clone());
                    carry(client, server, &heard);
                    carry(back.0.expect("sharing"), back.1.expect("sharing"), &heard);
                }
            }
        });
        Self {
            address,
            listener,
            heard,
            accepting: Some(accepting),
        }
    }

    /// What was said so far, either side of a connection by itself.
    fn connections(&self) -> Vec<Vec<u8>> {
        let heard = self.heard.lock().expect("no holder panics");
        let said = heard
            .iter()
            .map(|heard| heard.lock().expect("no holder panics").clone());
        said.filter(|said: &Vec<u8>| !said.is_empty()).collect()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Wakes the accepting thread; connections end with the daemons.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Carries one direction of a connection.
fn carry(mut from: TcpStream, mut to: TcpStream, heard: &Mutex<Vec<Heard>>) {
    let said = Heard::default();
    heard.lock().expect("no holder panics").push(Arc::clone(&said));
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            said.lock().expect("no holder panics").extend(&buffer[..count]);
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    });
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}
