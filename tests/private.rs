//! Private images stay private: at a node's registry port, at the mirror's, and at the piece ports.

mod support;

use std::{
    fs,
    net::{SocketAddr, SocketAddrV4},
    os::unix::fs::PermissionsExt,
    thread,
    time::{Duration, Instant},
};

use support::{
    Behaviour, Cluster, ClusterOptions, FakeUpstream, HOST, Image, ORIGIN_IP, PASSWORD, RegistryAuth, Reply, Request,
    Response, Site, SiteBuilder, TokenServer, USER, basic,
};

const PEER: &str = "127.0.0.1:65001";
const MIRROR: &str = "10.88.0.2:65011";
const FAKE: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5001);
const ELSEWHERE: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5002);

fn site(nodes: usize) -> SiteBuilder {
    Site::builder().nodes(nodes).wan_mbit(200).lan_mbit(400)
}

fn image() -> Image {
    Image::new("library/app", "v1").layer_bytes(&[700_000, 300_000])
}

fn flags(options: &mut ClusterOptions, flags: &[&str]) {
    for all in [&mut options.mirror.extra_args, &mut options.peer.extra_args] {
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }
}

/// The test networks have no TLS; these tests are about rights only.
fn plain(options: &mut ClusterOptions) {
    flags(options, &["--allow-plain-credentials", "true"]);
}

/// A site whose upstream asks for a password, with an image pushed.
fn guarded(nodes: usize, change: impl FnOnce(&mut ClusterOptions)) -> (Cluster, Image) {
    let cluster = Cluster::guarded(site(nodes), |_| RegistryAuth::Htpasswd, change);
    let image = image();
    cluster.registry.push(&image);
    (cluster, image)
}

/// A site whose upstream misbehaves as the test says.
fn faked(change: impl FnOnce(&mut ClusterOptions)) -> (Cluster, FakeUpstream, Image) {
    let cluster = Cluster::cold_with(site(1), |options| {
        let upstream = vec![format!("{HOST}=http://{FAKE}")];
        options.mirror.upstreams.clone_from(&upstream);
        options.peer.upstreams = upstream;
        change(options);
    });
    let image = image();
    let upstream = FakeUpstream::start(cluster.site.origin(), FAKE, &image);
    (cluster, upstream, image)
}

/// Everything of an image, as a client asks for it.
fn targets(image: &Image) -> Vec<String> {
    let at = |resource: String| format!("/v2/{}/{resource}?ns={HOST}", image.repository());
    let mut targets = vec![
        at(format!("manifests/{}", image.tag())),
        at(format!("manifests/{}", image.digest())),
        at("tags/list".to_owned()),
    ];
    targets.extend(image.blobs().map(|blob| at(format!("blobs/{}", blob.digest))));
    targets
}

fn ask(cluster: &Cluster, node: usize, port: &str, target: &str, authorization: Option<&str>) -> Response {
    send(cluster, node, Request::get(address(port), target), authorization)
}

