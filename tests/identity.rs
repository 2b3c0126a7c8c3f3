//! Identities at a site: a node is identified by its key, `join.key` only admits it, and an administrator can shut out either.

mod support;

use std::{
    fs,
    net::SocketAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use piecemeal_proto::NodeId;
use rustix::process::Signal;
use support::{
    Cluster, ClusterOptions, HOST, Image, PASSWORD, RegistryAuth, Request, Response, RogueNode, Site, SiteBuilder,
    USER, basic,
};

/// A time after which no verdict counts any more.
const VERDICT_OVER: Duration = Duration::from_millis(400);
const PEER: &str = "127.0.0.1:65001";
const MIRROR: &str = "10.88.0.2:65011";
const MIRROR_PIECES: &str = "10.88.0.2:65002";
const WAIT_MAX: Duration = Duration::from_secs(20);
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

fn site(nodes: usize) -> SiteBuilder {
    Site::builder().nodes(nodes).wan_mbit(200).lan_mbit(400)
}

fn image() -> Image {
    Image::new("library/app", "v1").layer_bytes(&[700_000, 300_000])
}

/// A site whose registry asks for a password, with an image pushed.
fn guarded(nodes: usize, change: impl FnOnce(&mut ClusterOptions)) -> (Cluster, Image) {
    let cluster = Cluster::guarded(
        site(nodes),
        |_| RegistryAuth::Htpasswd,
        |options| {
            for all in [&mut options.mirror.extra_args, &mut options.peer.extra_args] {
                // The test networks have no TLS.
                all.extend(["--allow-plain-credentials", "true", "--verdict-ttl", "300ms"].map(str::to_owned));
            }
            change(options);
        },
    );
    let image = image();
    cluster.registry.push(&image);
    (cluster, image)
}

fn get(port: &str, target: &str) -> Request {
    let address: SocketAddr = port.parse().expect("an address");
    Request::get(address, target).patience(WAIT_MAX)
}

fn send(cluster: &Cluster, node: usize, request: &Request) -> Response {
    request.send_from(cluster.site.node(node)).expect("an answer")
}

/// All of an image, and what opens its first layer for a swarm.
fn targets(image: &Image) -> Vec<String> {
    let at = |resource: String| format!("/v2/{}/{resource}?ns={HOST}", image.repository());
    let mut targets = vec![at(format!("manifests/{}", image.tag())), opening(image)];
    targets.extend(image.blobs().map(|blob| at(format!("blobs/{}", blob.digest))));
    targets
}

fn opening(image: &Image) -> String {
    let (layer, name) = (&image.layers()[0].digest, image.repository());
    format!("/piecemeal/v1/blobs/{layer}?ns={HOST}&name={name}")
}

fn pull(cluster: &Cluster, node: usize, image: &Image, authorization: Option<&str>) {
    for target in targets(image).iter().filter(|target| target.starts_with("/v2/")) {
        let request = get(PEER, target);
        let request = authorization.map_or(request.clone(), |value| request.header("Authorization", value));
        let response = send(cluster, node, &request);
        assert_eq!(response.status, 200, "{target}: {}", response.text());
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn members(cluster: &Cluster) -> Vec<(String, String)> {
    let status = cluster.scheduler.as_ref().expect("a scheduler").admin("/status");
    let status: serde_json::Value = serde_json::from_slice(&status.body).expect("a status");
    let members = status["members"].as_array().expect("members").iter();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    members
        .map(|member| {
            assert_eq!(member["signed"], true, "{member}");
            assert!(!text(&member["host_name"]).is_empty() && !text(&member["release"]).is_empty());
            (text(&member["node"]), text(&member["role"]))
        })
        .collect()
}

fn reload(cluster: &Cluster) {
    cluster.mirror.signal(Signal::HUP);
    cluster.scheduler.as_ref().expect("a scheduler").signal(Signal::HUP);
}

#[test]
fn a_holder_of_the_join_key_gets_nothing_that_another_node_earned() {
    let (mut cluster, image) = guarded(2, |_| {});
    pull(&cluster, 0, &image, Some(&basic(USER, PASSWORD)));
    let victim = RogueNode::of_daemon(&cluster.keys, &cluster.peers[0].cache_dir());
    let thief = RogueNode::new(&cluster.keys, 7);
    let overheard: Vec<Request> = targets(&image)
        .iter()
        .map(|target| victim.signed(get(MIRROR, target)))
        .collect();
    cluster.site.block_wan();
    thread::sleep(VERDICT_OVER);

    let gets_nothing = |cluster: &Cluster, target: &str, request: &Request| {
        let response = send(cluster, 1, request);
        assert_ne!(response.status, 200, "{target}: {}", response.text());
        assert!(image.blobs().all(|blob| response.body != blob.bytes), "{target}");
    };
    let attack = |cluster: &Cluster| {
        for target in targets(&image) {
            let request = || get(MIRROR, &target);
            gets_nothing(cluster, &target, &thief.signed(request()));
            gets_nothing(cluster, &target, &thief.claimed(request(), victim.node()));
            gets_nothing(cluster, &target, &thief.claimed(request(), NodeId([9; 16])));
            gets_nothing(cluster, &target, &thief.claimed(thief.signed(request()), victim.node()));
            // One request's claim with another's path.
            gets_nothing(
                cluster,
                &target,
                &victim.signed(get(MIRROR, "/v2/")).with_target(&target),
            );
        }
    };
    attack(&cluster);
    // The node itself is served, each claim once.
    for (target, request) in targets(&image).iter().zip(&overheard) {
        let first = send(&cluster, 0, request);
        assert_eq!(first.status, 200, "{target}: {}", first.text());
        assert!(first.headers.get("piecemeal-time").is_some());
        let again = send(&cluster, 1, request);
        assert_eq!(again.status, 401, "{target}");
        assert!(again.headers.get("piecemeal-sign-again").is_some(), "{target}");
    }
    // A mirror that has only just started has heard no node yet.
    cluster.mirror.restart();
    attack(&cluster);
    for target in targets(&image) {
        let response = send(&cluster, 0, &victim.signed(get(MIRROR, &target)));
        assert_eq!(response.status, 200, "{target}: {}", response.text());
    }
    cluster.site.unblock_wan();
}

#[test]
fn a_node_that_is_shut_out_is_so_at_once_at_scheduler_and_mirror_and_others_go_on() {
    let mut list = None;
    let (cluster, image) = guarded(2, |options| {
        let path = options.peer.join_key.with_file_name("shut-out");
        fs::write(&path, "# none yet\n").expect("writing a list");
        let flag = ["--revoke".to_owned(), format!("file:{}", path.display())];
        options.mirror.extra_args.extend(flag.clone());
        let scheduler = options.scheduler.as_mut().expect("a scheduler");
        scheduler.extra_args.extend(flag);
        list = Some(path);
    });
    let list = list.expect("the options were changed");
    let password = basic(USER, PASSWORD);
    for node in 0..2 {
        pull(&cluster, node, &image, Some(&password));
    }
    let out = RogueNode::of_daemon(&cluster.keys, &cluster.peers[0].cache_dir());
    until("all are connected", || members(&cluster).len() == 3);
    let opened = send(
        &cluster,
        0,
        &out.signed(get(MIRROR, &opening(&image)))
            .header("Authorization", &password),
    );
    assert_eq!(opened.status, 200, "{}", opened.text());
    let opened: serde_json::Value = serde_json::from_slice(&opened.body).expect("an answer");
    let (layer, fill) = (&image.layers()[0].digest, opened["fill"].as_str().expect("a fill"));
    let grant = format!("Piecemeal {}", opened["grant"].as_str().expect("a grant"));
    let piece = get(MIRROR_PIECES, &format!("/piece/v1/{layer}/{fill}/0-0")).header("Authorization", &grant);
    assert_eq!(send(&cluster, 0, &piece).status, 200);

    fs::write(&list, format!("{} # stolen\n", out.node())).expect("writing a list");
    reload(&cluster);
    let is_out = || {
        members(&cluster)
            .iter()
            .all(|(node, _)| *node != out.node().to_string())
    };
    until("its session is over", || is_out() && members(&cluster).len() == 2);
    for target in targets(&image) {
        let signed = out.signed(get(MIRROR, &target)).header("Authorization", &password);
        let response = send(&cluster, 0, &signed);
        assert_eq!(response.status, 403, "{target}");
        assert!(response.text().contains("shut out"), "{}", response.text());
    }
    assert_eq!(send(&cluster, 0, &piece).status, 401, "nor by a grant that it has");
    pull(&cluster, 1, &image, Some(&password));
    thread::sleep(Duration::from_secs(1));
    assert!(is_out(), "it does not come back");

    fs::write(&list, "").expect("writing a list");
    reload(&cluster);
    until("it is back", || members(&cluster).len() == 3);
    pull(&cluster, 0, &image, Some(&password));
}

#[test]
fn a_stolen_join_key_is_shut_out_by_a_new_one_once_the_time_of_the_old_is_over() {
    let (mut cluster, image) = guarded(2, |_| {});
    let password = basic(USER, PASSWORD);
    let thief = RogueNode::new(&cluster.keys, 7);
    let opens = |cluster: &Cluster, node: &RogueNode| {
        let request = node
            .signed(get(MIRROR, &opening(&image)))
            .header("Authorization", &password);
        send(cluster, 1, &request).status
    };
    pull(&cluster, 0, &image, Some(&password));
    assert_eq!(opens(&cluster, &thief), 200);
    until("all are connected", || members(&cluster).len() == 3);

    let rotated = Command::new(env!("CARGO_BIN_EXE_piecemeal"))
        .args(["keygen", "--rotate-join", "--old-valid", "10s"])
        .arg(cluster.keys.authority().parent().expect("a folder"))
        .output()
        .expect("starting the binary");
    assert!(rotated.status.success(), "{rotated:?}");
    let begun = Instant::now();
    reload(&cluster);
    // Both admit, for as long as was said.
    let newcomer = RogueNode::new(&cluster.keys, 8);
    until("the new key admits", || opens(&cluster, &newcomer) == 200);
    assert_eq!(opens(&cluster, &thief), 200);
    cluster.peers[0].restart();
    until("the first peer is back, with the new key", || {
        members(&cluster).len() == 3
    });
    assert!(
        begun.elapsed() < Duration::from_secs(9),
        "too slow a machine for this test"
    );

    until("the time is over", || begun.elapsed() > Duration::from_secs(11));
    assert_eq!(opens(&cluster, &thief), 401);
    assert_eq!(opens(&cluster, &newcomer), 200);
    until("the second peer, with the old key, is cut off", || {
        members(&cluster).len() == 2
    });
    pull(&cluster, 0, &image, Some(&password));
    cluster.peers[1].restart();
    until("it is back with the new key", || members(&cluster).len() == 3);
    pull(&cluster, 1, &image, Some(&password));
}

#[test]
fn a_node_whose_clock_stands_in_1970_pulls_in_both_patterns() {
    for pattern in ["p2p", "source"] {
        let (cluster, image) = guarded(1, |options| {
            options.peer.download_pattern = pattern.to_owned();
            options.peer.with_scheduler = pattern == "p2p";
            options.peer.env = vec![
                ("LD_PRELOAD", FAKETIME.to_owned()),
                ("FAKETIME", "@1970-01-02 00:00:00".to_owned()),
                // Only what the clock says, not how it runs.
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ];
        });
        pull(&cluster, 0, &image, Some(&basic(USER, PASSWORD)));
        let log = fs::read_to_string(cluster.site.dir().join("peer1.log")).expect("a log");
        assert!(log.contains("1970-01-02T"), "its clock is right:\n{log}");
        // Its requests reached the mirror as a node's: the right that it earned holds while the WAN is down.
        cluster.site.block_wan();
        thread::sleep(VERDICT_OVER);
        let own = RogueNode::of_daemon(&cluster.keys, &cluster.peers[0].cache_dir());
        let response = send(&cluster, 0, &own.signed(get(MIRROR, &targets(&image)[0])));
        assert_eq!(response.status, 200, "{pattern}: {}", response.text());
        cluster.site.unblock_wan();
    }
}
