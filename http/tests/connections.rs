//! A host that holds connections keeps no other out, whatever it does with them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all, stream};
use piecemeal_http::{Greet, Limits, Linger, Share, serve_http};
use piecemeal_proto::AuthorityKey;
use piecemeal_tls::{Acceptor, ServerRole, SiteStream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

const SLOTS: usize = 40;
const LIMITS: Limits = Limits {
    port: "test",
    connections_max: SLOTS,
    share: Share::new(10).unwrap(),
    busy_give_way: false,
    idle_max: Duration::from_secs(60),
    take_max: Duration::from_secs(60),
    linger: Linger::NONE,
    drain_max: Duration::from_secs(1),
};
/// Longer than an answer takes on a busy machine, shorter than any limit here.
const SOON: Duration = Duration::from_secs(3);
const CROWD: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 2);
const ASK: &[u8] = b"GET /short HTTP/1.1\r\nHost: test\r\n\r\n";
const ASK_LONG: &[u8] = b"GET /long HTTP/1.1\r\nHost: test\r\n\r\n";

/// A server that answers, shortly, without an end, or now and then.
async fn serve<G: Greet>(greet: G, limits: Limits) -> (SocketAddr, DropGuard) {
    // Reached by all of loopback's addresses as by those of a network.
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let endless = || async { Body::from_stream(stream::repeat(Ok::<_, Infallible>(Bytes::from_static(&[0; 8192])))) };
    let sparse = || async {
        let step = |left: u32| async move {
            sleep(Duration::from_secs(2)).await;
            (left > 0).then(|| (Ok::<_, Infallible>(Bytes::from_static(b"bytes")), left - 1))
        };
        Body::from_stream(stream::unfold(3, step))
    };
    let router = Router::new()
        .route("/short", get(|| async { "ok" }).post(|| async { "ok" }))
        .route("/long", get(endless))
        .route("/sparse", get(sparse));
    let stop = CancellationToken::new();
    tokio::spawn(serve_http(listener, greet, router, limits, stop.clone()));
    (SocketAddr::from((Ipv4Addr::LOCALHOST, port)), stop.drop_guard())
}

