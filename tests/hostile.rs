//! Upstreams that lie, break off, state no lengths, or are a login page. Nothing bad is ever stored; once the upstream tells the
//! truth, every node gets the content.

mod support;

use std::{
    net::SocketAddrV4,
    thread,
    time::{Duration, Instant},
};

use support::{Behaviour, Cluster, FakeUpstream, HOST, Image, ORIGIN_IP, Request, Site};

const MIB: usize = 1 << 20;
const HOSTILE: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5001);

/// What a kubelet does: it tries again. Containerd cannot take back bytes that were streamed to it before a lie was found.
const TRIES: usize = 6;

struct Story {
    cluster: Cluster,
    upstream: FakeUpstream,
    image: Image,
}

fn story(nodes: usize) -> Story {
    let cluster = Cluster::cold_with(Site::builder().nodes(nodes).wan_mbit(200).lan_mbit(400), |options| {
        let upstream = vec![format!("{HOST}=http://{HOSTILE}")];
        options.mirror.upstreams.clone_from(&upstream);
        options.peer.upstreams = upstream;
    });
    let image = Image::new("library/app", "v1").layer_bytes(&[12 * MIB, 3 * MIB]);
    let upstream = FakeUpstream::start(cluster.site.origin(), HOSTILE, &image);
    Story {
        cluster,
        upstream,
        image,
    }
}

impl Story {
    fn layer(&self) -> &str {
        &self.image.layers()[0].digest
    }

    /// Every node pulls, trying again as a kubelet would; gives how many tries the slowest needed.
    fn pull_everywhere(&self) -> usize {
        let reference = self.image.reference(HOST);
        let tries = thread::scope(|scope| {
            let pull = |node: usize| {
                let mut last = String::new();
                for attempt in 1..=TRIES {
                    let outcome = self.cluster.containerds[node].fetch(&reference);
                    if outcome.ok {
                        return attempt;
                    }
                    last = outcome.output;
                    self.cluster.containerds[node].remove_all_content();
                    thread::sleep(Duration::from_secs(2));
                }
                panic!(
                    "node {node} failed {TRIES} times: {last}\n{}",
                    self.cluster.peers[node].log_tail()
                );
            };
            let pulls: Vec<_> = (0..self.cluster.containerds.len())
                .map(|node| scope.spawn(move || pull(node)))
                .collect();
            pulls.into_iter().map(|pull| pull.join().expect("a node pulls")).max()
        });
        for containerd in &self.cluster.containerds {
            for blob in self.image.blobs() {
                assert!(containerd.content_digest_ok(&blob.digest), "{}", blob.digest);
            }
        }
        tries.expect("there are nodes")
    }

    /// The pull fails, soon, and nothing of the blob is kept anywhere.
    fn assert_refused(&self) {
        let started = Instant::now();
        let outcome = self.cluster.containerds[0].fetch(&self.image.reference(HOST));
        assert!(!outcome.ok, "a bad blob was pulled: {}", outcome.output);
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "it took {:?} to fail",
            started.elapsed()
        );
        assert!(!self.cluster.containerds[0].has_blob(self.layer()));
        let hex = self.layer().trim_start_matches("sha256:");
        let kept = |dir: std::path::PathBuf| dir.join("blobs/sha256").join(&hex[..2]).join(hex).exists();
        assert!(!kept(self.cluster.mirror.cache_dir()) && !kept(self.cluster.peers[0].cache_dir()));
    }

    fn tell_the_truth(&self) {
        self.upstream.behave(self.layer(), Behaviour::Truth);
    }
}

#[test]
fn an_upstream_that_lies_at_the_end_and_then_tells_the_truth_serves_all_nodes() {
    let story = story(3);
    story.upstream.behave(
        story.layer(),
        Behaviour::LieFrom {
            fraction: 0.9,
            times: 1,
        },
    );
    let tries = story.pull_everywhere();
    assert!(tries > 1, "the lie was not even told");
    assert!(
        story.upstream.body_bytes(story.layer()) <= 2 * story.image.layers()[0].bytes.len() as u64,
        "one bad download, one good one"
    );
}

#[test]
fn a_body_without_a_length_is_taken_when_its_manifest_states_the_size() {
    let story = story(2);
    story.upstream.behave(story.layer(), Behaviour::NoContentLength);
    assert_eq!(story.pull_everywhere(), 1);
}

