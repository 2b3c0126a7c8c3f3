//! Keeping a session: one connection after the other, each with a higher incarnation.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use piecemeal_proto::wire;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{
    Inventory, SessionConfig, SessionEvent,
    connection::{Connection, EndConnectionError},
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
    let mut backoff = Backoff::new(&connection.config);
    let scheduler = connection.config.scheduler.clone();
    loop {
        let (end, was_welcomed) = match connection.greet().await {
            Ok(greeted) => {
                connection.shared.note_end(None);
                (connection.attend(greeted).await, true)
            }
            Err(end) => (end, false),
        };
        connection.shared.queue.close();
        connection.shared.note_end(Some(end.to_string()));
        connection.set_up(false).await;
        let delay = match &end {
            EndConnectionError::Unheeded => return,
            EndConnectionError::Refused(reason) => {
                error!("the scheduler {scheduler} refuses this daemon: {reason}");
                REFUSED_DELAY
            }
            EndConnectionError::Untrusted(refused) => {
                error!("the scheduler {scheduler} is not used: {refused}");
                REFUSED_DELAY
            }
            EndConnectionError::Lost(_) if was_welcomed => {
                backoff.reset();
                warn!("lost the scheduler {scheduler}: {end}");
                backoff.next()
            }
            EndConnectionError::Lost(_) => {
                if backoff.is_fresh() {
                    warn!("the scheduler {scheduler} cannot be reached: {end}");
                } else {
                    debug!("the scheduler {scheduler} can still not be reached: {end}");
                }
                backoff.next()
            }
        };
        connection.config.incarnation += 1;
        sleep(delay).await;
    }
}

/// How long to wait before the next connection: twice as long each time, with jitter, so that a site's daemons do not all
/// come back at once.
struct Backoff {
    next: Duration,
    random: StdRng,
}

impl Backoff {
    fn new(config: &SessionConfig) -> Self {
        Self {
            next: BACKOFF_MIN,
            // The standard library keys its hash tables from the operating system's randomness.
            random: StdRng::seed_from_u64(RandomState::new().hash_one(config.node_key.id())),
        }
    }

    fn reset(&mut self) {
        self.next = BACKOFF_MIN;
    }

    fn is_fresh(&self) -> bool {
        self.next == BACKOFF_MIN
    }

    /// Between half and all of the delay that it has come to.
    fn next(&mut self) -> Duration {
        let most = self.next;
        self.next = (most * 2).min(BACKOFF_MAX);
        let percent = u32::try_from(50 + self.random.next_u64() % 51).expect("at most 100");
        most * percent / 100
    }
}

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A daemon with the wrong key, or of the wrong version, is waiting for its operator.
const REFUSED_DELAY: Duration = Duration::from_secs(10);
/// As many orders as one reader may be behind by: two leases for each of a few hundred blobs.
const EVENTS_MAX: usize = 1024;
