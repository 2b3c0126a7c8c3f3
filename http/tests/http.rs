//! Sending files over HTTP: the bytes that leave are those of the file, whatever else goes out over the same connection.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{net::SocketAddr, time::Duration};

use axum::{Extension, Router, body::Body, extract::Path, response::Response, routing::get};
use bytes::Bytes;
use futures_util::stream;
use piecemeal_http::{EXTENT_BYTES_MAX, Limits, Linger, SendfileQueue, Share, serve_http};
use piecemeal_proto::{Digest, PieceMap};
use piecemeal_store::{Blob, Env, Store, StoreConfig};
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_util::sync::{CancellationToken, DropGuard};

const BLOB_BYTES: usize = 5_000_000;
const LIMITS: Limits = Limits {
    port: "test",
    connections_max: 4,
    share: Share::ALL,
    busy_give_way: false,
    idle_max: Duration::from_secs(10),
    take_max: Duration::from_secs(10),
    linger: Linger::NONE,
    drain_max: Duration::from_secs(10),
};

struct World {
    content: Vec<u8>,
    address: SocketAddr,
    dir: tempfile::TempDir,
    _stop: DropGuard,
}

/// One that has a blob, and a route that answers with parts of it as a seed wants, some read and some left where they lie.
async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        dir: dir.path().join("store"),
        quota_bytes: None,
        free_bytes_min: 0,
        ttl: Duration::from_secs(3600),
    };
    let store = Store::open(config, Env::system()).unwrap();
    let mut content = vec![0; BLOB_BYTES];
    StdRng::seed_from_u64(1).fill_bytes(&mut content);
    let blob = publish(&store, &content).await;
    let answer = move |Path(seed): Path<u64>, Extension(sendfile): Extension<SendfileQueue>| {
        let blob = blob.clone();
        async move {
            let cuts = cuts(seed);
            let length: u64 = cuts.iter().map(|range| range.end - range.start).sum();
            let parts = stream::unfold(cuts.into_iter(), move |mut cuts| {
                let (blob, sendfile) = (blob.clone(), sendfile.clone());
                async move {
                    let range = cuts.next()?;
                    let frame = if range.start.is_multiple_of(2) {
                        let mut extent = blob.extent(range).unwrap().unwrap();
                        extent.make_resident().await.unwrap();
                        sendfile.stand_in(extent.len(), move |socket, bytes_max| extent.send_to(socket, bytes_max))
                    } else {
                        blob.read(range).await.unwrap()
                    };
                    Some((Ok::<Bytes, std::io::Error>(frame), cuts))
                }
            });
            Response::builder()
                .header("content-length", length)
                .body(Body::from_stream(parts))
                .unwrap()
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let router = Router::new().route("/{seed}", get(answer));
    tokio::spawn(serve_http(listener, (), router, LIMITS, stop.clone()));
    World {
        content,
        address,
        dir,
        _stop: stop.drop_guard(),
    }
}

async fn publish(store: &Store, content: &[u8]) -> Blob {
    let map = PieceMap::for_blob(content.len() as u64).unwrap();
    let filling = store.begin(&Digest::of(content), map, None).await.unwrap();
    for (index, piece) in (0..).zip(content.chunks(usize::try_from(map.piece_bytes()).unwrap())) {
        filling
            .write_piece(index, Bytes::copy_from_slice(piece), None)
            .await
            .unwrap();
    }
    filling.publish(&[]).await.unwrap()
}

/// Ranges of the blob, as a seed wants them: none longer than a stand-in.
fn cuts(seed: u64) -> Vec<std::ops::Range<u64>> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..random.random_range(1..12))
        .map(|_| {
            let len = random.random_range(1..=EXTENT_BYTES_MAX);
            let start = random.random_range(0..BLOB_BYTES - len);
            start as u64..(start + len) as u64
        })
        .collect()
}

fn expected(content: &[u8], seed: u64) -> Vec<u8> {
    let parts = cuts(seed).into_iter();
    parts
        .flat_map(|range| &content[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()])
        .copied()
        .collect()
}

async fn ask(stream: &mut TcpStream, seed: u64) {
    let request = format!("GET /{seed} HTTP/1.1\r\nHost: test\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
}

/// The body of the next answer, read in steps of `step` bytes.
async fn body(stream: &mut TcpStream, step: usize) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    for part in body.chunks_mut(step) {
        stream.read_exact(part).await.unwrap();
    }
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_from_files_and_from_memory_arrive_in_their_order_over_one_connection() {
    let world = world().await;
    // A receiver whose socket is soon full, so that files are sent in many steps.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    let mut stream = socket.connect(world.address).await.unwrap();
    for seed in 0..20 {
        // Some of the requests are there before the last answer is.
        ask(&mut stream, seed).await;
        ask(&mut stream, seed + 100).await;
        for seed in [seed, seed + 100] {
            let step = 1000 + usize::try_from(seed).unwrap() * 997;
            assert!(
                body(&mut stream, step).await == expected(&world.content, seed),
                "seed {seed}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_lost_its_end_ends_the_answer_short_of_its_length() {
    let world = world().await;
    let hex = Digest::of(&world.content).hex();
    let path = world.dir.path().join("store/blobs/sha256").join(&hex[..2]).join(hex);
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(0)
        .unwrap();
    // An answer that begins with an extent.
    let seed = (0..).find(|&seed| cuts(seed)[0].start.is_multiple_of(2)).unwrap();
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    ask(&mut stream, seed).await;
    let mut all = Vec::new();
    let ended = stream.read_to_end(&mut all).await;
    let head = String::from_utf8_lossy(&all);
    assert!(ended.is_ok(), "a clean end, not a reset");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
}

/// A port that lingers for longer than a test takes, and is told to stop once it has answered `requests`.
async fn stopped(requests: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let long = Duration::from_secs(60);
    let linger = Linger {
        quiet: long,
        time_max: long,
    };
    let router = Router::new().route("/", get(|| async { "ok" }));
    let limits = Limits { linger, ..LIMITS };
    let serving = tokio::spawn(serve_http(listener, (), router, limits, stop.clone()));
    for _ in 0..requests {
        assert!(ask_once(address).await.unwrap().ends_with("ok"));
    }
    stop.cancel();
    if requests == 0 {
        serving.await.unwrap();
    }
    address
}

async fn ask_once(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

#[tokio::test]
async fn a_port_that_is_told_to_stop_in_the_middle_of_a_pull_takes_its_next_connections() {
    let address = stopped(1).await;
    for _ in 0..3 {
        assert!(ask_once(address).await.unwrap().ends_with("ok"));
    }
}

#[tokio::test]
async fn a_port_that_is_told_to_stop_without_a_pull_closes_at_once() {
    let address = stopped(0).await;
    assert!(ask_once(address).await.is_err());
}
