//! Listening for OCI clients, and draining when told to stop.

use std::{io, net::SocketAddr, time::Duration};

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

/// How long client streams may go on after the daemon was told to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

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
        let serving =
            axum::serve(tap_nodelay(listener), router).with_graceful_shutdown(stopped.clone().cancelled_owned());
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

/// Small answers must not wait for more to send.
fn tap_nodelay(listener: TcpListener) -> impl axum::serve::Listener<Io = tokio::net::TcpStream, Addr = SocketAddr> {
    use axum::serve::ListenerExt;
    listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            warn!(%error, "TCP_NODELAY could not be set");
        }
    })
}
