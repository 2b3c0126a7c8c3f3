//! Fills in memory, by digest, and the handle that keeps one live.
//!
//! Invariant: a fill stays here as long as it has a handle, and without one until its last pieces are in the index. The lock is
//! never held across disk work, nor while a handle is dropped.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use piecemeal_proto::Digest;
use tokio::sync::OwnedSemaphorePermit;

use super::{fill::Fill, inventory::Pin};
use crate::index::Progress;

/// The fills that are live.
#[derive(Default)]
pub(crate) struct LiveFills {
    fills: Mutex<HashMap<Digest, Live>>,
}

/// A fill in memory. Without a handle it only waits until its last pieces are in the index.
struct Live {
    fill: Arc<Fill>,
    handle: Weak<Handle>,
}

/// What all users of a fill share; the fill is live as long as it exists.
pub(crate) struct Handle {
    pub(crate) fill: Arc<Fill>,
    held: Held,
}

/// What a fill holds in its store.
enum Held {
    /// Its space on the disk.
    Space {
        #[expect(dead_code, reason = "the space is given back when this is dropped")]
        pin: Pin,
    },
    /// No space: an unstored fill, which has one of the few places for those.
    Place {
        live: Arc<LiveFills>,
        #[expect(dead_code, reason = "the place is given back when this is dropped")]
        place: OwnedSemaphorePermit,
    },
}

impl Handle {
    pub(crate) fn stored(fill: Arc<Fill>, pin: Pin) -> Self {
        Self {
            fill,
            held: Held::Space { pin },
        }
    }

    pub(crate) fn unstored(fill: Arc<Fill>, live: Arc<LiveFills>, place: OwnedSemaphorePermit) -> Self {
        Self {
            fill,
            held: Held::Place { live, place },
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Held::Place { live, .. } = &self.held {
            live.forget(&self.fill);
        }
    }
}

impl LiveFills {
    /// The handle of the digest's fill, if that has not ended.
    pub(crate) fn open(&self, digest: &Digest) -> Option<Arc<Handle>> {
        let handle = self.fills.lock().get(digest)?.handle.upgrade()?;
        handle.fill.is_open().then_some(handle)
    }

    /// The digest's fill, with or without a handle.
    pub(crate) fn fill(&self, digest: &Digest) -> Option<Arc<Fill>> {
        self.fills.lock().get(digest).map(|live| Arc::clone(&live.fill))
    }

    /// Whether the digest's fill has a handle.
    pub(crate) fn is_held(&self, digest: &Digest) -> bool {
        let fills = self.fills.lock();
        fills.get(digest).is_some_and(|live| live.handle.strong_count() > 0)
    }

    /// Makes the handle's fill the one of its digest.
    pub(crate) fn insert(&self, handle: &Arc<Handle>) {
        let live = Live {
            fill: Arc::clone(&handle.fill),
            handle: Arc::downgrade(handle),
        };
        let replaced = self.fills.lock().insert(*handle.fill.digest(), live);
        drop(replaced);
    }

    /// Forgets this fill, and no other of its digest.
    pub(crate) fn forget(&self, fill: &Arc<Fill>) {
        self.forget_if(fill.digest(), |live| Arc::ptr_eq(live, fill));
    }

    /// Forgets the digest's fill, unless it is independent of what is on the disk.
    pub(crate) fn forget_stored(&self, digest: &Digest) {
        self.forget_if(digest, |fill| !fill.is_unstored());
    }

    fn forget_if(&self, digest: &Digest, suits: impl FnOnce(&Arc<Fill>) -> bool) {
        let mut fills = self.fills.lock();
        let fits = fills.get(digest).is_some_and(|live| suits(&live.fill));
        let gone = fits.then(|| fills.remove(digest)).flatten();
        drop(fills);
        // After the lock: the last handle of a file that was removed has the system free all of it.
        drop(gone);
    }

    /// The bytes that all fills have still to write to the disk.
    pub(crate) fn unwritten_bytes(&self) -> u64 {
        self.fills.lock().values().map(|live| live.fill.unwritten_bytes()).sum()
    }

    pub(crate) fn has_unsaved(&self) -> bool {
        self.fills.lock().values().any(|live| live.fill.has_unsaved())
    }

    /// What the index does not know yet, of each fill.
    pub(crate) fn take_unsaved(&self) -> Vec<(Arc<Fill>, Progress)> {
        let fills = self.fills.lock();
        fills
            .values()
            .filter(|live| live.fill.has_unsaved())
            .map(|live| (Arc::clone(&live.fill), live.fill.take_unsaved()))
            .collect()
    }

    /// Forgets the fills without a handle whose pieces are in the index; they wait on disk to be resumed.
    pub(crate) fn retire(&self) {
        self.fills
            .lock()
            .retain(|_, live| live.handle.strong_count() > 0 || live.fill.has_unsaved());
    }
}
