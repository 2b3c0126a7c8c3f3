//! Connection gate of a port: closes the connections that lost their slot in the table, and those that are late.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use piecemeal_proto::NodeId;
use rustix::process::{Resource, getrlimit};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{Expired, Policy, SlotId, Slots};

/// The door of one port. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    port: &'static str,
    started: Instant,
    take_max: Duration,
    table: Mutex<Table>,
}

struct Table {
    slots: Slots,
    held: HashMap<SlotId, Held>,
    /// When a full port was last logged.
    told: Option<Instant>,
}

/// A connection's closing handle, and its state at the last check.
struct Held {
    closed: CancellationToken,
    pulse: Arc<Pulse>,
    before: Meter,
    /// Requests or sessions at the moment.
    uses: usize,
}

/// A connection's place at its port: given back when the last clone goes. Cheap to clone.
#[derive(Clone)]
pub struct Slot(Arc<Place>);

struct Place {
    gate: Gate,
    id: SlotId,
    closed: CancellationToken,
    pulse: Arc<Pulse>,
}

/// What the stream reports without taking the table's lock.
struct Pulse {
    /// Whether the table waits for a first byte.
    listening: AtomicBool,
    busy: AtomicBool,
    /// Answers that are complete, but not all of them on their way. More than one, where a client asks ahead and reads nothing.
    ending: AtomicUsize,
    /// Bytes that the socket took.
    moved: AtomicU64,
    /// How long the socket has taken nothing although there was something, in milliseconds.
    blocked: AtomicU64,
    /// Since when it takes nothing now, in milliseconds from the gate's start; [`NOT_BLOCKED`].
    blocked_since: AtomicU64,
}

/// How far a connection's answers have come.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    moved: u64,
    blocked: Duration,
}

impl Gate {
    /// `port`: what the log calls it.
    pub fn new(port: &'static str, policy: Policy) -> Self {
        let table = Table {
            slots: Slots::new(policy),
            held: HashMap::new(),
            told: None,
        };
        Self(Arc::new(Inner {
            port,
            started: Instant::now(),
            take_max: policy.take_max,
            table: Mutex::new(table),
        }))
    }

    /// A slot for a newcomer, if need be that of another connection, which is then closed; `None`: close the newcomer.
    pub fn admit(&self, remote: IpAddr) -> Option<Slot> {
        let now = self.now();
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
        let pulse = Arc::new(Pulse {
            listening: AtomicBool::new(true),
            busy: AtomicBool::new(false),
            ending: AtomicUsize::new(0),
            moved: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            blocked_since: AtomicU64::new(NOT_BLOCKED),
        });
        let held = Held {
            closed: closed.clone(),
            pulse: Arc::clone(&pulse),
            before: Meter::default(),
            uses: 0,
        };
        table.held.insert(admitted.id, held);
        Some(Slot(Arc::new(Place {
            gate: self.clone(),
            id: admitted.id,
            closed,
            pulse,
        })))
    }

