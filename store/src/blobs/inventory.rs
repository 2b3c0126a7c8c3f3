//! Inventory: the ledger of what is on the disk, behind its lock, and the pins that keep an entry from eviction.
//!
//! The ledger's lock is never held across disk work.

use std::{collections::HashSet, mem, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::Digest;

use super::{
    entry::{EntryKind, Generation},
    ledger::{Ledger, Sum},
};
use crate::values::clock::{Age, AgeClock};

/// The blobs that are here, and their last uses.
pub(crate) struct Inventory {
    ledger: Mutex<Ledger>,
    /// Blobs whose last use the index does not have yet.
    used: Mutex<HashSet<Digest>>,
    clock: AgeClock,
}

/// Keeps a blob or partial from being evicted while it lives.
pub(crate) struct Pin {
    inventory: Arc<Inventory>,
    digest: Digest,
    generation: Generation,
    /// Whether being held counts as being used.
    is_use: bool,
}

impl Inventory {
    pub(crate) fn new(ledger: Ledger, clock: AgeClock) -> Self {
        Self {
            ledger: Mutex::new(ledger),
            used: Mutex::default(),
            clock,
        }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    /// The sums of blobs and of partials.
    pub(crate) fn sums(&self) -> (Sum, Sum) {
        let ledger = self.ledger();
        (ledger.blobs(), ledger.partials())
    }

    /// Pins an entry of any kind.
    pub(crate) fn pin(self: &Arc<Self>, digest: &Digest) -> Option<Pin> {
        let generation = self.ledger().pin(digest)?;
        Some(self.pinned(digest, generation, true))
    }

    /// Pins a complete blob and counts a use.
    pub(crate) fn pin_blob(self: &Arc<Self>, digest: &Digest) -> Option<Pin> {
        let pin = self.pin_kind(digest, true)?;
        self.used.lock().insert(*digest);
        Some(pin)
    }

    /// Pins a complete blob, and leaves its last use as it is.
    pub(crate) fn pin_unused(self: &Arc<Self>, digest: &Digest) -> Option<Pin> {
        self.pin_kind(digest, false)
    }

    fn pin_kind(self: &Arc<Self>, digest: &Digest, is_use: bool) -> Option<Pin> {
        let now = self.clock.now();
        let mut ledger = self.ledger();
        ledger.get(digest).filter(|entry| entry.kind == EntryKind::Blob)?;
        let generation = ledger.pin(digest)?;
        if is_use {
            ledger.touch(digest, now);
        }
        Some(self.pinned(digest, generation, is_use))
    }

    fn pinned(self: &Arc<Self>, digest: &Digest, generation: Generation, is_use: bool) -> Pin {
        Pin {
            inventory: Arc::clone(self),
            digest: *digest,
            generation,
            is_use,
        }
    }

    /// The number of blobs with a last use that the index does not have.
    pub(crate) fn uses(&self) -> usize {
        self.used.lock().len()
    }

    /// The last uses that the index does not have yet.
    pub(crate) fn take_uses(&self) -> Vec<(Digest, Age)> {
        let used = mem::take(&mut *self.used.lock());
        let ledger = self.ledger();
        let last_use = |digest: Digest| Some((digest, ledger.get(&digest)?.used));
        used.into_iter().filter_map(last_use).collect()
    }

    /// Takes uses back that could not be written.
    pub(crate) fn give_back_uses(&self, uses: &[(Digest, Age)]) {
        self.used.lock().extend(uses.iter().map(|(digest, _)| *digest));
    }
}

impl Pin {
    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // A long read is a use until its end.
        let now = self.is_use.then(|| self.inventory.clock.now());
        let is_here = self.inventory.ledger().unpin(&self.digest, self.generation, now);
        if is_here && self.is_use {
            self.inventory.used.lock().insert(self.digest);
        }
    }
}
