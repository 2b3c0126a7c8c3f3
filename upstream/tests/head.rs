//! A registry on loopback whose answers to HEAD are not those to GET, and answers that are not what was asked for.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Method, Response, StatusCode, header},
};
use piecemeal_proto::{Digest, NodeId, Reference};
use piecemeal_store::Repository;
use piecemeal_upstream::{
    Caller, ClientConfig, HttpProxy, PullError, STALE_HEADER, Upstream, UpstreamConfig, Upstreams,
};
use tokio::net::TcpListener;

const MANIFEST: &str = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const PAGE: &str = r#"{"errorCode":"SI3.1","message":"blocked by policy"}"#;
/// Answers to HEAD that say nothing. 200: without a digest.
const DOUBTFUL: [u16; 17] = [
    200, 204, 302, 400, 401, 403, 404, 405, 406, 407, 410, 412, 418, 421, 451, 501, 505,
];

/// A host that records the method and the path of each request.
#[derive(Clone)]
struct FakeHost {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl FakeHost {
    async fn start(answer: impl Fn(&Request) -> Response<Body> + Clone + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&asked);
        let handler = move |request: Request| {
            let (method, path) = (request.method(), request.uri().path());
            record.lock().unwrap().push(format!("{method} {path}"));
            let response = answer(&request);
            async move { response }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handler)).await });
        Self { address, asked }
    }

    fn upstream(&self) -> Arc<Upstream> {
        // Another test may have said so before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = format!("http://{}", self.address).parse().unwrap();
        let config = UpstreamConfig::new("a.test".to_owned(), vec![url]);
        let client = ClientConfig {
            proxy: HttpProxy::None,
            ..ClientConfig::default()
        };
        let upstreams = Upstreams::new(&[config], &client, NodeId([1; 16])).unwrap();
        upstreams.get("a.test").unwrap()
    }

    /// The methods of the requests since the last call.
    fn methods(&self) -> Vec<String> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        let method = |asked: String| asked.split(' ').next().unwrap().to_owned();
        asked.into_iter().map(method).collect()
    }
}

fn plain(status: u16) -> Response<Body> {
    let response = Response::builder().status(status).header(header::CONTENT_LENGTH, 0);
    response.body(Body::empty()).unwrap()
}

fn blob() -> Vec<u8> {
    b"layer ".repeat(50_000)
}

/// As registries do: the manifest and the blob, whole or in parts.
fn honest(request: &Request) -> Response<Body> {
    let path = request.uri().path();
    let response = Response::builder();
    if path.ends_with(&format!("blobs/{}", Digest::of(&blob()))) {
        let response = response.header("docker-content-digest", Digest::of(&blob()).to_string());
        let blob_bytes = blob().len();
        return match request.headers().get(header::RANGE) {
            Some(range) => {
                assert_eq!(range, "bytes=0-0");
                let response = response.status(StatusCode::PARTIAL_CONTENT);
                let response = response.header(header::CONTENT_RANGE, format!("bytes 0-0/{blob_bytes}"));
                response.body(blob()[..1].to_vec().into()).unwrap()
            }
            None => response.body(blob().into()).unwrap(),
        };
    }
    if path.contains("/manifests/") && !path.ends_with("/none") {
        let digest = Digest::of(MANIFEST.as_bytes());
        let response = response.header("docker-content-digest", digest.to_string());
        return response
            .header(header::CONTENT_TYPE, MANIFEST_TYPE)
            .body(MANIFEST.into())
            .unwrap();
    }
    plain(404)
}

/// Honest to GET.
async fn with_head(head: impl Fn() -> Response<Body> + Clone + Send + Sync + 'static) -> FakeHost {
    FakeHost::start(move |request| match *request.method() == Method::HEAD {
        true => head(),
        false => honest(request),
    })
    .await
}

fn at() -> Repository {
    Repository {
        upstream: "a.test".to_owned(),
        name: "library/app".to_owned(),
    }
}

fn tag(name: &str) -> Reference {
    Reference::Tag(name.to_owned())
}

async fn head_manifest(upstream: &Upstream, reference: &Reference) -> Result<Digest, PullError> {
    let answer = upstream.head_manifest(&Caller::default(), &at(), reference).await;
    answer.map(|answer| answer.digest)
}

async fn head_blob(upstream: &Upstream) -> Result<Option<u64>, PullError> {
    upstream
        .head_blob(&Caller::default(), &at(), &Digest::of(&blob()))
        .await
}

