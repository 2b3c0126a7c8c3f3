//! Each client pulls from odd registries through its peer, in p2p with TLS between the daemons, also where it cannot pull directly.
//!
//! Each oddity is one that registries of the field have. The registry's record is the judge of who went around.

mod support;

use std::net::SocketAddrV4;

use support::{
    Chunks, Cluster, CommandOutcome, Containerd, FakeUpstream, HOST, Home, Image, ORIGIN_IP, RecordedRequest, Reply,
    Request, Site, hosts_toml, mirror_url, scheduler_url,
};

const MIB: usize = 1 << 20;
const PEER: &str = "127.0.0.1:65001";
const FAKE: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5001);

/// How a registry answers some requests; the others it answers as any registry.
type Oddity = fn(&RecordedRequest, &Image) -> Option<Reply>;

const ODDITIES: [(&str, Oddity); 7] = [
    ("head-405", |request, _| {
        is_head_of_manifest(request).then(|| Reply::short(405, "text/html", ""))
    }),
    ("head-403", |request, _| {
        is_head_of_manifest(request).then(|| Reply::short(403, "text/html", ""))
    }),
    ("head-bare", |request, _| {
        is_head_of_manifest(request).then(|| Reply::short(200, "application/octet-stream", ""))
    }),
    ("signed-for-get", |request, _| {
        let stored = request.target.contains("/store/");
        let digest = blob(request).filter(|_| !stored);
        let location = digest.map(|digest| format!("http://{FAKE}/store/{digest}?sig=a%2Fb'c'&n=%C3%BC"));
        match location {
            Some(location) => Some(Reply::short(307, "text/plain", "").header("Location", location)),
            None => (stored && request.method == "HEAD").then(|| Reply::short(403, "application/xml", "<Error/>")),
        }
    }),
    ("many-challenges", |request, _| {
        let challenges = [
            "Negotiate".to_owned(),
            format!("Basic realm=\"odd, and quoted\", Bearer realm=\"http://{FAKE}/token\",service=\"odd\""),
        ];
        guarded(request, &challenges, r#"{"token":"odd"}"#)
    }),
    ("empty-token", |request, _| {
        let challenge = format!("Bearer realm=\"http://{FAKE}/token\",service=\"odd\"");
        guarded(
            request,
            &[challenge],
            r#"{"token":"","access_token":"odd","expires_in":-1}"#,
        )
    }),
    ("no-digest", |request, image| {
        let by_tag = request.target.contains(&format!("/manifests/{}", image.tag()));
        let manifest = image.manifests().find(|manifest| manifest.digest == image.digest())?;
        let text = std::str::from_utf8(&manifest.bytes).expect("a manifest is text");
        by_tag.then(|| Reply::short(200, manifest.media_type, text))
    }),
];

fn is_head_of_manifest(request: &RecordedRequest) -> bool {
    request.method == "HEAD" && request.target.contains("/manifests/")
}

/// The digest of the blob that is asked for.
fn blob(request: &RecordedRequest) -> Option<&str> {
    request
        .target
        .split('?')
        .next()?
        .split_once("/blobs/")
        .map(|(_, digest)| digest)
}

/// The registry wants the token `odd`, which its token server gives.
fn guarded(request: &RecordedRequest, challenges: &[String], token: &str) -> Option<Reply> {
    if request.target.starts_with("/token") {
        return Some(Reply::short(200, "application/json", token));
    }
    if request.headers.get("authorization") == Some("Bearer odd") {
        return None;
    }
    let denied = Reply::short(401, "application/json", r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#);
    Some(challenges.iter().fold(denied, |denied, challenge| {
        denied.header("WWW-Authenticate", challenge.clone())
    }))
}

/// A client's pull of an image.
type Pull = fn(&Clients, &Image) -> CommandOutcome;

const CLIENTS: [(&str, Pull); 6] = [
    ("skopeo", |clients, image| {
        let (_scratch, home) = clients.home();
        home.skopeo_copy(&["--src-tls-verify=false"], &by_path(image), "skopeo")
    }),
    ("podman", |clients, image| {
        let (_scratch, home) = clients.home();
        home.podman(&["pull", "--tls-verify=false", &by_path(image)])
    }),
    ("crane", |clients, image| {
        let (_scratch, home) = clients.home();
        home.crane(&["pull", "--insecure", "--format=oci", &by_path(image), "crane"])
    }),
    ("oras", |clients, image| {
        let (_scratch, home) = clients.home();
        home.oras(&[
            "copy",
            "--from-plain-http",
            &by_path(image),
            "--to-oci-layout",
            "oras:v1",
        ])
    }),
    ("ctr-1.6", |clients, image| {
        pull_and_remove(&clients.cluster.containerds[0], image)
    }),
    ("ctr-2", |clients, image| pull_and_remove(&clients.parallel, image)),
];

struct Clients {
    cluster: Cluster,
    /// A containerd of today, which fetches a layer in chunks side by side.
    parallel: Containerd,
}

impl Clients {
    fn new() -> Self {
        let site = Site::builder()
            .nodes(1)
            .wan_mbit(200)
            .lan_mbit(400)
            .nodes_reach_upstream(true);
        let cluster = Cluster::cold_with(site, |options| {
            options.mirror.scheduler_url = scheduler_url("https");
            options.peer.mirror_url = mirror_url("https");
            options.peer.scheduler_url = scheduler_url("https");
            let upstreams = vec![format!("{HOST}=http://{FAKE}")];
            options.mirror.upstreams.clone_from(&upstreams);
            options.peer.upstreams = upstreams;
        });
        let chunks = Chunks { bytes: MIB, at_once: 3 };
        let parallel = Containerd::start_chunked(cluster.site.node(0), &cluster.site.dir().join("parallel"), chunks);
        for containerd in [&cluster.containerds[0], &parallel] {
            containerd.write_hosts(HOST, &hosts_toml(&format!("http://{PEER}")));
        }
        Self { cluster, parallel }
    }

    /// A home of its own for each pull, so that nothing is there already.
    fn home(&self) -> (tempfile::TempDir, Home) {
        let folder = tempfile::tempdir_in(self.cluster.site.dir()).expect("making a folder");
        let home = Home::new(self.cluster.site.node(0), folder.path());
        (folder, home)
    }
}

/// The name of an image for clients that are told of no mirror.
fn by_path(image: &Image) -> String {
    format!("{PEER}/{}", image.reference(HOST))
}

fn pull_and_remove(containerd: &Containerd, image: &Image) -> CommandOutcome {
    let pulled = containerd.pull(&image.reference(HOST));
    containerd.remove_all_content();
    pulled
}

#[test]
fn each_client_pulls_from_odd_registries_through_its_peer() {
    let clients = Clients::new();
    let upstream = FakeUpstream::start(clients.cluster.site.origin(), FAKE, &Image::new("library/none", "v1"));
    for (oddity, rule) in ODDITIES {
        for (client, pull) in CLIENTS {
            let image = Image::new(&format!("library/{oddity}-{client}"), "v1").layer_bytes(&[3 * MIB, 70_000]);
            upstream.add_image(&image);
            upstream.rule({
                let image = image.clone();
                move |request| rule(request, &image)
            });
            let before = upstream.recorded().len();
            let pulled = pull(&clients, &image);
            assert!(
                pulled.ok,
                "{client} does not pull from {oddity}: {}\n{}",
                pulled.output,
                clients.cluster.peers[0].log_tail()
            );
            let requests = upstream.recorded().split_off(before);
            let around: Vec<_> = requests
                .iter()
                .filter(|request| {
                    !request
                        .headers
                        .get("user-agent")
                        .is_some_and(|agent| agent.starts_with("piecemeal/"))
                })
                .collect();
            assert!(
                around.is_empty(),
                "{client} went around its peer to {oddity}: {around:?}"
            );
        }
    }
}

/// As stargz and SOCI do: the last bytes, which say where to look, and then the parts that are needed.
#[test]
fn a_reader_of_parts_reads_from_odd_registries_through_its_peer() {
    let clients = Clients::new();
    let upstream = FakeUpstream::start(clients.cluster.site.origin(), FAKE, &Image::new("library/none", "v1"));
    for (oddity, rule) in ODDITIES {
        let image = Image::new(&format!("library/{oddity}-parts"), "v1").layer_bytes(&[3 * MIB]);
        upstream.add_image(&image);
        upstream.rule({
            let image = image.clone();
            move |request| rule(request, &image)
        });
        let layer = &image.layers()[0];
        let size = layer.bytes.len();
        let target = format!("/v2/{}/blobs/{}?ns={HOST}", image.repository(), layer.digest);
        for (range, part) in [
            ("bytes=-51".to_owned(), size - 51..size),
            (format!("bytes={}-{}", MIB, MIB + 999), MIB..MIB + 1000),
            ("bytes=0-0".to_owned(), 0..1),
        ] {
            let answer = Request::get(PEER.parse().expect("an address"), &target)
                .header("Range", &range)
                .send_from(clients.cluster.site.node(0))
                .expect("an answer");
            assert_eq!(answer.status, 206, "{oddity} {range}: {}", answer.text());
            assert!(answer.body == layer.bytes[part], "{oddity} {range}");
        }
    }
}
