//! The piece port and its client, over loopback and with a real store.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use piecemeal_http::Share;
use piecemeal_proto::{AuthorityKey, Digest, FillId, Grant, NodeId, PieceMap, Ticket};
use piecemeal_store::{Env, Filling, Store, StoreConfig};
use piecemeal_swarm::{
    AuthorityClock, FetchPiecesError, FetchedPiece, Limiter, PieceClient, PiecePort, PieceRequest, piece_router,
    serve_pieces,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

const PIECE_BYTES: u64 = 256 * 1024;
const FILL: FillId = FillId(0xfeed);
const REVOKED: NodeId = NodeId([6; 16]);
const NOW: u64 = 1000;

struct World {
    store: Store,
    address: SocketAddr,
    served: Arc<AtomicU64>,
    blob: Vec<u8>,
    digest: Digest,
    map: PieceMap,
    dir: tempfile::TempDir,
    _stop: DropGuard,
}

#[derive(Clone)]
struct Options {
    pieces: u64,
    accept_grants: bool,
    requests_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pieces: 4,
            accept_grants: false,
            requests_max: 64,
        }
    }
}

impl World {
    async fn new(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            dir: dir.path().to_owned(),
            quota_bytes: None,
            free_bytes_min: 0,
            ttl: Duration::from_secs(3600),
        };
        let store = Store::open(config, Env::system()).unwrap();
        // The last piece is a short one.
        let blob_bytes = options.pieces * PIECE_BYTES - 100;
        let blob: Vec<u8> = (0..blob_bytes).map(|at| (at / 7 % 251).to_le_bytes()[0]).collect();
        let mut world = Self {
            digest: Digest::of(&blob),
            map: PieceMap::new(blob_bytes, PIECE_BYTES).unwrap(),
            address: ([127, 0, 0, 1], 1).into(),
            served: Arc::default(),
            _stop: CancellationToken::new().drop_guard(),
            blob,
            store,
            dir,
        };
        (world.address, world._stop) = world.serve(&options).await;
        world
    }

    fn port(&self, options: &Options, limiter: Limiter) -> PiecePort {
        let clock = AuthorityClock::new();
        clock.learn(NOW);
        let served = Arc::clone(&self.served);
        PiecePort {
            store: self.store.clone(),
            authority: key().public(),
            clock,
            limiter,
            accept_grants: options.accept_grants,
            is_revoked: Arc::new(|node| *node == REVOKED),
            served: Arc::new(move |bytes| {
                served.fetch_add(bytes, Ordering::Relaxed);
            }),
            requests_max: options.requests_max,
            address_share: Share::ALL,
        }
    }

    async fn serve(&self, options: &Options) -> (SocketAddr, DropGuard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let router = piece_router(self.port(options, Limiter::new(None)));
        tokio::spawn(serve_pieces(listener, router, Share::ALL, stop.clone()));
        (address, stop.drop_guard())
    }

    async fn begin(&self) -> Filling {
        self.store.begin(&self.digest, self.map, Some(FILL)).await.unwrap()
    }

    fn piece(&self, index: u32) -> Bytes {
        let range = self.map.range(index);
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        Bytes::copy_from_slice(&self.blob[range])
    }

    async fn write(&self, filling: &Filling, pieces: impl IntoIterator<Item = u32>) {
        for index in pieces {
            filling.write_piece(index, self.piece(index), None).await.unwrap();
        }
    }

    async fn publish(&self) {
        let filling = self.begin().await;
        self.write(&filling, 0..self.map.count()).await;
        filling.publish(&[]).await.unwrap();
    }

    fn request(&self, first: u32, count: u32, token: String) -> PieceRequest {
        PieceRequest {
            addresses: vec![self.address],
            digest: self.digest,
            fill: FILL,
            map: self.map,
            first,
            count,
            token,
            patient: false,
        }
    }

    fn ticket(&self) -> String {
        ticket(self.digest, NOW + 60)
    }

    fn grant(&self) -> String {
        let grant = Grant {
            node: NodeId([1; 16]),
            digest: self.digest,
            map: self.map,
            fill: FILL,
            expires: NOW + 60,
        };
        grant.sign(&key())
    }

    /// A request by hand, on a connection of its own.
    async fn ask(&self, path: &str, authorization: Option<&str>) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let authorization = authorization.map_or_else(String::new, |value| format!("Authorization: {value}\r\n"));
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer[9..12].parse().unwrap(), answer)
    }

    fn path(&self, pieces: &str) -> String {
        format!("/piece/v1/{}/{FILL}/{pieces}", self.digest)
    }
}