#[tokio::test]
async fn whatever_head_says_get_decides_what_a_manifest_is_and_head_is_sent_once() {
    for status in DOUBTFUL {
        let registry = with_head(move || plain(status)).await;
        let (upstream, digest) = (registry.upstream(), Digest::of(MANIFEST.as_bytes()));
        for (reference, methods) in [
            (tag("v1"), vec!["HEAD", "GET"]),
            (tag("v1"), vec!["GET"]),
            (Reference::Digest(digest), vec!["GET"]),
        ] {
            assert_eq!(head_manifest(&upstream, &reference).await.unwrap(), digest, "{status}");
            assert_eq!(registry.methods(), methods, "{status}");
        }
        assert!(upstream.allows(&Caller::default(), &at()), "{status}");
    }
}

#[tokio::test]
async fn whatever_head_says_get_of_the_first_byte_decides_about_a_blob() {
    for status in DOUBTFUL {
        let registry = with_head(move || plain(status)).await;
        let upstream = registry.upstream();
        for methods in [vec!["HEAD", "GET"], vec!["GET"]] {
            let blob_bytes = head_blob(&upstream).await.unwrap();
            assert_eq!(blob_bytes, Some(blob().len() as u64), "{status}");
            assert_eq!(registry.methods(), methods, "{status}");
        }
        assert!(upstream.allows(&Caller::default(), &at()), "{status}");
    }
}

#[tokio::test]
async fn a_url_that_is_signed_for_get_serves_although_it_refuses_head() {
    for status in [400, 401, 403, 404, 405, 501] {
        let storage = with_head(move || plain(status)).await;
        let stored = storage.address;
        let registry = FakeHost::start(move |request| {
            let location = format!("http://{stored}{}", request.uri().path());
            let response = Response::builder().status(307).header(header::LOCATION, location);
            response.body(Body::empty()).unwrap()
        })
        .await;
        let upstream = registry.upstream();
        for _ in 0..2 {
            assert_eq!(
                head_blob(&upstream).await.unwrap(),
                Some(blob().len() as u64),
                "{status}"
            );
        }
        assert_eq!(storage.methods(), ["HEAD", "GET", "GET"], "{status}");
    }
}

#[tokio::test]
async fn a_size_that_get_has_stated_too_is_believed_without_a_digest() {
    let size = blob().len();
    let registry = with_head(move || {
        let response = Response::builder().header(header::CONTENT_LENGTH, size);
        response.body(Body::empty()).unwrap()
    })
    .await;
    let upstream = registry.upstream();
    for methods in [vec!["HEAD", "GET"], vec!["HEAD"], vec!["HEAD"]] {
        assert_eq!(head_blob(&upstream).await.unwrap(), Some(size as u64));
        assert_eq!(registry.methods(), methods);
    }
}

#[tokio::test]
async fn an_error_that_get_would_get_too_stands_and_costs_no_get() {
    for status in [401, 429, 500, 502, 503, 504] {
        let registry = with_head(move || {
            let mut response = plain(status);
            if status == 401 {
                let challenge = "Basic realm=\"a\"".parse().unwrap();
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            }
            response
        })
        .await;
        for is_blob in [false, true] {
            let upstream = registry.upstream();
            let error = match is_blob {
                true => head_blob(&upstream).await.unwrap_err(),
                false => head_manifest(&upstream, &tag("v1")).await.unwrap_err(),
            };
            let as_told = match status {
                401 => matches!(error, PullError::Denied { status: 401, .. }),
                429 => matches!(error, PullError::TooManyRequests { .. }),
                _ => matches!(error, PullError::Unavailable(_)),
            };
            assert!(as_told, "{status}: {error}");
            assert_eq!(registry.methods(), ["HEAD"], "{status}");
            assert!(!upstream.allows(&Caller::default(), &at()), "{status}");
        }
    }
}

#[tokio::test]
async fn an_honest_registry_is_asked_twice_about_what_is_missing_once() {
    let registry = FakeHost::start(honest).await;
    let upstream = registry.upstream();
    head_manifest(&upstream, &tag("v1")).await.unwrap();
    assert_eq!(registry.methods(), ["HEAD"]);
    for (name, methods) in [("a", vec!["HEAD", "GET"]), ("b", vec!["HEAD"]), ("c", vec!["HEAD"])] {
        let missing = head_manifest(&upstream, &tag(&format!("{name}/none"))).await;
        assert!(matches!(missing, Err(PullError::Unknown(_))), "{missing:?}");
        assert_eq!(registry.methods(), methods, "{name}");
    }
    head_blob(&upstream).await.unwrap();
    assert_eq!(registry.methods(), ["HEAD"]);
}

