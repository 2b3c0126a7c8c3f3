//! Clients as people use them pull through a cold mirror and through a node's peer, and the WAN carries one copy.
//!
//! Those of Go are built by `cargo xtask test`, since Debian has none or older ones.

mod support;

use std::{
    fs,
    net::{SocketAddr, SocketAddrV4},
    path::Path,
};

use support::{
    Behaviour, Chunks, Cluster, Containerd, DockerRegistry, FakeUpstream, HOST, Home, Image, ORIGIN_IP, REGISTRY,
    Request, Response, Site, hosts_toml, sha256,
};

const MIB: usize = 1 << 20;
/// The ports of ours that clients speak to, as a node reaches them: its mirror, and its own peer.
const ROUTES: [Route; 2] = [
    Route {
        name: "mirror",
        host: "10.88.0.2:65011",
    },
    Route {
        name: "peer",
        host: "localhost:65001",
    },
];
/// Beside the cluster's own registry.
const FAKE: SocketAddrV4 = SocketAddrV4::new(ORIGIN_IP, 5001);
const USER_AND_PASSWORD: &str = "alice:hunter2";
const BASE64_OF_THAT: &str = "YWxpY2U6aHVudGVyMg==";

#[derive(Clone, Copy)]
struct Route {
    name: &'static str,
    host: &'static str,
}

impl Route {
    fn address(self) -> SocketAddr {
        self.host.replace("localhost", "127.0.0.1").parse().expect("an address")
    }

    /// Names an image by the path, as clients have to that know no `ns`.
    fn image(self, image: &Image) -> String {
        format!("{}/{}", self.host, image.reference(HOST))
    }
}

fn cluster() -> Cluster {
    Cluster::cold(Site::builder().nodes(1).wan_mbit(200).lan_mbit(400))
}

fn home(cluster: &Cluster) -> Home {
    Home::new(cluster.site.node(0), &cluster.site.dir().join("home"))
}