#[test]
fn a_length_that_differs_from_the_descriptor_is_refused() {
    let story = story(1);
    story
        .upstream
        .behave(story.layer(), Behaviour::WrongContentLength(-1000));
    story.assert_refused();
    story.tell_the_truth();
    story.pull_everywhere();
}

#[test]
fn a_short_body_is_resumed_where_it_broke_off() {
    let story = story(2);
    // In the middle of a piece, both times.
    story.upstream.behave(
        story.layer(),
        Behaviour::ShortBody {
            at: (5 << 20) + 200_000,
            times: 2,
        },
    );
    assert_eq!(story.pull_everywhere(), 1);
    let sent = story.upstream.body_bytes(story.layer());
    let blob = story.image.layers()[0].bytes.len() as u64;
    println!("{} bytes were sent twice", sent.saturating_sub(blob));
    assert!(sent <= blob + 2 * 64 * 1024, "{sent} bytes for a blob of {blob}");
}

#[test]
fn a_login_page_is_not_taken_for_a_blob() {
    let story = story(1);
    story.upstream.behave(story.layer(), Behaviour::Html200);
    story.assert_refused();
    story.tell_the_truth();
    story.pull_everywhere();
}

#[test]
fn an_empty_answer_is_not_taken_for_a_blob() {
    let story = story(1);
    story.upstream.behave(story.layer(), Behaviour::Empty200);
    story.assert_refused();
    story.tell_the_truth();
    story.pull_everywhere();
}

#[test]
fn a_range_that_is_ignored_costs_time_but_no_harm() {
    let story = story(1);
    story
        .upstream
        .behave(story.layer(), Behaviour::ShortBody { at: 5 << 20, times: 1 });
    thread::scope(|scope| {
        let pull = scope.spawn(|| story.pull_everywhere());
        let started = Instant::now();
        while story.upstream.requests(story.layer()) == 0 {
            assert!(started.elapsed() < Duration::from_secs(20), "no node asked");
            thread::sleep(Duration::from_millis(5));
        }
        // The first answer is under way, and will be short; what is asked for then is a range.
        story.upstream.behave(story.layer(), Behaviour::IgnoreRange);
        assert_eq!(pull.join().expect("the pull succeeds"), 1);
    });
    assert_eq!(story.upstream.requests(story.layer()), 2, "no range was ever asked for");
}

#[test]
fn an_upstream_that_freezes_ends_the_streams_instead_of_leaving_them_hanging() {
    let story = story(1);
    // It sends its headers, then nothing, however often it is asked.
    story
        .upstream
        .behave(story.layer(), Behaviour::Stall { at: 0, seconds: 300 });
    let target = format!("/v2/library/app/blobs/{}?ns={HOST}", story.layer());
    let node = story.cluster.site.node(0);
    for registry in ["10.88.0.2:65011", "127.0.0.1:65001"] {
        let started = Instant::now();
        let request = Request::get(registry.parse().expect("an address"), &target).patience(Duration::from_secs(100));
        let answer = request.send_from(node).expect("an answer");
        let whole = story.image.layers()[0].bytes.len();
        // The whole of it never came: cut short of its length, or refused while the digest cools down.
        assert!(
            answer.body.len() < whole && (answer.status != 200 || !answer.complete),
            "{}",
            answer.status
        );
        assert!(
            started.elapsed() < Duration::from_secs(90),
            "{registry} took {:?}",
            started.elapsed()
        );
    }
}

#[test]
fn an_upstream_that_always_breaks_off_and_knows_no_ranges_is_given_up() {
    let story = story(1);
    let at = 5 << 20;
    story.upstream.behave(story.layer(), Behaviour::AlwaysCut { at });
    story.assert_refused();
    let sent = story.upstream.body_bytes(story.layer());
    assert!(sent <= 40 * at, "it was asked for {sent} bytes, again and again");
    story.tell_the_truth();
    story.pull_everywhere();
}

