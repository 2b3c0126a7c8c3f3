//! Where an upstream may lead the mirror, by redirects, token realms and DNS names, and which servers get the site's password.
//!
//! Registries, storage, token servers and forbidden targets are all in the mirror's own namespace, at addresses of their kinds; the
//! test's own name server resolves the names.

mod support;

use std::{
    fs,
    net::{SocketAddr, SocketAddrV4},
};

use support::{
    Behaviour, FakeUpstream, Image, Keys, Mirror, MirrorOptions, NameServer, Request, Response, Scheduler,
    SchedulerOptions, Site, basic,
};

const MIRROR: &str = "10.88.0.2:65011";
/// Forbidden targets, and addresses at which a registry or storage may be.
const ADDRESSES: [&str; 10] = [
    "169.254.169.254",
    "100.100.100.200",
    "198.18.0.5",
    "203.0.113.1",
    "203.0.113.2",
    "203.0.113.3",
    "203.0.113.9",
    "10.77.0.1",
    "10.77.0.2",
    "100.118.28.45",
];

struct Story {
    // Dropped in order: the daemons before what they ask.
    mirror: Mirror,
    _scheduler: Scheduler,
    registry: FakeUpstream,
    image: Image,
    names: NameServer,
    site: Site,
}

impl Story {
    /// A mirror of the registry `origin.test`, which is at `registry` (`host:port`) and listens at `at`.
    fn new(registry: &str, at: &str, flags: &[&str]) -> Self {
        let site = Site::builder().nodes(1).wan_mbit(200).lan_mbit(400).build();
        let addresses: String = ADDRESSES
            .iter()
            .map(|address| format!("addr add {address}/32 dev lo\n"))
            .collect();
        site.mirror().ip(&addresses);
        let names = NameServer::start(site.mirror());
        for (name, address) in [
            ("public.example", "203.0.113.1"),
            ("inside.example", "10.77.0.1"),
            ("storage.example", "203.0.113.9"),
            ("minio.example", "10.77.0.2"),
            ("metadata.example", "169.254.169.254"),
            ("me.example", "127.0.0.1"),
            ("mirror.example", "10.88.0.2"),
            ("b.oss-cn-hangzhou-internal.aliyuncs.com", "100.118.28.45"),
            ("registry.example.co.uk", "203.0.113.1"),
            ("auth.registry.example.co.uk", "203.0.113.2"),
            ("evil.co.uk", "203.0.113.3"),
        ] {
            names.set(name, &[address]);
        }
        let image = Image::new("library/app", "v1").layer_bytes(&[70_000, 80_000, 90_000, 100_000, 110_000, 120_000]);
        let registry_server = FakeUpstream::start(site.mirror(), v4(at), &image);
        let keys = Keys::generate(&site.dir().join("keys"));
        let scheduler = Scheduler::start(&site, SchedulerOptions::new(&keys));
        let mut options = MirrorOptions::new(&keys);
        options.upstreams = vec![format!("origin.test=http://{registry}")];
        fs::write(site.dir().join("password"), "alice:secret\n").expect("writing the password");
        let password = site.dir().join("password").display().to_string();
        let told = |flag: &&str| flag.replace("PASSWORD", &password);
        options.extra_args = flags.iter().map(told).collect();
        let mirror = Mirror::start(&site, options);
        Self {
            mirror,
            _scheduler: scheduler,
            registry: registry_server,
            image,
            names,
            site,
        }
    }

    fn server(&self, at: &str) -> FakeUpstream {
        FakeUpstream::start(self.site.mirror(), v4(at), &self.image)
    }

    fn get(&self, resource: &str) -> Response {
        let target = format!("/v2/library/app/{resource}?ns=origin.test");
        let request = Request::get(MIRROR.parse().expect("an address"), &target);
        request.send_from(self.site.node(0)).expect("an answer")
    }

    /// The answer to a pull whose manifest is redirected to `location`.
    fn led_to(&self, location: &str) -> Response {
        let redirect = Behaviour::Redirect(location.to_owned());
        self.registry.behave(self.image.digest(), redirect);
        self.get("manifests/v1")
    }