/// By the registry's own access log.
fn assert_served_once(registry: &DockerRegistry, image: &Image) {
    for blob in image.blobs() {
        assert_eq!(
            registry.blob_bytes_served(&blob.digest),
            blob.size,
            "bytes of {} {}",
            image.repository(),
            blob.digest
        );
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Everything of the image is in the blobs of an OCI image layout.
fn assert_layout_has(layout: &Path, image: &Image) {
    for blob in image.blobs().chain(image.manifests()) {
        let file = layout.join("blobs").join(blob.digest.replace(':', "/"));
        assert!(read(&file) == blob.bytes, "{} is damaged", blob.digest);
    }
}

/// Everything of the image is in a folder that skopeo has written.
fn assert_folder_has(folder: &Path, image: &Image) {
    for blob in image.blobs() {
        let file = folder.join(blob.digest.trim_start_matches("sha256:"));
        assert!(read(&file) == blob.bytes, "{} is damaged", blob.digest);
    }
    assert_eq!(sha256(&read(&folder.join("manifest.json"))), image.digest());
}

fn pull_in_chunks(chunks: Chunks) {
    let cluster = cluster();
    for Route { name, host } in ROUTES {
        let image = Image::new(&format!("library/{name}"), "v1")
            .layer_bytes(&[20 * MIB, 9 * MIB, 300_000])
            .in_index();
        cluster.registry.push(&image);
        let dir = cluster.site.dir().join(name);
        let containerd = Containerd::start_chunked(cluster.site.node(0), &dir, chunks);
        containerd.write_hosts(HOST, &hosts_toml(&format!("http://{host}")));
        for heat in ["cold", "warm"] {
            let pull = containerd.pull(&image.reference(HOST));
            assert!(
                pull.ok,
                "{heat} {name}: {}\n{}",
                pull.output,
                cluster.peers[0].log_tail()
            );
            for blob in image.blobs() {
                assert!(
                    containerd.content_digest_ok(&blob.digest),
                    "{heat} {name}: {}",
                    blob.digest
                );
            }
            assert_served_once(&cluster.registry, &image);
            containerd.remove_all_content();
        }
        for layer in image.layers() {
            assert_fetched_in_chunks(&containerd.log_text(), &layer.digest, chunks);
        }
    }
}

/// By containerd's own log. (For manifests it gives up chunks, since their ranges are ignored.)
fn assert_fetched_in_chunks(log: &str, digest: &str, Chunks { bytes, at_once }: Chunks) {
    let about: Vec<&str> = log.lines().filter(|line| line.contains(digest)).collect();
    let (chunks, streams) = (format!("chunk_size={bytes} "), format!(" parallelism={at_once}"));
    assert!(
        about
            .iter()
            .any(|line| line.contains(&chunks) && line.contains(&streams)),
        "not fetched in chunks: {about:#?}"
    );
    assert!(
        !about.iter().any(|line| line.contains("forcing parallelism to 1")),
        "chunks were given up: {about:#?}"
    );
}

#[test]
fn containerd_with_three_large_chunks_at_once_pulls_over_one_wan_copy() {
    pull_in_chunks(Chunks {
        bytes: 8 * MIB,
        at_once: 3,
    });
}

#[test]
fn containerd_with_eight_small_chunks_at_once_pulls_over_one_wan_copy() {
    pull_in_chunks(Chunks { bytes: MIB, at_once: 8 });
}

#[test]
fn crane_validates_pulls_and_lists() {
    let cluster = cluster();
    let home = home(&cluster);
    for route in ROUTES {
        let image = Image::new(&format!("library/crane-{}", route.name), "v1")
            .layer_bytes(&[5 * MIB, 70_000])
            .in_index();
        cluster.registry.push(&image);
        let name = route.image(&image);
        home.crane(&["validate", "--remote", &name]).expect_ok();
        let digest = home.crane(&["digest", &name]).expect_ok().output;
        assert_eq!(digest.trim(), image.digest());
        home.crane(&["pull", "--format=oci", &name, route.name]).expect_ok();
        assert_layout_has(&home.join(route.name), &image);
        home.crane(&["pull", &name, "image.tar"]).expect_ok();
        let repository = name.rsplit_once(':').expect("a tag").0;
        assert_eq!(home.crane(&["ls", repository]).expect_ok().output, "v1\n");
        assert_served_once(&cluster.registry, &image);
    }
}

#[test]
fn oras_pulls_an_artifact_and_discovers_what_refers_to_it() {
    let cluster = cluster();
    let home = home(&cluster);
    let publisher = Home::new(cluster.site.origin(), &cluster.site.dir().join("publisher"));
    for route in ROUTES {
        let content = format!("a model for {}", route.name).repeat(100_000);
        fs::write(publisher.join("model.bin"), &content).expect("writing the artifact's content");
        fs::write(publisher.join("sbom.json"), "{}").expect("writing what refers to it");
        let repository = format!("models/{}", route.name);
        let published = format!("{REGISTRY}/{repository}:v1");
        let push = ["--plain-http", "--artifact-type", "application/vnd.example.model"];
        publisher
            .oras(&[&["push"], &push[..], &[&published, "model.bin"]].concat())
            .expect_ok();
        let attach = ["--plain-http", "--artifact-type", "application/vnd.example.sbom"];
        publisher
            .oras(&[&["attach"], &attach[..], &[&published, "sbom.json"]].concat())
            .expect_ok();

        let name = format!("{}/{HOST}/{repository}", route.host);
        let tagged = format!("{name}:v1");
        home.oras(&["pull", "--plain-http", "--output", route.name, &tagged])
            .expect_ok();
        assert!(read(&home.join(route.name).join("model.bin")) == content.as_bytes());
        let tags = home.oras(&["repo", "tags", "--plain-http", &name]).expect_ok().output;
        assert!(tags.lines().any(|tag| tag == "v1"), "{tags}");
        let found = home.oras(&["discover", "--plain-http", "--format=json", &tagged]);
        let found: serde_json::Value = serde_json::from_str(&found.expect_ok().output).expect("JSON");
        let referrers = found["referrers"].as_array().expect("a list of referrers");
        assert_eq!(referrers.len(), 1, "{found}");
        assert_eq!(referrers[0]["artifactType"], "application/vnd.example.sbom");
        let digest = referrers[0]["digest"].as_str().expect("a digest");
        let referrer = format!("{name}@{digest}");
        home.oras(&["pull", "--plain-http", "--output", "sboms", &referrer])
            .expect_ok();
        assert_eq!(read(&home.join("sboms/sbom.json")), b"{}");

        assert_eq!(
            cluster.registry.blob_bytes_served(&sha256(content.as_bytes())),
            content.len() as u64
        );
    }
}

/// What podman and CRI-O do too: they have the same library and the same file.
#[test]
fn skopeo_is_sent_here_by_registries_conf() {
    let cluster = cluster();
    let home = home(&cluster);
    for route in ROUTES {
        let image = Image::new(&format!("library/skopeo-{}", route.name), "v1").layer_bytes(&[5 * MIB, 70_000]);
        cluster.registry.push(&image);
        home.write_registries_conf(HOST, &format!("{}/{HOST}", route.address()));
        home.skopeo_copy(&[], &image.reference(HOST), route.name).expect_ok();
        assert_folder_has(&home.join(route.name), &image);
        assert_served_once(&cluster.registry, &image);
    }
}

/// The requests of its classic image store, header by header. It is told of a mirror of Docker Hub and of nothing else, so
/// it names no upstream at all.
#[test]
fn a_docker_daemon_pulls_and_resumes_from_the_default_upstream() {
    let cluster = Cluster::cold_with(Site::builder().nodes(1).wan_mbit(200).lan_mbit(400), |options| {
        let upstreams = vec![format!("docker.io=http://{REGISTRY}")];
        let default = ["--default-upstream", "docker.io"].map(str::to_owned);
        options.mirror.upstreams.clone_from(&upstreams);
        options.mirror.extra_args.extend(default.clone());
        options.peer.upstreams = upstreams;
        options.peer.extra_args.extend(default);
    });
    for route in ROUTES {
        let image = Image::new(&format!("library/docker-{}", route.name), "v1").layer_bytes(&[9 * MIB, 70_000]);
        cluster.registry.push(&image);
        let docker = Docker {
            cluster: &cluster,
            route,
            repository: image.repository(),
        };
        docker.pull(&image);
        assert_served_once(&cluster.registry, &image);
    }
}

/// A Docker daemon, as far as its mirror can tell.
struct Docker<'a> {
    cluster: &'a Cluster,
    route: Route,
    repository: &'a str,
}

impl Docker<'_> {
    fn pull(&self, image: &Image) {
        let ping = self.ask(self.request("GET", "/v2/"));
        assert_eq!(ping.status, 200);
        assert_eq!(
            ping.headers.get("docker-distribution-api-version"),
            Some("registry/2.0"),
            "by this it knows a registry"
        );

        let manifest = image.manifests().last().expect("an image has a manifest");
        let by_tag = format!("manifests/{}", image.tag());
        let by_digest = format!("manifests/{}", manifest.digest);
        for (method, resource) in [("HEAD", &by_tag), ("GET", &by_tag), ("GET", &by_digest)] {
            let answer = self.ask(
                MANIFEST_TYPES
                    .iter()
                    .fold(self.request(method, &self.path(resource)), |request, media_type| {
                        request.header("Accept", media_type)
                    }),
            );
            assert_eq!(answer.status, 200, "{method} {resource}");
            assert_eq!(answer.headers.get("docker-content-digest"), Some(&*manifest.digest));
            assert_eq!(answer.headers.get("content-type"), Some(manifest.media_type));
            assert_eq!(
                answer.headers.get("content-length"),
                Some(&*manifest.bytes.len().to_string())
            );
            assert!(method == "HEAD" || answer.body == manifest.bytes, "{method} {resource}");
        }

        for blob in image.blobs() {
            let path = self.path(&format!("blobs/{}", blob.digest));
            // It gives up in the middle, as when its network fails, and goes on from there.
            let mut content = self
                .blob_request(&path)
                .send_and_hang_up(self.cluster.site.node(0), blob.bytes.len() / 2)
                .expect("the beginning of a blob");
            let (from, size) = (content.len(), blob.bytes.len());
            let rest = self.ask(self.blob_request(&path).header("Range", &format!("bytes={from}-")));
            assert_eq!(rest.status, 206, "Docker resumes from nothing else");
            assert_eq!(
                rest.headers.get("content-range"),
                Some(&*format!("bytes {from}-{}/{size}", size - 1)),
                "Docker wants a range that ends where the blob does"
            );
            assert_eq!(rest.headers.get("content-length"), Some(&*(size - from).to_string()));
            assert!(rest.complete);
            content.extend(rest.body);
            assert!(content == blob.bytes, "{} is damaged", blob.digest);
            assert!(self.ask(self.blob_request(&path)).body == blob.bytes);
        }
    }

    fn path(&self, resource: &str) -> String {
        format!("/v2/{}/{resource}", self.repository)
    }

    fn request(&self, method: &'static str, target: &str) -> Request {
        Request::new(method, self.route.address(), target)
            .header("User-Agent", "docker/27.5.1 go/go1.22.11 git-commit/4c9b3b0 kernel/6.1.0 os/linux arch/amd64 UpstreamClient(Docker-Client/27.5.1 \\(linux\\))")
    }

    fn blob_request(&self, path: &str) -> Request {
        self.request("GET", path).header("Accept-Encoding", "identity")
    }

    fn ask(&self, request: Request) -> Response {
        request.send_from(self.cluster.site.node(0)).expect("an answer")
    }
}

