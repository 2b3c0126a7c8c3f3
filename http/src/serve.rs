//! HTTP server of one listener: bounds its connections, their idle time and their end.
//!
//! Invariant: a connection that is not used, or whose answer is not taken, is closed in time, and at once when another needs
//! its slot. A new connection never waits to be accepted. A port that is told to stop answers whatever has connected to it.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use axum::{Router, extract::ConnectInfo};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use piecemeal_tls::SiteStream;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Duration, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    Gate, Linger, SendfileQueue, Share, Slot, SlotPolicy, Watched,
    answer::{Answer, Busy},
    descriptors_max,
    sendfile::SendfileStream,
};

/// Limits of one listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Name of the port in the log.
    pub port: &'static str,
    /// Connections at a time; fewer where the process may have few file descriptors.
    pub connections_max: usize,
    /// Share of them that one address or node may have once they are nearly all taken. A listener that only loopback reaches
    /// shares by age alone.
    pub share: Share,
    /// Whether a new connection gets a slot even if all others are busy.
    pub busy_give_way: bool,
    /// Longest time without a request.
    pub idle_max: Duration,
    /// Longest time that a receiver may take nothing, or next to nothing, of the bytes that are ready for it.
    pub take_max: Duration,
    /// The time for which the listener still takes connections once it is told to stop.
    pub linger: Linger,
    /// Longest time that answers may take to end after that.
    pub drain_max: Duration,
}

/// Preparation of a connection before HTTP, such as a TLS handshake.
pub trait Greet: Clone + Send + Sync + 'static {
    /// The connection, ready for HTTP; `None`: the client was told why it is not served.
    fn greet(&self, stream: TcpStream) -> impl Future<Output = io::Result<Option<SiteStream>>> + Send;
}

/// Takes every connection as it is.
impl Greet for () {
    async fn greet(&self, stream: TcpStream) -> io::Result<Option<SiteStream>> {
        Ok(Some(SiteStream::Plain(stream)))
    }
}

/// Serves until `stop`, lingers, and lets the answers that are under way end.
///
/// Requests carry their sender's address as [`ConnectInfo`], their connection's [`Slot`], and over a plain connection its
/// [`SendfileQueue`].
pub async fn serve_http<G: Greet>(
    listener: impl Into<Arc<TcpListener>> + Send,
    greet: G,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let listener = listener.into();
    let mut port = Port {
        gate: Gate::new(limits.port, limits.policy(&listener)),
        greet,
        router,
        limits,
        ending: CancellationToken::new(),
        connections: JoinSet::new(),
    };
    let gate = port.gate.clone();
    let serving = async {
        loop {
            let (stream, remote) = accept(&listener).await;
            port.admit(stream, remote);
        }
    };
    let lingering = async {
        stop.cancelled().await;
        gate.linger(limits.linger).await;
    };
    tokio::select! {
        () = serving => {}
        () = gate.sweep() => {}
        () = lingering => {}
    }
    // The kernel resets what waits in a socket that is closed.
    while let Some((stream, remote)) = waiting(&listener) {
        port.admit(stream, remote);
    }
    drop(listener);
    port.drain().await;
}

/// An open port, and its connections.
struct Port<G> {
    gate: Gate,
    greet: G,
    router: Router,
    limits: Limits,
    /// Cancelled when connections have to end after the answer that is under way.
    ending: CancellationToken,
    connections: JoinSet<()>,
}

impl<G: Greet> Port<G> {
    fn admit(&mut self, stream: TcpStream, remote: SocketAddr) {
        while self.connections.try_join_next().is_some() {}
        let Some(slot) = self.gate.admit(remote.ip()) else {
            return;
        };
        let (greet, router, limits, ending) = (
            self.greet.clone(),
            self.router.clone(),
            self.limits,
            self.ending.clone(),
        );
        self.connections.spawn(async move {
            let closed = slot.closed().clone();
            let taken = take(stream, remote, slot, greet, router, limits, ending);
            match closed.run_until_cancelled(taken).await {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    debug!(peer.address = %remote, %error, "a connection of {remote} failed: {error}");
                }
                None => debug!(peer.address = %remote, "a connection of {remote} was late, or gave way to another"),
            }
        });
    }

    async fn drain(self) {
        if self.limits.linger.time_max > Duration::ZERO && !self.connections.is_empty() {
            sleep(FIRST_REQUEST_TIME).await;
        }
        self.ending.cancel();
        drain(self.connections, self.limits.drain_max).await;
    }
}