fn send(cluster: &Cluster, node: usize, request: Request, authorization: Option<&str>) -> Response {
    let request = authorization
        .iter()
        .fold(request, |request, value| request.header("Authorization", value));
    request.send_from(cluster.site.node(node)).expect("an answer")
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn has_everything(cluster: &Cluster, node: usize, port: &str, image: &Image, authorization: Option<&str>) {
    for target in targets(image) {
        let response = ask(cluster, node, port, &target, authorization);
        assert_eq!(response.status, 200, "{port}{target}: {}", response.text());
        if let Some(blob) = image.blobs().find(|blob| target.contains(&blob.digest)) {
            assert!(response.body == blob.bytes, "{port}{target}");
        }
    }
}

fn has_nothing(cluster: &Cluster, node: usize, port: &str, image: &Image, authorization: Option<&str>) {
    for target in targets(image) {
        for method in ["GET", "HEAD"] {
            let response = send(
                cluster,
                node,
                Request::new(method, address(port), &target),
                authorization,
            );
            assert!(
                matches!(response.status, 401 | 403),
                "{port} {method} {target}: {}",
                response.status
            );
            assert!(image.blobs().all(|blob| response.body != blob.bytes));
        }
    }
}

#[test]
fn a_private_image_is_served_only_to_those_who_could_pull_it_upstream() {
    let (cluster, image) = guarded(2, plain);
    let (alice, mallory) = (basic(USER, PASSWORD), basic("mallory", "guess"));
    for port in [PEER, MIRROR] {
        // Cold first, then with everything cached.
        for _ in 0..2 {
            has_nothing(&cluster, 0, port, &image, None);
            has_nothing(&cluster, 0, port, &image, Some(&mallory));
            has_everything(&cluster, 0, port, &image, Some(&alice));
        }
        has_nothing(&cluster, 0, port, &image, None);
        has_nothing(&cluster, 0, port, &image, Some(&mallory));
    }
    // Another node, whose neighbour has it all.
    has_nothing(&cluster, 1, PEER, &image, None);
    // The digests alone open nothing, under no other name either.
    for blob in image.blobs() {
        for name in ["library/other", "library/app/x"] {
            let target = format!("/v2/{name}/blobs/{}?ns={HOST}", blob.digest);
            for port in [PEER, MIRROR] {
                assert_ne!(ask(&cluster, 0, port, &target, None).status, 200, "{port}{target}");
                assert_ne!(
                    ask(&cluster, 0, port, &target, Some(&alice)).status,
                    200,
                    "{port}{target}"
                );
            }
        }
        for port in ["10.88.1.1:65002", "10.88.0.2:65002"] {
            for authorization in [None, Some(&*alice)] {
                let target = format!("/piece/v1/{}/0000000000000001/0-0", blob.digest);
                assert_eq!(
                    ask(&cluster, 0, port, &target, authorization).status,
                    401,
                    "{port}{target}"
                );
            }
        }
    }
    has_everything(&cluster, 1, PEER, &image, Some(&alice));
    for layer in image.layers() {
        assert_eq!(cluster.registry.blob_bytes_served(&layer.digest), layer.size);
    }
}

#[test]
fn the_upstreams_own_challenge_reaches_the_client_and_we_never_make_one() {
    let (cluster, image) = guarded(1, plain);
    for port in [PEER, MIRROR] {
        for target in targets(&image) {
            let response = ask(&cluster, 0, port, &target, None);
            let upstream = Request::get(cluster.registry.address(), &target)
                .send_from(cluster.site.origin())
                .expect("an answer");
            let challenge = upstream.headers.get("www-authenticate").expect("a challenge");
            assert_eq!(
                response.headers.get("www-authenticate"),
                Some(challenge),
                "{port}{target}"
            );
        }
        assert_eq!(ask(&cluster, 0, port, "/v2/", None).status, 200);
    }
}

/// Clients that ping show a credential only if the answer asks for one.
#[test]
fn a_ping_that_names_a_private_registry_gets_its_own_challenge_and_a_login_its_own_verdict() {
    let (cluster, image) = guarded(1, plain);
    let (accelerated, at) = ("origin.test.piecemeal.internal:65001", image.repository());
    let pings = || cluster.registry.requests("GET", "/v2/", 401) + cluster.registry.requests("GET", "/v2/", 200);
    let before = pings();
    for port in [PEER, MIRROR] {
        let by_host = |target: &str, authorization: Option<&str>| {
            let request = Request::get(address(port), target).header("Host", accelerated);
            send(&cluster, 0, request, authorization)
        };
        let by_ns = ask(&cluster, 0, port, &format!("/v2/?ns={HOST}"), None);
        for response in [by_host("/v2/", None), by_host("/v2/", None), by_ns] {
            assert_eq!(response.status, 401, "{port}");
            let challenge = response.headers.get("www-authenticate").expect("a challenge");
            assert!(challenge.starts_with("Basic realm="), "{challenge}");
        }
        // As `docker login` asks.
        assert_eq!(by_host("/v2/", Some(&basic(USER, PASSWORD))).status, 200, "{port}");
        assert_eq!(by_host("/v2/", Some(&basic(USER, "oops"))).status, 401, "{port}");
        let manifest = by_host(
            &format!("/v2/{at}/manifests/{}", image.tag()),
            Some(&basic(USER, PASSWORD)),
        );
        assert_eq!(manifest.status, 200, "{port}: {}", manifest.text());
        // What names no registry that is known asks for nothing.
        for target in ["/v2/", "/v2/?ns=elsewhere.test"] {
            assert_eq!(ask(&cluster, 0, port, target, None).status, 200, "{port}{target}");
        }
    }
    assert_eq!(pings() - before, 3, "one without a credential, and one for each login");
}

/// The login of a client that names the registry by path is for the peer's address, whatever the path names.
#[test]
fn a_login_by_path_goes_to_a_registry_only_where_it_asks_for_one() {
    let (cluster, upstream, image) = faked(plain);
    let target = |resource: &str| format!("/v2/{HOST}/{}/{resource}", image.repository());
    let shown = || {
        let recorded = upstream.recorded().into_iter();
        recorded
            .filter_map(|request| request.headers.get("authorization").map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let login = basic("bob", "for-another-registry");
    let layer = format!("blobs/{}", image.layers()[0].digest);
    for port in [PEER, MIRROR] {
        for resource in ["manifests/v1", "tags/list", &layer] {
            let response = ask(&cluster, 0, port, &target(resource), Some(&login));
            assert_eq!(response.status, 200, "{port} {resource}: {}", response.text());
        }
    }
    assert_eq!(shown(), [""; 0], "it asked for nothing");
    let guarded = basic(USER, PASSWORD);
    let private = guarded.clone();
    upstream.rule(move |request| {
        let is_private = request.target.contains("/private/");
        let shows = request.headers.get("authorization") == Some(&*private);
        let refusal = || Reply::short(401, "application/json", "{}");
        let challenge = r#"Basic realm="r""#.to_owned();
        (is_private && !shows).then(|| refusal().header("WWW-Authenticate", challenge))
    });
    let private = Image::new("private/app", "v1").layer_bytes(&[50_000]);
    upstream.add_image(&private);
    for port in [PEER, MIRROR] {
        let target = format!("/v2/{HOST}/private/app/manifests/v1");
        assert_eq!(ask(&cluster, 0, port, &target, None).status, 401, "{port}");
        assert_eq!(ask(&cluster, 0, port, &target, Some(&guarded)).status, 200, "{port}");
        assert_eq!(ask(&cluster, 0, port, &target, Some(&login)).status, 401, "{port}");
        let blob = format!("/v2/{HOST}/private/app/blobs/{}", private.layers()[0].digest);
        let response = ask(&cluster, 0, port, &blob, Some(&guarded));
        assert!(
            response.status == 200 && response.body == private.layers()[0].bytes,
            "{port}"
        );
    }
    assert_eq!(
        upstream.body_bytes(&private.layers()[0].digest),
        private.layers()[0].size
    );
}

#[test]
fn a_node_costs_one_token_and_one_head_of_its_own_and_no_more() {
    const NODES: usize = 3;
    let mut tokens = None;
    let cluster = Cluster::guarded(
        site(NODES).nodes_reach_upstream(true),
        |site| RegistryAuth::Token(tokens.insert(TokenServer::start(site.origin(), ELSEWHERE))),
        |options| {
            plain(options);
            options
                .mirror
                .extra_args
                .extend(["--tag-ttl".to_owned(), "10m".to_owned()]);
        },
    );
    let image = image();
    cluster.registry.push(&image);
    let tokens = tokens.expect("it was started");
    let users: Vec<String> = (0..NODES).map(|node| format!("user{node}")).collect();
    for user in &users {
        tokens.grant(user, PASSWORD, "library/app");
    }
    let log = |method: &str, end: &str| cluster.registry.requests(method, end, 200);

    for (node, user) in users.iter().enumerate() {
        let heads = log("HEAD", "");
        let first = ask(&cluster, node, PEER, &targets(&image)[0], None);
        assert_eq!(first.status, 401);
        let challenge = first.headers.get("www-authenticate").expect("a challenge");
        assert!(challenge.contains(&tokens.realm()), "{challenge}");
        let bearer = token(&cluster, node, challenge, &basic(user, PASSWORD));
        has_everything(&cluster, node, PEER, &image, Some(&bearer));
        assert_eq!(tokens.granted(Some(&basic(user, PASSWORD))), 1);
        if node > 0 {
            assert_eq!(
                log("HEAD", "") - heads,
                1,
                "node {node}\n{}",
                cluster.registry.log_text()
            );
        }
    }
    assert_eq!(tokens.granted(None), 0, "no anonymous token was granted");
    assert_eq!(log("GET", "/manifests/v1"), 1);
    for layer in image.layers() {
        assert_eq!(cluster.registry.blob_bytes_served(&layer.digest), layer.size);
    }
    // Public content needs no token from the client.
    let public = Image::new("library/public", "v1").layer_bytes(&[5000]);
    cluster.registry.push(&public);
    has_everything(&cluster, 0, PEER, &public, None);
}

/// Answers a challenge as a client does.
fn token(cluster: &Cluster, node: usize, challenge: &str, authorization: &str) -> String {
    let parameter = |name: &str| {
        let (_, rest) = challenge.split_once(&format!("{name}=\"")).expect("the parameter");
        rest.split('"').next().unwrap_or_default().to_owned()
    };
    let target = format!("/token?service={}&scope={}", parameter("service"), parameter("scope"));
    let request = Request::get(ELSEWHERE.into(), &target);
    let answer = send(cluster, node, request, Some(authorization));
    let answer: serde_json::Value = serde_json::from_slice(&answer.body).expect("a token");
    format!("Bearer {}", answer["token"].as_str().expect("a token"))
}

#[test]
fn only_an_authorised_node_pulls_by_tag_while_the_wan_is_down() {
    let (cluster, image) = guarded(2, |options| {
        plain(options);
        options
            .mirror
            .extra_args
            .extend(["--tag-ttl".to_owned(), "0s".to_owned()]);
    });
    has_everything(&cluster, 0, PEER, &image, Some(&basic(USER, PASSWORD)));
    cluster.site.block_wan();

    // A client shows nothing before it is asked, and cannot get a token now.
    let by_tag = ask(&cluster, 0, PEER, &targets(&image)[0], None);
    assert_eq!(by_tag.status, 200, "{}", by_tag.text());
    let warning = by_tag.headers.get("warning").expect("it may be old");
    assert!(warning.starts_with("299 - \"stale"), "{warning}");
    has_everything(&cluster, 0, PEER, &image, None);
    for (node, port) in [(1, PEER), (0, MIRROR), (1, MIRROR)] {
        for target in targets(&image) {
            let response = ask(&cluster, node, port, &target, None);
            assert_ne!(response.status, 200, "{port}{target}");
        }
    }
    cluster.site.unblock_wan();
}

#[test]
fn the_grace_of_an_offline_site_ends() {
    let (cluster, image) = guarded(1, |options| {
        plain(options);
        flags(options, &["--offline-grace", "300ms", "--verdict-ttl", "300ms"]);
    });
    has_everything(&cluster, 0, PEER, &image, Some(&basic(USER, PASSWORD)));
    cluster.site.block_wan();
    thread::sleep(Duration::from_secs(1));
    for target in targets(&image) {
        assert_ne!(ask(&cluster, 0, PEER, &target, None).status, 200, "{target}");
    }
    cluster.site.unblock_wan();
}

#[test]
fn a_revoked_credential_ends_within_the_life_of_a_verdict() {
    let (cluster, upstream, image) = faked(|options| {
        plain(options);
        flags(options, &["--verdict-ttl", "2s"]);
    });
    let realm = format!("http://{FAKE}/token");
    upstream.require_token("old", &realm);
    has_everything(&cluster, 0, PEER, &image, Some("Bearer old"));
    upstream.require_token("new", &realm);

    let deadline = Instant::now() + Duration::from_secs(10);
    while targets(&image)
        .iter()
        .any(|target| ask(&cluster, 0, PEER, target, Some("Bearer old")).status == 200)
    {
        assert!(Instant::now() < deadline, "a revoked credential is still good");
        thread::sleep(Duration::from_millis(100));
    }
    has_nothing(&cluster, 0, PEER, &image, Some("Bearer old"));
    has_everything(&cluster, 0, PEER, &image, Some("Bearer new"));
}

#[test]
fn realms_and_redirects_elsewhere_see_no_credential() {
    let (cluster, upstream, image) = faked(plain);
    let elsewhere = FakeUpstream::start(cluster.site.origin(), ELSEWHERE, &image);
    // In the clear, and where no upstream leads.
    upstream.require_token("secret", "http://169.254.169.254/token");
    let response = ask(&cluster, 0, PEER, &targets(&image)[0], None);
    assert_eq!(response.status, 401);
    assert_eq!(
        response.headers.get("www-authenticate"),
        None,
        "a client would send its password to where this leads"
    );

    let layer = &image.layers()[0];
    let stored = format!("http://{ELSEWHERE}/v2/library/app/blobs/{}", layer.digest);
    upstream.behave(&layer.digest, Behaviour::Redirect(stored));
    has_everything(&cluster, 0, PEER, &image, Some("Bearer secret"));
    let recorded = elsewhere.recorded();
    assert!(!recorded.is_empty(), "the redirect was not followed");
    for request in recorded {
        for header in ["authorization", "piecemeal-node", "piecemeal-proof"] {
            assert_eq!(request.headers.get(header), None, "{request:?}");
        }
    }
}

#[test]
fn what_a_registry_only_claims_is_not_served_under_its_name_once_another_has_sent_it() {
    const CLAIMS: &str = "claims.test";
    let (cluster, upstream, image) = faked(|options| {
        plain(options);
        for upstreams in [&mut options.mirror.upstreams, &mut options.peer.upstreams] {
            upstreams.push(format!("{CLAIMS}=http://{ELSEWHERE}"));
        }
    });
    upstream.require_token("secret", "http://169.254.169.254/token");
    // It has the image's manifest, and of the layer the size only.
    let claims = FakeUpstream::start(cluster.site.origin(), ELSEWHERE, &image);
    let layer = &image.layers()[0];
    let lies = Behaviour::LieFrom {
        fraction: 0.0,
        times: u32::MAX,
    };
    claims.behave(&layer.digest, lies);
    let claimed = format!("/v2/{}/blobs/{}?ns={CLAIMS}", image.repository(), layer.digest);
    for port in [PEER, MIRROR] {
        let stated = send(&cluster, 0, Request::head(address(port), &claimed), None);
        assert_eq!(stated.status, 200, "it says that it has the blob");
        let asked = ask(&cluster, 0, port, &claimed, None);
        assert!(!asked.complete || asked.status != 200, "{}", asked.status);
    }
    has_everything(&cluster, 0, PEER, &image, Some("Bearer secret"));
    for port in [PEER, MIRROR] {
        // A repository of its own counts as one that the caller may pull from.
        let manifest = format!("/v2/{}/manifests/{}?ns={CLAIMS}", image.repository(), image.tag());
        assert_eq!(ask(&cluster, 0, port, &manifest, None).status, 200);
        let answer = ask(&cluster, 0, port, &claimed, None);
        assert!(
            answer.status >= 400,
            "{port} answers {} with {} bytes",
            answer.status,
            answer.body.len()
        );
        assert!(answer.body != layer.bytes);
    }
}

#[test]
fn an_anonymous_pull_sends_the_upstream_no_credential_and_no_internal_header() {
    let (cluster, upstream, image) = faked(plain);
    // Some clients send an empty user with an empty password instead of nothing.
    has_everything(&cluster, 0, PEER, &image, Some("Basic Og=="));
    for request in upstream.recorded() {
        for header in ["authorization", "cookie", "piecemeal-node", "piecemeal-proof"] {
            assert_eq!(request.headers.get(header), None, "{request:?}");
        }
    }
}

#[test]
fn a_credential_does_not_cross_a_network_in_the_clear_unless_that_is_allowed() {
    let (cluster, upstream, image) = faked(|_| {});
    for port in [PEER, MIRROR] {
        let response = ask(&cluster, 0, port, &targets(&image)[0], Some("Bearer secret"));
        assert_eq!(response.status, 403, "{}", response.text());
        assert!(
            response.text().contains("allow_plain_credentials"),
            "{}",
            response.text()
        );
        assert!(!response.text().contains("secret"));
    }
    let leaked = |request: &support::RecordedRequest| request.headers.get("authorization").is_some();
    assert!(!upstream.recorded().iter().any(leaked));
    for daemon in [cluster.mirror.log_text(), cluster.peers[0].log_text()] {
        assert!(!daemon.contains("secret"), "{daemon}");
    }
}

#[test]
fn the_sites_own_credentials_serve_its_nodes_and_not_the_lan() {
    let (cluster, image) = guarded(1, |options| {
        plain(options);
        let file = options.mirror.authority_key.with_file_name("upstream.secret");
        fs::write(&file, format!("{USER}:{PASSWORD}\n")).expect("writing the credentials");
        let credentials = format!("{HOST}=file:{}", file.display());
        options
            .mirror
            .extra_args
            .extend(["--credentials".to_owned(), credentials]);
    });
    has_everything(&cluster, 0, PEER, &image, None);
    has_nothing(&cluster, 0, MIRROR, &image, None);
    has_everything(&cluster, 0, MIRROR, &image, Some(&basic(USER, PASSWORD)));
    has_nothing(&cluster, 0, MIRROR, &image, Some(&basic(USER, "wrong")));
}

#[test]
fn serve_site_serves_the_whole_lan_with_the_sites_own_credentials() {
    let (cluster, image) = guarded(1, |options| {
        plain(options);
        let file = options.mirror.authority_key.with_file_name("config.json");
        let auth = basic(USER, PASSWORD);
        let auth = auth.trim_start_matches("Basic ");
        fs::write(&file, format!(r#"{{"auths": {{"{HOST}": {{"auth": "{auth}"}}}}}}"#)).expect("writing config.json");
        let credentials = format!("{HOST}=docker-config:{}", file.display());
        let more = ["--credentials", &credentials, "--serve-site", HOST];
        options.mirror.extra_args.extend(more.map(str::to_owned));
    });
    has_everything(&cluster, 0, MIRROR, &image, None);
    has_everything(&cluster, 0, PEER, &image, None);
}

#[test]
fn a_credential_helper_is_asked_again_when_its_answer_has_changed() {
    let (cluster, image) = guarded(1, |options| {
        plain(options);
        let helper = options.mirror.authority_key.with_file_name("docker-credential-test");
        let answer = helper.with_file_name("answer.json");
        fs::write(&answer, r#"{"ServerURL":"x","Username":"alice","Secret":"not yet"}"#).expect("writing an answer");
        fs::write(
            &helper,
            format!(
                "#!/bin/sh\n[ \"$1\" = get ] || exit 1\nread server\n[ \"$server\" = {HOST} ] || exit 1\ncat {}\n",
                answer.display()
            ),
        )
        .expect("writing a helper");
        fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("making it run");
        let credentials = format!("{HOST}=helper:{}", helper.display());
        options
            .mirror
            .extra_args
            .extend(["--credentials".to_owned(), credentials]);
    });
    has_nothing(&cluster, 0, PEER, &image, None);
    let answer = cluster.keys.authority().with_file_name("answer.json");
    let changed = format!(r#"{{"ServerURL":"x","Username":"{USER}","Secret":"{PASSWORD}"}}"#);
    fs::write(answer, changed).expect("writing an answer");
    let deadline = Instant::now() + Duration::from_secs(30);
    while ask(&cluster, 0, PEER, &targets(&image)[0], None).status != 200 {
        assert!(Instant::now() < deadline, "the new credential is not taken up");
        thread::sleep(Duration::from_millis(500));
    }
    has_everything(&cluster, 0, PEER, &image, None);
    assert!(!cluster.mirror.log_text().contains(PASSWORD));
}