async fn connect(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(SocketAddr::new(IpAddr::V4(from), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// So many connections, each of which has sent `first`.
async fn hold(count: usize, from: Ipv4Addr, to: SocketAddr, first: &[u8]) -> Vec<TcpStream> {
    let held = (0..count).map(|_| async {
        let mut stream = connect(from, to).await;
        // An error: it was refused.
        let _ = stream.write_all(first).await;
        stream
    });
    let held = join_all(held).await;
    // What was sent is read.
    sleep(Duration::from_millis(300)).await;
    held
}

async fn is_answered(stream: &mut TcpStream) -> bool {
    let mut start = [0; 12];
    let answered = async {
        stream.write_all(ASK).await?;
        stream.read_exact(&mut start).await
    };
    matches!(timeout(SOON, answered).await, Ok(Ok(_))) && &start == b"HTTP/1.1 200"
}

/// When the other side closed it.
async fn closed_after(mut stream: TcpStream) -> f32 {
    let started = Instant::now();
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(40), stream.read_to_end(&mut rest)).await;
    started.elapsed().as_secs_f32()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_one_address_holds_answers_another_at_once() {
    for first in [&b""[..], b"GET /short HTTP/1.1\r\nHost:", ASK, ASK_LONG] {
        let (to, _stop) = serve((), LIMITS).await;
        let _held = hold(4 * SLOTS, CROWD, to, first).await;
        for _ in 0..3 {
            assert!(is_answered(&mut connect(OTHER, to).await).await, "{first:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_asks_now_and_then_gives_way_too() {
    let (to, _stop) = serve((), LIMITS).await;
    let mut held = hold(SLOTS, CROWD, to, ASK).await;
    for stream in &mut held {
        let _ = timeout(SOON, stream.write_all(ASK)).await;
    }
    assert!(is_answered(&mut connect(OTHER, to).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_port_answers_although_every_slot_is_busy() {
    let limits = Limits {
        busy_give_way: true,
        ..LIMITS
    };
    let (to, _stop) = serve((), limits).await;
    // From addresses enough that none of them has more than its share.
    let mut held = Vec::new();
    for host in 1..=SLOTS {
        let from = Ipv4Addr::new(127, 0, 2, u8::try_from(host).unwrap());
        held.extend(hold(1, from, to, ASK_LONG).await);
    }
    assert!(is_answered(&mut connect(OTHER, to).await).await);
    // Nor does it matter where the newcomer comes from.
    assert!(is_answered(&mut connect(Ipv4Addr::new(127, 0, 2, 1), to).await).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_byte_has_five_seconds_and_a_head_ten() {
    let (to, _stop) = serve((), LIMITS).await;
    let silent = async { closed_after(connect(OTHER, to).await).await };
    let dripping = async {
        let (reader, mut writer) = connect(OTHER, to).await.into_split();
        let drip = async {
            for byte in b"GET /short HTTP/1.1\r\n" {
                if writer.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_secs(2)).await;
            }
        };
        let ended = async {
            let (started, mut reader) = (Instant::now(), reader);
            let _ = reader.read_to_end(&mut Vec::new()).await;
            started.elapsed().as_secs_f32()
        };
        tokio::select! {
            after = ended => after,
            () = drip => f32::MAX,
        }
    };
    let (silent, dripping) = tokio::join!(silent, dripping);
    assert!((5.0..8.0).contains(&silent), "{silent} s without a byte");
    assert!(
        (10.0..13.0).contains(&dripping),
        "{dripping} s with a byte now and then"
    );
}

#[derive(Clone)]
struct Tls(Acceptor);

impl Greet for Tls {
    async fn greet(&self, stream: TcpStream) -> std::io::Result<Option<SiteStream>> {
        self.0.take(stream).await.map(Some)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_never_ends_does() {
    let acceptor = Acceptor::new(&AuthorityKey::from_seed([1; 32]), ServerRole::Mirror).unwrap();
    let (to, _stop) = serve(Tls(acceptor), LIMITS).await;
    let mut stream = connect(OTHER, to).await;
    stream.write_all(&[0x16, 3, 1, 2, 0]).await.unwrap();
    let after = closed_after(stream).await;
    assert!((9.0..17.0).contains(&after), "{after} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_next_to_nothing_of_an_answer_loses_it_and_who_is_kept_waiting_does_not() {
    let limits = Limits {
        take_max: Duration::from_secs(2),
        ..LIMITS
    };
    let (to, _stop) = serve((), limits).await;
    let trickle = async {
        let mut stream = connect(OTHER, to).await;
        stream.write_all(ASK_LONG).await.unwrap();
        let started = Instant::now();
        let mut few = [0; 64];
        // It is closed, but there is more that has come already than it will ever read: so it writes.
        while stream.read(&mut few).await.is_ok() && stream.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(300)).await;
            assert!(started.elapsed() < Duration::from_secs(30), "still served");
        }
    };
    let patient = async {
        let mut stream = connect(OTHER, to).await;
        stream
            .write_all(b"GET /sparse HTTP/1.1\r\nHost: test\r\n\r\n")
            .await
            .unwrap();
        let mut all = Vec::new();
        let _ = timeout(Duration::from_secs(15), async {
            while !all.ends_with(b"0\r\n\r\n") && stream.read_buf(&mut all).await.unwrap() > 0 {}
        })
        .await;
        let text = String::from_utf8(all).unwrap();
        assert_eq!(text.matches("bytes").count(), 3, "{text}");
    };
    tokio::join!(trickle, patient);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_ends_and_a_socket_that_is_half_closed_hold_nothing() {
    let limits = Limits {
        idle_max: Duration::from_secs(2),
        ..LIMITS
    };
    let (to, _stop) = serve((), limits).await;
    let mut unending = connect(OTHER, to).await;
    let head = b"POST /short HTTP/1.1\r\nHost: test\r\nContent-Length: 1000000\r\n\r\nsome";
    unending.write_all(head).await.unwrap();
    let mut half_closed = connect(OTHER, to).await;
    half_closed.shutdown().await.unwrap();
    let mut answered = connect(OTHER, to).await;
    answered.write_all(ASK).await.unwrap();
    answered.shutdown().await.unwrap();
    for after in join_all([unending, half_closed, answered].map(closed_after)).await {
        assert!(after < 5.0, "{after} s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_taken_slowly_is_taken_whole() {
    let limits = Limits {
        idle_max: Duration::from_secs(1),
        ..LIMITS
    };
    let (to, _stop) = serve((), limits).await;
    let mut stream = connect(OTHER, to).await;
    stream.write_all(ASK_LONG).await.unwrap();
    // Longer than a connection may be idle, and it is not: it is being answered.
    let mut taken = stream::iter(0..40);
    let mut part = vec![0; 64 * 1024];
    while taken.next().await.is_some() {
        stream.read_exact(&mut part).await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
}
