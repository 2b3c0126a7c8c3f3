//! Connections to the scheduler that never become a session: each ends in time, and costs little until then.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::{sync::Arc, time::Duration};

use piecemeal_http::Share;
use piecemeal_proto::{
    AuthorityKey,
    wire::{self, order::Order, scheduler_client::SchedulerClient},
};
use piecemeal_scheduler::{Scheduler, SchedulerConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

/// Longer than a connection without a session may last.
const PATIENCE: Duration = Duration::from_secs(30);
/// An HTTP/2 client's first words: the preface and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
const PING: &[u8] = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00whatever";
const SETTINGS: &[u8] = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64";

async fn start() -> Scheduler {
    let config = SchedulerConfig {
        revoked: std::collections::HashSet::new(),
        listen: "127.0.0.1:0".parse().unwrap(),
        address_share: Share::default(),
        authority_key: Arc::new(AuthorityKey::from_seed([1; 32])),
    };
    Scheduler::start(config).await.unwrap()
}

/// Writes `first`, then `again` until the other side has closed; after so many seconds.
async fn closed_after(scheduler: &Scheduler, first: &[u8], again: impl Fn(u32) -> Vec<u8>) -> f32 {
    let stream = TcpStream::connect(scheduler.local_addr()).await.unwrap();
    let started = Instant::now();
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        writer.write_all(first).await.unwrap();
        for step in 0.. {
            let frames = again(step);
            if frames.is_empty() || writer.write_all(&frames).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut heard = Vec::new();
    let ended = timeout(PATIENCE, async {
        tokio::select! {
            _ = reader.read_to_end(&mut heard) => {}
            () = write => {}
        }
    });
    ended.await.expect("the connection is closed");
    started.elapsed().as_secs_f32()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_a_session_is_closed_within_seconds() {
    let scheduler = start().await;
    let nothing = |_| Vec::new();
    let (silent, preface, tls) = tokio::join!(
        closed_after(&scheduler, b"", nothing),
        closed_after(&scheduler, PREFACE, nothing),
        closed_after(&scheduler, &[0x16, 3, 1, 2, 0], nothing),
    );
    assert!((4.5..8.0).contains(&silent), "{silent} s without a byte");
    assert!((9.5..13.0).contains(&preface), "{preface} s without a request");
    assert!((9.5..17.0).contains(&tls), "{tls} s in a handshake");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_frames_without_a_session_ends_its_connection() {
    let scheduler = start().await;
    let flood = |frame: &'static [u8]| move |_| frame.repeat(100);
    let (pings, settings) = tokio::join!(
        closed_after(&scheduler, PREFACE, flood(PING)),
        closed_after(&scheduler, PREFACE, flood(SETTINGS)),
    );
    assert!(
        pings < 4.0 && settings < 4.0,
        "{pings} s of pings, {settings} s of settings"
    );
}

/// A request's head: `POST /piecemeal.v1.Scheduler/Session`, as literals.
fn head(stream: u32) -> Vec<u8> {
    const PATH: &[u8] = b"/piecemeal.v1.Scheduler/Session";
    let mut block = vec![0x83, 0x86, 0x04, u8::try_from(PATH.len()).unwrap()];
    block.extend(PATH);
    let mut frame = vec![0, 0, u8::try_from(block.len()).unwrap(), 1, 4];
    frame.extend(stream.to_be_bytes());
    frame.extend(block);
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_streams_end_their_connection_and_no_other() {
    let scheduler = start().await;
    let streams = |step: u32| (0..10).flat_map(|stream| head(2 * (step * 10 + stream) + 1)).collect();
    let after = closed_after(&scheduler, PREFACE, streams).await;
    assert!(after < 4.0, "{after} s");
    is_challenged(&scheduler).await;
}

async fn is_challenged(scheduler: &Scheduler) {
    let url = format!("http://{}", scheduler.local_addr());
    let mut client = SchedulerClient::connect(url).await.unwrap();
    let (_reports, outgoing) = mpsc::channel::<wire::Reports>(1);
    let mut orders = client
        .session(ReceiverStream::new(outgoing))
        .await
        .unwrap()
        .into_inner();
    let first = timeout(PATIENCE, orders.message()).await.unwrap().unwrap().unwrap();
    let first = first.orders.into_iter().next().unwrap().order;
    assert!(matches!(first, Some(Order::Challenge(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_connection_costs_little_memory() {
    let scheduler = start().await;
    let before = resident_bytes();
    let mut held = Vec::new();
    for _ in 0..EMPTY {
        held.push(TcpStream::connect(scheduler.local_addr()).await.unwrap());
    }
    is_challenged(&scheduler).await;
    // Both ends of each are in this process.
    let each = resident_bytes().saturating_sub(before) / EMPTY;
    assert!(each < EMPTY_BYTES_MAX, "{each} bytes each");
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

const EMPTY: usize = 400;
/// What operations.md says of it.
const EMPTY_BYTES_MAX: usize = 8 * 1024;
