//! State that the handlers of an admin port share.
//!
//! Invariant: only a running daemon is asked; before and after, the port answers without one.

use prometheus_client::registry::Registry;
use tokio::sync::RwLock;

/// The phase of the daemon, and its metrics.
#[derive(Debug)]
pub(super) struct AdminState<D> {
    pub(super) phase: RwLock<Phase<D>>,
    pub(super) registry: RwLock<Registry>,
}

#[derive(Debug)]
pub(super) enum Phase<D> {
    Starting,
    Running(D),
    Draining,
}
