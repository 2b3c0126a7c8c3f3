//! Session with the scheduler: one connection after the other.
//!
//! Invariant: each connection has a higher incarnation than the one before.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use piecemeal_proto::wire;
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{
    Inventory, SessionConfig, SessionEvent, backoff::Backoff, connection::Connection, end::EndConnectionError,
    state::Shared,
};
use crate::AuthorityClock;

/// The session with the scheduler. Cheap to clone; it lives until its shutdown token is cancelled.
#[derive(Clone, Debug)]
pub struct Session {
    shared: Arc<Shared>,
}

impl Session {
    /// Connects, and reconnects, until `shutdown`. Events come until then; a receiver that stops reading them is disconnected.
    pub fn spawn(
        config: SessionConfig,
        inventory: Arc<dyn Inventory>,
        clock: AuthorityClock,
        shutdown: CancellationToken,
    ) -> (Self, mpsc::Receiver<SessionEvent>) {
        let (events, received) = mpsc::channel(EVENTS_MAX);
        let shared = Arc::new(Shared::default());
        let connection = Connection {
            config,
            inventory,
            clock,
            shared: Arc::clone(&shared),
            events,
        };
        let session = Self {
            shared: Arc::clone(&shared),
        };
        tokio::spawn(async move {
            shutdown.run_until_cancelled(keep(connection)).await;
            shared.queue.close();
            shared.up.send_replace(false);
        });
        (session, received)
    }

    /// Reports to the scheduler, within 5 ms. Never blocks. Reports without a connection are dropped: the inventory makes up
    /// for them.
    pub fn report(&self, report: wire::report::Report) {
        self.shared.queue.push(report);
    }

    /// Whether the scheduler has welcomed this daemon, and was heard from within the last second.
    pub fn is_up(&self) -> bool {
        *self.shared.up.borrow()
    }

    /// The problem while [`Session::is_up`] is false.
    pub fn problem(&self) -> Option<String> {
        (!self.is_up()).then(|| self.shared.problem())
    }

    /// Whether the scheduler of the last connection has stated `feature`.
    pub fn has_feature(&self, feature: &str) -> bool {
        self.shared.has_feature(feature)
    }

    /// Follows [`Session::is_up`].
    pub fn up(&self) -> watch::Receiver<bool> {
        self.shared.up.subscribe()
    }
}

async fn keep(mut connection: Connection) {
    // The standard library keys its hash tables from the operating system's randomness.
    let seed = RandomState::new().hash_one(connection.config.node_key.id());
    let mut backoff = Backoff::new(seed);
    let scheduler = connection.config.scheduler.clone();
    loop {
        let (end, was_welcomed) = match connection.greet().await {
            Ok(greeted) => {
                connection.shared.note_end(None);
                (connection.run(greeted).await, true)
            }
            Err(end) => (end, false),
        };
        connection.shared.queue.close();
        connection.shared.note_end(Some(end.to_string()));
        connection.set_up(false).await;
        if matches!(end, EndConnectionError::Unheeded) {
            return;
        }
        if was_welcomed && matches!(end, EndConnectionError::Lost(_)) {
            backoff.reset();
        }
        log_end(&scheduler, &end, was_welcomed, backoff.is_fresh());
        let delay = match end {
            EndConnectionError::Lost(_) => backoff.next(),
            _ => REFUSED_DELAY,
        };
        connection.config.incarnation += 1;
        sleep(delay).await;
    }
}

/// `is_first`: of the failures in a row.
fn log_end(scheduler: &str, end: &EndConnectionError, was_welcomed: bool, is_first: bool) {
    match end {
        EndConnectionError::Unheeded => {}
        EndConnectionError::Refused(reason) => error!("the scheduler {scheduler} refuses this daemon: {reason}"),
        EndConnectionError::Untrusted(refused) => error!("the scheduler {scheduler} is not used: {refused}"),
        EndConnectionError::Lost(_) if was_welcomed => warn!("lost the scheduler {scheduler}: {end}"),
        EndConnectionError::Lost(_) if is_first => warn!("the scheduler {scheduler} cannot be reached: {end}"),
        EndConnectionError::Lost(_) => debug!("the scheduler {scheduler} can still not be reached: {end}"),
    }
}

/// Delay after a refusal: a daemon with the wrong key, or of the wrong version, waits for its administrator.
const REFUSED_DELAY: Duration = Duration::from_secs(10);
/// Events that wait for their receiver: two leases for each of a few hundred blobs.
const EVENTS_MAX: usize = 1024;
