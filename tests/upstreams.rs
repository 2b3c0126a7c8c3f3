//! Kinds of upstreams: rate-limited, with several endpoints, a whole domain, behind a proxy, with a CA of its own, and by mistake
//! the site itself.

mod support;

use std::{
    fs,
    net::{SocketAddr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use support::{
    Behaviour, Cluster, ClusterOptions, FakeUpstream, Forgets, HOST, Image, ORIGIN_IP, Request, Response, Site,
};

const PEER: &str = "127.0.0.1:65001";
const MIRROR: &str = "10.88.0.2:65011";
const FAKE: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5001);
const OTHER: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5002);

struct Story {
    cluster: Cluster,
    upstream: FakeUpstream,
    image: Image,
}

/// A site of one node whose upstreams, at mirror and peer alike, are `upstreams`.
fn story(upstreams: &[&str], change: impl FnOnce(&mut ClusterOptions)) -> Story {
    let cluster = Cluster::cold_with(Site::builder().nodes(1).wan_mbit(200).lan_mbit(400), |options| {
        let upstreams: Vec<String> = upstreams.iter().map(|upstream| (*upstream).to_owned()).collect();
        options.mirror.upstreams.clone_from(&upstreams);
        options.peer.upstreams = upstreams;
        change(options);
    });
    let image = Image::new("library/app", "v1").layer_bytes(&[900_000, 300_000]);
    let upstream = FakeUpstream::start(cluster.site.origin(), FAKE, &image);
    Story {
        cluster,
        upstream,
        image,
    }
}

fn mirror_flags(options: &mut ClusterOptions, flags: &[&str]) {
    options
        .mirror
        .extra_args
        .extend(flags.iter().map(|flag| (*flag).to_owned()));
}

impl Story {
    fn get(&self, port: &str, resource: &str, ns: &str) -> Response {
        let target = format!("/v2/{}/{resource}?ns={ns}", self.image.repository());
        self.send(Request::get(address(port), &target))
    }

    fn send(&self, request: Request) -> Response {
        request.send_from(self.cluster.site.node(0)).expect("an answer")
    }

    fn by_tag(&self, port: &str) -> Response {
        self.get(port, "manifests/v1", HOST)
    }

    /// By manifest and blobs, every byte.
    fn pull(&self, port: &str, ns: &str) {
        let manifest = self.get(port, "manifests/v1", ns);
        assert_eq!(manifest.status, 200, "{}", manifest.text());
        for blob in self.image.blobs() {
            let got = self.get(port, &format!("blobs/{}", blob.digest), ns);
            assert_eq!(got.status, 200, "{}", got.text());
            assert!(got.body == blob.bytes, "{}", blob.digest);
        }
    }