    /// Closes late connections. Never ends.
    pub async fn sweep(&self) {
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            sweep.tick().await;
            let now = self.now();
            let mut table = self.0.table.lock();
            while let Some(expired) = table.slots.poll_expired(now) {
                table.handle(expired, now, self.0.take_max);
            }
        }
    }

    /// How many slots are taken.
    pub fn len(&self) -> usize {
        self.0.table.lock().slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no slot left but for another's.
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

    fn now(&self) -> Duration {
        self.0.started.elapsed()
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

    /// Of one that the slots know no more.
    fn close(&mut self, id: SlotId) {
        if let Some(held) = self.held.remove(&id) {
            held.closed.cancel();
        }
    }
}

impl Slot {
    /// Resolves when the slot goes to another connection, or this one is late: close the connection then.
    pub fn closed(&self) -> &CancellationToken {
        &self.0.closed
    }

    /// What comes before the protocol is over.
    pub fn greeted(&self) {
        self.0.pulse.listening.store(true, Relaxed);
        self.change(|slots, id, now| slots.greeted(id, now));
    }

    /// A request's head is here, or a session begins.
    pub fn begin(&self) {
        let now = self.0.gate.now();
        let mut table = self.0.gate.0.table.lock();
        let Table { slots, held, .. } = &mut *table;
        if let Some(held) = held.get_mut(&self.0.id) {
            held.uses += 1;
            if held.uses == 1 {
                self.0.pulse.busy.store(true, Relaxed);
                held.before = self.0.pulse.meter(now);
                slots.began(self.0.id, now);
            }
        }
    }

    /// It has ended.
    pub fn finish(&self) {
        self.finish_all(1);
    }

    fn finish_all(&self, ended: usize) {
        let now = self.0.gate.now();
        let mut table = self.0.gate.0.table.lock();
        let Table { slots, held, .. } = &mut *table;
        if let Some(held) = held.get_mut(&self.0.id) {
            held.uses = held.uses.saturating_sub(ended);
            if held.uses == 0 {
                self.0.pulse.busy.store(false, Relaxed);
                self.0.pulse.listening.store(true, Relaxed);
                slots.ended(self.0.id, now);
            }
        }
    }

    /// It has ended, as soon as what it wrote is on its way.
    pub fn finish_when_flushed(&self) {
        self.0.pulse.ending.fetch_add(1, Relaxed);
    }

    /// `node` has proven that the connection is its.
    pub fn belongs_to(&self, node: NodeId) {
        self.change(|slots, id, _| slots.belongs_to(id, node));
    }

    /// Whether there is a request or a session.
    pub fn is_busy(&self) -> bool {
        self.0.pulse.busy.load(Relaxed)
    }

    pub(crate) fn heard(&self) {
        if self.0.pulse.listening.swap(false, Relaxed) {
            self.change(|slots, id, now| slots.heard(id, now));
        }
    }

    pub(crate) fn wrote(&self, bytes: usize) {
        let pulse = &self.0.pulse;
        pulse.moved.fetch_add(bytes as u64, Relaxed);
        let since = pulse.blocked_since.swap(NOT_BLOCKED, Relaxed);
        if since != NOT_BLOCKED {
            let blocked = millis(self.0.gate.now()).saturating_sub(since);
            pulse.blocked.fetch_add(blocked, Relaxed);
        }
    }

    pub(crate) fn blocked(&self) {
        let since = &self.0.pulse.blocked_since;
        if since.load(Relaxed) == NOT_BLOCKED {
            since.store(millis(self.0.gate.now()), Relaxed);
        }
    }

    pub(crate) fn flushed(&self) {
        let ending = &self.0.pulse.ending;
        if ending.load(Relaxed) > 0 {
            self.finish_all(ending.swap(0, Relaxed));
        }
    }

    fn change(&self, change: impl FnOnce(&mut Slots, SlotId, Duration)) {
        let now = self.0.gate.now();
        change(&mut self.0.gate.0.table.lock().slots, self.0.id, now);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.gate.0.table.lock();
        table.held.remove(&self.id);
        table.slots.leave(self.id);
    }
}

impl Pulse {
    fn meter(&self, now: Duration) -> Meter {
        let since = self.blocked_since.load(Relaxed);
        let blocked_now = if since == NOT_BLOCKED {
            0
        } else {
            millis(now).saturating_sub(since)
        };
        Meter {
            moved: self.moved.load(Relaxed),
            blocked: Duration::from_millis(self.blocked.load(Relaxed) + blocked_now),
        }
    }
}

/// Whether a receiver took nearly nothing although bytes were ready for it nearly all the time. A receiver that waits for bytes
/// that this daemon does not have yet is not stuck.
fn is_stuck(before: Meter, after: Meter, window: Duration) -> bool {
    let blocked = after.blocked.saturating_sub(before.blocked);
    blocked >= window * 3 / 4 && after.moved - before.moved < MOVED_BYTES_MIN
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(NOT_BLOCKED - 1)
}

/// How many file descriptors this process may have.
pub fn descriptors_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit
        .and_then(|limit| usize::try_from(limit).ok())
        .unwrap_or(usize::MAX)
}

const NOT_BLOCKED: u64 = u64::MAX;
/// What a receiver has to take in `take_max` in order to be served on: less than a modem's worth.
const MOVED_BYTES_MIN: u64 = 16 * 1024;
/// How long after its deadline a connection may be closed.
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// How often a full port is logged.
const TELL_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that asks ahead and reads late would have kept its slot busy for ever.
    #[test]
    fn answers_that_leave_together_all_end() {
        let second = Duration::from_secs(1);
        let gate = Gate::new(
            "test",
            Policy {
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

    #[test]
    fn only_who_could_take_something_and_does_not_is_stuck() {
        let window = Duration::from_secs(30);
        let stuck = |moved, blocked| {
            let blocked = Duration::from_secs(blocked);
            is_stuck(Meter::default(), Meter { moved, blocked }, window)
        };
        assert!(stuck(0, 30), "takes nothing");
        assert!(stuck(640, 30), "a few bytes now and then");
        assert!(!stuck(MOVED_BYTES_MIN, 30), "slow, and going on");
        assert!(!stuck(0, 20), "there was nothing for it most of the time");
        assert!(!stuck(0, 0), "waits for what comes over the WAN");
    }
}
