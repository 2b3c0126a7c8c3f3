//! Listening for OCI clients, and draining when told to stop.
//!
//! A client that takes a plain port for one with TLS must be told so in words that it understands: containerd tries TLS first
//! at `localhost`, and goes on without it only when the answer begins with `HTTP/`.

use std::{io, net::SocketAddr, time::Duration};

use axum::{Router, serve::Listener};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

/// How long client streams may go on after the daemon was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection may say nothing at first.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(30);
/// The most connections that wait to be served at one time.
const WAITING_MAX: usize = 64;
/// The pause after an accept failed, as it does when there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The first byte of a TLS record that begins a handshake.
const TLS_HANDSHAKE: u8 = 0x16;
const NOT_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 44\r\nConnection: close\r\n\r\n\
    this port speaks plain HTTP: use http://...\n";

/// Binds all of `addresses`.
///
/// # Errors
/// The first address that cannot be bound, and why.
pub async fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let mut listeners = Vec::new();
    for &address in addresses {
        listeners.push(TcpListener::bind(address).await.map_err(|error| (address, error))?);
    }
    Ok(listeners)
}

/// Serves `router` on every listener until `stop`; then lets the open streams end, for a minute at most.
pub fn serve(tracker: &TaskTracker, listeners: Vec<TcpListener>, router: &Router, stop: &CancellationToken) {
    for listener in listeners {
        let (router, stopped) = (router.clone(), stop.clone());
        let Ok(address) = listener.local_addr() else {
            continue;
        };
        let (sender, plain) = mpsc::channel(WAITING_MAX);
        tracker.spawn(accept_all(listener, sender, stop.clone()));
        let serving =
            axum::serve(Plain { plain, address }, router).with_graceful_shutdown(stopped.clone().cancelled_owned());
        tracker.spawn(async move {
            let drained = async {
                stopped.cancelled().await;
                tokio::time::sleep(DRAIN_TIMEOUT).await;
            };
            tokio::select! {
                result = serving => if let Err(error) = result { warn!(%error, "a listener ended: {error}") },
                () = drained => warn!("streams are still open after {} s; they are cut", DRAIN_TIMEOUT.as_secs()),
            }
        });
    }
}

/// The connections of one listener that are what they should be.
struct Plain {
    plain: mpsc::Receiver<(TcpStream, SocketAddr)>,
    address: SocketAddr,
}

impl Listener for Plain {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        match self.plain.recv().await {
            Some(connection) => connection,
            // Told to stop: the server ends by that.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn accept_all(listener: TcpListener, plain: mpsc::Sender<(TcpStream, SocketAddr)>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let plain = plain.clone();
                tokio::spawn(async move {
                    if let Some(stream) = greet(stream).await {
                        // Nobody serves any more.
                        let _ = plain.send((stream, address)).await;
                    }
                });
            }
            Err(error) => {
                warn!(%error, "a connection could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The stream, once its first byte shows that it speaks HTTP.
async fn greet(mut stream: TcpStream) -> Option<TcpStream> {
    // Small answers must not wait for more to send.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "TCP_NODELAY could not be set");
    }
    let mut first = [0];
    match tokio::time::timeout(FIRST_BYTE_TIMEOUT, stream.peek(&mut first)).await {
        Ok(Ok(1)) if first[0] == TLS_HANDSHAKE => {
            // It may be gone already.
            let _ = stream.write_all(NOT_TLS).await;
            let _ = stream.shutdown().await;
            None
        }
        Ok(Ok(1)) => Some(stream),
        _ => None,
    }
}
