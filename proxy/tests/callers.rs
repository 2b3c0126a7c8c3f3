//! Fills that many callers share, from a registry on loopback: with whose right they go on, and which answer each caller gets.
//!
//! The seed decides which callers are bad and how, when a token ends, and the order of the callers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path as Folder,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header},
    routing::get,
};
use bytes::Bytes;
use futures_util::{future::join_all, stream};
use piecemeal_proto::{Digest, FillId, PieceHash, PieceMap};
use piecemeal_proxy::{
    BlobSizes, Content, FillObserver, Manifests, OpenBlob, RegistrySource, Rights, Source, Transfers,
};
use piecemeal_store::{Env, Filling, Repository, Store, StoreConfig};
use piecemeal_swarm::Limiter;
use piecemeal_upstream::{
    Caller, ClientConfig, Credential, HttpProxy, LiveDuration, PullError, UpstreamConfig, Upstreams,
};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{net::TcpListener, time::sleep};

const SEEDS: u64 = 12;
const CALLERS: usize = 20;
const BLOB_BYTES: usize = 3_000_000;
/// How a blob of that size is cut.
const PIECE_BYTES: usize = 256 * 1024;

/// A registry with one blob. It limits each token to a number of requests, and counts the bytes of bodies.
#[derive(Clone)]
struct FakeRegistry(Arc<Mutex<Shelf>>);

struct Shelf {
    blob: Bytes,
    /// The status that each token gets, and after how many of its GETs.
    tokens: HashMap<String, (StatusCode, usize)>,
    sent: u64,
    gets: usize,
    /// Bytes of a body at a time, and the pause before them.
    pace: (usize, Duration),
    /// So many bytes of the blob are sent, and no more.
    stalls_at: Option<usize>,
}

impl FakeRegistry {
    fn new(blob: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(Shelf {
            blob: Bytes::copy_from_slice(blob),
            tokens: HashMap::new(),
            sent: 0,
            gets: 0,
            pace: (64 * 1024, Duration::from_millis(1)),
            stalls_at: None,
        })))
    }

    /// After so many GETs a token is answered with `status`.
    fn refuse(&self, token: &str, status: StatusCode, good_for: usize) {
        let token = format!("Bearer {token}");
        self.0.lock().unwrap().tokens.insert(token, (status, good_for));
    }

    fn pace(&self, bytes: usize, pause: Duration) {
        self.0.lock().unwrap().pace = (bytes, pause);
    }

    fn stall_at(&self, bytes: usize) {
        self.0.lock().unwrap().stalls_at = Some(bytes);
    }

    fn sent(&self) -> u64 {
        self.0.lock().unwrap().sent
    }

    fn gets(&self) -> usize {
        self.0.lock().unwrap().gets
    }

    async fn listen(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/v2/library/app/blobs/{digest}", get(Self::answer))
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    async fn answer(
        State(registry): State<Self>,
        Path(_): Path<String>,
        method: Method,
        headers: HeaderMap,
    ) -> Response<Body> {
        // A long way, so that a fill uses several connections and callers overlap.
        sleep(Duration::from_millis(40)).await;
        if let Some(status) = registry.refusal(&method, &headers) {
            return Response::builder().status(status).body(Body::empty()).unwrap();
        }
        let (blob, (step, pause), stalls_at) = {
            let shelf = registry.0.lock().unwrap();
            (shelf.blob.clone(), shelf.pace, shelf.stalls_at)
        };
        let part = headers.get(header::RANGE).map(|range| {
            let range = range.to_str().unwrap().trim_start_matches("bytes=");
            let (first, last) = range.split_once('-').unwrap();
            let end = last
                .parse()
                .map_or(blob.len(), |last: usize| (last + 1).min(blob.len()));
            first.parse().unwrap()..end
        });
        let status = part.as_ref().map_or(StatusCode::OK, |_| StatusCode::PARTIAL_CONTENT);
        let range = part.unwrap_or(0..blob.len());
        let stated = format!("bytes {}-{}/{}", range.start, range.end - 1, blob.len());
        let answer = Response::builder()
            .status(status)
            .header(header::CONTENT_LENGTH, range.len())
            .header(header::CONTENT_RANGE, stated)
            .header("docker-content-digest", Digest::of(&blob).to_string());
        let blob_bytes = blob.len();
        let frames = stream::unfold((registry, blob.slice(range)), move |(registry, mut rest)| async move {
            if rest.is_empty() {
                return None;
            }
            if stalls_at.is_some_and(|at| blob_bytes - rest.len() >= at) {
                std::future::pending::<()>().await;
            }
            sleep(pause).await;
            let frame = rest.split_to(step.min(rest.len()));
            registry.0.lock().unwrap().sent += frame.len() as u64;
            Some((Ok::<_, std::io::Error>(frame), (registry, rest)))
        });
        answer.body(Body::from_stream(frames)).unwrap()
    }

    fn refusal(&self, method: &Method, headers: &HeaderMap) -> Option<StatusCode> {
        let mut shelf = self.0.lock().unwrap();
        let is_get = method == Method::GET;
        shelf.gets += usize::from(is_get);
        let authorization = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (status, left) = shelf.tokens.get_mut(authorization)?;
        if *left == 0 {
            return Some(*status);
        }
        *left -= usize::from(is_get);
        None
    }
}

