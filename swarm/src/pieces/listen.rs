//! The piece port's connections: how many, how long they may idle, and how they end.
//!
//! Whoever holds a connection without using it, or asks without taking the answer, loses it.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

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
use rustix::net::sockopt;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Duration, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Serves until `shutdown`, then lets the answers that are under way end.
pub async fn serve_pieces(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            let slot = Arc::clone(&slots)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            let (stream, remote) = accept(&listener).await;
            while connections.try_join_next().is_some() {}
            let (router, shutdown) = (router.clone(), shutdown.clone());
            connections.spawn(async move {
                serve_connection(stream, remote, router, shutdown).await;
                drop(slot);
            });
        }
    };
    shutdown.run_until_cancelled(accepting).await;
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(DRAIN_MAX, drained).await.is_err() {
        debug!(connections.open = connections.len(), "piece connections are cut off");
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                // Out of file descriptors, most likely: they do not come back by asking.
                warn!("cannot accept a connection on the piece port: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, remote: SocketAddr, router: Router, shutdown: CancellationToken) {
    if let Err(error) = set_options(&stream) {
        debug!(peer.address = %remote, "cannot set up a connection: {error}");
        return;
    }
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(remote));
        let answered = router.call(request);
        async move { Ok::<_, Infallible>(answered.await.unwrap_or_else(|never| match never {})) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_MAX)
        .max_buf_size(WRITE_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(peer.address = %remote, "a piece connection of {remote} broke: {error}");
    }
}

fn set_options(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    // Counts while data waits to be taken, whether the receiver is gone or just does not read.
    sockopt::set_tcp_user_timeout(stream, TAKE_MAX_MILLIS)?;
    Ok(())
}

/// A few for each node of a large pool, all of which fall back on the mirror when the scheduler is lost.
const CONNECTIONS_MAX: usize = 4096;
/// Longer than the client keeps its idle connections, so that the client is the one who closes them.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// A receiver that takes nothing for so long has been given up by everybody else too.
const TAKE_MAX_MILLIS: u32 = 30_000;
/// What waits for the socket of one connection, on top of the slice that is being sent.
const WRITE_BUFFER_BYTES: usize = 128 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long answers may take to end: a lease takes less, and what it misses is leased elsewhere at once.
const DRAIN_MAX: Duration = Duration::from_secs(10);
