//! What all clones of one [`crate::Filling`] share, and the pin that keeps an entry from eviction.

use std::sync::Arc;

use piecemeal_proto::Digest;
use tokio::sync::OwnedSemaphorePermit;

use crate::{fill::Fill, quota::Generation, store::Shared};

/// Keeps a blob or partial from being evicted while it lives.
pub(crate) struct Pin {
    shared: Arc<Shared>,
    digest: Digest,
    generation: Generation,
    /// Whether being held counts as being used.
    is_use: bool,
}

impl Pin {
    /// `generation` is what the ledger's `pin` returned.
    pub(crate) fn new(shared: &Arc<Shared>, digest: Digest, generation: Generation) -> Self {
        Self {
            shared: Arc::clone(shared),
            digest,
            generation,
            is_use: true,
        }
    }

    /// A pin that leaves the last use as it is.
    pub(crate) fn unused(shared: &Arc<Shared>, digest: Digest, generation: Generation) -> Self {
        let mut pin = Self::new(shared, digest, generation);
        pin.is_use = false;
        pin
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let now = self.shared.now();
        let mut state = self.shared.state.lock();
        // A long read is a use until its end.
        let now = self.is_use.then_some(now);
        if state.ledger.unpin(&self.digest, self.generation, now) && self.is_use {
            state.touched.blobs.insert(self.digest);
        }
    }
}

/// What all clones of a filling share; the fill is live as long as it exists.
pub(crate) struct Handle {
    pub(crate) fill: Arc<Fill>,
    pub(crate) held: Held,
}

/// What a filling holds in its store.
pub(crate) enum Held {
    /// Its space on the disk.
    Space(Pin),
    /// No space: a passing fill, which has one of the few places for those.
    Nothing {
        shared: Arc<Shared>,
        #[expect(dead_code, reason = "the place is given back when this is dropped")]
        place: OwnedSemaphorePermit,
    },
}

impl Handle {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        match &self.held {
            Held::Space(pin) => pin.shared(),
            Held::Nothing { shared, .. } => shared,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Held::Nothing { shared, .. } = &self.held {
            shared.forget_live(&self.fill);
        }
    }
}
