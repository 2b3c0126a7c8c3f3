//! The connections of one listener: how many, how long they may idle, and how they end.
//!
//! Whoever holds a connection without using it, or asks without taking the answer, loses it.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc};

use axum::{Router, extract::ConnectInfo};
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use piecemeal_tls::SiteStream;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Duration, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::outlet::{Outlet, OutletStream};

/// What a listener allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; others wait to be accepted.
    pub connections_max: usize,
    /// How long a connection may be without a request, and a request without its end.
    pub idle_max: Duration,
    /// How long a receiver may take nothing of what there is for it.
    pub take_max: Duration,
    /// How long answers may take to end once the listener is told to stop.
    pub drain_max: Duration,
}

/// What happens on a connection before HTTP is spoken over it.
pub trait Greet: Clone + Send + Sync + 'static {
    /// The connection, ready for HTTP; `None`: it was told that it will not be.
    fn greet(&self, stream: TcpStream) -> impl Future<Output = io::Result<Option<SiteStream>>> + Send;
}

/// Takes every connection as it is.
impl Greet for () {
    async fn greet(&self, stream: TcpStream) -> io::Result<Option<SiteStream>> {
        Ok(Some(SiteStream::Plain(stream)))
    }
}

/// Serves until `stop`, then lets the answers that are under way end.
///
/// Requests carry their sender's address as [`ConnectInfo`], and over a plain connection its [`Outlet`].
pub async fn serve_http<G: Greet>(
    listener: TcpListener,
    greet: G,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            let slot = Arc::clone(&slots)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            let (stream, remote) = accept(&listener).await;
            while connections.try_join_next().is_some() {}
            let (greet, router, stop) = (greet.clone(), router.clone(), stop.clone());
            connections.spawn(async move {
                if let Err(error) = take(stream, remote, greet, router, limits, stop).await {
                    debug!(peer.address = %remote, %error, "a connection of {remote} came to nothing: {error}");
                }
                drop(slot);
            });
        }
    };
    stop.run_until_cancelled(accepting).await;
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(limits.drain_max, drained).await.is_err() {
        warn!(
            connections.open = connections.len(),
            "answers are still under way after {} s; they are cut",
            limits.drain_max.as_secs()
        );
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                // Out of file descriptors, most likely: they do not come back by asking.
                warn!(%error, "a connection could not be accepted: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn take<G: Greet>(
    stream: TcpStream,
    remote: SocketAddr,
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
    let ended = match greeted {
        SiteStream::Plain(stream) => {
            let outlet = Outlet::default();
            let stream = OutletStream::new(stream, outlet.clone());
            speak(stream, remote, Some(outlet), router, limits, stop).await
        }
        stream @ SiteStream::Tls(_) => speak(stream, remote, None, router, limits, stop).await,
    };
    ended.map_err(io::Error::other)
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    remote: SocketAddr,
    outlet: Option<Outlet>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) -> Result<(), hyper::Error> {
    let buffer_bytes = if outlet.is_some() {
        WRITE_BUFFER_BYTES
    } else {
        COPY_BUFFER_BYTES
    };
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(remote));
        if let Some(outlet) = &outlet {
            request.extensions_mut().insert(outlet.clone());
        }
        let answered = router.call(request);
        async move { Ok::<_, Infallible>(answered.await.unwrap_or_else(|never| match never {})) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle_max)
        .max_buf_size(buffer_bytes)
        // Slices are handed on, never put together: an outlet depends on it.
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

/// What waits for the socket of one connection, on top of the slice that is being sent.
const WRITE_BUFFER_BYTES: usize = 128 * 1024;
/// The same where all that waits is memory: it is that of every client that reads slowly. Also the longest head of a request,
/// with a token in it.
const COPY_BUFFER_BYTES: usize = 32 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
