//! A crowd of callers with a credential each shares one copy of an image, and what the registry says to one reaches no other.

mod support;

use std::{
    net::{SocketAddr, SocketAddrV4},
    thread,
    time::Duration,
};

use support::{
    Cluster, ClusterOptions, FakeUpstream, HOST, Image, ORIGIN_IP, PASSWORD, RecordedRequest, RegistryAuth, Reply,
    Request, Response, Site, TokenServer, basic,
};

const PEER: &str = "127.0.0.1:65001";
const MIRROR: &str = "10.88.0.2:65011";
const TOKENS: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5002);
const FRONT_DOOR: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5003);
const NODES: usize = 4;
const CALLERS: usize = 100;

fn plain(options: &mut ClusterOptions) {
    for all in [&mut options.mirror.extra_args, &mut options.peer.extra_args] {
        all.extend(["--allow-plain-credentials", "true"].map(str::to_owned));
    }
    options.mirror.extra_args.extend(["--tag-ttl", "0s"].map(str::to_owned));
}

/// A site whose registry wants tokens, with an image, and a credential of its own for each caller.
fn crowd() -> (Cluster, Image, Vec<String>) {
    let mut tokens = None;
    let cluster = Cluster::guarded(
        Site::builder()
            .nodes(NODES)
            .wan_mbit(50)
            .lan_mbit(400)
            .nodes_reach_upstream(true),
        |site| RegistryAuth::Token(tokens.insert(TokenServer::start(site.origin(), TOKENS))),
        plain,
    );
    let image = Image::new("library/app", "v1").layer_bytes(&[3_000_000, 500_000]);
    cluster.registry.push(&image);
    let tokens = tokens.expect("it was started");
    let bearers = (0..CALLERS)
        .map(|number| {
            let user = format!("user{number}");
            tokens.grant(&user, PASSWORD, "library/app");
            if is_bad(number) {
                return spoilt(number);
            }
            bearer(&cluster, &basic(&user, PASSWORD))
        })
        .collect();
    (cluster, image, bearers)
}

/// As a client gets it.
fn bearer(cluster: &Cluster, authorization: &str) -> String {
    let request = Request::get(
        TOKENS.into(),
        "/token?service=origin&scope=repository%3Alibrary%2Fapp%3Apull",
    );
    let answer = request
        .header("Authorization", authorization)
        .send_from(cluster.site.node(0));
    let answer: serde_json::Value = serde_json::from_slice(&answer.expect("an answer").body).expect("a token");
    format!("Bearer {}", answer["token"].as_str().expect("a token"))
}

/// Every tenth, the first included.
fn is_bad(caller: usize) -> bool {
    caller.is_multiple_of(10)
}

/// A bad caller's credential: a token that was never issued, or a credential that is too long for many a front door.
fn spoilt(caller: usize) -> String {
    match caller % 20 {
        0 => format!("Bearer nonsense{caller}"),
        _ => basic(&format!("mallory{caller}"), &"x".repeat(5000)),
    }
}

/// All callers ask at once, the bad ones a moment before the others.
fn ask_all(cluster: &Cluster, port: &str, target: &str, credentials: &[String]) -> Vec<Response> {
    thread::scope(|scope| {
        let asking: Vec<_> = credentials
            .iter()
            .enumerate()
            .map(|(caller, authorization)| {
                scope.spawn(move || {
                    if !is_bad(caller) {
                        thread::sleep(Duration::from_millis(5));
                    }
                    let port: SocketAddr = port.parse().expect("an address");
                    let request = Request::get(port, target).header("Authorization", authorization);
                    request.send_from(cluster.site.node(caller % NODES)).expect("an answer")
                })
            })
            .collect();
        asking
            .into_iter()
            .map(|asking| asking.join().expect("an answer"))
            .collect()
    })
}

#[test]
fn a_hundred_callers_with_a_hundred_tokens_take_one_copy_although_every_tenth_is_bad() {
    let (cluster, image, bearers) = crowd();
    for (port, layer) in [MIRROR, PEER].into_iter().zip(image.layers()) {
        let target = format!("/v2/{}/blobs/{}?ns={HOST}", image.repository(), layer.digest);
        let answers = ask_all(&cluster, port, &target, &bearers);
        for (caller, answer) in answers.iter().enumerate() {
            match is_bad(caller) {
                true => assert_eq!(answer.status, 401, "{port} caller {caller}: {}", answer.text()),
                false => assert!(
                    answer.status == 200 && answer.body == layer.bytes,
                    "{port} caller {caller}: {} with {} bytes",
                    answer.status,
                    answer.body.len()
                ),
            }
        }
        assert_eq!(cluster.registry.blob_bytes_served(&layer.digest), layer.size, "{port}");
    }
}

