//! Connection gate of a port: admits newcomers, and closes the connections that lost their slot and those that are late.
//!
//! Invariant: a connection that the gate admitted has a slot until it ends or is closed.

use std::{net::IpAddr, sync::Arc, time::Duration};

use rustix::process::{Resource, getrlimit};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    Linger, Slot, SlotPolicy,
    connections::{Connections, Held, Table},
    pulse::{Meter, Pulse},
};

/// The gate of one port. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Connections>);

impl Gate {
    /// `port`: its name in the log.
    pub fn new(port: &'static str, policy: SlotPolicy) -> Self {
        Self(Arc::new(Connections::new(port, policy)))
    }

    /// A slot for a newcomer, if need be that of another connection, which is then closed; `None`: close the newcomer.
    pub fn admit(&self, remote: IpAddr) -> Option<Slot> {
        let now = self.0.now();
        let mut table = self.0.table.lock();
        let admitted = table.slots.admit(now, remote);
        if admitted.is_none_or(|admitted| admitted.evicted.is_some()) {
            self.tell(&mut table, remote, admitted.is_some());
        }
        let admitted = admitted?;
        if let Some(evicted) = admitted.evicted {
            table.close(evicted);
        }
        let closed = CancellationToken::new();
        let pulse = Arc::new(Pulse::new());
        let held = Held {
            closed: closed.clone(),
            pulse: Arc::clone(&pulse),
            before: Meter::default(),
            uses: 0,
        };
        table.held.insert(admitted.id, held);
        Some(Slot::new(Arc::clone(&self.0), admitted.id, closed, pulse))
    }

    /// Closes late connections. Never ends.
    pub async fn sweep(&self) {
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            sweep.tick().await;
            self.0.sweep();
        }
    }

    /// Returns when a port that is told to stop now takes no more connections.
    pub async fn linger(&self, linger: Linger) {
        let told = self.0.now();
        let lasts = || linger.lasts(told, self.0.now(), self.0.table.lock().requests());
        while lasts() {
            sleep(LINGER_LOOK_EVERY).await;
        }
    }

    /// Connections with a slot.
    pub fn len(&self) -> usize {
        self.0.table.lock().slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a newcomer could get only the slot of another connection.
    pub fn is_full(&self) -> bool {
        self.0.table.lock().slots.is_full()
    }

    fn tell(&self, table: &mut Table, remote: IpAddr, admitted: bool) {
        let port = self.0.port;
        let done = if admitted {
            "took the slot of another"
        } else {
            "was refused"
        };
        debug!(peer.ip = %remote, "the {port} port has no slot left: a connection of {remote} {done}");
        if table.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            table.told = Some(Instant::now());
            let slots = table.slots.len();
            warn!(peer.ip = %remote, "the {port} port is nearly full with {slots} connections: one of {remote} {done}, and idle ones are closed");
        }
    }
}

/// File descriptors that this process may have.
pub fn descriptors_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(usize::MAX)
}

/// Interval of the sweep: how long after its deadline a connection may be closed.
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// Interval between two looks at the requests of a port that is told to stop.
const LINGER_LOOK_EVERY: Duration = Duration::from_millis(50);
/// Shortest interval between warnings of a full port.
const TELL_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that pipelines requests and reads late would have kept its slot busy for ever.
    #[test]
    fn answers_that_leave_together_all_end() {
        let second = Duration::from_secs(1);
        let gate = Gate::new(
            "test",
            SlotPolicy {
                slots: 4,
                share: crate::Share::ALL,
                greet_max: second,
                first_byte_max: second,
                head_max: second,
                idle_max: second,
                take_max: second,
                busy_give_way: false,
            },
        );
        let slot = gate.admit([10, 0, 0, 1].into()).unwrap();
        for _ in 0..3 {
            slot.begin();
            slot.finish_when_flushed();
        }
        assert!(slot.is_busy());
        slot.flushed();
        assert!(!slot.is_busy());
        drop(slot);
        assert!(gate.is_empty() && gate.0.table.lock().held.is_empty());
    }
}
