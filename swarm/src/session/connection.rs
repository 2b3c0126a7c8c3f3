//! Connection to the scheduler, from the challenge to its end.
//!
//! Invariant: reading and writing go on side by side, so that neither direction's backpressure stops the other. A scheduler
//! that is silent for a second counts as down at once; the connection ends only after a longer silence, since the scheduler may
//! have been frozen.

use std::sync::Arc;

use piecemeal_proto::wire::{self, HEARTBEAT, INVENTORY_CHUNK_MAX, VERSION, order::Order, report::Report};
use tokio::{
    sync::mpsc::{self, error::SendTimeoutError},
    time::{Duration, Instant, sleep_until, timeout},
};
use tracing::{debug, warn};

use super::{
    Inventory, SessionConfig, SessionEvent,
    connect::connect,
    end::EndConnectionError::{self, Lost, Refused, Unheeded},
    hello::hello,
    order,
    queue::pack,
    state::Shared,
    stream::{Orders, beating, send},
};
use crate::AuthorityClock;

/// The parts that every connection of a session uses.
pub(super) struct Connection {
    pub(super) config: SessionConfig,
    pub(super) inventory: Arc<dyn Inventory>,
    pub(super) clock: AuthorityClock,
    pub(super) shared: Arc<Shared>,
    pub(super) events: mpsc::Sender<SessionEvent>,
}

/// A stream whose hello was accepted.
pub(super) struct Greeted {
    reports: mpsc::Sender<wire::Reports>,
    orders: Orders,
}

impl Connection {
    /// Connects and is welcomed.
    pub(super) async fn greet(&self) -> Result<Greeted, EndConnectionError> {
        let late = |_| Lost(format!("no welcome within {} s", GREETING_MAX.as_secs()));
        timeout(GREETING_MAX, self.try_greet()).await.map_err(late)?
    }

    async fn try_greet(&self) -> Result<Greeted, EndConnectionError> {
        let (reports, mut orders) = connect(&self.config).await?;
        let Order::Challenge(challenge) = orders.next().await? else {
            return Err(Lost("it did not begin with a challenge".into()));
        };
        if !(challenge.version_min..=challenge.version_max).contains(&VERSION) {
            return Err(Refused(format!(
                "it speaks versions {} to {} of the protocol, and this daemon version {VERSION} (upgrade the older of the two)",
                challenge.version_min, challenge.version_max
            )));
        }
        let hello = Report::Hello(hello(&self.config, &challenge));
        self.shared.note_features(challenge.features);
        for message in pack(vec![hello]) {
            send(&reports, message).await?;
        }
        match orders.next().await? {
            Order::Welcome(welcome) => {
                debug!(scheduler.observed = %welcome.observed_ip, "welcomed by the scheduler {}", self.config.scheduler);
                self.clock.learn(welcome.unix_seconds);
                Ok(Greeted { reports, orders })
            }
            Order::Refused(refused) => Err(Refused(refused.reason)),
            _ => Err(Lost("it answered the hello with neither welcome nor refusal".into())),
        }
    }

    /// Runs a welcomed connection to its end.
    pub(super) async fn run(&self, greeted: Greeted) -> EndConnectionError {
        // Before the session reports that it is up, and before the inventory is read: changes in between are reported twice.
        self.shared.queue.open();
        self.set_up(true).await;
        let Greeted { reports, orders } = greeted;
        let end = tokio::select! {
            end = self.read(orders) => end,
            end = self.write(&reports) => end,
            () = self.shared.queue.overflowed() => Err(Lost("it takes reports more slowly than they come".into())),
        };
        match end {
            Err(end) => end,
        }
    }

    /// Sets [`super::Session::is_up`] at once, then tells the receiver of events.
    pub(super) async fn set_up(&self, up: bool) {
        if self.shared.up.send_replace(up) == up {
            return;
        }
        let event = if up { SessionEvent::Up } else { SessionEvent::Down };
        // An error: the receiver is gone, and the next order fails on that.
        let _ = self.events.send(event).await;
    }

    async fn read(&self, mut orders: Orders) -> Result<Never, EndConnectionError> {
        let mut has_warned = false;
        loop {
            for order in orders.read.drain(..) {
                match order::read(order, &self.config.authority) {
                    Ok(Some(event)) => self.deliver(event).await?,
                    Ok(None) => {}
                    Err(error) if has_warned => debug!("ignored an order of the scheduler: {error}"),
                    Err(error) => {
                        has_warned = true;
                        warn!("ignored an order of the scheduler {}: {error}", self.config.scheduler);
                    }
                }
            }
            if let Ok(heard) = timeout(SILENCE, orders.hear()).await {
                heard?;
                continue;
            }
            self.set_up(false).await;
            let silent = |_| Lost(format!("no message arrived for {} s", SILENCE_MAX.as_secs()));
            timeout(SILENCE_MAX - SILENCE, orders.hear()).await.map_err(silent)??;
            self.set_up(true).await;
        }
    }

    async fn deliver(&self, event: SessionEvent) -> Result<(), EndConnectionError> {
        match self.events.send_timeout(event, LISTENER_LAG_MAX).await {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Closed(_)) => Err(Unheeded),
            Err(SendTimeoutError::Timeout(_)) => Err(Lost("this daemon does not process its orders in time".into())),
        }
    }

    async fn write(&self, reports: &mpsc::Sender<wire::Reports>) -> Result<Never, EndConnectionError> {
        self.tell_inventory(reports).await?;
        let queue = &self.shared.queue;
        let mut next_batch = Instant::now();
        loop {
            if timeout(HEARTBEAT, queue.ready()).await.is_err() {
                send(reports, wire::Reports::default()).await?;
                continue;
            }
            // A report after a pause goes at once; those that follow within the delay go together.
            sleep_until(next_batch).await;
            while let Some(message) = queue.poll_message() {
                send(reports, message).await?;
            }
            next_batch = Instant::now() + wire::BATCH_DELAY;
        }
    }

    async fn tell_inventory(&self, reports: &mpsc::Sender<wire::Reports>) -> Result<(), EndConnectionError> {
        let complete = beating(reports, self.inventory.complete()).await?;
        let mut chunks = complete.chunks(INVENTORY_CHUNK_MAX).peekable();
        loop {
            let chunk = chunks.next().unwrap_or_default();
            let inventory = wire::Inventory {
                complete: chunk.iter().map(ToString::to_string).collect(),
                last: chunks.peek().is_none(),
            };
            let last = inventory.last;
            let report = Some(Report::Inventory(inventory));
            let message = vec![wire::Report { report }];
            send(reports, wire::Reports { reports: message }).await?;
            if last {
                break;
            }
        }
        let live = beating(reports, self.inventory.live()).await?;
        for message in pack(live) {
            send(reports, message).await?;
        }
        Ok(())
    }
}

/// The result of loops that end only with an error.
enum Never {}

/// Longest time from the first packet to the welcome. The scheduler waits as long for the hello.
const GREETING_MAX: Duration = Duration::from_secs(5);
/// Silence after which the scheduler counts as down: two heartbeats. Wants without leases for so long are taken to the mirror.
const SILENCE: Duration = Duration::from_secs(1);
/// Silence after which the connection ends: the scheduler has forgotten this daemon, too.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Longest time that an event waits for its receiver: as long as the scheduler waits for a daemon that is behind.
const LISTENER_LAG_MAX: Duration = Duration::from_secs(1);
