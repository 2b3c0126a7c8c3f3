//! Resolution of tags: what a tag means now, and what is served while the upstream cannot be asked.

mod support;

use std::{
    net::{SocketAddr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use support::{
    Behaviour, Cluster, ClusterOptions, FakeUpstream, HOST, Image, ORIGIN_IP, Reply, Request, Response, Site,
};

const PEER: &str = "127.0.0.1:65001";
const MIRROR: &str = "10.88.0.2:65011";
const FAKE: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5001);

struct Story {
    cluster: Cluster,
    upstream: FakeUpstream,
    image: Image,
}

fn story(nodes: usize, tag_ttl: &str, change: impl FnOnce(&mut ClusterOptions)) -> Story {
    let cluster = Cluster::cold_with(Site::builder().nodes(nodes).wan_mbit(200).lan_mbit(400), |options| {
        let upstream = vec![format!("{HOST}=http://{FAKE}")];
        options.mirror.upstreams.clone_from(&upstream);
        options.peer.upstreams = upstream;
        options
            .mirror
            .extra_args
            .extend(["--tag-ttl", tag_ttl].map(str::to_owned));
        change(options);
    });
    // Thirty layers, as real images have.
    let image = Image::new("library/app", "v1").layer_bytes(&[20_000; 30]);
    let upstream = FakeUpstream::start(cluster.site.origin(), FAKE, &image);
    Story {
        cluster,
        upstream,
        image,
    }
}

impl Story {
    fn send(&self, node: usize, method: &'static str, port: &str, resource: &str) -> Response {
        let target = format!("/v2/{}/{resource}?ns={HOST}", self.image.repository());
        let port: SocketAddr = port.parse().expect("an address");
        Request::new(method, port, &target)
            .patience(Duration::from_secs(60))
            .send_from(self.cluster.site.node(node))
            .expect("an answer")
    }

    fn by_tag(&self, port: &str) -> Response {
        self.send(0, "GET", port, "manifests/v1")
    }

    fn pull(&self, node: usize, port: &str) {
        for resource in self.resources() {
            let response = self.send(node, "GET", port, &resource);
            assert_eq!(response.status, 200, "{port} {resource}: {}", response.text());
        }
    }

    fn resources(&self) -> Vec<String> {
        let manifests = [self.image.tag(), self.image.digest()].map(|name| format!("manifests/{name}"));
        let blobs = self.image.blobs().map(|blob| format!("blobs/{}", blob.digest));
        manifests.into_iter().chain(blobs).collect()
    }

    fn requests(&self, method: &str, path_end: &str) -> usize {
        let matches = |request: &&support::RecordedRequest| {
            request.method == method
                && request
                    .target
                    .split('?')
                    .next()
                    .is_some_and(|path| path.ends_with(path_end))
        };
        self.upstream.recorded().iter().filter(matches).count()
    }
}

fn warning(response: &Response) -> &str {
    response.headers.get("warning").unwrap_or_default()
}

#[test]
fn what_is_here_is_served_while_upstream_cannot_answer() {
    let story = story(1, "0s", |_| {});
    story.pull(0, PEER);
    for outage in [
        Behaviour::Status(500),
        Behaviour::Status(502),
        Behaviour::Status(503),
        Behaviour::Busy { seconds: 0 },
        Behaviour::Html200,
        Behaviour::Late { millis: 4000 },
    ] {
        story.upstream.behave(story.image.digest(), outage.clone());
        for port in [PEER, MIRROR] {
            let response = story.by_tag(port);
            assert_eq!(response.status, 200, "{outage:?}: {}", response.text());
            assert!(
                warning(&response).starts_with("299 - \"stale: "),
                "{outage:?}: {:?}",
                response.headers
            );
            let by_digest = story.send(0, "GET", port, &format!("manifests/{}", story.image.digest()));
            assert_eq!(
                (by_digest.status, warning(&by_digest)),
                (200, ""),
                "what a digest names is never old"
            );
        }
        // Nothing was lost by it, and the end of it is noticed.
        story.upstream.behave(story.image.digest(), Behaviour::Truth);
        let deadline = Instant::now() + Duration::from_secs(15);
        while !warning(&story.by_tag(PEER)).is_empty() {
            assert!(Instant::now() < deadline, "still old after {outage:?}");
            thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn what_upstream_says_stands_and_nothing_older_hides_it() {
    // Side by side, since each has a site of its own.
    thread::scope(|scope| {
        for (status, code) in [(401, "UNAUTHORIZED"), (403, "DENIED"), (404, "MANIFEST_UNKNOWN")] {
            scope.spawn(move || nothing_older_hides(status, code));
        }
    });
}

fn nothing_older_hides(status: u16, code: &str) {
    let mut story = story(1, "0s", |_| {});
    story.pull(0, PEER);
    story.upstream.behave(story.image.digest(), Behaviour::Status(status));
    for port in [PEER, MIRROR] {
        let response = story.by_tag(port);
        assert_eq!(response.status, status, "{port}: {}", response.text());
        assert!(response.text().contains(code), "{port}: {}", response.text());
    }
    // What is gone or forbidden does not come back by an outage.
    story.cluster.site.block_wan();
    // Nor when no daemon remembers the refusal in its memory.
    story.cluster.restart_daemons();
    for port in [PEER, MIRROR] {
        assert_ne!(story.by_tag(port).status, 200, "after {status}");
    }
    story.cluster.site.unblock_wan();
}

#[test]
fn a_tag_is_checked_once_per_ttl_for_the_whole_site_and_a_new_image_is_seen_then() {
    const NODES: usize = 4;
    let story = story(NODES, "3s", |_| {});
    story.pull(0, PEER);
    thread::sleep(Duration::from_millis(3100));
    let before = story.requests("HEAD", "/manifests/v1");
    thread::scope(|scope| {
        for node in 0..NODES {
            let story = &story;
            scope.spawn(move || {
                for _ in 0..25 {
                    assert_eq!(story.send(node, "HEAD", PEER, "manifests/v1").status, 200);
                }
            });
        }
    });
    assert_eq!(
        story.requests("HEAD", "/manifests/v1") - before,
        1,
        "100 pulls on {NODES} nodes"
    );
    assert_eq!(story.requests("GET", "/manifests/v1"), 1);

    let newer = Image::new("library/app", "v1").seed(99).layer_bytes(&[20_000]);
    story.upstream.add_image(&newer);
    let deadline = Instant::now() + Duration::from_secs(6);
    while story.by_tag(PEER).headers.get("docker-content-digest") != Some(newer.digest()) {
        assert!(Instant::now() < deadline, "the new image is not seen");
        thread::sleep(Duration::from_millis(100));
    }
}

/// A registry, or a filter in front of it, that serves GET and not HEAD. 200: HEAD says neither type nor digest.
#[test]
fn a_moved_tag_is_seen_and_blobs_have_their_size_however_the_registry_answers_head() {
    // Each request has to prove its right.
    let story = story(1, "0s", |options| {
        for all in [&mut options.mirror.extra_args, &mut options.peer.extra_args] {
            all.extend(["--verdict-ttl", "1ms"].map(str::to_owned));
        }
    });
    story.upstream.rule(|request| {
        let status = request.target.split(['-', '/']).find_map(|part| part.parse().ok())?;
        let answer = || Reply::short(status, "application/octet-stream", "");
        (request.method == "HEAD").then(answer)
    });
    let send = |method, port: &str, repository: &str, resource: &str| {
        let target = format!("/v2/{repository}/{resource}?ns={HOST}");
        let request = Request::new(method, port.parse().expect("an address"), &target);
        request.send_from(story.cluster.site.node(0)).expect("an answer")
    };
    for status in [200, 400, 401, 403, 404, 405, 501] {
        let repository = format!("library/app-{status}");
        for seed in 0..3 {
            let image = Image::new(&repository, "v1").seed(seed).layer_bytes(&[20_000]);
            story.upstream.add_image(&image);
            for (method, port) in [("GET", MIRROR), ("HEAD", MIRROR), ("HEAD", PEER), ("GET", PEER)] {
                let response = send(method, port, &repository, "manifests/v1");
                assert_eq!(response.status, 200, "{method} {port} {status}: {}", response.text());
                assert_eq!(
                    (response.headers.get("docker-content-digest"), warning(&response)),
                    (Some(image.digest()), ""),
                    "{method} {port} {status}"
                );
            }
            for port in [MIRROR, PEER] {
                let by_digest = send("GET", port, &repository, &format!("manifests/{}", image.digest()));
                assert_eq!(by_digest.status, 200, "{port} {status}: {}", by_digest.text());
            }
            let blobs = image.blobs().filter(|_| seed < 2);
            for (blob, port) in blobs.zip([MIRROR, PEER]) {
                let resource = format!("blobs/{}", blob.digest);
                for method in ["HEAD", "GET", "HEAD"] {
                    let response = send(method, port, &repository, &resource);
                    let length = response.headers.get("content-length").map(str::to_owned);
                    assert_eq!(
                        (response.status, length),
                        (200, Some(blob.bytes.len().to_string())),
                        "{method} {port} {status}"
                    );
                }
            }
        }
        let of_repository = format!("/{repository}/manifests/");
        let recorded = story.upstream.recorded();
        let heads = recorded
            .iter()
            .filter(|request| request.method == "HEAD" && request.target.contains(&of_repository));
        assert_eq!(heads.count(), 1, "{status}: it is known that HEAD says nothing");
    }
}

#[test]
fn a_registrys_warning_is_passed_on_and_a_tag_is_still_checked_once_per_ttl() {
    const WARNING: &str = "299 - \"stale: this image is deprecated\"";
    let story = story(1, "60s", |_| {});
    let manifest = story.image.manifests().next().expect("a manifest").clone();
    story.upstream.rule(move |request| {
        let is_manifest = request.target.contains("/manifests/");
        let text = String::from_utf8(manifest.bytes.clone()).expect("a manifest is text");
        let reply = || {
            Reply::short(200, manifest.media_type, &text)
                .header("Docker-Content-Digest", manifest.digest.clone())
                .header("Warning", WARNING.to_owned())
                .header("Age", "86400".to_owned())
                .header("piecemeal-stale", "true".to_owned())
        };
        is_manifest.then(reply)
    });
    assert_eq!(warning(&story.by_tag(PEER)), WARNING);
    let asked = story.upstream.recorded().len();
    for port in [MIRROR, PEER, MIRROR, PEER] {
        let response = story.by_tag(port);
        assert_eq!((response.status, warning(&response)), (200, ""), "{port}");
    }
    assert_eq!(story.upstream.recorded().len(), asked, "the tag was checked");
    // And it is known while upstream is not.
    story.cluster.site.block_wan();
    assert_eq!(story.by_tag(PEER).status, 200);
    story.cluster.site.unblock_wan();
}

#[test]
fn what_does_not_exist_is_asked_for_once_in_a_while() {
    let story = story(1, "0s", |_| {});
    for _ in 0..30 {
        let response = story.send(0, "GET", PEER, "manifests/nope");
        assert_eq!(response.status, 404, "{}", response.text());
    }
    assert_eq!(story.requests("GET", "/manifests/nope"), 1);
}

#[test]
fn wrong_credentials_cost_one_try_in_a_while() {
    let story = story(1, "0s", |options| {
        for all in [&mut options.mirror.extra_args, &mut options.peer.extra_args] {
            all.extend(["--allow-plain-credentials", "true"].map(str::to_owned));
        }
    });
    story.upstream.require_token("right", &format!("http://{FAKE}/token"));
    for _ in 0..20 {
        let port: SocketAddr = PEER.parse().expect("an address");
        let target = format!("/v2/library/app/manifests/v1?ns={HOST}");
        let request = Request::get(port, &target).header("Authorization", "Bearer wrong");
        let response = request.send_from(story.cluster.site.node(0)).expect("an answer");
        assert_eq!(response.status, 401, "{}", response.text());
        assert!(
            response.text().contains(HOST),
            "an error names host and status: {}",
            response.text()
        );
    }
    assert_eq!(story.requests("GET", "/manifests/v1"), 1);
}

#[test]
fn a_site_without_a_wan_keeps_pulling_by_tag_and_by_digest() {
    let story = story(2, "0s", |_| {});
    story.pull(0, PEER);
    story.cluster.site.block_wan();
    // On the node that has it, on one that does not, and from the mirror itself.
    story.pull(0, PEER);
    story.pull(1, PEER);
    story.pull(1, MIRROR);
    assert!(warning(&story.send(1, "GET", PEER, "manifests/v1")).contains("stale"));
    let tags = story.send(1, "GET", PEER, "tags/list");
    assert_eq!(
        (tags.status, warning(&tags).is_empty()),
        (200, false),
        "{}",
        tags.text()
    );
    assert!(tags.text().contains("\"v1\""), "{}", tags.text());
    story.cluster.site.unblock_wan();
}

#[test]
fn a_peer_alone_serves_what_is_on_its_node() {
    let mut story = story(1, "0s", |_| {});
    story.pull(0, PEER);
    story.cluster.site.block_wan();
    story.cluster.mirror.kill();
    story.cluster.scheduler.as_mut().expect("it runs").kill();
    story.pull(0, PEER);
    assert!(warning(&story.by_tag(PEER)).contains("stale"));
    story.cluster.site.unblock_wan();
}

/// One part after the other is frozen: nothing answers, no connection breaks. Containerd before 2.3 would wait for ever.
#[test]
fn whatever_freezes_a_status_line_comes_within_seconds_and_a_pull_of_thirty_layers_goes_on() {
    let mut story = story(1, "0s", |_| {});
    story.pull(0, PEER);
    let timed = |story: &Story, frozen: &str| {
        let started = Instant::now();
        for resource in story.resources() {
            let asked = Instant::now();
            let response = story.send(0, "GET", PEER, &resource);
            assert_eq!(response.status, 200, "{frozen} frozen, {resource}: {}", response.text());
            let took = asked.elapsed();
            assert!(took < Duration::from_secs(4), "{frozen} frozen, {resource}: {took:?}");
        }
        let took = started.elapsed();
        println!("{frozen} frozen: {took:?} for {} requests", story.resources().len());
        assert!(took < Duration::from_secs(6), "{frozen} frozen: {took:?}");
    };
    story.upstream.move_away(Duration::from_secs(60));
    timed(&story, "the upstream");
    let scheduler = story.cluster.scheduler.as_mut().expect("it runs");
    scheduler.stop();
    timed(&story, "the upstream and the scheduler");
    story.cluster.mirror.stop();
    timed(&story, "everything but the node");
    // What is not here is refused soon, so that the runtime goes to its next host.
    for resource in ["manifests/other", "manifests/v2"] {
        let asked = Instant::now();
        let response = story.send(0, "HEAD", PEER, resource);
        assert!(matches!(response.status, 404 | 502 | 503), "{}", response.status);
        assert!(
            asked.elapsed() < Duration::from_secs(15),
            "{resource}: {:?}",
            asked.elapsed()
        );
    }
    story.cluster.mirror.cont();
    story.cluster.scheduler.as_mut().expect("it runs").cont();
}

#[test]
fn lists_of_tags_are_sorted_and_cut_into_pages_whatever_upstream_does() {
    let story = story(1, "0s", |_| {});
    for tag in ["v2", "a", "latest", "B", "v10"] {
        story
            .upstream
            .add_image(&Image::new("library/app", tag).layer_bytes(&[10]));
    }
    for port in [PEER, MIRROR] {
        let mut seen = Vec::new();
        let mut target = format!("/v2/library/app/tags/list?ns={HOST}&n=2");
        loop {
            let address: SocketAddr = port.parse().expect("an address");
            let page = Request::get(address, &target)
                .send_from(story.cluster.site.node(0))
                .expect("an answer");
            assert_eq!(page.status, 200, "{}", page.text());
            let body: serde_json::Value = serde_json::from_slice(&page.body).expect("a page");
            assert_eq!(body["name"], "library/app");
            let tags = body["tags"].as_array().expect("tags").clone();
            seen.extend(tags.iter().map(|tag| tag.as_str().expect("a tag").to_owned()));
            let Some(link) = page.headers.get("link") else { break };
            assert!(link.ends_with("; rel=\"next\"") && link.contains("ns="), "{link}");
            target = link
                .trim_start_matches('<')
                .split('>')
                .next()
                .expect("a target")
                .to_owned();
        }
        assert_eq!(seen, ["B", "a", "latest", "v1", "v10", "v2"], "{port}");
        for (n, count) in [(0, 0), (10_000, 6)] {
            let target = format!("/v2/library/app/tags/list?ns={HOST}&n={n}");
            let request = Request::get(port.parse().expect("an address"), &target);
            let page = request.send_from(story.cluster.site.node(0)).expect("an answer");
            let body: serde_json::Value = serde_json::from_slice(&page.body).expect("a page");
            assert_eq!(body["tags"].as_array().map(Vec::len), Some(count));
            assert_eq!(page.headers.get("link"), None);
        }
    }
}
