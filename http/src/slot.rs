//! Slot of one connection at its port.
//!
//! Invariant: the slot is given back when its last clone goes.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use piecemeal_proto::NodeId;
use tokio_util::sync::CancellationToken;

use crate::{
    connections::{Connections, Table},
    parties::SlotId,
    pulse::Pulse,
    slots::Slots,
};

/// Cheap to clone.
#[derive(Clone)]
pub struct Slot(Arc<Taken>);

struct Taken {
    connections: Arc<Connections>,
    id: SlotId,
    closed: CancellationToken,
    pulse: Arc<Pulse>,
}

impl Slot {
    pub(crate) fn new(connections: Arc<Connections>, id: SlotId, closed: CancellationToken, pulse: Arc<Pulse>) -> Self {
        Self(Arc::new(Taken {
            connections,
            id,
            closed,
            pulse,
        }))
    }

    /// Resolves when the slot goes to another connection, or this one is late: close the connection then.
    pub fn closed(&self) -> &CancellationToken {
        &self.0.closed
    }

    /// The handshake before the protocol is over.
    pub fn greeted(&self) {
        self.0.pulse.listening.store(true, Relaxed);
        self.change(|slots, id, now| slots.greeted(id, now));
    }

    /// A request's head is here, or a session begins.
    pub fn begin(&self) {
        let now = self.0.connections.now();
        let mut table = self.0.connections.table.lock();
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

    /// A request or session has ended.
    pub fn finish(&self) {
        self.finish_all(1);
    }

    fn finish_all(&self, ended: usize) {
        let now = self.0.connections.now();
        let mut table = self.0.connections.table.lock();
        let Table {
            slots,
            held,
            ended: last_ended,
            ..
        } = &mut *table;
        *last_ended = Some(now);
        if let Some(held) = held.get_mut(&self.0.id) {
            held.uses = held.uses.saturating_sub(ended);
            if held.uses == 0 {
                self.0.pulse.busy.store(false, Relaxed);
                self.0.pulse.listening.store(true, Relaxed);
                slots.ended(self.0.id, now);
            }
        }
    }

    /// A request has ended, and its connection is busy until the answer is flushed.
    pub fn finish_when_flushed(&self) {
        self.0.pulse.ending.fetch_add(1, Relaxed);
    }

    /// `node` has proven that the connection is its own.
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
        self.0.pulse.wrote(bytes, || self.0.connections.now());
    }

    pub(crate) fn blocked(&self) {
        self.0.pulse.note_blocked(|| self.0.connections.now());
    }

    pub(crate) fn flushed(&self) {
        let ending = &self.0.pulse.ending;
        if ending.load(Relaxed) > 0 {
            self.finish_all(ending.swap(0, Relaxed));
        }
    }

    fn change(&self, change: impl FnOnce(&mut Slots, SlotId, Duration)) {
        let now = self.0.connections.now();
        change(&mut self.0.connections.table.lock().slots, self.0.id, now);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let now = self.connections.now();
        let mut table = self.connections.table.lock();
        if table.held.remove(&self.id).is_some_and(|held| held.uses > 0) {
            table.ended = Some(now);
        }
        table.slots.leave(self.id);
    }
}
