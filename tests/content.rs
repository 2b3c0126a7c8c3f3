//! Content of every kind arrives as the upstream has it, byte for byte and under its digest: through the mirror, through a
//! peer, from two registries that use the same names, and through a mirror behind a mirror.

mod support;

use std::{fs, net::SocketAddr, net::SocketAddrV4};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use support::{
    Blob, CONFIG, Cluster, CommandOutcome, DockerRegistry, FakeUpstream, HOST, Home, INDEX, Image, Keys, LAYER,
    MANIFEST, Mirror, MirrorOptions, ORIGIN_IP, Request, Response, Site, architecture, sha256,
};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// The ports that clients speak to, as a node reaches them.
const ROUTES: [(&str, &str); 2] = [("mirror", "10.88.0.2:65011"), ("peer", PEER)];
const PEER: &str = "127.0.0.1:65001";

fn site() -> support::SiteBuilder {
    Site::builder().nodes(1).wan_mbit(200).lan_mbit(400)
}

/// A tag and what it names: the manifests that an index lists, and last the one that the tag is for.
struct Kind {
    tag: &'static str,
    manifests: Vec<Blob>,
}

impl Kind {
    fn new(tag: &'static str, manifests: Vec<Blob>) -> Self {
        Self { tag, manifests }
    }

    fn top(&self) -> &Blob {
        self.manifests.last().expect("a tag is for something")
    }
}

/// A manifest in a form that no program writes: a daemon that serializes it again changes its bytes.
fn manifest(media_type: &'static str, mut content: Value) -> Blob {
    content["schemaVersion"] = json!(2);
    content["mediaType"] = json!(media_type);
    let text = serde_json::to_string_pretty(&content).expect("JSON can be written");
    Blob::new(media_type, format!("\n{text}\t\n").into_bytes())
}

fn image_manifest(types: [&'static str; 3], config: &Blob, layers: &[Blob]) -> Blob {
    let [media_type, config_type, layer_type] = types;
    let descriptor =
        |media_type, blob: &Blob| json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size });
    let layers: Vec<Value> = layers.iter().map(|layer| descriptor(layer_type, layer)).collect();
    manifest(
        media_type,
        json!({ "config": descriptor(config_type, config), "layers": layers, "x-unknown": { "b": 1.50, "a": null } }),
    )
}

fn index(media_type: &'static str, entries: &[(&Blob, &str)]) -> Blob {
    let entries: Vec<Value> = entries
        .iter()
        .map(|(entry, architecture)| {
            json!({
                "mediaType": entry.media_type, "digest": entry.digest, "size": entry.size,
                "platform": { "architecture": architecture, "os": "linux" },
            })
        })
        .collect();
    manifest(media_type, json!({ "manifests": entries }))
}

/// One of each, made of an image's config and layers.
fn kinds(image: &Image) -> Vec<Kind> {
    let config = image.blobs().next().expect("an image has a config");
    let oci = |layers| image_manifest([MANIFEST, CONFIG, LAYER], config, layers);
    let docker = |layers| image_manifest([DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER], config, layers);
    let (here, there) = (architecture(), "riscv64");
    let (both, first) = (image.layers(), &image.layers()[..1]);

    let oci_index = index(INDEX, &[(&oci(both), here), (&oci(first), there)]);
    let docker_list = index(DOCKER_LIST, &[(&docker(both), here), (&docker(first), there)]);
    let nested = index(INDEX, &[(&oci_index, here), (&docker_list, there)]);
    let mut artifact: Value = serde_json::from_slice(&oci(first).bytes).expect("JSON");
    artifact["artifactType"] = json!("application/vnd.example.model");
    artifact["subject"] = json!({ "mediaType": MANIFEST, "digest": oci(both).digest, "size": oci(both).size });
    artifact["annotations"] = json!({ "org.example.emoji": "\u{1f967} \\ \" / é" });
    let artifact = manifest(MANIFEST, artifact);

    let (all_oci, all_docker) = (
        vec![oci(both), oci(first), oci_index],
        vec![docker(both), docker(first), docker_list],
    );
    vec![
        Kind::new("oci", vec![oci(both)]),
        Kind::new("schema2", vec![docker(both)]),
        Kind::new("nested", [all_oci.clone(), all_docker.clone(), vec![nested]].concat()),
        Kind::new("index", all_oci),
        Kind::new("list", all_docker),
        Kind::new("artifact", vec![artifact]),
    ]
}