    /// The requests for what the tag names.
    fn manifest_requests(&self) -> usize {
        let is_manifest = |request: &&support::RecordedRequest| request.target.contains("/manifests/");
        self.upstream.recorded().iter().filter(is_manifest).count()
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn fake() -> String {
    format!("{HOST}=http://{FAKE}")
}

#[test]
fn a_limit_is_honoured_and_one_at_a_time_finds_out_whether_it_is_over() {
    let story = story(&[&fake()], |options| mirror_flags(options, &["--tag-ttl", "0s"]));
    story.pull(PEER, HOST);
    story
        .upstream
        .behave(story.image.digest(), Behaviour::Busy { seconds: 3 });
    let before = story.manifest_requests();
    let limited = Instant::now();
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                while limited.elapsed() < Duration::from_millis(2500) {
                    let response = story.by_tag(PEER);
                    assert_eq!(response.status, 200, "{}", response.text());
                    let warning = response.headers.get("warning").unwrap_or_default();
                    assert!(warning.contains("stale"), "{:?}", response.headers);
                }
            });
        }
    });
    let asked = story.manifest_requests() - before;
    assert!(
        asked <= 1,
        "upstream asked us to leave it alone and was asked {asked} times"
    );

    story.upstream.behave(story.image.digest(), Behaviour::Truth);
    let deadline = Instant::now() + Duration::from_secs(10);
    while story.by_tag(PEER).headers.get("warning").is_some() {
        assert!(Instant::now() < deadline, "the limit is never over");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_limit_on_what_is_not_here_is_told_with_how_long_to_wait() {
    let story = story(&[&fake()], |_| {});
    story
        .upstream
        .behave(story.image.digest(), Behaviour::Busy { seconds: 7 });
    for port in [MIRROR, PEER] {
        for _ in 0..5 {
            let response = story.by_tag(port);
            assert_eq!(
                (response.status, response.headers.get("retry-after")),
                (429, Some("7")),
                "{port}"
            );
            assert!(response.text().contains("TOOMANYREQUESTS"));
        }
    }
    assert_eq!(story.manifest_requests(), 1);
}

#[test]
fn tags_are_checked_by_head_which_costs_no_pull() {
    let story = story(&[&fake()], |options| mirror_flags(options, &["--tag-ttl", "0s"]));
    for _ in 0..5 {
        assert_eq!(story.by_tag(PEER).status, 200);
    }
    let methods: Vec<String> = story
        .upstream
        .recorded()
        .into_iter()
        .filter(|request| request.target.ends_with("/manifests/v1"))
        .map(|request| request.method)
        .collect();
    assert_eq!(methods, ["GET", "HEAD", "HEAD", "HEAD", "HEAD"]);
}

#[test]
fn the_next_endpoint_is_asked_when_one_gives_no_answer_that_stands() {
    let closed = format!("{HOST}=http://{ORIGIN_IP}:5999");
    let failing = format!("{HOST}=http://{OTHER}");
    let story = story(&[&closed, &failing, &fake()], |_| {});
    let broken = FakeUpstream::start(story.cluster.site.origin(), OTHER, &story.image);
    for content in story.image.blobs().chain(story.image.manifests()) {
        broken.behave(&content.digest, Behaviour::Status(503));
    }
    story.pull(PEER, HOST);
    assert!(broken.recorded().len() > 1, "endpoints are asked in their order");
    // What one says that stands is the answer.
    let asked = story.upstream.recorded().len();
    assert_eq!(story.get(MIRROR, "manifests/v2", HOST).status, 404);
    assert_eq!(story.upstream.recorded().len(), asked);
}

#[test]
fn a_name_with_a_star_stands_for_every_registry_below_its_domain() {
    let proxy = format!("http://{FAKE}");
    let story = story(&["*.cr.test=http://*.cr.test"], |options| {
        mirror_flags(options, &["--proxy", &proxy]);
    });
    story.pull(PEER, "team.cn-beijing.cr.test");
    story.pull(PEER, "team.distributed.cn-beijing.cr.test:65001");
    let seen = story.upstream.recorded();
    let of_name = |target: &str| target.starts_with("http://team.cn-beijing.cr.test/v2/library/app/");
    assert!(seen.iter().all(|request| of_name(&request.target)), "{seen:?}");
    for layer in story.image.layers() {
        assert_eq!(
            story.upstream.body_bytes(&layer.digest),
            layer.size,
            "one registry by two names"
        );
    }
    for stranger in [
        "cr.test",
        "x.cr.test.evil.test",
        "xcr.test",
        "-.cr.test",
        "a/b.cr.test",
        "10.0.0.1",
    ] {
        let response = story.get(MIRROR, "manifests/v1", stranger);
        assert_eq!(response.status, 404, "{stranger}: {}", response.text());
    }
}

#[test]
fn accelerated_names_are_understood_in_ns_in_the_path_and_as_host() {
    let story = story(&[&fake()], |_| {});
    let accelerated = "origin.test.piecemeal.internal:65001";
    for port in [PEER, MIRROR] {
        let by_ns = story.get(port, "manifests/v1", accelerated);
        assert_eq!(
            (by_ns.status, by_ns.headers.get("oci-namespace")),
            (200, Some(accelerated)),
            "{port}"
        );
        let by_path = "/v2/origin.test.piecemeal.internal__65001/library/app/manifests/v1";
        assert_eq!(story.send(Request::get(address(port), by_path)).status, 200, "{port}");
        let by_host = Request::get(address(port), "/v2/library/app/manifests/v1").header("Host", accelerated);
        assert_eq!(story.send(by_host).status, 200, "{port}");
        let by_nothing = Request::get(address(port), "/v2/library/app/manifests/v1");
        assert_eq!(story.send(by_nothing).status, 404, "{port}");
    }
}

#[test]
fn a_registry_has_one_name_however_a_client_writes_it() {
    let hub = format!("docker.io=http://{FAKE}");
    let story = story(&[&fake(), &hub], |options| {
        for flags in [&mut options.mirror.extra_args, &mut options.peer.extra_args] {
            flags.extend(["--default-upstream", "docker.io"].map(str::to_owned));
        }
    });
    let layer = &story.image.layers()[0].digest;
    let escaped = layer.replace(':', "%3A");
    for target in [
        "/v2/docker.io/library/app/manifests/v1?ns=docker.io".to_owned(),
        format!("/v2/docker.io/library/app/blobs/{layer}?ns=docker.io"),
        format!("/v2/library%2Fapp/blobs/{escaped}?ns=Docker.IO.:80"),
        "/v2/library/app/manifests/v%31?ns=ORIGIN.Test.:80".to_owned(),
        "/v2/app/manifests/v1?ns=docker.io".to_owned(),
        "/v2/docker.io/app/manifests/v1".to_owned(),
        "/v2/index.docker.io/app/manifests/v1".to_owned(),
        "/v2/app/manifests/v1".to_owned(),
    ] {
        for port in [PEER, MIRROR] {
            let response = story.send(Request::get(address(port), &target));
            assert_eq!(response.status, 200, "{port}{target}: {}", response.text());
            let said = target.split_once("?ns=").map(|(_, said)| said);
            assert_eq!(response.headers.get("oci-namespace"), said, "{port}{target}");
        }
    }
    let asked = story.upstream.recorded();
    let is_plain = |target: &str| target == "/v2/" || target.starts_with("/v2/library/app/");
    assert!(asked.iter().all(|request| is_plain(&request.target)), "{asked:?}");
    assert_eq!(story.upstream.body_bytes(layer), story.image.layers()[0].size);
}

#[test]
fn what_is_no_request_of_a_registry_gets_the_error_of_one() {
    let story = story(&[&fake()], |_| {});
    let nowhere = [
        "/",
        "//v2/library/app/manifests/v1",
        "/origin.test/v2/library/app/manifests/v1",
        "/v2/origin.test/library/app/uploads/x",
        "/piecemeal/v1/none",
    ];
    let tricks = [
        "/v2/origin.test/%2E%2E/app/manifests/v1",
        "/v2/origin.test/library%2F%2Fapp/manifests/v1",
        "/v2/origin.test/library/app/manifests/v1%00",
        "/v2/origin.test/library/app/manifests/v%2531",
        "/v2/origin.test/library/app/manifests/%",
    ];
    let wrong = |port: &str, status: u16, request: Request| {
        let response = story.send(request.clone());
        assert_eq!(response.status, status, "{port} {request:?}");
        let body: serde_json::Value = serde_json::from_slice(&response.body).expect("an OCI error");
        assert!(body["errors"][0]["code"].is_string(), "{port} {request:?}: {body}");
    };
    for port in [PEER, MIRROR] {
        for target in nowhere {
            wrong(port, 404, Request::get(address(port), target));
        }
        for target in tricks {
            wrong(port, 400, Request::get(address(port), target));
        }
        let pull = Request::get(address(port), "/v2/library/app/manifests/v1?ns=origin.test");
        let two = pull.clone().header("Host", "a.test").header("Host", "b.test");
        wrong(port, 400, two);
        let same = pull.header("Host", port).header("Host", port);
        wrong(port, 400, same);
    }
    let asked = story.upstream.recorded();
    assert!(asked.iter().all(|request| request.target == "/v2/"), "{asked:?}");
}

#[test]
fn a_proxy_is_used_except_for_hosts_that_are_to_be_reached_without() {
    let proxy = format!("http://{FAKE}");
    let direct = format!("direct.test=http://{OTHER}");
    let story = story(&["far.test=http://far.test", &direct], |options| {
        mirror_flags(options, &["--proxy", &proxy, "--no-proxy", &ORIGIN_IP.to_string()]);
    });
    let other = FakeUpstream::start(story.cluster.site.origin(), OTHER, &story.image);
    story.pull(PEER, "far.test");
    let through = story.upstream.recorded();
    assert!(
        through
            .iter()
            .any(|request| request.target.starts_with("http://far.test/v2/")),
        "{through:?}"
    );
    story.pull(PEER, "direct.test");
    assert!(
        other
            .recorded()
            .iter()
            .all(|request| request.target.starts_with("/v2/"))
    );
    assert!(
        !story
            .upstream
            .recorded()
            .iter()
            .any(|request| request.target.contains("direct.test"))
    );
}

#[test]
fn redirects_are_led_through_the_accelerated_host_and_back_when_that_is_of_no_use() {
    let proxy = format!("http://{FAKE}");
    let story = story(&["origin.test=http://origin.test"], |options| {
        mirror_flags(options, &["--proxy", &proxy, "--rewrite-redirects", "oss-accelerate"]);
    });
    let [first, second] = story.image.layers() else {
        panic!("two layers")
    };
    let query = "Expires=1&OSSAccessKeyId=a%2Fb&Signature=x%2By%3D";
    let stored = |digest: &str| format!("http://b.oss-cn-hangzhou.aliyuncs.com/stored/{digest}?{query}");
    let faster = |digest: &str| format!("http://b.oss-accelerate.aliyuncs.com/stored/{digest}?{query}");
    let seen = |url: &str| {
        story
            .upstream
            .recorded()
            .iter()
            .filter(|request| request.target == url)
            .count()
    };
    let counted = |name: &str| {
        story
            .cluster
            .mirror
            .metric(&format!("piecemeal_redirects_{name}_total"))
    };

    story
        .upstream
        .behave(&first.digest, Behaviour::Redirect(stored(&first.digest)));
    let got = story.get(PEER, &format!("blobs/{}", first.digest), HOST);
    assert!(got.body == first.bytes, "{}", got.status);
    assert!(
        seen(&faster(&first.digest)) >= 1,
        "the query, byte for byte: {:?}",
        story.upstream.recorded()
    );
    assert_eq!(seen(&stored(&first.digest)), 0);
    assert!(counted("rewritten") >= 1.0);

    // A bucket without acceleration: the original is asked once more, and from then on at once.
    story.upstream.refuse_hosts("oss-accelerate");
    story
        .upstream
        .behave(&second.digest, Behaviour::Redirect(stored(&second.digest)));
    let got = story.get(PEER, &format!("blobs/{}", second.digest), HOST);
    assert!(got.body == second.bytes, "{}", got.status);
    assert!(seen(&stored(&second.digest)) >= 1);
    assert!(counted("rewrite_failures") >= 1.0);
    let refused = seen(&faster(&second.digest));
    let third = &story.image.blobs().next().expect("a config").digest;
    story.upstream.behave(third, Behaviour::Redirect(stored(third)));
    assert_eq!(story.get(PEER, &format!("blobs/{third}"), HOST).status, 200);
    assert_eq!(
        (seen(&faster(third)), seen(&faster(&second.digest))),
        (0, refused),
        "the verdict is remembered"
    );
    let log = story.cluster.mirror.log_text();
    assert!(!log.contains("Signature=") && !log.contains("OSSAccessKeyId"), "{log}");
}

#[test]
fn an_upstream_with_a_private_ca_that_wants_a_client_certificate_is_pulled_from() {
    pull_over_tls("ca.pem", ["server.pem", "server.key"]);
}

#[test]
fn a_registry_is_pulled_from_whose_own_certificate_is_named_although_it_is_an_authoritys() {
    pull_over_tls("self.pem", ["self.pem", "self.key"]);
}

/// Pulls from a registry that shows this certificate and wants one, while the mirror trusts `trusted`.
fn pull_over_tls(trusted: &str, [certificate, key]: [&str; 2]) {
    let mut pki = None;
    let mut story = {
        let https = format!("{HOST}=https://{ORIGIN_IP}:5000");
        story(&[&https], |options| {
            let pki = pki.insert(Pki::in_folder(options.mirror.authority_key.parent().expect("a folder")));
            let ca = format!("{HOST}={}", pki.path(trusted).display());
            let client = format!("{HOST}={}", pki.path("client.pem").display());
            mirror_flags(
                options,
                &["--upstream-ca", &ca, "--upstream-client-certificate", &client],
            );
        })
    };
    let pki = pki.expect("it was made");
    story.cluster.registry.push(&story.image);
    let [certificate, key, ca] = [certificate, key, "ca.pem"].map(|name| pki.path(name));
    story.cluster.registry.start_again_with_tls([&certificate, &key, &ca]);
    story.pull(PEER, HOST);
}

#[test]
fn an_upstream_whose_idle_connections_are_forgotten_on_the_way_is_pulled_from_once() {
    for how in [Forgets::Reset, Forgets::Silence] {
        let story = story(&[&fake()], |options| mirror_flags(options, &["--tag-ttl", "0s"]));
        assert_eq!(
            story.get(MIRROR, "manifests/other", HOST).status,
            404,
            "it has a connection"
        );
        story.upstream.forget_connections(how);
        story.pull(PEER, HOST);
        story.pull(PEER, HOST);
        for layer in story.image.layers() {
            let sent = story.upstream.body_bytes(&layer.digest);
            assert_eq!(sent, layer.bytes.len() as u64, "{how:?}");
        }
        let again = story.by_tag(PEER);
        assert_eq!(again.headers.get("warning"), None, "{how:?}");
    }
}

#[test]
fn a_peer_passes_on_why_its_mirror_cannot_ask_and_counts_it_as_the_mirrors() {
    let (refused, plain) = (
        format!("refused.test=http://{ORIGIN_IP}:1"),
        format!("plain.test=https://{FAKE}"),
    );
    let story = story(&["nowhere.test=https://nowhere.invalid", &refused, &plain], |_| {});
    for (ns, reason) in [
        ("nowhere.test", "lookup"),
        ("refused.test", "refused"),
        ("plain.test", "plain.test does not answer"),
    ] {
        let response = story.get(PEER, "manifests/v1", ns);
        let said = response.text();
        let is_passed_on = said.contains("the mirror answered 503: ") && said.contains(reason);
        assert!(
            response.status == 503 && is_passed_on,
            "{ns}: {} {said}",
            response.status
        );
        let metrics = story.cluster.peers[0].metrics();
        let by_mirror = format!("piecemeal_upstream_answers_total{{upstream=\"{ns}\",answer=\"mirror\"}}");
        assert!(metrics.contains(&by_mirror), "{metrics}");
    }
}

/// A CA, a server certificate for the upstream's address, a self-signed one that is an authority's, and a client certificate with its
/// key.
struct Pki(std::path::PathBuf);

impl Pki {
    fn in_folder(dir: &std::path::Path) -> Self {
        let (ca_key, mut ca) = (key_pair(), CertificateParams::default());
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).expect("a CA");
        let issuer = Issuer::new(ca, ca_key);
        let leaf = |names: &[String], purpose| {
            let key = key_pair();
            let mut params = CertificateParams::new(names).expect("names");
            params.extended_key_usages = vec![purpose];
            let certificate = params.signed_by(&key, &issuer).expect("a certificate");
            (certificate.pem(), key.serialize_pem())
        };
        let (server, server_key) = leaf(&[ORIGIN_IP.to_string()], ExtendedKeyUsagePurpose::ServerAuth);
        let (client, client_key) = leaf(&["mirror".to_owned()], ExtendedKeyUsagePurpose::ClientAuth);
        let (self_key, mut own) = (
            key_pair(),
            CertificateParams::new([ORIGIN_IP.to_string()]).expect("names"),
        );
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = own.self_signed(&self_key).expect("a certificate");
        let pki = Self(dir.to_owned());
        for (name, text) in [
            ("ca.pem", ca_certificate.pem()),
            ("server.pem", server),
            ("server.key", server_key),
            ("self.pem", own.pem()),
            ("self.key", self_key.serialize_pem()),
            ("client.pem", client + &client_key),
        ] {
            fs::write(pki.path(name), text).expect("writing a certificate");
        }
        pki
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.join(name)
    }
}

