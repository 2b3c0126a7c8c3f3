//! Rights are independent: an error that one caller's request causes opens no image, and the fate of one credential changes no
//! other credential's rights.

mod support;

use std::{
    collections::BTreeSet,
    net::{SocketAddr, SocketAddrV4},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use support::{
    Behaviour, Cluster, ClusterOptions, FakeUpstream, HOST, Image, ORIGIN_IP, RecordedRequest, Reply, Request,
    Response, Site, basic,
};

const PEER: &str = "127.0.0.1:65001";
const MIRROR: &str = "10.88.0.2:65011";
const FAKE: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5001);
/// Longer than a front door takes.
const LARGE: usize = 8 * 1024;
const LATE: Duration = Duration::from_secs(6);
/// Longer than a refusal is remembered, and the answer to whether upstream is there.
const REMEMBERED: Duration = Duration::from_secs(11);
/// Longer than an answer to whether upstream is there counts.
const ANSWER_OVER: Duration = Duration::from_millis(5200);
/// How long a verdict counts in these tests, and a time after which it does not.
const VERDICT_TTL: [&str; 2] = ["--verdict-ttl", "200ms"];
const VERDICT_OVER: Duration = Duration::from_millis(300);

/// What an anonymous client shows once it has a token.
const ANONYMOUS: &str = "Bearer anonymous";

/// The registry's behaviour at the moment.
#[derive(Default)]
struct Mood {
    /// The credentials that may pull repositories below `private/`.
    accepted: BTreeSet<String>,
    /// Requests that show no credential get 429; or all of them do.
    limits_anonymous: bool,
    limits_all: bool,
    /// What the front door says to a large credential.
    too_large: u16,
    /// All but `/v2/` is answered with this.
    broken: Option<u16>,
    /// Lists of `private/` are answered with this.
    lists: Option<u16>,
    /// What is below `strangers/` is answered so.
    strangers: Option<Strangers>,
    /// Anonymous requests need a token, and its server behaves so.
    tokens: Option<Tokens>,
}

#[derive(Clone, Copy, Debug)]
enum Tokens {
    Granted,
    Told(u16),
    Hang,
}

#[derive(Clone, Copy, Debug)]
enum Strangers {
    Hang,
    Fail,
}

