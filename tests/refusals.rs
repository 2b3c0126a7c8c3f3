//! Bad requests get a clear answer, and a client without the site's key gets nothing.

mod support;

use std::{
    net::{SocketAddr, SocketAddrV4},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use sha2::Digest as _;
use support::{Blob, Cluster, FakeUpstream, HOST, Image, Keys, ORIGIN_IP, Request, Response, Site};

const NOWHERE: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

fn cluster() -> (Cluster, Image) {
    let cluster = Cluster::cold(Site::builder().nodes(1).wan_mbit(100).lan_mbit(400));
    let image = Image::new("library/app", "v1").layer_bytes(&[700_000]);
    cluster.registry.push(&image);
    (cluster, image)
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// The registry ports of the node's peer and of the mirror.
fn registries() -> [SocketAddr; 2] {
    [address("127.0.0.1:65001"), address("10.88.0.2:65011")]
}

fn ask(cluster: &Cluster, request: Request) -> Response {
    request.send_from(cluster.site.node(0)).expect("an answer")
}

/// The code of the first OCI error in a body.
fn code(response: &Response) -> String {
    let body: serde_json::Value = serde_json::from_slice(&response.body).expect("an OCI error body");
    body["errors"][0]["code"].as_str().expect("a code").to_owned()
}

/// The parts of a `multipart/byteranges` body, each with its `Content-Range`, read as the specification has it.
fn byteranges(response: &Response) -> Vec<(String, Vec<u8>)> {
    let media_type = response.headers.get("content-type").expect("a media type");
    let boundary = media_type
        .strip_prefix("multipart/byteranges; boundary=")
        .expect("its boundary");
    assert!(response.complete && response.headers.get("content-range").is_none());
    let mut rest = &response.body[..];
    let mut parts = Vec::new();
    loop {
        let (start, end) = (format!("--{boundary}\r\n"), format!("--{boundary}--\r\n"));
        if rest == end.as_bytes() {
            return parts;
        }
        rest = rest.strip_prefix(start.as_bytes()).expect("a boundary");
        let head = rest
            .windows(4)
            .position(|bytes| bytes == b"\r\n\r\n")
            .expect("the end of a head");
        let text = std::str::from_utf8(&rest[..head]).expect("a head is text");
        let range = text.strip_prefix("Content-Type: application/octet-stream\r\nContent-Range: ");
        let range = range.expect("the head of a part").to_owned();
        let stated = range
            .strip_prefix("bytes ")
            .and_then(|range| range.split_once('/'))
            .expect("a range");
        let (first, last) = stated.0.split_once('-').expect("its first and last byte");
        let [first, last] = [first, last].map(|number| number.parse::<usize>().expect("a number"));
        let (body, after) = rest[head + 4..].split_at(last - first + 1);
        parts.push((range, body.to_vec()));
        rest = after.strip_prefix(b"\r\n").expect("a line's end");
    }
}

#[test]
fn malformed_and_unknown_names_get_oci_errors() {
    let (cluster, image) = cluster();
    let layer = &image.layers()[0].digest;
    let cases = [
        (
            format!("/v2/library/app/blobs/sha256:baddigeststring?ns={HOST}"),
            400,
            "DIGEST_INVALID",
        ),
        (
            format!("/v2/library/app/blobs/{NOWHERE}?ns={HOST}"),
            404,
            "BLOB_UNKNOWN",
        ),
        (
            format!("/v2/library/app/manifests/nope?ns={HOST}"),
            404,
            "MANIFEST_UNKNOWN",
        ),
        (
            format!("/v2/library/app/manifests/{NOWHERE}?ns={HOST}"),
            404,
            "MANIFEST_UNKNOWN",
        ),
        (
            format!("/v2/library/app/manifests/-bad?ns={HOST}"),
            400,
            "MANIFEST_INVALID",
        ),
        (format!("/v2/UPPER/manifests/v1?ns={HOST}"), 400, "NAME_INVALID"),
        (
            format!("/v2/library/other/blobs/{layer}?ns={HOST}"),
            404,
            "BLOB_UNKNOWN",
        ),
        (
            "/v2/library/app/manifests/v1?ns=evil.test".to_owned(),
            404,
            "NAME_UNKNOWN",
        ),
        ("/v2/evil.test/library/app/manifests/v1".to_owned(), 404, "NAME_UNKNOWN"),
    ];
    // The layer is stored here, under its own repository only.
    cluster.containerds[0].fetch(&image.reference(HOST)).expect_ok();
    for registry in registries() {
        for (target, status, expected) in &cases {
            let response = ask(&cluster, Request::get(registry, target));
            assert_eq!(
                (response.status, &*code(&response)),
                (*status, *expected),
                "{registry}{target}"
            );
        }
        let push = ask(
            &cluster,
            Request::new("POST", registry, &format!("/v2/library/app/blobs/uploads/?ns={HOST}")),
        );
        assert_eq!((push.status, &*code(&push)), (405, "UNSUPPORTED"));
    }
}

#[test]
fn asking_the_wrong_repository_does_not_hide_a_blob_from_the_right_one() {
    let (cluster, image) = cluster();
    let layer = &image.layers()[0];
    for registry in registries() {
        for _ in 0..3 {
            let wrong = ask(
                &cluster,
                Request::get(registry, &format!("/v2/library/other/blobs/{}?ns={HOST}", layer.digest)),
            );
            assert_eq!(wrong.status, 404);
        }
    }
    for registry in registries() {
        let right = ask(
            &cluster,
            Request::get(registry, &format!("/v2/library/app/blobs/{}?ns={HOST}", layer.digest)),
        );
        assert_eq!((right.status, right.body.len()), (200, layer.bytes.len()), "{registry}");
    }
}

#[test]
fn headers_are_exact_and_head_says_what_get_does() {
    let (cluster, image) = cluster();
    let layer = &image.layers()[0];
    let blob = format!("/v2/library/app/blobs/{}?ns={HOST}", layer.digest);
    let manifest = |name: &str| format!("/v2/library/app/manifests/{name}?ns={HOST}");
    for registry in registries() {
        // Cold, and again with everything here.
        for _ in 0..2 {
            for (target, digest, media_type) in [
                (
                    manifest("v1"),
                    image.digest(),
                    "application/vnd.oci.image.manifest.v1+json",
                ),
                (
                    manifest(image.digest()),
                    image.digest(),
                    "application/vnd.oci.image.manifest.v1+json",
                ),
                (blob.clone(), &*layer.digest, "application/octet-stream"),
            ] {
                let head = ask(&cluster, Request::head(registry, &target));
                // A compressed answer would have another digest and other ranges.
                let get = Request::get(registry, &target).header("Accept-Encoding", "zstd, gzip, deflate");
                let get = ask(&cluster, get);
                let is_blob = target == blob;
                for answer in [&head, &get] {
                    let header = |name| answer.headers.get(name);
                    assert_eq!(answer.status, 200, "{registry}{target}");
                    assert_eq!(header("docker-content-digest"), Some(digest));
                    assert_eq!(header("etag"), Some(&*format!("\"{digest}\"")));
                    assert_eq!(header("content-type"), Some(media_type));
                    assert_eq!(header("content-length"), Some(&*get.body.len().to_string()));
                    assert_eq!(header("accept-ranges"), is_blob.then_some("bytes"), "{target}");
                    assert_eq!(header("docker-distribution-api-version"), Some("registry/2.0"));
                    assert_eq!(header("oci-namespace"), Some(HOST));
                    assert_eq!((header("content-encoding"), header("transfer-encoding")), (None, None));
                }
                assert!(head.body.is_empty());
            }
        }
        let whole = ask(
            &cluster,
            Request::get(registry, &manifest("v1")).header("Range", "bytes=0-"),
        );
        assert_eq!(whole.status, 200, "a manifest has no ranges");
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            for target in [&*blob, "/v2/library/app/blobs/uploads/", &*manifest("v1")] {
                let push = ask(&cluster, Request::new(method, registry, target));
                assert_eq!((push.status, &*code(&push)), (405, "UNSUPPORTED"), "{method} {target}");
                assert_eq!(push.headers.get("allow"), Some("GET, HEAD"));
            }
        }
    }
}

#[test]
fn a_blob_may_be_named_by_sha512_and_is_verified_by_it() {
    let hostile = SocketAddrV4::new(ORIGIN_IP, 5001);
    let cluster = Cluster::cold_with(Site::builder().nodes(1), |options| {
        let upstream = vec![format!("{HOST}=http://{hostile}")];
        options.mirror.upstreams.clone_from(&upstream);
        options.peer.upstreams = upstream;
    });
    let image = Image::new("library/app", "v1").layer_bytes(&[700_000]);
    let upstream = FakeUpstream::start(cluster.site.origin(), hostile, &image);
    let bytes = image.layers()[0].bytes.clone();
    let hex: String = sha2::Sha512::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let [right, wrong] = [hex.clone(), "0".repeat(128)].map(|hex| Blob {
        digest: format!("sha512:{hex}"),
        ..Blob::new("application/octet-stream", bytes.clone())
    });
    upstream.add_blob(&right);
    upstream.add_blob(&wrong);
    for registry in registries() {
        let target = |blob: &Blob| format!("/v2/library/app/blobs/{}?ns={HOST}", blob.digest);
        let got = ask(&cluster, Request::get(registry, &target(&right)));
        assert!(got.status == 200 && got.body == bytes, "{registry}: {}", got.status);
        let lie = ask(&cluster, Request::get(registry, &target(&wrong)));
        assert!(
            lie.status != 200 || !lie.complete,
            "{registry}: bytes of another digest were served whole"
        );
    }
}

/// The node has no way to the upstream: its peer asks the mirror.
#[test]
fn the_size_of_a_cold_blob_is_known_through_a_peer_and_costs_no_download() {
    let (cluster, image) = cluster();
    let layer = &image.layers()[0];
    for registry in registries() {
        let head = ask(
            &cluster,
            Request::head(registry, &format!("/v2/library/app/blobs/{}?ns={HOST}", layer.digest)),
        );
        assert_eq!(head.status, 200, "{registry}");
        assert_eq!(
            head.headers.get("content-length"),
            Some(&*layer.bytes.len().to_string())
        );
    }
    assert_eq!(cluster.registry.blob_bytes_served(&layer.digest), 0);
}

#[test]
fn ranges_are_exact_and_impossible_ones_are_refused() {
    let (cluster, image) = cluster();
    let layer = &image.layers()[0];
    let target = format!("/v2/library/app/blobs/{}?ns={HOST}", layer.digest);
    let size = layer.bytes.len();
    for registry in registries() {
        for (range, expected) in [
            ("bytes=500-1499", 500..1500),
            ("bytes=699000-", 699_000..size),
            ("bytes=-500", size - 500..size),
            ("bytes=699999-9999999", 699_999..size),
        ] {
            let response = ask(&cluster, Request::get(registry, &target).header("Range", range));
            assert_eq!(response.status, 206, "{range}");
            assert_eq!(response.body, layer.bytes[expected.clone()], "{range}");
            let stated = format!("bytes {}-{}/{size}", expected.start, expected.end - 1);
            assert_eq!(response.headers.get("content-range"), Some(&*stated));
        }
        for range in ["bytes=500-0", "bytes=700000-", "bytes=x-y"] {
            let response = ask(&cluster, Request::get(registry, &target).header("Range", range));
            assert_eq!((response.status, &*code(&response)), (416, "SIZE_INVALID"), "{range}");
        }
        let several = |ranges: &str| ask(&cluster, Request::get(registry, &target).header("Range", ranges));
        let parts = several("bytes=-10, 0-1,4-99,50-149,800000-");
        assert_eq!(parts.status, 206);
        assert_eq!(
            byteranges(&parts),
            [
                (format!("bytes 699990-699999/{size}"), layer.bytes[699_990..].to_vec()),
                (format!("bytes 0-1/{size}"), layer.bytes[..2].to_vec()),
                (format!("bytes 4-149/{size}"), layer.bytes[4..150].to_vec()),
            ],
            "in their order, those that overlap as one"
        );
        let one = several("bytes=5-9,5-9,800000-");
        assert_eq!((one.status, &*one.body), (206, &layer.bytes[5..10]), "one is no list");
        assert_eq!(one.headers.get("content-type"), Some("application/octet-stream"));
        assert_eq!(several("bytes=800000-,-0").status, 416);
        let many: Vec<String> = (0..1025).map(|part| format!("{}-{}", part * 9, part * 9)).collect();
        let whole = several(&format!("bytes={}", many.join(",")));
        assert_eq!(
            (whole.status, whole.body.len()),
            (200, size),
            "more than any reader asks for"
        );
    }
    assert_eq!(
        cluster.registry.blob_bytes_served(&layer.digest),
        size as u64,
        "ranges on a cold blob cost one download"
    );
}

#[test]
fn piece_ports_and_the_nodes_door_refuse_clients_without_the_sites_key() {
    let (cluster, image) = cluster();
    cluster.containerds[0].fetch(&image.reference(HOST)).expect_ok();
    let layer = &image.layers()[0].digest;
    for port in ["10.88.1.1:65002", "10.88.0.2:65002"] {
        let target = format!("/piece/v1/{layer}/0000000000000001/0-0");
        for token in [None, Some("Piecemeal forged"), Some("Bearer x")] {
            let request = Request::get(address(port), &target);
            let request = token.map_or(request.clone(), |token| request.header("Authorization", token));
            assert_eq!(ask(&cluster, request).status, 401, "{port} {token:?}");
        }
    }
    let target = format!("/piecemeal/v1/blobs/{layer}?ns={HOST}&name=library/app");
    let door = Request::get(address("10.88.0.2:65011"), &target);
    assert_eq!(ask(&cluster, door.clone()).status, 401);
    let forged = door
        .header("Piecemeal-Node", &"a".repeat(32))
        .header("Piecemeal-Proof", "AAAA");
    assert_eq!(ask(&cluster, forged).status, 401);
}

#[test]
fn the_scheduler_refuses_a_peer_of_another_site_and_says_why() {
    let (cluster, _) = cluster();
    let strangers = Keys::generate(&cluster.site.dir().join("other-keys"));
    let log = cluster.site.dir().join("stranger.log");
    let file = std::fs::File::create(&log).expect("a log");
    let mut command = cluster.site.node(0).command(env!("CARGO_BIN_EXE_piecemeal"));
    command.args([
        "peer",
        "--listen",
        "127.0.0.1:65101",
        "--piece-listen",
        "10.88.1.1:65102",
        "--admin-listen",
        "127.0.0.1:65103",
    ]);
    command.args([
        "--mirror",
        "http://10.88.0.2:65011",
        "--scheduler",
        "http://10.88.0.2:65012",
        "--pool",
        "site-a",
    ]);
    command.args(["--upstream", "origin.test=http://10.99.0.2:5000"]);
    command
        .arg("--cache-dir")
        .arg(cluster.site.dir().join("stranger-cache"));
    command.arg("--join-key-file").arg(strangers.join());
    let mut stranger = command.stderr(file).stdout(Stdio::null()).spawn().expect("it starts");
    let deadline = Instant::now() + Duration::from_secs(10);
    let said = loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        if text.contains("keygen") || Instant::now() > deadline {
            break text;
        }
        thread::sleep(Duration::from_millis(50));
    };
    stranger.kill().expect("it runs");
    stranger.wait().expect("it ends");
    assert!(said.contains("ERROR") && said.contains("keygen"), "{said}");
    let scheduler = cluster.scheduler.as_ref().expect("it runs");
    assert!(scheduler.metric("piecemeal_scheduler_refused_total{reason=\"proof\"}") >= 1.0);
}