fn key_pair() -> KeyPair {
    KeyPair::generate().expect("a key")
}

#[test]
fn an_upstream_that_is_ourselves_is_refused_at_once() {
    let own = format!("{HOST}=http://{MIRROR}/{HOST}");
    let story = story(&[&own], |_| {});
    for port in [MIRROR, PEER] {
        for resource in [
            "manifests/v1".to_owned(),
            format!("blobs/{}", story.image.layers()[0].digest),
        ] {
            let asked = Instant::now();
            let response = story.get(port, &resource, HOST);
            assert_eq!(response.status, 421, "{port}: {}", response.text());
            assert!(
                asked.elapsed() < Duration::from_secs(2),
                "it took {:?}",
                asked.elapsed()
            );
        }
    }
}

#[test]
fn a_ceiling_on_the_wan_is_kept() {
    let story = story(&[&fake()], |options| mirror_flags(options, &["--wan-limit", "300k"]));
    let started = Instant::now();
    story.pull(PEER, HOST);
    let took = started.elapsed();
    // 1.2 MB, less what a bucket may hold at first.
    assert!(took > Duration::from_secs(2), "it took only {took:?}");
}

#[test]
fn a_tls_hello_on_a_plain_port_is_answered_in_words_that_its_client_understands() {
    use std::io::{Read, Write};
    let story = story(&[&fake()], |_| {});
    let node = story.cluster.site.node(0);
    let mut stream = node.enter(|| std::net::TcpStream::connect(PEER)).expect("connecting");
    // The beginning of a ClientHello; no more of it is needed.
    stream
        .write_all(&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3])
        .expect("sending");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
    assert!(answer.contains("plain HTTP"), "{answer:?}");
}