/// Pushes one of each kind, under its tag and under another.
fn push_kinds(registry: &DockerRegistry, repository: &str, kinds: &[Kind], image: &Image) {
    for blob in image.blobs() {
        registry.push_blob(repository, blob);
    }
    for kind in kinds {
        for manifest in &kind.manifests {
            registry.put_manifest(repository, &manifest.digest, manifest);
        }
        for tag in [kind.tag.to_owned(), again(kind.tag)] {
            registry.put_manifest(repository, &tag, kind.top());
        }
    }
}

/// A second tag for the same content, which no client has asked for yet.
fn again(tag: &str) -> String {
    format!("{tag}-again")
}

fn assert_is(answer: &Response, manifest: &Blob, asked: &str) {
    let header = |name| answer.headers.get(name);
    assert_eq!(answer.status, 200, "{asked}: {}", answer.text());
    assert_eq!(header("docker-content-digest"), Some(&*manifest.digest), "{asked}");
    assert_eq!(header("content-type"), Some(manifest.media_type), "{asked}");
    assert_eq!(header("content-length"), Some(&*manifest.size.to_string()), "{asked}");
    assert_eq!(header("content-encoding"), None, "{asked}");
    let whole = answer.body == manifest.bytes;
    assert!(
        whole || (asked.starts_with("HEAD") && answer.body.is_empty()),
        "{asked}"
    );
}

#[test]
fn every_kind_of_content_keeps_its_bytes_and_its_digest() {
    let cluster = Cluster::cold(site());
    let image = Image::new("library/kinds", "unused").layer_bytes(&[300_000, 70_000]);
    let kinds = kinds(&image);
    for (name, address) in ROUTES {
        let repository = format!("library/{name}");
        push_kinds(&cluster.registry, &repository, &kinds, &image);
        let ask = |method: &'static str, reference: &str, accept: &str| {
            let target = format!("/v2/{repository}/manifests/{reference}?ns={HOST}");
            let address: SocketAddr = address.parse().expect("an address");
            let request = Request::new(method, address, &target).header("Accept", accept);
            request.send_from(cluster.site.node(0)).expect("an answer")
        };
        for kind in &kinds {
            let top = kind.top();
            // The upstream itself would convert or refuse what is not accepted; a digest has one content only.
            for accept in [top.media_type, "*/*", "application/json"] {
                for (tag, methods) in [
                    (kind.tag.to_owned(), ["HEAD", "GET"]),
                    (again(kind.tag), ["GET", "HEAD"]),
                ] {
                    for method in methods {
                        let asked = format!("{method} {tag} through the {name}, accepting {accept}");
                        assert_is(&ask(method, &tag, accept), top, &asked);
                    }
                }
            }
            for manifest in &kind.manifests {
                for method in ["HEAD", "GET"] {
                    let asked = format!("{method} {} of {} through the {name}", manifest.digest, kind.tag);
                    assert_is(&ask(method, &manifest.digest, manifest.media_type), manifest, &asked);
                }
            }
            let upstream = Request::get(
                cluster.registry.address(),
                &format!("/v2/{repository}/manifests/{}", top.digest),
            );
            let upstream = upstream.header("Accept", top.media_type);
            let upstream = upstream.send_from(cluster.site.origin()).expect("the upstream answers");
            assert_eq!(upstream.body, ask("GET", kind.tag, top.media_type).body);
        }
    }
}