struct NoObserver;

impl FillObserver for NoObserver {
    fn opened(&self, _: &Filling) {}
    fn landed(&self, _: &Filling, _: u32, _: PieceHash) {}
    fn proven(&self, _: &Digest, _: FillId) {}
    fn revoked(&self, _: &Digest, _: FillId) {}
    fn received(&self, _: usize) {}
}

fn blobs(dir: &Folder, upstreams: &[(&str, SocketAddr)]) -> Content {
    // As the binary does at its start; an error says that another test has.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = StoreConfig {
        dir: dir.join("store"),
        quota_bytes: None,
        free_bytes_min: 0,
        ttl: Duration::from_secs(3600),
    };
    let store = Store::open(config, Env::system()).unwrap();
    let upstream = |(name, address): &(&str, SocketAddr)| {
        let url = format!("http://{address}").parse().unwrap();
        UpstreamConfig::new((*name).to_owned(), vec![url])
    };
    let upstreams: Vec<UpstreamConfig> = upstreams.iter().map(upstream).collect();
    let client = ClientConfig {
        proxy: HttpProxy::None,
        ..ClientConfig::default()
    };
    let upstreams = Upstreams::new(&upstreams, &client, store.node_id()).unwrap();
    let grace = LiveDuration::new(Duration::from_secs(3600));
    let (sizes, transfers) = (BlobSizes::default(), Transfers::default());
    let judges = upstreams.clone();
    let source: Arc<dyn Source> = Arc::new(RegistrySource {
        store: store.clone(),
        upstreams,
        is_public: Arc::new(move |at| judges.allows(&Caller::default(), at)),
        sizes: sizes.clone(),
        transfers: transfers.clone(),
        observer: Arc::new(NoObserver),
        limiter: Limiter::new(None),
    });
    let access = Arc::new(Rights::new(store.clone(), Arc::clone(&source), grace, None));
    let tag_ttl = LiveDuration::new(Duration::ZERO);
    let manifests = Manifests::new(
        store.clone(),
        Arc::clone(&source),
        access.clone(),
        sizes.clone(),
        tag_ttl,
    );
    Content {
        store,
        source,
        access,
        sizes,
        transfers,
        manifests,
    }
}

fn at(upstream: &str) -> Repository {
    Repository {
        upstream: upstream.to_owned(),
        name: "library/app".to_owned(),
    }
}

fn caller(token: &str) -> Caller {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
    Caller {
        credential: Credential::from_headers(&headers),
        ..Caller::default()
    }
}

fn content(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOB_BYTES];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A manifest that tells the blob's size, so that its fill begins with ranges.
fn manifest(blob: &[u8]) -> String {
    format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"{}","size":2}},"layers":[{{"digest":"{}","size":{}}}]}}"#,
        Digest::of(b"{}"),
        Digest::of(blob),
        blob.len()
    )
}

/// Pulls as a client does: the whole blob, once.
async fn pull(blobs: &Content, token: &str, upstream: &str, digest: &Digest) -> Result<Vec<u8>, PullError> {
    let mut open = blobs.open(&caller(token), &at(upstream), digest).await?;
    let blob_bytes = open.blob_bytes();
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < blob_bytes {
        let read = open.read(bytes.len() as u64..blob_bytes).await;
        bytes.extend_from_slice(&read.map_err(|error| PullError::Unavailable(error.to_string()))?);
    }
    Ok(bytes)
}