fn key() -> AuthorityKey {
    AuthorityKey::from_seed([3; 32])
}

fn ticket(digest: Digest, expires: u64) -> String {
    let node = NodeId([1; 16]);
    Ticket { node, digest, expires }.sign(&key())
}

fn client() -> PieceClient {
    PieceClient::new(Limiter::new(None))
}

async fn fetch(client: &PieceClient, request: PieceRequest) -> Result<Vec<FetchedPiece>, FetchPiecesError> {
    client.fetch(request).try_collect().await
}

#[tokio::test]
async fn a_complete_blob_is_served_under_any_fill() {
    let world = World::new(Options::default()).await;
    world.publish().await;
    let client = client();
    for fill in [FILL, FillId(1)] {
        let mut request = world.request(1, 3, world.ticket());
        request.fill = fill;
        let pieces = fetch(&client, request).await.unwrap();
        assert_eq!(pieces.len(), 3);
        for (index, piece) in (1..).zip(pieces) {
            assert_eq!((piece.index, &piece.bytes), (index, &world.piece(index)));
            assert_eq!(piece.hash.map(Digest::Sha256), Some(Digest::of(&piece.bytes)));
        }
    }
    assert_eq!(world.served.load(Ordering::Relaxed), 2 * (3 * PIECE_BYTES - 100));
}

#[tokio::test]
async fn a_fill_is_served_under_its_own_id_and_in_whole_ranges_only() {
    let world = World::new(Options::default()).await;
    let filling = world.begin().await;
    world.write(&filling, [0, 1, 3]).await;
    let client = client();
    let pieces = fetch(&client, world.request(0, 2, world.ticket())).await.unwrap();
    assert_eq!(pieces[1].bytes, world.piece(1));
    assert_eq!(
        fetch(&client, world.request(3, 1, world.ticket())).await.unwrap()[0].bytes,
        world.piece(3)
    );
    for (first, count) in [(1, 2), (2, 1), (0, 4), (3, 2)] {
        let missing = fetch(&client, world.request(first, count, world.ticket())).await;
        assert_eq!(missing.unwrap_err(), FetchPiecesError::Missing, "{first} {count}");
    }
    let mut request = world.request(0, 1, world.ticket());
    request.fill = FillId(1);
    assert_eq!(fetch(&client, request).await.unwrap_err(), FetchPiecesError::Missing);
}

#[tokio::test]
async fn pieces_are_served_only_for_a_valid_ticket_of_this_blob() {
    let world = World::new(Options::default()).await;
    world.publish().await;
    let path = world.path("0-0");
    let stranger = AuthorityKey::from_seed([4; 32]);
    let (node, digest) = (NodeId([1; 16]), world.digest);
    let forged = Ticket {
        node,
        digest,
        expires: NOW + 60,
    }
    .sign(&stranger);
    let revoked = Ticket {
        node: REVOKED,
        digest,
        expires: NOW + 60,
    }
    .sign(&key());
    for token in [
        None,
        Some(String::new()),
        Some("Piecemeal".into()),
        Some(format!("Bearer {}", world.ticket())),
        Some("Piecemeal nonsense".into()),
        Some(format!("Piecemeal {}", ticket(Digest::of(b"other"), NOW + 60))),
        Some(format!("Piecemeal {}", ticket(world.digest, NOW))),
        Some(format!("Piecemeal {forged}")),
        // Only the mirror takes grants.
        Some(format!("Piecemeal {}", world.grant())),
        Some(format!("Piecemeal {revoked}")),
    ] {
        let (status, answer) = world.ask(&path, token.as_deref()).await;
        assert_eq!(status, 401, "{token:?}");
        assert!(
            answer.contains("www-authenticate: Piecemeal") && answer.contains("{\"error\":\""),
            "{answer}"
        );
    }
    let (status, answer) = world.ask(&path, Some(&format!("piecemeal {}", world.ticket()))).await;
    assert_eq!(status, 200);
    assert!(answer.contains("content-length: 262144\r\n") && answer.contains("piecemeal-fill: 000000000000feed\r\n"));
    assert_eq!(world.served.load(Ordering::Relaxed), PIECE_BYTES);
    let refused = fetch(&client(), world.request(0, 1, "nonsense".into())).await;
    assert_eq!(refused.unwrap_err(), FetchPiecesError::Refused);
}