#[tokio::test]
async fn the_refusal_of_a_head_is_not_remembered_and_that_of_a_get_is() {
    for status in [401, 403, 404] {
        let registry = with_head(move || plain(status)).await;
        let upstream = registry.upstream();
        head_manifest(&upstream, &tag("v1")).await.unwrap();
        head_blob(&upstream).await.unwrap();
        let manifest = upstream.manifest(&Caller::default(), &at(), &tag("v1")).await;
        assert!(manifest.is_ok(), "{status}: {manifest:?}");

        let registry = FakeHost::start(move |_| plain(status)).await;
        let upstream = registry.upstream();
        for methods in [vec!["HEAD", "GET"], vec![]] {
            let refused = head_manifest(&upstream, &tag("v1")).await.unwrap_err();
            assert!(refused.is_verdict(), "{status}: {refused}");
            assert_eq!(registry.methods(), methods, "{status}: GET's refusal is remembered");
        }
        assert!(!upstream.allows(&Caller::default(), &at()), "{status}");
    }
}

#[tokio::test]
async fn a_caller_gets_no_more_by_get_than_its_right() {
    // HEAD is refused by a filter; GET asks for a token.
    let registry = FakeHost::start(|request| match *request.method() == Method::HEAD {
        true => plain(403),
        false => {
            let mut response = plain(401);
            let challenge = "Basic realm=\"a\"".parse().unwrap();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            response
        }
    })
    .await;
    let upstream = registry.upstream();
    let refused = head_manifest(&upstream, &tag("v1")).await.unwrap_err();
    let challenged = matches!(
        &refused,
        PullError::Denied {
            status: 401,
            challenges,
            ..
        } if !challenges.is_empty()
    );
    assert!(challenged, "{refused:?}");
    assert!(!upstream.allows(&Caller::default(), &at()));
}

#[tokio::test]
async fn an_answer_that_is_not_what_was_asked_for_proves_no_right() {
    for (media_type, page) in [
        ("application/json", PAGE),
        ("text/plain", "Access denied"),
        ("application/xhtml+xml", "<html></html>"),
        ("text/html", "<html></html>"),
        ("application/json", ""),
        (MANIFEST_TYPE, &MANIFEST[..20]),
    ] {
        let registry = FakeHost::start(move |_| {
            let response = Response::builder().header(header::CONTENT_TYPE, media_type);
            response.body(page.into()).unwrap()
        })
        .await;
        let upstream = registry.upstream();
        let (caller, at) = (Caller::default(), at());
        let bad = |error: PullError| assert!(matches!(error, PullError::BadGateway(_)), "{page}: {error}");
        for reference in [tag("v1"), Reference::Digest(Digest::of(MANIFEST.as_bytes()))] {
            bad(upstream.manifest(&caller, &at, &reference).await.unwrap_err());
            bad(head_manifest(&upstream, &reference).await.unwrap_err());
        }
        bad(head_blob(&upstream).await.unwrap_err());
        bad(upstream.list(&caller, &at, "tags/list?n=1").await.err().unwrap());
        let sampled = upstream
            .has_sample(&caller, &at, &Digest::of(&blob()), 1, b"ayer")
            .await;
        assert!(!sampled.unwrap_or(false), "{page}");
        assert!(!upstream.allows(&caller, &at), "{page}");
    }
}

#[tokio::test]
async fn a_manifest_of_a_general_type_has_that_of_its_form() {
    for media_type in ["application/json", "application/octet-stream", "text/plain", ""] {
        let registry = FakeHost::start(move |_| {
            let response = Response::builder().header(header::CONTENT_TYPE, media_type);
            response.body(MANIFEST.into()).unwrap()
        })
        .await;
        let upstream = registry.upstream();
        let manifest = upstream.manifest(&Caller::default(), &at(), &tag("v1")).await.unwrap();
        assert_eq!(manifest.media_type, MANIFEST_TYPE, "{media_type}");
    }
}

#[tokio::test]
async fn what_a_registry_says_beside_an_answer_is_passed_on_and_is_no_state() {
    let registry = FakeHost::start(|request| {
        let mut response = honest(request);
        for (name, value) in [
            ("warning", "299 - \"stale: this tag is deprecated\""),
            ("age", "86400"),
            (STALE_HEADER, "true"),
        ] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    })
    .await;
    let (upstream, caller) = (registry.upstream(), Caller::default());
    let manifest = upstream.manifest(&caller, &at(), &tag("v1")).await.unwrap();
    let answer = upstream.head_manifest(&caller, &at(), &tag("v1")).await.unwrap();
    for note in [manifest.note, answer.note] {
        assert!(!note.is_stale);
        assert_eq!(note.warning.as_deref(), Some("299 - \"stale: this tag is deprecated\""));
    }
}