#[test]
fn clients_copy_every_kind_whole() {
    let cluster = Cluster::cold(site());
    let image = Image::new("library/kinds", "unused").layer_bytes(&[300_000, 70_000]);
    let kinds = kinds(&image);
    push_kinds(&cluster.registry, "library/kinds", &kinds, &image);
    let home = Home::new(cluster.site.node(0), &cluster.site.dir().join("home"));
    for kind in &kinds {
        let name = format!("127.0.0.1:65001/{HOST}/library/kinds:{}", kind.tag);
        let digest = home.crane(&["digest", &name]).expect_ok().output;
        assert_eq!(digest.trim(), kind.top().digest, "{}", kind.tag);
        let manifest = home.crane(&["manifest", &name]).expect_ok().output;
        assert!(manifest.as_bytes() == kind.top().bytes, "{}", kind.tag);
        let layout = format!("layout-{}:{}", kind.tag, kind.tag);
        home.oras(&["copy", "--from-plain-http", &name, "--to-oci-layout", &layout])
            .expect_ok();
        for manifest in &kind.manifests {
            let file = format!("layout-{}/blobs/{}", kind.tag, manifest.digest.replace(':', "/"));
            let copied = fs::read(home.join(&file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(copied == manifest.bytes, "{file} is not what {} names", kind.tag);
        }
    }
    for blob in image.blobs() {
        assert_eq!(cluster.registry.blob_bytes_served(&blob.digest), blob.size);
    }
}

#[test]
fn two_registries_may_use_the_same_name_for_different_images() {
    const OTHER: &str = "other.test";
    let other_address = SocketAddrV4::new(ORIGIN_IP, 5001);
    let cluster = Cluster::cold_with(site(), |options| {
        let other = format!("{OTHER}=http://{other_address}");
        options.mirror.upstreams.push(other.clone());
        options.peer.upstreams.push(other);
    });
    let other_registry = DockerRegistry::start(cluster.site.origin(), other_address);
    let image = |seed| Image::new("library/x", "1").seed(seed).layer_bytes(&[400_000, 70_000]);
    let images = [
        (HOST, &cluster.registry, image(1)),
        (OTHER, &other_registry, image(100)),
    ];
    for (_, registry, image) in &images {
        registry.push(image);
    }
    assert_ne!(images[0].2.digest(), images[1].2.digest());

    let home = Home::new(cluster.site.node(0), &cluster.site.dir().join("home"));
    for (name, address) in ROUTES {
        for (host, _, image) in &images {
            let ask = |method: &'static str, resource: &str| {
                let target = format!("/v2/library/x/{resource}?ns={host}");
                let request = Request::new(method, address.parse().expect("an address"), &target);
                request.send_from(cluster.site.node(0)).expect("an answer")
            };
            // HEAD first here, GET first there: it must not matter which kind of request has asked before.
            let methods = if *host == HOST {
                ["HEAD", "GET"]
            } else {
                ["GET", "HEAD"]
            };
            for method in methods {
                let answer = ask(method, "manifests/1");
                assert_eq!(
                    answer.headers.get("docker-content-digest"),
                    Some(image.digest()),
                    "{host}"
                );
            }
            for (blob, method) in image.blobs().flat_map(|blob| methods.map(|method| (blob, method))) {
                let answer = ask(method, &format!("blobs/{}", blob.digest));
                assert_eq!(answer.status, 200, "{method} {host} {}", blob.digest);
                assert_eq!(answer.headers.get("content-length"), Some(&*blob.size.to_string()));
                assert!(method == "HEAD" || answer.body == blob.bytes, "{host} {}", blob.digest);
            }
            let folder = format!("{name}-{host}");
            home.crane(&[
                "pull",
                "--format=oci",
                &format!("{address}/{}", image.reference(host)),
                &folder,
            ])
            .expect_ok();
            let layer = &image.layers()[0];
            let copied = fs::read(home.join(&folder).join("blobs").join(layer.digest.replace(':', "/")));
            assert!(copied.expect("crane writes a layout") == layer.bytes, "{host}");
        }
        // A blob of the one registry is not served as the other's.
        let foreign = format!("/v2/library/x/blobs/{}?ns={HOST}", images[1].2.layers()[0].digest);
        let request = Request::get(address.parse().expect("an address"), &foreign);
        let answer = request.send_from(cluster.site.node(0)).expect("an answer");
        assert_eq!(answer.status, 404, "through the {name}");
    }
    for (host, registry, image) in &images {
        for blob in image.blobs() {
            assert_eq!(
                registry.blob_bytes_served(&blob.digest),
                blob.size,
                "{host} {}",
                blob.digest
            );
        }
    }
}

/// The far mirror serves several registries, so that its path names the one that is meant.
#[test]
fn a_mirror_behind_a_mirror_serves_what_the_registry_has() {
    let cluster = Cluster::cold_with(site(), |options| {
        let far = vec![format!("{HOST}=http://{ORIGIN_IP}:65011/{HOST}")];
        options.mirror.upstreams.clone_from(&far);
        options.peer.upstreams = far;
    });
    let mut far = MirrorOptions::new(&Keys::generate(&cluster.site.dir().join("far-keys")));
    far.with_scheduler = false;
    let _far = Mirror::start_beyond_wan(&cluster.site, far);
    let home = Home::new(cluster.site.node(0), &cluster.site.dir().join("home"));
    for (name, address) in ROUTES {
        let image = Image::new(&format!("library/far-{name}"), "v1")
            .layer_bytes(&[3 << 20, 70_000, 9000])
            .in_index();
        cluster.registry.push(&image);
        let ask = |method: &'static str, resource: &str| {
            let target = format!("/v2/{HOST}/{}/{resource}", image.repository());
            let request = Request::new(method, address.parse().expect("an address"), &target);
            request.send_from(cluster.site.node(0)).expect("an answer")
        };
        for blob in image.blobs() {
            let cold = ask("HEAD", &format!("blobs/{}", blob.digest));
            assert_eq!(cold.status, 200, "HEAD of a cold blob through the {name}");
            assert_eq!(cold.headers.get("content-length"), Some(&*blob.size.to_string()));
            assert_eq!(cold.headers.get("docker-content-digest"), Some(&*blob.digest));
        }
        let nowhere = ask("HEAD", &format!("blobs/sha256:{:064}", 0));
        assert_eq!(nowhere.status, 404, "through the {name}");

        let reference = format!("{address}/{}", image.reference(HOST));
        home.crane(&["validate", "--remote", &reference]).expect_ok();
        let listed = home.crane(&["ls", reference.rsplit_once(':').expect("a tag").0]);
        assert_eq!(listed.expect_ok().output, "v1\n");
        home.skopeo_copy(&["--src-tls-verify=false"], &reference, name)
            .expect_ok();
        home.oras(&["discover", "--plain-http", &reference]).expect_ok();
        for blob in image.blobs() {
            let copied = fs::read(home.join(name).join(blob.digest.trim_start_matches("sha256:")));
            assert!(copied.expect("skopeo names files by digest") == blob.bytes);
            assert_eq!(
                cluster.registry.blob_bytes_served(&blob.digest),
                blob.size,
                "{} through the {name}",
                blob.digest
            );
        }
    }
}