#[tokio::test]
async fn there_is_nothing_else_on_the_piece_port() {
    let world = World::new(Options::default()).await;
    world.publish().await;
    let ticket = format!("Piecemeal {}", world.ticket());
    for (path, expected) in [
        ("/".to_owned(), 404),
        ("/v2/".to_owned(), 404),
        (format!("/piece/v1/{}", world.digest), 404),
        (world.path("0-0") + "/x", 404),
        (world.path("1-0"), 400),
        (world.path("0"), 400),
        (world.path("0-4"), 404),
        (format!("/piece/v1/sha256:..%2f..%2fetc/{FILL}/0-0"), 400),
    ] {
        assert_eq!(world.ask(&path, Some(&ticket)).await.0, expected, "{path}");
    }
}

#[tokio::test]
async fn a_grant_waits_for_pieces_and_a_ticket_does_not() {
    let world = World::new(Options {
        accept_grants: true,
        ..Options::default()
    })
    .await;
    let filling = world.begin().await;
    let client = client();
    let missing = fetch(&client, world.request(0, 2, world.ticket())).await;
    assert_eq!(missing.unwrap_err(), FetchPiecesError::Missing);

    let mut request = world.request(0, 2, world.grant());
    request.patient = true;
    let mut pieces = pin!(client.fetch(request));
    assert!(timeout(Duration::from_millis(100), pieces.next()).await.is_err());
    world.write(&filling, [0]).await;
    let first = timeout(Duration::from_secs(1), pieces.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!((first.index, first.bytes, first.hash), (0, world.piece(0), None));
    assert!(timeout(Duration::from_millis(100), pieces.next()).await.is_err());
    world.write(&filling, [1]).await;
    let second = timeout(Duration::from_secs(1), pieces.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(second.bytes, world.piece(1));
    assert!(pieces.next().await.is_none());
}

#[tokio::test]
async fn a_truncated_file_is_missing_or_a_short_answer() {
    let world = World::new(Options::default()).await;
    world.publish().await;
    let blob = world.store.blob(&world.digest).await.unwrap().unwrap();
    let hex = world.digest.hex();
    let path = world.dir.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(PIECE_BYTES).unwrap();
    drop(blob);
    let missing = fetch(&client(), world.request(0, 4, world.ticket())).await;
    assert_eq!(missing.unwrap_err(), FetchPiecesError::Missing);
}

#[tokio::test]
async fn a_fill_that_fails_under_way_breaks_the_answer_off() {
    let world = World::new(Options {
        accept_grants: true,
        ..Options::default()
    })
    .await;
    let filling = world.begin().await;
    world.write(&filling, [0]).await;
    let mut request = world.request(0, 2, world.grant());
    request.patient = true;
    let client = client();
    let mut pieces = pin!(client.fetch(request));
    assert!(pieces.next().await.unwrap().is_ok());
    filling.abandon(piecemeal_store::FillFailure::Revoked).await;
    assert!(matches!(pieces.next().await, Some(Err(FetchPiecesError::Broken(_)))));
}

#[tokio::test]
async fn more_requests_than_the_port_takes_are_told_to_come_again() {
    let world = World::new(Options {
        accept_grants: true,
        requests_max: 1,
        ..Options::default()
    })
    .await;
    let filling = world.begin().await;
    world.write(&filling, [0]).await;
    let client = client();
    let mut request = world.request(0, 2, world.grant());
    request.patient = true;
    {
        let mut waiting = pin!(client.fetch(request));
        assert!(waiting.next().await.unwrap().is_ok());
        let (status, answer) = world
            .ask(&world.path("0-0"), Some(&format!("Piecemeal {}", world.ticket())))
            .await;
        assert!(status == 503 && answer.contains("retry-after: 1\r\n"), "{answer}");
        let busy = fetch(&client, world.request(0, 1, world.ticket())).await;
        assert_eq!(busy.unwrap_err(), FetchPiecesError::Busy);
    }
    // A client that goes away makes room.
    let start = Instant::now();
    while fetch(&client, world.request(0, 1, world.ticket())).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(5));
        sleep(Duration::from_millis(5)).await;
    }
}