fn answer(mood: &Mood, request: &RecordedRequest) -> Option<Reply> {
    let path = request.target.split('?').next().unwrap_or_default();
    let credential = request.headers.get("authorization");
    let told = |status| Some(Reply::short(status, "application/json", "{}"));
    if credential.is_some_and(|credential| credential.len() > LARGE) {
        return told(mood.too_large);
    }
    if let Some(tokens) = mood.tokens {
        let is_granted = matches!(tokens, Tokens::Granted) && credential == Some(ANONYMOUS);
        let realm = format!(r#"Bearer realm="http://{FAKE}/token",service="fake""#);
        return match (path, tokens) {
            ("/token", Tokens::Granted) => Some(Reply::short(200, "application/json", r#"{"token":"anonymous"}"#)),
            ("/token", Tokens::Told(status)) => told(status),
            ("/token", Tokens::Hang) => Some(Reply::short(200, "application/json", "{}").late(LATE)),
            _ if is_granted && !path.starts_with("/v2/private/") => None,
            _ if credential.is_some_and(|shown| mood.accepted.contains(shown)) => None,
            _ => told(401).map(|reply| reply.header("WWW-Authenticate", realm)),
        };
    }
    if path == "/v2/" {
        return None;
    }
    if let Some(status) = mood.broken {
        return told(status);
    }
    if path.starts_with("/v2/strangers/") {
        return match mood.strangers? {
            Strangers::Hang => Some(Reply::short(404, "application/json", "{}").late(LATE)),
            Strangers::Fail => told(500),
        };
    }
    if path.len() > 500 {
        return told(414);
    }
    if mood.limits_all || (mood.limits_anonymous && credential.is_none()) {
        return told(429).map(|reply| reply.header("Retry-After", "1".to_owned()));
    }
    if path.starts_with("/v2/private/") && !credential.is_some_and(|shown| mood.accepted.contains(shown)) {
        let challenge = r#"Basic realm="fake""#.to_owned();
        return told(401).map(|reply| reply.header("WWW-Authenticate", challenge));
    }
    let is_list = path.ends_with("/tags/list") || path.contains("/referrers/");
    if path.starts_with("/v2/private/")
        && is_list
        && let Some(status) = mood.lists
    {
        return told(status);
    }
    if path.contains("/crowded/") {
        let (status, text) = if path.ends_with("/tags/list") {
            (200, r#"{"tags":["v1"]}"#)
        } else {
            (404, "{}")
        };
        return Some(Reply::short(status, "application/json", text).late(Duration::from_millis(300)));
    }
    if path.ends_with("/slow/tags/list") {
        return Some(Reply::short(200, "application/json", r#"{"tags":["v1"]}"#).late(LATE));
    }
    if path.contains("/failing/") {
        return told(500);
    }
    if path.contains("/slow/") {
        return Some(Reply::short(404, "application/json", "{}").late(LATE));
    }
    if path.contains("/led/") {
        let nowhere = "http://10.99.0.77:9/x".to_owned();
        return told(307).map(|reply| reply.header("Location", nowhere));
    }
    None
}

struct Story {
    cluster: Cluster,
    upstream: FakeUpstream,
    mood: Arc<Mutex<Mood>>,
    private: Image,
    public: Image,
}

impl Story {
    fn new(args: &[&str]) -> Self {
        let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
        let change = |options: &mut ClusterOptions| {
            let upstream = vec![format!("{HOST}=http://{FAKE}")];
            options.mirror.upstreams.clone_from(&upstream);
            options.peer.upstreams = upstream;
            for all in [&mut options.mirror.extra_args, &mut options.peer.extra_args] {
                all.extend(["--allow-plain-credentials", "true"].map(str::to_owned));
                all.extend(args.clone());
            }
            options.mirror.extra_args.extend(["--tag-ttl", "0s"].map(str::to_owned));
        };
        let cluster = Cluster::cold_with(Site::builder().nodes(1).wan_mbit(200).lan_mbit(400), change);
        let private = Image::new("private/app", "v1").layer_bytes(&[300_000]);
        let public = Image::new("library/app", "v1").seed(2).layer_bytes(&[200_000]);
        let upstream = FakeUpstream::start(cluster.site.origin(), FAKE, &private);
        upstream.add_image(&public);
        let mood = Arc::new(Mutex::new(Mood {
            accepted: [alice(), bob()].into(),
            too_large: 400,
            ..Mood::default()
        }));
        let told = Arc::clone(&mood);
        upstream.rule(move |request| answer(&told.lock().expect("no test fails in here"), request));
        Self {
            cluster,
            upstream,
            mood,
            private,
            public,
        }
    }

    fn mood(&self) -> MutexGuard<'_, Mood> {
        self.mood.lock().expect("no test fails in here")
    }

    fn ask(&self, port: &str, path: &str, credential: Option<&str>) -> Response {
        let port: SocketAddr = port.parse().expect("an address");
        let request = Request::get(port, &format!("/v2/{path}?ns={HOST}")).patience(Duration::from_secs(30));
        let request = credential
            .iter()
            .fold(request, |request, value| request.header("Authorization", value));
        request.send_from(self.cluster.site.node(0)).expect("an answer")
    }

    fn statuses(&self, port: &str, image: &Image, credential: Option<&str>) -> Vec<u16> {
        let mut paths = vec![
            format!("manifests/{}", image.tag()),
            format!("manifests/{}", image.digest()),
        ];
        paths.extend(image.blobs().map(|blob| format!("blobs/{}", blob.digest)));
        let ask = |path: String| self.ask(port, &format!("{}/{path}", image.repository()), credential);
        paths.into_iter().map(|path| ask(path).status).collect()
    }

    fn has_all(&self, port: &str, image: &Image, credential: Option<&str>, when: &str) {
        let statuses = self.statuses(port, image, credential);
        assert!(
            statuses.iter().all(|status| *status == 200),
            "{when}: {port} {statuses:?}"
        );
    }

    fn has_nothing(&self, port: &str, credential: Option<&str>, when: &str) {
        let statuses = self.statuses(port, &self.private, credential);
        assert!(
            statuses.iter().all(|status| *status != 200),
            "{when}: {port} {statuses:?}"
        );
    }

    /// While a stranger waits for the answer to a request of its own.
    fn while_asked_for<T>(&self, path: &str, work: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            scope.spawn(|| self.ask(MIRROR, path, None));
            thread::sleep(Duration::from_millis(2600));
            work()
        })
    }
}

fn alice() -> String {
    basic("alice", "right")
}

fn bob() -> String {
    basic("bob", "right too")
}

fn mallory() -> String {
    basic("mallory", "guess")
}

fn oversized() -> String {
    basic("mallory", &"x".repeat(LARGE))
}

/// Each of these requests once opened a private image to every client for `offline_grace`. Each attack has a credential of its own:
/// one that was refused before would prove nothing.
#[test]
fn no_request_of_a_callers_brings_about_the_outage_that_would_excuse_it() {
    let mut story = Story::new(&VERDICT_TTL);
    story.has_all(PEER, &story.public, None, "cold");
    let mut attacks = 0;
    let mut stranger = |password: &str| {
        attacks += 1;
        basic("mallory", &format!("{attacks}{password}"))
    };
    for revoked in [false, true] {
        if revoked {
            story.mood().accepted.clear();
            story.cluster.restart_daemons();
            story.has_all(PEER, &story.public, None, "it is known again to be public");
        }
        let earn = || {
            if !revoked {
                story.has_all(PEER, &story.private, Some(&alice()), "it may");
            }
            thread::sleep(VERDICT_OVER);
        };
        earn();
        story.mood().limits_anonymous = true;
        assert_eq!(story.ask(PEER, "library/other/manifests/v1", None).status, 429);
        story.has_nothing(PEER, None, "an anonymous limit is used up");
        story.mood().limits_anonymous = false;
        for status in [400, 413, 431, 500, 503] {
            earn();
            story.mood().too_large = status;
            let large = stranger(&"x".repeat(LARGE));
            story.has_nothing(PEER, Some(&large), &format!("a large credential, answered {status}"));
        }
        for path in ["library/slow/tags/list", "library/slow/manifests/v1"] {
            earn();
            let credential = stranger("");
            story.while_asked_for(path, || story.has_nothing(PEER, Some(&credential), path));
        }
        for path in ["library/failing/manifests/v1", "library/led/manifests/v1"] {
            earn();
            assert_ne!(story.ask(MIRROR, path, None).status, 200);
            story.has_nothing(PEER, Some(&stranger("")), path);
        }
        earn();
        let long = format!("library/app/manifests/sha256:{}/{}", "a".repeat(64), "x/".repeat(250));
        story.ask(MIRROR, &long, None);
        story.has_nothing(PEER, Some(&stranger("")), "a path that is too long");
    }
    story.has_nothing(PEER, Some(&alice()), "revoked");
}

/// A caller that pulls more repositories than are remembered, before all others or after them, and then makes all of them fail.
#[test]
fn no_choice_of_repositories_makes_a_registry_lost() {
    // Side by side, since each waits until earlier answers no longer count.
    thread::scope(|scope| {
        for comes_first in [true, false] {
            scope.spawn(move || strangers_make_no_registry_lost(comes_first));
        }
    });
}

fn strangers_make_no_registry_lost(comes_first: bool) {
    let story = Story::new(&VERDICT_TTL);
    let strangers: Vec<_> = (0..10)
        .map(|number| Image::new(&format!("strangers/{number}"), "v1").seed(50 + number))
        .map(|image| image.layer_bytes(&[100]))
        .collect();
    let pull_strangers = || {
        for image in &strangers {
            story.upstream.add_image(image);
            let path = format!("{}/manifests/v1", image.repository());
            assert_eq!(story.ask(MIRROR, &path, None).status, 200);
        }
    };
    if comes_first {
        pull_strangers();
    }
    story.has_all(PEER, &story.public, None, "cold");
    story.has_all(PEER, &story.private, Some(&alice()), "cold");
    if !comes_first {
        pull_strangers();
    }
    // The error that the request of a caller without a right causes.
    story.mood().too_large = 503;
    for (attack, strangers) in [Strangers::Hang, Strangers::Fail].into_iter().enumerate() {
        story.mood().strangers = Some(strangers);
        thread::sleep(ANSWER_OVER);
        let large = basic("mallory", &format!("{attack}{}", "x".repeat(LARGE)));
        let when = format!("{strangers:?}, first: {comes_first}");
        story.has_nothing(PEER, Some(&large), &when);
        let fresh = story.ask(PEER, "library/none/manifests/v1", None);
        assert_eq!(fresh.status, 404, "{when}: {}", fresh.text());
    }
    // An outage is noticed all the same.
    story.mood().broken = Some(503);
    thread::sleep(ANSWER_OVER);
    story.has_all(PEER, &story.private, None, "the registry fails");
}

#[test]
fn a_4xx_to_a_callers_request_is_that_callers_and_says_what_the_registry_said() {
    let story = Story::new(&[]);
    for port in [PEER, MIRROR] {
        for status in [400, 413, 431] {
            story.mood().too_large = status;
            let refused = story.ask(port, "library/app/manifests/v1", Some(&oversized()));
            assert_eq!(refused.status, status, "{port}: {}", refused.text());
            assert!(refused.text().contains(HOST), "{}", refused.text());
            assert!(!refused.text().contains("xxxx"), "no credential in an answer");
            story.has_all(port, &story.public, None, "for others");
        }
    }
}

#[test]
fn while_upstream_is_lost_a_credential_has_what_it_earned_and_a_refused_one_nothing() {
    let mut story = Story::new(&VERDICT_TTL);
    story.has_nothing(PEER, Some(&mallory()), "before anything is here");
    story.has_all(PEER, &story.private, Some(&alice()), "cold");
    story.has_all(PEER, &story.private, Some(&bob()), "cold");
    story.has_nothing(PEER, Some(&mallory()), "a wrong password on the same node");
    story.has_nothing(PEER, None, "a client that shows nothing yet");
    story.mood().accepted.remove(&bob());
    thread::sleep(VERDICT_OVER);
    story.has_nothing(PEER, Some(&bob()), "revoked");
    // Others on the node come and go, and take no place in what is known of these.
    for number in 0..20 {
        let number = number.to_string();
        let (wrong, right) = (basic("mallory", &number), basic("tenant", &number));
        story.mood().accepted.insert(right.clone());
        let ask = |credential| story.ask(PEER, "private/app/manifests/v1", Some(credential)).status;
        assert_eq!((ask(&wrong), ask(&right)), (401, 200), "tenant {number}");
    }

    story.cluster.site.block_wan();
    thread::sleep(REMEMBERED);
    let offline = |story: &Story, when: &str| {
        story.has_all(PEER, &story.private, Some(&alice()), when);
        story.has_all(PEER, &story.private, None, when);
        story.has_all(PEER, &story.private, Some("Bearer new"), when);
        story.has_nothing(PEER, Some(&mallory()), when);
        story.has_nothing(PEER, Some(&bob()), when);
    };
    offline(&story, "the WAN is cut");
    story.has_nothing(MIRROR, None, "the WAN is cut, and the caller is no node");
    story.has_nothing(MIRROR, Some(&alice()), "the WAN is cut, and the caller is no node");
    story.cluster.mirror.kill();
    thread::sleep(VERDICT_OVER);
    offline(&story, "the mirror is lost too");
    story.cluster.site.unblock_wan();
}

#[test]
fn when_all_credentials_of_a_node_were_refused_it_has_nothing_while_upstream_is_lost() {
    let mut story = Story::new(&VERDICT_TTL);
    story.has_all(PEER, &story.private, Some(&alice()), "cold");
    story.mood().accepted.clear();
    thread::sleep(VERDICT_OVER);
    story.has_nothing(PEER, Some(&alice()), "revoked");
    story.cluster.site.block_wan();
    story.cluster.restart_daemons();
    for credential in [None, Some(&*alice()), Some("Bearer new")] {
        story.has_nothing(PEER, credential, "the WAN is cut");
    }
    story.cluster.site.unblock_wan();
}

#[test]
fn a_registry_that_keeps_its_lists_from_a_credential_takes_none_of_its_rights_to_images() {
    let mut story = Story::new(&VERDICT_TTL);
    story.has_all(PEER, &story.private, Some(&alice()), "cold");
    let lists = ["tags/list".to_owned(), format!("referrers/{}", story.private.digest())];
    let refuse = |story: &Story, status| {
        story.mood().lists = Some(status);
        for port in [PEER, MIRROR] {
            for list in &lists {
                let refused = story.ask(port, &format!("private/app/{list}"), Some(&alice()));
                assert_eq!(refused.status, status, "{port} {list}: {}", refused.text());
            }
        }
    };
    for status in [401, 403] {
        refuse(&story, status);
        story.has_all(PEER, &story.private, Some(&alice()), "its lists are refused");
    }
    // From here on nothing is served that would earn the right again.
    story.cluster.restart_daemons();
    refuse(&story, 401);
    story.cluster.site.block_wan();
    story.cluster.restart_daemons();
    story.has_all(PEER, &story.private, Some(&alice()), "the WAN is cut");
    story.cluster.site.unblock_wan();
}

#[test]
fn what_a_node_was_served_while_upstream_was_lost_is_not_public_afterwards() {
    let mut story = Story::new(&VERDICT_TTL);
    story.has_all(PEER, &story.private, Some(&alice()), "cold");
    story.cluster.site.block_wan();
    thread::sleep(VERDICT_OVER);
    story.has_all(PEER, &story.private, None, "the WAN is cut");
    story.cluster.site.unblock_wan();
    story.mood().limits_all = true;
    story.cluster.restart_daemons();
    for credential in [None, Some(mallory()), Some(alice())] {
        story.has_nothing(PEER, credential.as_deref(), "the WAN is back, and the registry limits");
    }
}

#[test]
fn under_a_limit_what_is_public_or_covered_by_a_live_right_is_served_and_others_hear_of_the_limit() {
    let story = Story::new(&[]);
    story.has_all(PEER, &story.public, None, "cold");
    story.has_all(PEER, &story.private, Some(&alice()), "cold");
    story.mood().limits_all = true;
    for port in [PEER, MIRROR] {
        for (image, credential) in [(&story.public, None), (&story.private, Some(alice()))] {
            let path = format!("{}/manifests/v1", image.repository());
            let stale = story.ask(port, &path, credential.as_deref());
            assert_eq!(stale.status, 200, "{port} {path}: {}", stale.text());
            let warning = stale.headers.get("warning").unwrap_or_default();
            assert!(warning.starts_with("299 - \"stale"), "{port} {path}: {warning}");
            story.has_all(port, image, credential.as_deref(), "limited");
        }
        for credential in [None, Some(bob()), Some(mallory())] {
            let statuses = story.statuses(port, &story.private, credential.as_deref());
            assert!(statuses.iter().all(|status| *status == 429), "{port} {statuses:?}");
        }
    }
}

#[test]
fn a_registry_that_fails_behind_its_front_door_is_lost_and_one_repository_that_fails_is_not_the_registry() {
    let mut story = Story::new(&VERDICT_TTL);
    let other = Image::new("library/other", "v1").seed(3).layer_bytes(&[1000]);
    story.upstream.add_image(&other);
    for image in [&story.public, &other] {
        story.has_all(PEER, image, None, "cold");
    }
    story.has_all(PEER, &story.private, Some(&alice()), "cold");
    thread::sleep(VERDICT_OVER);
    for digest in [other.digest(), story.private.digest()] {
        story.upstream.behave(digest, Behaviour::Status(503));
    }
    story.has_nothing(PEER, None, "two repositories fail");
    let alice = alice();
    let by_tag = story.ask(PEER, "private/app/manifests/v1", Some(&alice));
    assert_eq!(by_tag.status, 503, "{}", by_tag.text());
    story.cluster.restart_daemons();
    story.has_all(PEER, &story.public, None, "it is known again to be public");
    story.mood().broken = Some(503);
    story.has_all(PEER, &story.private, Some(&alice), "all of them fail");
    story.has_all(PEER, &story.private, None, "all of them fail");
    story.has_nothing(MIRROR, None, "all of them fail");
}

#[test]
fn a_restart_takes_nothing_from_what_counts_while_a_registry_fails_behind_its_front_door() {
    let mut story = Story::new(&VERDICT_TTL);
    story.has_all(PEER, &story.public, None, "cold");
    story.has_all(PEER, &story.private, Some(&alice()), "cold");
    thread::sleep(VERDICT_OVER);
    // What is public, and so is asked for to find out whether the registry is lost, is not pulled again before it fails.
    story.cluster.restart_daemons();
    story.mood().broken = Some(503);
    story.has_all(PEER, &story.public, None, "all of it fails after a restart");
    story.has_all(PEER, &story.private, Some(&alice()), "all of it fails after a restart");
    story.has_all(PEER, &story.private, None, "all of it fails after a restart");
    story.has_nothing(MIRROR, None, "all of it fails after a restart");
}

#[test]
fn slow_lists_and_slow_items_close_a_registry_for_no_caller() {
    let story = Story::new(&[]);
    let fresh: Vec<_> = (0..20)
        .map(|number| {
            Image::new("library/fresh", &format!("v{number}"))
                .seed(100 + number)
                .layer_bytes(&[100])
        })
        .collect();
    fresh.iter().for_each(|image| story.upstream.add_image(image));
    thread::scope(|scope| {
        for path in [
            "library/slow/tags/list",
            "library/slow/manifests/v1",
            "library/slow/manifests/v2",
        ] {
            for port in [PEER, MIRROR] {
                let story = &story;
                scope.spawn(move || story.ask(port, path, None));
            }
        }
        thread::sleep(Duration::from_secs(1));
        for image in &fresh {
            let asked = Instant::now();
            let path = format!("library/fresh/manifests/{}", image.tag());
            let response = story.ask(PEER, &path, None);
            assert_eq!(response.status, 200, "{path}: {}", response.text());
            assert!(
                asked.elapsed() < Duration::from_secs(1),
                "{path}: {:?}",
                asked.elapsed()
            );
            thread::sleep(Duration::from_millis(200));
        }
    });
    let questions = story.upstream.recorded();
    let questions = questions.iter().filter(|request| request.target == "/v2/").count();
    assert!(
        questions <= 4,
        "{questions} questions in six seconds, and one at the start"
    );
}

#[test]
fn slow_lists_of_one_repository_or_of_many_keep_no_other_list_waiting() {
    let story = Story::new(&[]);
    let subject = |number: usize| format!("sha256:{number:064x}");
    let of_one: Vec<_> = (0..8)
        .map(|n| format!("library/slow/referrers/{}", subject(n)))
        .collect();
    let of_many: Vec<_> = (0..4).map(|n| format!("strangers{n}/slow/tags/list")).collect();
    for (slow, most) in [(of_one, Duration::from_millis(500)), (of_many, Duration::from_secs(2))] {
        thread::scope(|scope| {
            for path in &slow {
                let story = &story;
                scope.spawn(move || story.ask(MIRROR, path, None));
            }
            thread::sleep(Duration::from_millis(300));
            let asked = Instant::now();
            let list = story.ask(MIRROR, "library/app/tags/list", None);
            assert_eq!(list.status, 200, "{slow:?}: {}", list.text());
            assert!(asked.elapsed() < most, "{slow:?}: {:?}", asked.elapsed());
        });
    }
}

#[test]
fn referrers_that_one_caller_makes_up_close_a_repositorys_lists_for_no_other() {
    let story = Story::new(&[]);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for stranger in 0..60 {
            let (story, is_over) = (&story, &is_over);
            scope.spawn(move || {
                for number in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    let path = format!("library/crowded/referrers/sha256:{stranger:032x}{number:032x}");
                    story.ask(MIRROR, &path, None);
                }
            });
        }
        thread::sleep(Duration::from_secs(2));
        let lists: Vec<_> = (0..6)
            .map(|_| {
                let asked = Instant::now();
                let list = story.ask(PEER, "library/crowded/tags/list", None);
                (list.status, asked.elapsed())
            })
            .collect();
        is_over.store(true, Ordering::Relaxed);
        let is_good = |(status, took): &(u16, Duration)| *status == 200 && *took < Duration::from_secs(2);
        assert!(lists.iter().all(is_good), "{lists:?}");
    });
}

