//! Listener of the scheduler's port: accepts connections and runs the HTTP/2 server on them.
//!
//! Invariant: the listener never ends by itself. A host that is out of file descriptors has some again later.

use std::io;

use piecemeal_http::Gate;
use piecemeal_proto::wire::{
    MESSAGE_BYTES_MAX,
    scheduler_server::{Scheduler as Service, SchedulerServer},
};
use piecemeal_tls::Acceptor;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Duration, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::{debug, error, warn};

use crate::connection::{Connection, Origin};

/// Serves `service` over the connections that `gate` admits, until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Acceptor,
    gate: Gate,
    service: impl Service,
    stop: CancellationToken,
) {
    let (connections, accepted) = mpsc::channel(1);
    let service = SchedulerServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEAD_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(RESETS_MAX))
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(accepted), stop.clone().cancelled_owned());
    let drained = async {
        stop.cancelled().await;
        sleep(DRAIN_MAX).await;
    };
    tokio::select! {
        () = accept(listener, tls, gate, connections, stop.clone()) => {}
        served = server => if let Err(failure) = served {
            error!(error = %failure, "the listener failed");
        },
        () = drained => {}
    }
}

/// Daemons come with TLS or without.
async fn accept(
    listener: TcpListener,
    tls: Acceptor,
    gate: Gate,
    connections: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
) {
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((connection, remote)) => {
                    let Some(slot) = gate.admit(remote.ip()) else {
                        continue;
                    };
                    // Costs latency alone when it fails.
                    let _ = connection.set_nodelay(true);
                    // Its own task, so that a daemon that says nothing keeps no other waiting.
                    tokio::spawn(greet(
                        connection,
                        tls.clone(),
                        Origin { remote, slot },
                        connections.clone(),
                    ));
                }
                Err(failure) => {
                    warn!(error = %failure, "failed to accept a connection");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    };
    let serving = async {
        tokio::select! {
            () = accept => {}
            () = gate.sweep() => {}
        }
    };
    stop.run_until_cancelled(serving).await;
    drop(listener);
    std::future::pending().await
}

/// Hands a connection to the server once its TLS handshake is over.
async fn greet(
    connection: TcpStream,
    tls: Acceptor,
    origin: Origin,
    connections: mpsc::Sender<io::Result<Connection>>,
) {
    let remote = origin.remote;
    let closed = origin.slot.closed().clone();
    match closed.run_until_cancelled(tls.take(connection)).await {
        Some(Ok(stream)) => {
            origin.slot.greeted();
            // An error: the server has ended.
            drop(connections.send(Ok(Connection::new(stream, origin))).await);
        }
        None => debug!("a connection of {remote} was late, or gave way to another"),
        Some(Err(failure)) => {
            debug!(error = %failure, "a connection of {remote} failed: {failure}");
        }
    }
}

/// Pings find broken connections before the kernel does; sessions have heartbeats besides.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that a daemon may send ahead: enough for a LAN's full speed, and bounded for 20,000 daemons.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// A daemon has one session on a connection, and a second one while it reconnects.
const STREAMS_MAX: u32 = 4;
/// A request's head is a path and a few headers.
const HEAD_BYTES_MAX: u32 = 16 * 1024;
/// Resets of streams, and of streams above [`STREAMS_MAX`], after which a connection ends.
const RESETS_MAX: usize = 16;
/// The longest time for connections to end after their streams have ended.
const DRAIN_MAX: Duration = Duration::from_secs(1);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