/// What Docker accepts, each in a header of its own.
const MANIFEST_TYPES: [&str; 6] = [
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/json",
];

/// A cluster whose upstream records what it is asked.
fn watched(image: &Image) -> (FakeUpstream, Cluster) {
    let cluster = Cluster::cold_with(Site::builder().nodes(1).wan_mbit(200).lan_mbit(400), |options| {
        let upstreams = vec![format!("{HOST}=http://{FAKE}")];
        options.mirror.upstreams.clone_from(&upstreams);
        options.peer.upstreams = upstreams;
    });
    (FakeUpstream::start(cluster.site.origin(), FAKE, image), cluster)
}

/// Whether anything that was asked so far carried the password in any form, or any credential at all.
fn secrets_seen(upstream: &FakeUpstream) -> Vec<String> {
    let mut seen = Vec::new();
    for request in upstream.recorded() {
        let headers = request.headers.iter();
        let secret = headers.filter(|(name, value)| {
            let is_credential = ["authorization", "proxy-authorization", "cookie"]
                .iter()
                .any(|credential| name.eq_ignore_ascii_case(credential));
            is_credential || value.contains("hunter2") || value.contains(BASE64_OF_THAT)
        });
        seen.extend(secret.map(|(name, _)| format!("{} {}: {name}", request.method, request.target)));
    }
    seen
}