#[test]
fn equal_requests_for_referrers_are_one() {
    let story = Story::new(&[]);
    let path = format!("library/crowded/referrers/sha256:{:064x}", 1);
    thread::scope(|scope| {
        let asked: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| story.ask(MIRROR, &path, None)))
            .collect();
        for answer in asked {
            assert_eq!(answer.join().expect("an answer").status, 200);
        }
    });
    let requests = story.upstream.recorded();
    let requests = requests.iter().filter(|request| request.target.contains("/referrers/"));
    // One, unless this machine took longer to ask than the registry to answer.
    assert!(requests.count() <= 3);
}

#[test]
fn an_outage_costs_no_caller_more_than_the_first_and_a_healthy_registry_is_asked_nothing() {
    let story = Story::new(&VERDICT_TTL);
    story.has_all(PEER, &story.private, Some(&alice()), "cold");
    let at_start = |request: &&RecordedRequest| request.target == "/v2/";
    assert!(story.upstream.recorded().iter().filter(at_start).count() <= 1);
    thread::sleep(VERDICT_OVER);
    story.upstream.move_away(Duration::from_secs(60));
    for number in 0..12 {
        let asked = Instant::now();
        let response = story.ask(PEER, "private/app/manifests/v1", Some(&alice()));
        assert_eq!(response.status, 200, "{number}: {}", response.text());
        let took = asked.elapsed();
        let most = if number == 0 { 6000 } else { 3000 };
        println!("{number}: {took:?}");
        assert!(took < Duration::from_millis(most), "{number}: {took:?}");
        thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn while_a_token_server_is_lost_what_is_here_is_served_after_one_wait_and_nothing_is_forgotten() {
    // Side by side: each failure is remembered for a while.
    thread::scope(|scope| {
        for lost in [Tokens::Told(503), Tokens::Told(429), Tokens::Hang] {
            scope.spawn(move || token_server_fails(lost));
        }
    });
}

fn token_server_fails(lost: Tokens) {
    let story = Story::new(&VERDICT_TTL);
    story.mood().tokens = Some(Tokens::Granted);
    for port in [PEER, MIRROR] {
        story.has_all(port, &story.public, None, "cold");
        story.has_all(port, &story.private, Some(&alice()), "cold");
    }
    thread::sleep(VERDICT_OVER);
    story.mood().tokens = Some(lost);
    let when = format!("{lost:?}");
    for round in 0..3 {
        for port in [PEER, MIRROR] {
            let asked = Instant::now();
            let by_tag = story.ask(port, "library/app/manifests/v1", None);
            let took = asked.elapsed();
            println!("{when}, {round}, {port}: {took:?}");
            assert_eq!(by_tag.status, 200, "{when}: {port}: {}", by_tag.text());
            assert!(took < Duration::from_millis(3500), "{when}: {port}: {took:?}");
            story.has_all(port, &story.public, None, &when);
            story.has_all(port, &story.private, Some(&alice()), &when);
        }
        let cold = story.ask(MIRROR, "library/cold/manifests/v1", None);
        let expected = if matches!(lost, Tokens::Told(429)) { 429 } else { 503 };
        assert_eq!(cold.status, expected, "{when}: {}", cold.text());
        story.has_nothing(MIRROR, None, &when);
        if expected == 503 {
            story.has_all(PEER, &story.private, None, &when);
        } else {
            story.has_nothing(PEER, None, &when);
        }
        thread::sleep(VERDICT_OVER);
    }
    let asked = story.upstream.recorded();
    let asked = asked
        .iter()
        .filter(|request| request.target.starts_with("/token"))
        .count();
    println!("{when}: the token server was asked {asked} times");
    // Not by each of the requests, of which there are dozens.
    assert!(asked <= 12 || matches!(lost, Tokens::Told(503)), "{when}: {asked}");
}
