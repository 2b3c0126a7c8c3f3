//! Listening for OCI clients, and draining when told to stop.
//!
//! A site's mirror speaks TLS as well as plain HTTP on the same port. Where there is no TLS, a client that takes the port for
//! one with it must be told so in words that it understands: containerd tries TLS first at `localhost`, and goes on without it
//! only when the answer begins with `HTTP/`.

use std::{io, net::SocketAddr, time::Duration};

use axum::{Router, serve::Listener};
use piecemeal_tls::{Acceptor, Opening, SiteStream, opening};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

/// How long client streams may go on after the daemon was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// The most connections that wait to be served at one time.
const WAITING_MAX: usize = 64;
/// The pause after an accept failed, as it does when there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// Serves `router` on every listener until `stop`; then lets the open streams end, for a minute at most. `tls`: for those
/// clients that begin with a TLS handshake.
pub fn serve(
    tracker: &TaskTracker,
    listeners: Vec<TcpListener>,
    router: &Router,
    tls: Option<&Acceptor>,
    stop: &CancellationToken,
) {
    for listener in listeners {
        let (router, stopped) = (router.clone(), stop.clone());
        let Ok(address) = listener.local_addr() else {
            continue;
        };
        let (sender, greeted) = mpsc::channel(WAITING_MAX);
        tracker.spawn(accept_all(listener, sender, tls.cloned(), stop.clone()));
        let serving =
            axum::serve(Greeted { greeted, address }, router).with_graceful_shutdown(stopped.clone().cancelled_owned());
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
struct Greeted {
    greeted: mpsc::Receiver<(SiteStream, SocketAddr)>,
    address: SocketAddr,
}

impl Listener for Greeted {
    type Io = SiteStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (SiteStream, SocketAddr) {
        match self.greeted.recv().await {
            Some(connection) => connection,
            // Told to stop: the server ends by that.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn accept_all(
    listener: TcpListener,
    greeted: mpsc::Sender<(SiteStream, SocketAddr)>,
    tls: Option<Acceptor>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let (greeted, tls) = (greeted.clone(), tls.clone());
                tokio::spawn(async move {
                    match greet(stream, tls.as_ref()).await {
                        // An error: nobody serves any more.
                        Ok(Some(stream)) => drop(greeted.send((stream, address)).await),
                        Ok(None) => {}
                        Err(error) => debug!(%error, "a connection of {address} came to nothing: {error}"),
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

/// The stream, once HTTP can be spoken over it. `None`: it was told that it cannot.
async fn greet(mut stream: TcpStream, tls: Option<&Acceptor>) -> io::Result<Option<SiteStream>> {
    // Small answers must not wait for more to send.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "TCP_NODELAY could not be set");
    }
    match (opening(&stream).await?, tls) {
        (Opening::Plain, _) => Ok(Some(SiteStream::Plain(stream))),
        (Opening::Tls, Some(tls)) => tls.shake(stream).await.map(Some),
        (Opening::Tls, None) => {
            stream.write_all(NOT_TLS).await?;
            stream.shutdown().await?;
            Ok(None)
        }
    }
}