/// A connection that waits in the listener, if there is one.
fn waiting(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    match listener.poll_accept(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(accepted) => accepted.ok(),
        Poll::Pending => None,
    }
}

async fn drain(mut connections: JoinSet<()>, drain_max: Duration) {
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(drain_max, drained).await.is_err() {
        warn!(
            connections.open = connections.len(),
            "answers are still under way after {} s; they are cut",
            drain_max.as_secs()
        );
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                // Most likely out of file descriptors: trying again at once does not help.
                warn!(%error, "a connection could not be accepted: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Limits {
    fn policy(&self, listener: &TcpListener) -> SlotPolicy {
        let only_loopback = listener.local_addr().is_ok_and(|address| address.ip().is_loopback());
        SlotPolicy {
            slots: self.connections_max.min(descriptors_max() / LISTENERS),
            share: if only_loopback { Share::ALL } else { self.share },
            greet_max: GREET_MAX,
            first_byte_max: FIRST_BYTE_MAX,
            head_max: HEAD_MAX,
            idle_max: self.idle_max,
            take_max: self.take_max,
            busy_give_way: self.busy_give_way,
        }
    }
}

async fn take<G: Greet>(
    stream: TcpStream,
    remote: SocketAddr,
    slot: Slot,
    greet: G,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) -> io::Result<()> {
    // Small answers must not wait for more to send.
    stream.set_nodelay(true)?;
    // Counts while data waits to be taken, whether the receiver is gone or just does not read.
    sockopt::set_tcp_user_timeout(&stream, u32::try_from(limits.take_max.as_millis()).unwrap_or(u32::MAX))?;
    let Some(Some(greeted)) = stop.run_until_cancelled(greet.greet(stream)).await.transpose()? else {
        return Ok(());
    };
    slot.greeted();
    // Kept apart, so that a silent connection costs little memory.
    let ended = match greeted {
        SiteStream::Plain(stream) => {
            let Some(readable) = stop.run_until_cancelled(stream.readable()).await else {
                return Ok(());
            };
            readable?;
            let sendfile = SendfileQueue::default();
            let stream = SendfileStream::new(stream, sendfile.clone());
            Box::pin(speak(stream, remote, slot, Some(sendfile), router, stop)).await
        }
        stream @ SiteStream::Tls(_) => Box::pin(speak(stream, remote, slot, None, router, stop)).await,
    };
    ended.map_err(io::Error::other)
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    remote: SocketAddr,
    slot: Slot,
    sendfile: Option<SendfileQueue>,
    router: Router,
    stop: CancellationToken,
) -> Result<(), hyper::Error> {
    let buffer_bytes = if sendfile.is_some() {
        WRITE_BUFFER_BYTES
    } else {
        COPY_BUFFER_BYTES
    };
    let stream = Watched::new(stream, slot.clone());
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        let busy = Busy::begin(slot.clone());
        request.extensions_mut().insert(ConnectInfo(remote));
        request.extensions_mut().insert(slot.clone());
        if let Some(sendfile) = &sendfile {
            request.extensions_mut().insert(sendfile.clone());
        }
        let answered = router.call(request);
        async move {
            let response = answered.await.unwrap_or_else(|never| match never {});
            Ok::<_, Infallible>(response.map(|body| Answer::new(body, busy)))
        }
    });
    let connection = http1::Builder::new()
        // The gate closes late connections.
        .header_read_timeout(None)
        .max_buf_size(buffer_bytes)
        // Slices are handed on, never put together: sendfile depends on it.
        .writev(true)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// Bytes that wait for the socket of one connection, on top of the slice that is being sent.
const WRITE_BUFFER_BYTES: usize = 128 * 1024;
/// Bytes that wait where all are in memory: every client that reads slowly holds as many. Also the longest head of a request,
/// with a token in it.
const COPY_BUFFER_BYTES: usize = 32 * 1024;
/// A listener has at most one in so many of the process's file descriptors: other listeners, files and upstreams need some,
/// too.
const LISTENERS: usize = 4;
/// Longest time for the first byte and a TLS handshake.
const GREET_MAX: Duration = Duration::from_secs(15);
const FIRST_BYTE_MAX: Duration = Duration::from_secs(5);
const HEAD_MAX: Duration = Duration::from_secs(10);
/// Time for the first request of a connection that came just before its port closed.
const FIRST_REQUEST_TIME: Duration = Duration::from_millis(200);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
