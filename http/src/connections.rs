//! Open connections of one port: the slot table, and a closing handle for each connection.
//!
//! Invariant: every connection with a handle has a slot; one that loses its slot is closed.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    SlotPolicy,
    linger::Requests,
    parties::SlotId,
    pulse::{Meter, Pulse, is_stuck},
    slots::{Expired, Slots},
};

pub(crate) struct Connections {
    /// Name of the port, for the log.
    pub(crate) port: &'static str,
    started: Instant,
    take_max: Duration,
    pub(crate) table: Mutex<Table>,
}

pub(crate) struct Table {
    pub(crate) slots: Slots,
    pub(crate) held: HashMap<SlotId, Held>,
    /// When the last request ended.
    pub(crate) ended: Option<Duration>,
    /// When a full port was last logged.
    pub(crate) told: Option<Instant>,
}

/// A connection's closing handle, and its state at the last check.
pub(crate) struct Held {
    pub(crate) closed: CancellationToken,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) before: Meter,
    /// Requests and sessions under way.
    pub(crate) uses: usize,
}

impl Connections {
    pub(crate) fn new(port: &'static str, policy: SlotPolicy) -> Self {
        let table = Table {
            slots: Slots::new(policy),
            held: HashMap::new(),
            ended: None,
            told: None,
        };
        Self {
            port,
            started: Instant::now(),
            take_max: policy.take_max,
            table: Mutex::new(table),
        }
    }

    /// Time since the port was opened.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Closes late connections, and those whose receiver is stuck.
    pub(crate) fn sweep(&self) {
        let now = self.now();
        let mut table = self.table.lock();
        while let Some(expired) = table.slots.poll_expired(now) {
            table.handle(expired, now, self.take_max);
        }
    }
}

impl Table {
    fn handle(&mut self, expired: Expired, now: Duration, window: Duration) {
        match expired {
            Expired::Late(id) => self.close(id),
            Expired::Check(id) => {
                let Some(held) = self.held.get_mut(&id) else { return };
                let meter = held.pulse.meter(now);
                if is_stuck(held.before, meter, window) {
                    self.slots.leave(id);
                    self.close(id);
                } else {
                    held.before = meter;
                }
            }
        }
    }

    /// The requests of all connections.
    pub(crate) fn requests(&self) -> Requests {
        Requests {
            are_under_way: self.held.values().any(|held| held.uses > 0),
            ended: self.ended,
        }
    }

    /// Closes a connection that has no slot any more.
    pub(crate) fn close(&mut self, id: SlotId) {
        if let Some(held) = self.held.remove(&id) {
            held.closed.cancel();
        }
    }
}