#[test]
fn no_client_is_made_to_show_its_passwords_for_other_registries() {
    let image = Image::new("library/app", "v1").layer_bytes(&[MIB, 70_000]);
    let (upstream, cluster) = watched(&image);
    let home = home(&cluster);
    // The registry that is meant is another host than our ports too.
    home.log_in(&[("other.test", BASE64_OF_THAT), (HOST, BASE64_OF_THAT)]);
    for route in ROUTES {
        let name = route.image(&image);
        home.crane(&["pull", &name, "image.tar"]).expect_ok();
        let layout = format!("oras-{}:v1", route.name);
        home.oras(&["copy", "--from-plain-http", &name, "--to-oci-layout", &layout])
            .expect_ok();
        home.write_registries_conf(HOST, &format!("{}/{HOST}", route.address()));
        home.skopeo_copy(&[], &image.reference(HOST), route.name).expect_ok();
        let containerd = &cluster.containerds[0];
        containerd.write_hosts(HOST, &hosts_toml(&format!("http://{}", route.address())));
        containerd
            .fetch_as(USER_AND_PASSWORD, &image.reference(HOST))
            .expect_ok();
        containerd.remove_all_content();
    }
    assert_eq!(secrets_seen(&upstream), [""; 0]);

    // The same clients and the same file, where the password is asked for: it would have been seen.
    let neighbour = Home::new(cluster.site.origin(), &cluster.site.dir().join("neighbour"));
    neighbour.log_in(&[(&FAKE.to_string(), BASE64_OF_THAT)]);
    upstream.require_token("token", &format!("http://{FAKE}/token"));
    let name = image.reference(&FAKE.to_string());
    let layout = ["--to-oci-layout", "oras:v1"];
    let asked: [(&str, &dyn Fn()); 3] = [
        ("crane", &|| drop(neighbour.crane(&["digest", &name]).expect_ok())),
        ("oras", &|| {
            let copy = ["copy", "--from-plain-http", &name];
            drop(neighbour.oras(&[&copy[..], &layout].concat()).expect_ok());
        }),
        ("skopeo", &|| {
            let flags = ["--src-tls-verify=false"];
            drop(neighbour.skopeo_copy(&flags, &name, "skopeo").expect_ok());
        }),
    ];
    for (client, ask) in asked {
        let before = secrets_seen(&upstream).len();
        ask();
        assert!(secrets_seen(&upstream).len() > before, "{client} had no password");
    }
}

/// A client answers a challenge with its password, so that there must be none but the registry's own.
#[test]
fn our_ports_ask_nobody_for_a_password() {
    let image = Image::new("library/app", "v1").layer_bytes(&[MIB, 70_000]);
    let (upstream, cluster) = watched(&image);
    let [denied, layer] = [0, 1].map(|index| &*image.layers()[index].digest);
    upstream.behave(denied, Behaviour::Status(401));
    let repository = format!("/v2/{HOST}/{}", image.repository());
    let targets = [
        "/v2/".to_owned(),
        format!("{repository}/manifests/v1"),
        format!("{repository}/manifests/none"),
        format!("{repository}/blobs/{layer}"),
        format!("{repository}/blobs/{denied}"),
        format!("{repository}/blobs/sha256:bad"),
        format!("{repository}/tags/list"),
        format!("{repository}/referrers/{}", image.digest()),
        "/v2/elsewhere.test/app/manifests/v1".to_owned(),
        "/v2/app/manifests/v1".to_owned(),
    ];
    for route in ROUTES {
        for (target, method) in targets
            .iter()
            .flat_map(|target| ["GET", "HEAD", "PUT"].map(|method| (target, method)))
        {
            let plain = Request::new(method, route.address(), target);
            let unasked = plain
                .clone()
                .header("Authorization", &format!("Basic {BASE64_OF_THAT}"));
            for request in [plain, unasked] {
                let answer = request.send_from(cluster.site.node(0)).expect("an answer");
                assert_eq!(
                    answer.headers.get("www-authenticate"),
                    None,
                    "{method} {target}: {}",
                    answer.status
                );
            }
        }
    }
    // What was shown all the same goes nowhere over a network in the clear.
    assert_eq!(secrets_seen(&upstream), [""; 0]);
}