    /// The answer to a pull whose blob is redirected to storage at `host`.
    fn stored_at(&self, blob: usize, host: &str) -> Response {
        let digest = &self.image.layers()[blob].digest;
        let stored = format!("http://{host}/stored/{digest}?sig=1");
        self.registry.behave(digest, Behaviour::Redirect(stored));
        self.get(&format!("blobs/{digest}"))
    }

    fn assert_refused(&self, location: &str) {
        let response = self.led_to(location);
        let said = response.text();
        assert!(
            response.status == 502 && said.contains("--allow-target"),
            "{location}: {} {said}",
            response.status
        );
    }
}

fn v4(text: &str) -> SocketAddrV4 {
    text.parse().expect("an address and a port")
}

/// Each server would answer with the manifest: a redirect that is followed gives it.
const MANIFEST: &str = "/v2/library/app/manifests/v1";

#[test]
fn no_registry_leads_to_metadata_to_this_machine_or_to_our_own_ports() {
    for (registry, at) in [
        ("public.example:5000", "203.0.113.1:5000"),
        ("10.77.0.1:5000", "10.77.0.1:5000"),
    ] {
        let story = Story::new(registry, at, &[]);
        let secrets: Vec<_> = [
            "169.254.169.254:80",
            "100.100.100.200:80",
            "198.18.0.5:80",
            "127.0.0.1:80",
        ]
        .into_iter()
        .map(|at| story.server(at))
        .collect();
        for host in [
            "169.254.169.254",
            "0xa9fea9fe",
            "[::ffff:169.254.169.254]",
            "[64:ff9b::a9fe:a9fe]",
            "metadata.example",
            "100.100.100.200",
            "198.18.0.5",
            "127.0.0.1",
            "localhost",
            "me.example",
            "0.0.0.0",
            "me.example:65013",
            "127.0.0.1:65013",
            "10.88.0.2:65013",
            "10.88.0.2:65012",
            "mirror.example:65013",
            "mirror.example:65011",
            "10.88.0.2:65011",
        ] {
            story.assert_refused(&format!("http://{host}{MANIFEST}"));
        }
        for secret in &secrets {
            assert!(
                secret.recorded().is_empty(),
                "{}: {:?}",
                secret.address(),
                secret.recorded()
            );
        }
        let log = story.mirror.log_text();
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[test]
fn a_realm_leads_no_farther_than_a_redirect() {
    let story = Story::new("public.example:5000", "203.0.113.1:5000", &[]);
    let secret = story.server("169.254.169.254:80");
    let inside = story.server("10.77.0.2:80");
    for realm in [
        "169.254.169.254",
        "metadata.example",
        "minio.example",
        "public.example@169.254.169.254",
        "me.example:65013",
    ] {
        story
            .registry
            .require_token("anonymous", &format!("http://{realm}/token"));
        // What was refused is remembered by tag.
        let tag = realm.replace(|character: char| !character.is_ascii_alphanumeric(), "-");
        assert_eq!(story.get(&format!("manifests/{tag}")).status, 401, "{realm}");
    }
    assert!(secret.recorded().is_empty() && inside.recorded().is_empty());
}

#[test]
fn of_a_names_addresses_only_those_that_pass_are_connected_to_however_often_they_change() {
    let story = Story::new("public.example:5000", "203.0.113.1:5000", &[]);
    // Ports of their own, so that each blob is a new connection and a new lookup.
    let at = |address: &str| -> Vec<_> {
        let ports = 8000..8000 + story.image.layers().len();
        ports.map(|port| story.server(&format!("{address}:{port}"))).collect()
    };
    let (good, bad) = (at("203.0.113.9"), at("169.254.169.254"));
    story.names.set_in_turn(
        "both.example",
        &[&["169.254.169.254", "203.0.113.9"], &["203.0.113.9", "169.254.169.254"]],
    );
    story
        .names
        .set_in_turn("rebind.example", &[&["203.0.113.9"], &["169.254.169.254"]]);
    let mut refused = 0;
    for blob in 0..story.image.layers().len() {
        let name = if blob < 2 { "both.example" } else { "rebind.example" };
        let response = story.stored_at(blob, &format!("{name}:{}", 8000 + blob));
        if response.status == 200 {
            assert!(response.body == story.image.layers()[blob].bytes);
        } else {
            refused += 1;
        }
    }
    assert!(
        bad.iter().all(|server| server.recorded().is_empty()),
        "a bad address was asked"
    );
    assert!(
        good[0].recorded().len() + good[1].recorded().len() >= 2,
        "both names have a good address"
    );
    assert!(
        story.names.lookups("rebind.example") >= 2 && refused >= 1,
        "the name did change"
    );
    assert!(good[2..].iter().any(|server| !server.recorded().is_empty()));
}

#[test]
fn private_storage_is_reached_from_a_registry_inside_or_where_it_is_named() {
    let inside = Story::new("inside.example:5000", "10.77.0.1:5000", &[]);
    let storage = inside.server("10.77.0.2:80");
    assert_eq!(inside.stored_at(0, "10.77.0.2").status, 200);
    assert_eq!(inside.stored_at(1, "minio.example").status, 200);

    // A host outside may not redirect on with the rights of the registry that redirected to it.
    let public = inside.server("203.0.113.9:80");
    let digest = &inside.image.layers()[2].digest;
    let detour = format!("http://storage.example/v2/library/app/blobs/{digest}");
    inside.registry.behave(digest, Behaviour::Redirect(detour));
    public.behave(
        digest,
        Behaviour::Redirect(format!("http://minio.example/stored/{digest}")),
    );
    let response = inside.get(&format!("blobs/{digest}"));
    assert_eq!(
        (response.status, public.recorded().is_empty()),
        (502, false),
        "{}",
        response.text()
    );
    drop((storage, public, inside));

    let outside = Story::new("public.example:5000", "203.0.113.1:5000", &[]);
    let (private, _public) = (outside.server("10.77.0.2:80"), outside.server("203.0.113.9:80"));
    let shared = outside.server("100.118.28.45:80");
    for (blob, host) in [(0, "minio.example"), (1, "10.77.0.2")] {
        let refused = outside.stored_at(blob, host);
        let said = refused.text();
        let names_both = said.contains("origin.test (at public.example) leads to") && said.contains(host);
        assert!(names_both && said.contains(&format!("--allow-target {host}")), "{said}");
        assert_eq!(refused.status, 502, "{said}");
    }
    assert!(private.recorded().is_empty());
    assert_eq!(outside.stored_at(2, "storage.example").status, 200);
    assert_eq!(
        outside.stored_at(3, "b.oss-cn-hangzhou-internal.aliyuncs.com").status,
        200
    );
    assert!(!shared.recorded().is_empty());
    drop((private, _public, shared, outside));

    let named = Story::new(
        "public.example:5000",
        "203.0.113.1:5000",
        &["--allow-target", "minio.example"],
    );
    let storage = named.server("10.77.0.2:80");
    assert_eq!(named.stored_at(0, "minio.example").status, 200);
    assert_eq!(
        named.stored_at(1, "10.77.0.2").status,
        502,
        "another name for it was not named"
    );
    drop((storage, named));
}

#[test]
fn a_name_that_clients_choose_leads_to_no_secret_of_the_machine() {
    let story = Story::new(
        "10.77.0.1:5000",
        "10.77.0.1:5000",
        &["--upstream", "*.wild.example=http://*.wild.example"],
    );
    let (secret, registry) = (story.server("169.254.169.254:80"), story.server("10.77.0.2:80"));
    for (name, address, status) in [
        ("good.wild.example", "10.77.0.2", 200),
        ("metadata.wild.example", "169.254.169.254", 502),
        ("me.wild.example", "127.0.0.1", 502),
    ] {
        story.names.set(name, &[address]);
        let request = Request::get(MIRROR.parse().expect("an address"), &format!("{MANIFEST}?ns={name}"));
        let response = request.send_from(story.site.node(0)).expect("an answer");
        assert_eq!(response.status, status, "{name}: {}", response.text());
    }
    assert!(secret.recorded().is_empty() && !registry.recorded().is_empty());
}

#[test]
fn a_registry_on_this_machine_may_lead_to_storage_on_this_machine_and_not_to_us() {
    let story = Story::new("127.0.0.1:5000", "127.0.0.1:5000", &[]);
    let storage = story.server("127.0.0.1:9000");
    assert_eq!(story.stored_at(0, "127.0.0.1:9000").status, 200);
    assert_eq!(story.stored_at(1, "localhost:9000").status, 200);
    assert!(!storage.recorded().is_empty());
    for host in [
        "127.0.0.1:65013",
        "localhost:65013",
        "127.9.9.9:65013",
        "169.254.169.254",
    ] {
        story.assert_refused(&format!("http://{host}{MANIFEST}"));
    }
}

#[test]
fn a_manifest_is_fetched_without_a_password_from_the_registry_that_its_own_one_redirects_to() {
    let flags = [
        "--credentials",
        "origin.test=file:PASSWORD",
        "--serve-site",
        "origin.test",
        "--allow-plain-credentials",
        "true",
    ];
    let story = Story::new("public.example:5000", "203.0.113.1:5000", &flags);
    let other = story.server("203.0.113.9:5002");
    other.require_token("anonymous", "http://storage.example:5002/token");
    let location = format!("http://storage.example:5002{MANIFEST}");
    let response = story.led_to(&location);
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(story.image.manifests().any(|manifest| manifest.bytes == response.body));
    for request in other.recorded() {
        let shown = request.headers.get("authorization");
        assert!(matches!(shown, None | Some("Bearer anonymous")), "{request:?}");
    }
}

#[test]
fn what_is_no_manifest_is_not_taken_for_one_whatever_its_type_and_digest_say() {
    let story = Story::new("public.example:5000", "203.0.113.1:5000", &[]);
    let _storage = story.server("203.0.113.9:80");
    for blob in story.image.blobs() {
        let response = story.led_to(&format!("http://storage.example/stored/{}", blob.digest));
        assert_eq!(response.status, 502, "{}", response.text());
        assert!(response.text().contains("no manifest"), "{}", response.text());
    }
}

#[test]
fn the_sites_password_goes_to_token_servers_of_the_registrys_owner_alone() {
    let flags = [
        "--credentials",
        "origin.test=file:PASSWORD",
        "--serve-site",
        "origin.test",
        "--allow-plain-credentials",
        "true",
    ];
    let named = [&flags[..], &["--token-server", "origin.test=evil.co.uk"]].concat();
    for (realm, flags, goes) in [
        ("auth.registry.example.co.uk", &flags[..], true),
        ("evil.co.uk", &flags[..], false),
        ("evil.co.uk", &named[..], true),
    ] {
        let story = Story::new("registry.example.co.uk:5000", "203.0.113.1:5000", flags);
        let servers = [story.server("203.0.113.2:80"), story.server("203.0.113.3:80")];
        for server in [&story.registry, &servers[0], &servers[1]] {
            server.require_token("granted", &format!("http://{realm}/token"));
        }
        // An anonymous token is granted all the same: what is public is served.
        assert_eq!(story.get("manifests/v1").status, 200, "{realm}");
        let asked: Vec<_> = servers.iter().flat_map(FakeUpstream::recorded).collect();
        assert!(!asked.is_empty(), "{realm}");
        let with_password = asked
            .iter()
            .filter(|request| request.headers.get("authorization") == Some(&basic("alice", "secret")))
            .count();
        assert_eq!(with_password > 0, goes, "{realm} {flags:?}: {asked:?}");
        let log = story.mirror.log_text();
        assert_eq!(log.contains("the held password is not sent there"), !goes, "{log}");
        assert!(!log.contains("secret"), "{log}");
    }
}

#[test]
fn a_challenge_that_names_a_token_server_elsewhere_reaches_a_client_over_tls_only() {
    let story = Story::new(
        "public.example:5000",
        "203.0.113.1:5000",
        &["--allow-plain-credentials", "true"],
    );
    for (tag, realm, passed_on) in [
        ("a", "https://evil.co.uk:1/token", true),
        ("b", "http://169.254.169.254/token", false),
    ] {
        story.registry.require_token("own", realm);
        let request = Request::get(
            MIRROR.parse::<SocketAddr>().expect("an address"),
            &format!("/v2/library/app/manifests/{tag}?ns=origin.test"),
        );
        let with_own = request
            .header("Authorization", "Bearer expired")
            .send_from(story.site.node(0));
        let response = with_own.expect("an answer");
        let challenge = response.headers.get("www-authenticate").unwrap_or_default();
        assert_eq!(
            (response.status, challenge.contains(realm)),
            (401, passed_on),
            "{challenge:?}"
        );
    }
}
