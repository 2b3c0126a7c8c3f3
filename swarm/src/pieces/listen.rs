//!
//! Listener of the piece port.
//!
//! Invariant: there are more connections than requests at once, so that an idle one can always give way.

use std::sync::Arc;

use axum::Router;
use tokio::{net::TcpListener, time::Duration};
use tokio_util::sync::CancellationToken;

use piecemeal_http::{Limits, Linger, Share, serve_http};

const LIMITS: Limits = Limits {
    port: "piece",
    // Twice as many as there are requests at once, so that some are always idle and give way. Nodes of a large pool, which all
    // fall back on the mirror when the scheduler is lost, take turns.
    connections_max: 8192,
    share: Share::ALL,
    busy_give_way: false,
    // Longer than the client keeps its idle connections, so that the client closes them.
    idle_max: Duration::from_secs(60),
    // The other components give a receiver up that takes nothing for so long.
    take_max: Duration::from_secs(30),
    // Clients end first, and a receiver gets the pieces that it misses elsewhere.
    linger: Linger::NONE,
    // A lease takes less time.
    drain_max: Duration::from_secs(10),
};

/// Serves until `stop`, then lets the answers that are under way end. `share`: of the connections, for one address.
pub async fn serve_pieces(
    listener: impl Into<Arc<TcpListener>> + Send,
    router: Router,
    share: Share,
    stop: CancellationToken,
) {
    serve_http(listener, (), router, Limits { share, ..LIMITS }, stop).await;
}