/// The digest of a signed manifest's payload, and its bytes: the payload, with a signature before its last line.
fn signed_manifest(layer: &Blob) -> Blob {
    let payload = format!(
        "{{\n   \"schemaVersion\": 1,\n   \"name\": \"library/app\",\n   \"fsLayers\": [{{\"blobSum\": \"{}\"}}]\n}}",
        layer.digest
    );
    let (head, tail) = payload.split_at(payload.len() - 2);
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let protected = encode(&json!({ "formatLength": head.len(), "formatTail": encode(tail) }).to_string());
    let signature = json!([{ "header": { "alg": "ES256" }, "signature": "x", "protected": protected }]);
    let bytes = format!("{head},\n   \"signatures\": {signature}{tail}").into_bytes();
    Blob {
        digest: sha256(payload.as_bytes()),
        size: bytes.len() as u64,
        media_type: "application/vnd.docker.distribution.manifest.v1+prettyjws",
        bytes,
    }
}

/// A site whose registry has an image and whatever else it is given.
fn odd_registry() -> (Cluster, FakeUpstream, Image) {
    let fake = SocketAddrV4::new(ORIGIN_IP, 5001);
    let cluster = Cluster::cold_with(site(), |options| {
        options.mirror.upstreams = vec![format!("{HOST}=http://{fake}")];
        options.peer.upstreams.clone_from(&options.mirror.upstreams);
    });
    let image = Image::new("library/app", "v1").layer_bytes(&[90_000]);
    let upstream = FakeUpstream::start(cluster.site.origin(), fake, &image);
    (cluster, upstream, image)
}

fn piecemeal(netns: &support::Netns, arguments: &[&str]) -> CommandOutcome {
    let mut command = netns.command(env!("CARGO_BIN_EXE_piecemeal"));
    CommandOutcome::of(command.args(arguments), std::time::Instant::now())
}