/// The statuses with which a registry, or a proxy before it, may refuse a caller's credential.
const REFUSALS: [u16; 6] = [400, 401, 403, 413, 429, 431];

/// Each caller's credential, those of every second ten 9 KB long; and what the front door says to it, if it is bad.
fn credentials() -> Vec<(String, Option<u16>)> {
    let credential = |caller: usize| {
        let refusal = is_bad(caller).then(|| REFUSALS[caller / 10 % REFUSALS.len()]);
        let padding = if caller % 20 < 10 { 9 * 1024 } else { 0 };
        let says = refusal.map_or("good".to_owned(), |status| status.to_string());
        (format!("Bearer {says}.{caller}.{}", "x".repeat(padding)), refusal)
    };
    (0..CALLERS).map(credential).collect()
}

/// A front door that answers each token with the status that is encoded in it.
fn front_door(request: &RecordedRequest) -> Option<Reply> {
    let token = request
        .headers
        .get("authorization")
        .and_then(|value| value.strip_prefix("Bearer "));
    let says = token.and_then(|token| token.split('.').next());
    let status = match says {
        Some("good") => return None,
        Some(status) => status.parse().expect("a status"),
        None => 401,
    };
    let reply = Reply::short(status, "application/json", "{}");
    let challenge = format!(r#"Bearer realm="http://{FRONT_DOOR}/token",service="front""#);
    Some(match status {
        401 => reply.header("WWW-Authenticate", challenge),
        _ => reply,
    })
}

#[test]
fn whatever_a_front_door_says_to_a_bad_caller_and_however_long_credentials_are_the_others_take_one_copy() {
    let cluster = Cluster::cold_with(Site::builder().nodes(NODES).wan_mbit(50).lan_mbit(400), |options| {
        let upstreams = vec![format!("{HOST}=http://{FRONT_DOOR}")];
        options.mirror.upstreams.clone_from(&upstreams);
        options.peer.upstreams = upstreams;
        plain(options);
    });
    let image = Image::new("library/app", "v1").layer_bytes(&[3_000_000, 500_000]);
    let registry = FakeUpstream::start(cluster.site.origin(), FRONT_DOOR, &image);
    // A long way, so that callers overlap.
    registry.move_away(Duration::from_millis(20));
    registry.rule(front_door);
    let (shown, refusals): (Vec<String>, Vec<Option<u16>>) = credentials().into_iter().unzip();
    let at = |resource: String| format!("/v2/{}/{resource}?ns={HOST}", image.repository());
    for (port, layer) in [MIRROR, PEER].into_iter().zip(image.layers()) {
        let target = at(format!("blobs/{}", layer.digest));
        for (caller, (answer, refusal)) in ask_all(&cluster, port, &target, &shown)
            .iter()
            .zip(&refusals)
            .enumerate()
        {
            match refusal {
                Some(status) => assert_eq!(answer.status, *status, "{port} caller {caller}: {}", answer.text()),
                None => assert!(
                    answer.status == 200 && answer.body == layer.bytes,
                    "{port} caller {caller}: {} with {} bytes",
                    answer.status,
                    answer.body.len()
                ),
            }
        }
        assert_eq!(registry.body_bytes(&layer.digest), layer.size, "{port}");
        let target = at(format!("manifests/{}", image.tag()));
        for (caller, (answer, refusal)) in ask_all(&cluster, port, &target, &shown)
            .iter()
            .zip(&refusals)
            .enumerate()
        {
            let expected = refusal.unwrap_or(200);
            assert_eq!(answer.status, expected, "{port} caller {caller}: {}", answer.text());
        }
    }
}

#[test]
fn a_tag_that_is_looked_up_for_a_crowd_is_refused_to_its_bad_callers_only() {
    let (cluster, image, bearers) = crowd();
    let target = format!("/v2/{}/manifests/{}?ns={HOST}", image.repository(), image.tag());
    // At first it is not known here, and then it is looked up again each time.
    for port in [MIRROR, PEER, MIRROR] {
        for (caller, answer) in ask_all(&cluster, port, &target, &bearers).iter().enumerate() {
            let expected = if is_bad(caller) { 401 } else { 200 };
            assert_eq!(answer.status, expected, "{port} caller {caller}: {}", answer.text());
        }
    }
}

#[test]
fn a_list_is_put_together_once_for_a_crowd_and_refused_to_its_bad_callers_only() {
    let (cluster, image, bearers) = crowd();
    let target = format!("/v2/{}/tags/list?ns={HOST}", image.repository());
    for (caller, answer) in ask_all(&cluster, MIRROR, &target, &bearers).iter().enumerate() {
        let expected = if is_bad(caller) { 401 } else { 200 };
        assert_eq!(answer.status, expected, "caller {caller}: {}", answer.text());
    }
}