/// Larger than what is read into memory to find its size.
const LARGE: usize = 66 << 20;

#[test]
fn a_size_that_only_the_manifest_states_is_found_again_after_a_restart() {
    let mut story = story(&[&fake()], |_| {});
    story.image = Image::new("library/large", "v1").layer_bytes(&[LARGE, 70_000]);
    story.upstream.add_image(&story.image);
    for layer in story.image.layers() {
        story.upstream.behave(&layer.digest, Behaviour::NoContentLength);
    }
    assert_eq!(story.by_tag(PEER).status, 200);
    story.cluster.restart_daemons();
    for (port, layer) in [MIRROR, PEER]
        .iter()
        .flat_map(|port| story.image.layers().iter().map(move |layer| (port, layer)))
    {
        let target = format!("/v2/{}/blobs/{}?ns={HOST}", story.image.repository(), layer.digest);
        let head = story.send(Request::head(address(port), &target));
        let length = head.headers.get("content-length").map(str::to_owned);
        assert_eq!((head.status, length), (200, Some(layer.size.to_string())), "{port}");
        let got = story.send(Request::get(address(port), &target).patience(Duration::from_secs(60)));
        assert!(
            got.status == 200 && got.body == layer.bytes,
            "{port}: {} {}",
            got.status,
            got.body.len()
        );
    }
}