/// Regression: with a grant or a ticket for one blob a node could take every place of the piece port, by reading slowly.
#[tokio::test]
async fn one_receiver_that_reads_nothing_leaves_places_to_others() {
    // More than sockets hold.
    let world = World::new(Options {
        pieces: 64,
        ..Options::default()
    })
    .await;
    world.publish().await;
    let path = world.path("0-63");
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Piecemeal {}\r\n\r\n",
        world.ticket()
    );
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..100 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(world.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        refused += usize::from(&status == b"HTTP/1.1 503");
        held.push(stream);
    }
    assert!(refused > 50, "{refused} of 100 refused");
    let other = Ticket {
        node: NodeId([2; 16]),
        digest: world.digest,
        expires: NOW + 60,
    };
    let pieces = fetch(&client(), world.request(0, 1, other.sign(&key()))).await;
    assert_eq!(pieces.unwrap().len(), 1);
}

#[tokio::test]
async fn a_connection_is_used_again_and_a_stale_one_is_nobodys_fault() {
    let world = World::new(Options::default()).await;
    world.publish().await;
    let (listener, client) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), client());
    let mut request = world.request(0, 1, world.ticket());
    request.addresses = vec![listener.local_addr().unwrap()];
    let connections = Arc::new(AtomicU64::new(0));
    let (counted, behind) = (Arc::clone(&connections), world.address);
    tokio::spawn(async move {
        loop {
            let (mut inbound, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::Relaxed);
            // Each connection ends after a moment.
            tokio::spawn(async move {
                let mut outbound = TcpStream::connect(behind).await.unwrap();
                let both = tokio::io::copy_bidirectional(&mut inbound, &mut outbound);
                let _ = timeout(Duration::from_millis(600), both).await;
            });
        }
    });
    for _ in 0..5 {
        fetch(&client, request.clone()).await.unwrap();
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    sleep(Duration::from_millis(700)).await;
    fetch(&client, request).await.unwrap();
    assert_eq!(connections.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn the_second_address_is_tried_when_the_first_does_not_answer() {
    let world = World::new(Options::default()).await;
    world.publish().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut request = world.request(0, 1, world.ticket());
    request.addresses = vec![closed, world.address];
    assert!(fetch(&client(), request.clone()).await.is_ok());
    request.addresses = vec![closed];
    assert_eq!(
        fetch(&client(), request.clone()).await.unwrap_err(),
        FetchPiecesError::Unreachable
    );
    request.addresses.clear();
    assert_eq!(
        fetch(&client(), request).await.unwrap_err(),
        FetchPiecesError::Unreachable
    );
}

#[tokio::test]
async fn a_source_that_stops_sending_is_stalled_after_a_second() {
    let world = World::new(Options::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut request = world.request(0, 1, world.ticket());
    request.addresses = vec![listener.local_addr().unwrap()];
    for sent in [0, 1000] {
        let client = client();
        let fetched = tokio::spawn({
            let request = request.clone();
            async move { fetch(&client, request).await }
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        let start = Instant::now();
        if sent > 0 {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {PIECE_BYTES}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&vec![0; sent]).await.unwrap();
        }
        assert_eq!(fetched.await.unwrap().unwrap_err(), FetchPiecesError::Stalled);
        assert!(
            (950..1400).contains(&start.elapsed().as_millis()),
            "{:?}",
            start.elapsed()
        );
    }
}

#[tokio::test]
async fn a_source_that_answers_nonsense_is_broken() {
    let world = World::new(Options::default()).await;
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nshort".to_owned(),
        format!("HTTP/1.1 200 OK\r\nContent-Length: {PIECE_BYTES}\r\n\r\nshort"),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "SSH-2.0-OpenSSH_9.2p1\r\n".to_owned(),
        String::new(),
    ];
    for answer in answers {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut request = world.request(0, 1, world.ticket());
        request.addresses = vec![listener.local_addr().unwrap()];
        let sending = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let client = client();
        let (fetched, ()) = tokio::join!(fetch(&client, request), sending);
        assert!(
            matches!(fetched, Err(FetchPiecesError::Broken(_))),
            "{answer}: {fetched:?}"
        );
    }
}

#[tokio::test]
async fn pieces_of_another_size_are_not_what_was_asked_for() {
    let world = World::new(Options::default()).await;
    world.publish().await;
    let mut request = world.request(0, 1, world.ticket());
    request.map = PieceMap::new(world.map.blob_bytes(), PIECE_BYTES * 2).unwrap();
    assert_eq!(fetch(&client(), request).await.unwrap_err(), FetchPiecesError::Missing);
}

const RATE: u64 = 2_000_000;

/// 4 MiB at 2 MB/s, in as long as that takes.
async fn assert_takes_two_seconds(client: &PieceClient, request: PieceRequest) {
    let start = Instant::now();
    let pieces = fetch(client, request).await.unwrap();
    let bytes: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
    let ideal = Duration::from_micros(u64::try_from(bytes).unwrap() * 1_000_000 / RATE);
    let took = start.elapsed();
    assert!(
        took > ideal * 98 / 100 && took < ideal * 120 / 100,
        "{took:?}, ideal {ideal:?}"
    );
}

#[tokio::test]
async fn the_limiter_holds_what_is_sent_to_other_hosts() {
    let options = Options {
        pieces: 16,
        ..Options::default()
    };
    let world = World::new(options.clone()).await;
    world.publish().await;
    let router = piece_router(world.port(&options, Limiter::new(Some(RATE))));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut request = world.request(0, 16, world.ticket());
    request.addresses = vec![listener.local_addr().unwrap()];
    // Served without the sender's address, every client counts as another host.
    tokio::spawn(async move { axum::serve(listener, router).await });
    assert_takes_two_seconds(&client(), request).await;
}

#[tokio::test]
async fn the_limiter_holds_what_is_received_from_other_hosts() {
    let world = World::new(Options {
        pieces: 16,
        ..Options::default()
    })
    .await;
    world.publish().await;
    let client = PieceClient::new(Limiter::new(Some(RATE)));
    let start = Instant::now();
    fetch(&client, world.request(0, 16, world.ticket())).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "loopback is not limited");
    let mut request = world.request(0, 16, world.ticket());
    // Linux takes this for the host itself, and the client does not take it for loopback.
    request.addresses = vec![SocketAddr::new([0, 0, 0, 0].into(), world.address.port())];
    assert_takes_two_seconds(&client, request).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: run it with --release"]
async fn loopback_throughput() {
    let world = World::new(Options {
        pieces: 1024,
        ..Options::default()
    })
    .await;
    world.publish().await;
    let client = client();
    for (fetches, count) in [(1, 1), (1, 16), (4, 1), (4, 16), (16, 16)] {
        let start = Instant::now();
        let fetches: Vec<_> = (0..fetches)
            .map(|_| {
                let (client, request) = (client.clone(), world.request(0, count, world.ticket()));
                tokio::spawn(async move {
                    let mut bytes = 0;
                    while start.elapsed() < Duration::from_secs(2) {
                        let mut pieces = pin!(client.fetch(request.clone()));
                        while let Some(piece) = pieces.next().await {
                            bytes += piece.unwrap().bytes.len();
                        }
                    }
                    bytes
                })
            })
            .collect();
        let (at_once, mut bytes) = (fetches.len(), 0);
        for fetch in fetches {
            bytes += fetch.await.unwrap();
        }
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{at_once} at once, {count} pieces a request: {:.0} MB/s",
            bytes as f64 / 1e6 / seconds
        );
    }
}