#[test]
fn a_signed_manifest_passes_under_the_digest_of_its_payload() {
    let (cluster, upstream, image) = odd_registry();
    let signed = signed_manifest(&image.layers()[0]);
    upstream.add_blob(&signed);
    for (name, port) in ROUTES {
        let target = format!("/v2/library/app/manifests/{}?ns={HOST}", signed.digest);
        let address: SocketAddr = port.parse().expect("an address");
        for request in [Request::get(address, &target), Request::head(address, &target)] {
            let asked = format!("{} {name}", request.method());
            let answer = request.send_from(cluster.site.node(0)).expect("an answer");
            assert_is(&answer, &signed, &asked);
        }
    }
    let config = image.blobs().next().expect("a config");
    let mut forged = signed_manifest(config);
    forged.bytes = String::from_utf8(forged.bytes)
        .expect("JSON")
        .replace(",\n   \"signatures\"", ",\n   \"name\": \"other\", \"signatures\"")
        .into_bytes();
    upstream.add_blob(&forged);
    let target = format!("/v2/library/app/manifests/{}?ns={HOST}", forged.digest);
    for (_, port) in ROUTES {
        let request = Request::get(port.parse().expect("an address"), &target);
        let answer = request.send_from(cluster.site.node(0)).expect("an answer");
        assert!(answer.status >= 500, "{}", answer.status);
    }
}

#[test]
fn what_an_image_does_not_need_from_its_registry_stops_no_pull_and_no_warming() {
    let (cluster, upstream, image) = odd_registry();
    let (config, layer) = (image.blobs().next().expect("a config"), &image.layers()[0]);
    let of = |blob: &Blob, media_type| json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size });
    let (config, layer) = (of(config, CONFIG), of(layer, LAYER));
    let foreign = json!({
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": sha256(b"nowhere"), "size": 7,
        "urls": ["https://a.test/layer"],
    });
    let empty = json!({
        "mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2, "data": "e30=",
    });
    let unknown = json!({ "mediaType": LAYER, "digest": format!("blake3:{}", "a".repeat(64)), "size": 1 });
    let wrong = json!({ "mediaType": LAYER, "digest": sha256(b"gone"), "size": 4, "data": "e30=" });
    let chart = [
        (
            "application/vnd.cncf.helm.config.v1+json",
            r#"{"name":"demo","version":"1.2.3+build.7"}"#,
        ),
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "a chart"),
    ];
    let chart = chart.map(|(media_type, text)| {
        let blob = Blob::new(media_type, text.into());
        upstream.add_blob(&blob);
        of(&blob, media_type)
    });
    let manifest_of =
        |config: &Value, layers: &[&Value]| manifest(MANIFEST, json!({ "config": config, "layers": layers }));
    let plain = manifest_of(&config, &[&layer]);
    let mut entries = vec![of(&plain, MANIFEST), unknown.clone()];
    entries[0]["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    let node = cluster.site.node(0);
    for (name, top, is_whole, left_out) in [
        (
            "foreign",
            manifest_of(&config, &[&foreign, &layer]),
            true,
            Some("foreign layer"),
        ),
        ("inline", manifest_of(&empty, &[&layer]), true, None),
        ("only inline", manifest_of(&empty, &[&empty]), true, None),
        (
            "unknown algorithm",
            manifest_of(&config, &[&unknown, &layer]),
            true,
            Some("blake3:"),
        ),
        ("index", manifest(INDEX, json!({ "manifests": entries })), true, None),
        ("chart", manifest_of(&chart[0], &[&chart[1]]), true, None),
        ("wrong data", manifest_of(&config, &[&wrong]), false, None),
    ] {
        for blob in [&plain, &top] {
            upstream.add_blob(blob);
        }
        let pulled = piecemeal(node, &["pull", &format!("{PEER}/{HOST}/library/app@{}", top.digest)]);
        assert_eq!(pulled.ok, is_whole, "{name}: {}", pulled.output);
        let image = format!("{HOST}/library/app@{}", top.digest);
        let warmed = piecemeal(
            cluster.site.mirror(),
            &["cache", "warm", &image, "--admin", "http://127.0.0.1:65013"],
        );
        assert_eq!(warmed.ok, is_whole, "{name}: {}", warmed.output);
        if let Some(left_out) = left_out {
            for output in [&pulled.output, &warmed.output] {
                assert!(output.contains("left out"), "{name}: {output}");
            }
            assert!(pulled.output.contains(left_out), "{name}: {}", pulled.output);
        }
    }
    let other = piecemeal(
        node,
        &[
            "pull",
            &format!("{PEER}/{HOST}/library/app:v1"),
            "--platform",
            "windows/amd64",
        ],
    );
    assert!(
        !other.ok && other.output.contains("not for windows/amd64"),
        "{}",
        other.output
    );
    let same = format!("linux/{}", architecture());
    let same = piecemeal(
        node,
        &["pull", &format!("{PEER}/{HOST}/library/app:v1"), "--platform", &same],
    );
    assert!(same.ok, "{}", same.output);
}