/// The status that an error was made of.
fn status(error: &PullError) -> u16 {
    match error {
        PullError::Denied { status, .. } | PullError::Rejected { status, .. } => *status,
        PullError::Unknown(_) => 404,
        PullError::TooManyRequests { .. } => 429,
        error => panic!("no refusal: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn good_callers_are_served_and_each_refused_one_hears_its_own_error() {
    const STATUSES: [u16; 8] = [400, 401, 403, 404, 413, 414, 429, 431];
    for seed in 0..SEEDS {
        let mut dice = StdRng::seed_from_u64(seed);
        let blob = content(seed);
        let (registry, digest) = (FakeRegistry::new(&blob), Digest::of(&blob));
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), &[("a.test", registry.listen().await)]);
        let share = [0.1, 0.5, 0.9][dice.random_range(0..3)];
        let callers: Vec<(String, Option<u16>, u64)> = (0..CALLERS)
            .map(|number| {
                // The first is bad: it is the one that begins. The last is good.
                let is_bad = number == 0 || (number + 1 < CALLERS && dice.random_bool(share));
                let status = is_bad.then(|| STATUSES[dice.random_range(0..STATUSES.len())]);
                let delay = if number == 0 { 0 } else { dice.random_range(5..35) };
                (format!("token{number}"), status, delay)
            })
            .collect();
        for (token, status, _) in &callers {
            if let Some(status) = status {
                registry.refuse(token, StatusCode::from_u16(*status).unwrap(), 0);
            }
        }
        let pulls = callers.iter().map(|(token, _, delay)| async {
            sleep(Duration::from_millis(*delay)).await;
            pull(&blobs, token, "a.test", &digest).await
        });
        for ((token, expected, _), pulled) in callers.iter().zip(join_all(pulls).await) {
            match (expected, pulled) {
                (None, Ok(bytes)) => assert!(bytes == blob, "seed {seed}: {token}"),
                (None, Err(error)) => panic!("seed {seed}: {token} is good and hears {error}"),
                (Some(_), Ok(_)) => panic!("seed {seed}: {token} is bad and is served"),
                (Some(expected), Err(error)) => assert_eq!(status(&error), *expected, "seed {seed}: {token}"),
            }
        }
        assert_eq!(registry.sent(), blob.len() as u64, "seed {seed}: one copy");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_caller_is_served_although_tokens_expire_during_the_fill() {
    let ends = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND];
    all_are_served_although_tokens_end(ends).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_caller_is_served_although_some_reach_a_rate_limit_during_the_fill() {
    all_are_served_although_tokens_end([StatusCode::TOO_MANY_REQUESTS; 3]).await;
}

/// `ends`: the statuses with which the registry refuses a token in mid-fill.
async fn all_are_served_although_tokens_end(ends: [StatusCode; 3]) {
    for seed in 0..SEEDS {
        let mut dice = StdRng::seed_from_u64(seed);
        let blob = content(seed);
        let (registry, digest) = (FakeRegistry::new(&blob), Digest::of(&blob));
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path(), &[("a.test", registry.listen().await)]);
        let manifest = manifest(&blob);
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest_digest = Digest::of(manifest.as_bytes());
        blobs
            .sizes
            .learn(&at("a.test"), &manifest_digest, media_type, manifest.as_bytes());
        registry.pace(16 * 1024, Duration::from_millis(3));
        // All tokens but the last expire, each after some requests of its own; the first once all connections have begun.
        for number in 0..4 {
            let good_for = dice.random_range(1..4) + if number == 0 { 4 } else { 0 };
            registry.refuse(&format!("token{number}"), ends[number % 3], good_for);
        }
        // The fill measures the latency by this request.
        blobs.stat(&caller("token4"), &at("a.test"), &digest).await.unwrap();
        let pulls = (0..5_u64).map(|number| {
            let (blobs, digest) = (&blobs, &digest);
            async move {
                sleep(Duration::from_millis(10 * number)).await;
                pull(blobs, &format!("token{number}"), "a.test", digest).await
            }
        });
        for (number, pulled) in join_all(pulls).await.into_iter().enumerate() {
            let pulled = pulled.unwrap_or_else(|error| panic!("seed {seed}: token{number}: {error}"));
            assert!(pulled == blob, "seed {seed}: token{number}");
        }
        assert_eq!(registry.sent(), blob.len() as u64, "seed {seed}: one copy");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_one_registrys_private_blob_is_given_to_no_other_registrys_caller() {
    let secret = content(1);
    let digest = Digest::of(&secret);
    let map = PieceMap::for_blob(secret.len() as u64).unwrap();
    // Half of its pieces have come for its owner, or the beginning of one.
    for pieces in [map.count() / 2, 0] {
        // It answers with its own bytes for every digest.
        let (private, liar) = (FakeRegistry::new(&secret), FakeRegistry::new(&content(2)));
        let dir = tempfile::tempdir().unwrap();
        let upstreams = [
            ("private.test", private.listen().await),
            ("liar.test", liar.listen().await),
        ];
        let blobs = blobs(dir.path(), &upstreams);
        let filling = blobs.store.begin(&digest, map, None).await.unwrap();
        for piece in 0..pieces {
            filling
                .write_piece(piece, part(&secret, map.range(piece)), None)
                .await
                .unwrap();
        }
        if pieces == 0 {
            filling.write_partial_piece(0, 0, part(&secret, 0..1000)).await.unwrap();
        }
        drop(filling);
        blobs.store.record_source(&at("private.test"), &digest).await.unwrap();
        for _ in 0..3 {
            let mut got = Vec::new();
            if let Ok(mut open) = blobs.open(&caller("mallory"), &at("liar.test"), &digest).await {
                let blob_bytes = open.blob_bytes();
                while let Ok(read) = open.read(got.len() as u64..blob_bytes).await
                    && !read.is_empty()
                {
                    got.extend_from_slice(&read);
                }
            }
            let begins_alike = got.len() >= 64 && got[..64] == secret[..64];
            assert!(!begins_alike, "private bytes reached another registry's caller");
            sleep(Duration::from_millis(1200)).await;
        }
        assert_eq!(private.gets(), 0);
    }
}

fn part(of: &[u8], range: std::ops::Range<u64>) -> Bytes {
    let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
    Bytes::copy_from_slice(&of[start..end])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_before_a_blob_comes_cools_down_its_own_caller_only() {
    let blob = content(1);
    let (registry, digest) = (FakeRegistry::new(&blob), Digest::of(&blob));
    let dir = tempfile::tempdir().unwrap();
    let blobs = blobs(dir.path(), &[("a.test", registry.listen().await)]);
    // A front door that breaks over a credential.
    registry.refuse("odd", StatusCode::INTERNAL_SERVER_ERROR, 0);
    for _ in 0..3 {
        assert!(pull(&blobs, "odd", "a.test", &digest).await.is_err());
    }
    assert_eq!(registry.gets(), 1, "its own caller waits");
    assert!(pull(&blobs, "good", "a.test", &digest).await.unwrap() == blob);
}

/// One registry leads with a blob that another is asked for too; what it sends, and how.
#[derive(Debug)]
enum Leader {
    /// Other bytes, for ever.
    Lies,
    /// Nothing but the headers.
    IsSilent,
    /// A beginning of the blob that is too short to be compared.
    Stalls,
    /// A beginning of the blob, which the other registry has as well.
    StallsLater,
    /// Five pieces of the blob and a half, which the other registry has as well.
    StallsInTheMiddle,
    /// The blob.
    IsHonest,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_leads_holds_up_no_other_registrys_pull_of_the_digest() {
    for leader in [
        Leader::Lies,
        Leader::IsSilent,
        Leader::Stalls,
        Leader::StallsLater,
        Leader::StallsInTheMiddle,
        Leader::IsHonest,
    ] {
        let blob = content(1);
        let digest = Digest::of(&blob);
        let honest = FakeRegistry::new(&blob);
        let first = match leader {
            Leader::IsHonest | Leader::Stalls | Leader::StallsLater | Leader::StallsInTheMiddle => {
                FakeRegistry::new(&blob)
            }
            Leader::Lies | Leader::IsSilent => FakeRegistry::new(&content(2)),
        };
        match leader {
            Leader::Lies => first.pace(64, Duration::from_millis(1)),
            Leader::IsSilent => first.pace(64, Duration::from_secs(3600)),
            Leader::Stalls => {
                first.pace(16 * 1024, Duration::from_millis(1));
                first.stall_at(30_000);
            }
            // Slow enough that each frame is kept.
            Leader::StallsLater => {
                first.pace(64 * 1024, Duration::from_millis(10));
                first.stall_at(100_000);
            }
            Leader::StallsInTheMiddle => {
                first.pace(64 * 1024, Duration::from_millis(10));
                first.stall_at(5 * PIECE_BYTES + PIECE_BYTES / 2);
            }
            // Long enough that it runs when the other registry's callers come.
            Leader::IsHonest => first.pace(64 * 1024, Duration::from_millis(50)),
        }
        let dir = tempfile::tempdir().unwrap();
        let upstreams = [
            ("first.test", first.listen().await),
            ("second.test", honest.listen().await),
        ];
        let blobs = blobs(dir.path(), &upstreams);
        // What is public is shared between registries.
        let leading = blobs.open(&Caller::default(), &at("first.test"), &digest).await;
        assert!(leading.is_ok());
        // Callers of both join it while it runs.
        let pulls = (0..4).map(|number| {
            let (blobs, token) = (&blobs, format!("token{number}"));
            async move { pull(blobs, &token, "second.test", &digest).await }
        });
        for pulled in join_all(pulls).await {
            assert!(pulled.unwrap() == blob);
        }
        let (sample, probe) = (2 * 1024, 64 * 1024);
        match leader {
            Leader::IsHonest => assert!(honest.sent() <= sample, "{} bytes beside one copy", honest.sent()),
            Leader::Lies | Leader::Stalls => {
                let (sent, copy) = (honest.sent(), blob.len() as u64);
                assert!(
                    (copy..=copy + sample).contains(&sent),
                    "{leader:?}: {sent} bytes for {copy}"
                );
            }
            Leader::StallsLater => {
                // It is followed until this registry has proven to be faster.
                let (sent, once) = (honest.sent(), blob.len() as u64 + probe);
                assert!((once..=once + sample).contains(&sent), "{sent} bytes for {once}");
            }
            Leader::StallsInTheMiddle => {
                // What the leader has brought is not fetched again, and its readers' streams go on.
                let (sent, rest) = (honest.sent(), (blob.len() - 5 * PIECE_BYTES) as u64 + probe);
                // It is compared once more where the first look sees it bring something.
                assert!(
                    (rest..=rest + probe + sample).contains(&sent),
                    "{sent} bytes for {rest}"
                );
            }
            Leader::IsSilent => assert_eq!(honest.sent(), blob.len() as u64),
        }
        wait_until_kept(&blobs, &digest).await;
        // What a registry has only claimed is not served under its name.
        let later = blobs.open(&Caller::default(), &at("first.test"), &digest).await;
        match leader {
            Leader::IsHonest | Leader::Stalls | Leader::StallsLater | Leader::StallsInTheMiddle => {}
            Leader::Lies | Leader::IsSilent => assert!(later.is_err(), "it has shown nothing of the blob"),
        }
        assert!(matches!(leader, Leader::IsHonest) || leading.unwrap().read(0..blob.len() as u64).await.is_err());
    }
}

async fn wait_until_kept(blobs: &Content, digest: &Digest) {
    let kept = async {
        while !matches!(blobs.store.blob(digest).await, Ok(Some(_))) {
            sleep(Duration::from_millis(10)).await
        }
    };
    tokio::time::timeout(Duration::from_secs(10), kept)
        .await
        .expect("the proven blob is kept");
}

/// The lie is in a piece that is not compared before it is taken over.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_over_from_a_liar_is_dropped_and_its_readers_have_the_blob_at_their_second_try() {
    let blob = content(1);
    let digest = Digest::of(&blob);
    let mut lie = blob.clone();
    lie[PIECE_BYTES + 7] ^= 1;
    let (honest, liar) = (FakeRegistry::new(&blob), FakeRegistry::new(&lie));
    liar.pace(64 * 1024, Duration::from_millis(10));
    liar.stall_at(5 * PIECE_BYTES + PIECE_BYTES / 2);
    let dir = tempfile::tempdir().unwrap();
    let upstreams = [
        ("liar.test", liar.listen().await),
        ("honest.test", honest.listen().await),
    ];
    let blobs = blobs(dir.path(), &upstreams);
    let leading = blobs.open(&Caller::default(), &at("liar.test"), &digest).await;
    let early = blobs
        .open(&Caller::default(), &at("honest.test"), &digest)
        .await
        .unwrap();
    let got = read_all(early).await;
    assert!(lie.starts_with(&got) && got.len() < blob.len(), "its stream ends short");
    assert!(pull(&blobs, "token", "honest.test", &digest).await.unwrap() == blob);
    let two_copies = 2 * blob.len() as u64;
    assert!(honest.sent() <= two_copies, "{} bytes", honest.sent());
    assert!(read_all(leading.unwrap()).await.len() < blob.len());
    wait_until_kept(&blobs, &digest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_claims_what_another_sends_gets_nothing_of_it_and_harms_nothing() {
    let secret = content(1);
    let digest = Digest::of(&secret);
    let (private, liar) = (FakeRegistry::new(&secret), FakeRegistry::new(&content(2)));
    private.pace(64 * 1024, Duration::from_millis(20));
    let dir = tempfile::tempdir().unwrap();
    let upstreams = [
        ("private.test", private.listen().await),
        ("liar.test", liar.listen().await),
    ];
    let blobs = blobs(dir.path(), &upstreams);
    let owner = async { pull(&blobs, "owner", "private.test", &digest).await };
    let mallory = async {
        sleep(Duration::from_millis(100)).await;
        let mut open = blobs.open(&caller("mallory"), &at("liar.test"), &digest).await?;
        let blob_bytes = open.blob_bytes();
        let mut got = Vec::new();
        while let Ok(read) = open.read(got.len() as u64..blob_bytes).await
            && !read.is_empty()
        {
            got.extend_from_slice(&read);
        }
        Ok::<_, PullError>(got)
    };
    let (owner, mallory) = tokio::join!(owner, mallory);
    assert!(owner.unwrap() == secret);
    let got = mallory.unwrap();
    assert!(
        content(2).starts_with(&got) && got.len() < secret.len(),
        "its own registry's bytes, and not all of them"
    );
    assert_eq!(private.sent(), secret.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_that_lie_alike_get_nothing_of_what_a_third_proves() {
    let (secret, lie) = (content(1), content(2));
    let digest = Digest::of(&secret);
    let [first, second] = [(); 2].map(|()| FakeRegistry::new(&lie));
    let private = FakeRegistry::new(&secret);
    // The first ends with its lie while the third still sends the blob, and the second goes on by itself.
    first.pace(64 * 1024, Duration::from_millis(20));
    second.pace(8 * 1024, Duration::from_millis(10));
    private.pace(16 * 1024, Duration::from_millis(10));
    let dir = tempfile::tempdir().unwrap();
    let upstreams = [
        ("first.test", first.listen().await),
        ("second.test", second.listen().await),
        ("private.test", private.listen().await),
    ];
    let blobs = blobs(dir.path(), &upstreams);
    let mallory = Caller::default();
    let owner = async { pull(&blobs, "owner", "private.test", &digest).await };
    let liars = async {
        let mut bodies = Vec::new();
        for round in 0..40 {
            let liar = ["first.test", "second.test"][round % 2];
            // Each reads on while the next ones ask.
            if let Ok(open) = blobs.open(&mallory, &at(liar), &digest).await {
                bodies.push(tokio::spawn(read_all(open)));
            }
            sleep(Duration::from_millis(100)).await;
        }
        join_all(bodies).await
    };
    let later = async {
        sleep(Duration::from_millis(200)).await;
        owner.await
    };
    let (bodies, pulled) = tokio::join!(liars, later);
    assert!(pulled.unwrap() == secret);
    for body in bodies {
        let body = body.unwrap();
        let shown = body
            .chunks(64)
            .zip(lie.chunks(64))
            .all(|(got, lied)| lied.starts_with(got));
        assert!(shown, "{} bytes, and not all of them its own registry's", body.len());
    }
}

/// The bytes of the blob until it ends.
async fn read_all(mut open: OpenBlob) -> Vec<u8> {
    let blob_bytes = open.blob_bytes();
    let mut got = Vec::new();
    while let Ok(read) = open.read(got.len() as u64..blob_bytes).await
        && !read.is_empty()
    {
        got.extend_from_slice(&read);
    }
    got
}
