//! Table of the outstanding leases.
//!
//! Invariant: an id is used once, so the id of an ended lease finds no other lease.

use super::{LeaseId, Time, run::Run, slab::Slab};

/// One outstanding lease.
pub(super) struct LeaseState {
    pub(super) id: LeaseId,
    pub(super) swarm: u32,
    /// The receiver's index in the swarm.
    pub(super) index: u32,
    pub(super) receiver: u32,
    /// The source's slot; `None`: upstream.
    pub(super) source: Option<u32>,
    pub(super) run: Run,
    pub(super) issued_at: Time,
}

/// Outstanding leases. An id names its slot in its low bits, a serial number in the others.
pub(super) struct Leases {
    slab: Slab<LeaseState>,
    serial: u64,
}

impl Leases {
    /// Two brains that begin at different `serial`s are unlikely to use the same id.
    pub(super) fn new(serial: u64) -> Self {
        Self {
            slab: Slab::new(),
            serial: serial >> 1 >> SLOT_BITS,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn get(&self, id: LeaseId) -> Option<&LeaseState> {
        self.slab.get(slot(id)).filter(|lease| lease.id == id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &LeaseState> {
        self.slab.iter().map(|(_, lease)| lease)
    }

    pub(super) fn insert(&mut self, lease: impl FnOnce(LeaseId) -> LeaseState) -> LeaseId {
        self.serial += 1;
        let id = LeaseId(self.serial << SLOT_BITS | u64::from(self.slab.next_slot()));
        self.slab.insert(lease(id));
        id
    }

    pub(super) fn remove(&mut self, id: LeaseId) -> Option<LeaseState> {
        self.get(id)?;
        self.slab.remove(slot(id))
    }
}

/// Room for 16 million outstanding leases.
const SLOT_BITS: u32 = 24;

fn slot(id: LeaseId) -> u32 {
    u32::try_from(id.0 & ((1 << SLOT_BITS) - 1)).expect("the low bits fit")
}
