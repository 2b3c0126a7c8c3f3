//! The piece port's connections.

use axum::Router;
use tokio::{net::TcpListener, time::Duration};
use tokio_util::sync::CancellationToken;

use crate::{Limits, serve_http};

const LIMITS: Limits = Limits {
    // A few for each node of a large pool, all of which fall back on the mirror when the scheduler is lost.
    connections_max: 4096,
    // Longer than the client keeps its idle connections, so that the client is the one who closes them.
    idle_max: Duration::from_secs(60),
    // A receiver that takes nothing for so long has been given up by everybody else too.
    take_max: Duration::from_secs(30),
    // A lease takes less, and what it misses is leased elsewhere at once.
    drain_max: Duration::from_secs(10),
};

/// Serves until `stop`, then lets the answers that are under way end.
pub async fn serve_pieces(listener: TcpListener, router: Router, stop: CancellationToken) {
    serve_http(listener, (), router, LIMITS, stop).await;
}