#[test]
fn a_wrong_size_that_one_repository_states_does_not_affect_another() {
    let story = story(2);
    let liar = Image::new("library/liar", "v1")
        .seed(7)
        .layer_bytes(&[12 * MIB])
        .overstate_layers(1000);
    let honest = Image::new("library/honest", "v1").seed(7).layer_bytes(&[12 * MIB]);
    assert_eq!(liar.layers()[0].digest, honest.layers()[0].digest);
    story.upstream.add_image(&liar);
    story.upstream.add_image(&honest);
    let [first, second] = &story.cluster.containerds[..] else {
        panic!("two nodes")
    };

    thread::scope(|scope| {
        // The liar's own pull may fail or succeed: the test does not depend on it.
        let lied_to = scope.spawn(|| first.fetch(&liar.reference(HOST)));
        let told_the_truth = scope.spawn(|| second.fetch(&honest.reference(HOST)));
        let outcome = told_the_truth.join().expect("the pull ends");
        assert!(outcome.ok, "{}", outcome.output);
        lied_to.join().expect("the pull ends");
    });
    first.remove_all_content();
    let outcome = first.fetch(&honest.reference(HOST));
    assert!(outcome.ok, "{}", outcome.output);
    assert!(first.content_digest_ok(&honest.layers()[0].digest));
    let sent = story.upstream.body_bytes(&liar.layers()[0].digest);
    // What was on its way when the wrong size came to light is all that may come twice.
    assert!(sent <= (12 << 20) + (2 << 20), "{sent} bytes");
}

#[test]
fn a_late_status_line_is_not_waited_for_longer_than_a_client_can_wait() {
    let story = story(1);
    story.upstream.behave(story.layer(), Behaviour::Late { millis: 4000 });
    let target = format!("/v2/{}/blobs/{}?ns={HOST}", story.image.repository(), story.layer());
    let ask = || {
        let started = Instant::now();
        let request = Request::get("127.0.0.1:65001".parse().expect("an address"), &target);
        let answer = request
            .patience(Duration::from_secs(30))
            .send_from(story.cluster.site.node(0))
            .expect("an answer");
        (answer.status, started.elapsed())
    };
    // The blob's size is not known yet, so nothing can be promised.
    let (status, waited) = ask();
    assert_eq!(status, 503);
    assert!(waited < Duration::from_secs(4), "it took {waited:?}");
    // A client that has read the manifest is answered at once, and waits in the body.
    assert_eq!(story.pull_everywhere(), 1);
}

#[test]
fn a_list_without_end_is_given_up_and_its_registry_named() {
    let story = story(1);
    story.upstream.list_without_end();
    let digest = story.layer();
    for resource in ["tags/list".to_owned(), format!("referrers/{digest}")] {
        let before = story.upstream.recorded().len();
        let target = format!("/v2/library/app/{resource}?ns={HOST}");
        let request = Request::get("10.88.0.2:65011".parse().expect("an address"), &target);
        let answer = request.send_from(story.cluster.site.node(0)).expect("an answer");
        assert_eq!(answer.status, 502, "{}", answer.text());
        assert!(answer.text().contains("page by page"), "{}", answer.text());
        // Pages of a MiB or a little less, 16 MiB at the most.
        let pages = story.upstream.recorded().len() - before;
        assert!((2..=24).contains(&pages), "{pages} pages");
    }
}

#[test]
fn a_far_upstream_is_asked_over_several_connections_and_sends_each_byte_once() {
    let story = story(2);
    story.upstream.move_away(Duration::from_millis(100));
    assert_eq!(story.pull_everywhere(), 1);
    let parts = story.upstream.requests(story.layer());
    assert!(
        (4..=20).contains(&parts),
        "{parts} requests for a far upstream's blob: about two for each connection"
    );
    assert_eq!(story.upstream.body_bytes(story.layer()), 12 << 20);
}

#[test]
fn connections_to_a_far_upstream_that_break_off_are_resumed_where_they_did() {
    let story = story(2);
    story.upstream.move_away(Duration::from_millis(100));
    thread::scope(|scope| {
        let pull = scope.spawn(|| story.pull_everywhere());
        let started = Instant::now();
        while story.upstream.body_bytes(story.layer()) == 0 {
            assert!(started.elapsed() < Duration::from_secs(20), "no node asked");
            thread::sleep(Duration::from_millis(5));
        }
        let cut = Behaviour::ShortBody { at: 100_000, times: 10 };
        story.upstream.behave(story.layer(), cut);
        assert_eq!(pull.join().expect("the pull succeeds"), 1);
    });
    let (sent, blob) = (story.upstream.body_bytes(story.layer()), 12 << 20);
    assert!(sent <= blob + 10 * 64 * 1024, "{sent} bytes for a blob of {blob}");
}
