//! Live fills, by digest, and the handle that keeps one live.
//!
//! Invariant: a fill stays here as long as it has a handle, and without one until its last pieces are in the index. As long as it is
//! here its space is promised. The lock is never held across disk work, nor while a handle or a fill is dropped. Locks are taken in the
//! order fills, then ledger (a fill is pinned as it is revived), never the other way round.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::Digest;
use tokio::sync::OwnedSemaphorePermit;

use super::fill::Fill;
use crate::{blobs::inventory::Pin, index::Progress};

/// The fills that are live.
#[derive(Default)]
pub(crate) struct LiveFills {
    fills: Mutex<HashMap<Digest, LiveFill>>,
    /// Held from the moment when pieces are taken for the index until they are in it or are given back.
    saving: Mutex<()>,
}

/// The right to bring pieces to the index. While it is held no other task takes pieces, and no fill whose pieces were taken leaves.
pub(crate) struct Saving<'a> {
    live: &'a LiveFills,
    #[expect(dead_code, reason = "held for its drop")]
    held: MutexGuard<'a, ()>,
}

/// A fill in memory. Without a handle it only waits until its last pieces are in the index.
struct LiveFill {
    fill: Arc<Fill>,
    handle: Weak<FillHandle>,
}

/// Handle that all users of a fill share; the fill is live as long as it exists.
pub(crate) struct FillHandle {
    pub(crate) fill: Arc<Fill>,
    held: Held,
    /// The place that a stored fill takes when it goes on unstored.
    overflow: Mutex<Option<Held>>,
}

/// Space or place that a fill holds in its store.
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

impl FillHandle {
    pub(crate) fn stored(fill: Arc<Fill>, pin: Pin) -> Self {
        Self {
            fill,
            held: Held::Space { pin },
            overflow: Mutex::default(),
        }
    }

    pub(crate) fn unstored(fill: Arc<Fill>, live: Arc<LiveFills>, place: OwnedSemaphorePermit) -> Self {
        Self {
            fill,
            held: Held::Place { live, place },
            overflow: Mutex::default(),
        }
    }

    /// The disk takes no more of the fill: it goes on unstored, in that place. `false`: as [`Fill::overflow`].
    pub(crate) fn overflow(&self, live: &Arc<LiveFills>, place: OwnedSemaphorePermit) -> bool {
        let mut overflow = self.overflow.lock();
        let overflows = self.fill.overflow();
        if overflows {
            let live = Arc::clone(live);
            *overflow = Some(Held::Place { live, place });
        }
        overflows
    }
}

impl Drop for FillHandle {
    fn drop(&mut self) {
        for held in [Some(&self.held), self.overflow.get_mut().as_ref()]
            .into_iter()
            .flatten()
        {
            if let Held::Place { live, .. } = held {
                live.forget(&self.fill);
            }
        }
    }
}

impl LiveFills {
    /// The handle of the digest's fill, if that has not ended.
    pub(crate) fn open(&self, digest: &Digest) -> Option<Arc<FillHandle>> {
        let handle = self.fills.lock().get(digest)?.handle.upgrade()?;
        handle.fill.is_open().then_some(handle)
    }

    /// Whether the digest's fill has a handle.
    pub(crate) fn is_held(&self, digest: &Digest) -> bool {
        let fills = self.fills.lock();
        fills.get(digest).is_some_and(|live| live.handle.strong_count() > 0)
    }

    /// A new handle for the digest's open fill, which has none any more. Finding the fill and holding it is one step, or it could
    /// be retired in between, and its space promised to another fill.
    pub(crate) fn revive(
        &self,
        digest: &Digest,
        suits: impl FnOnce(&Fill) -> bool,
        pin: impl FnOnce() -> Pin,
    ) -> Option<Arc<FillHandle>> {
        let mut fills = self.fills.lock();
        let live = fills.get_mut(digest)?;
        // An unstored fill goes with its last handle: that has no space on the disk to give to the next.
        if live.fill.is_unstored() || !live.fill.is_open() || !suits(&live.fill) {
            return None;
        }
        debug_assert_eq!(live.handle.strong_count(), 0, "an open fill with a handle is joined");
        let handle = Arc::new(FillHandle::stored(Arc::clone(&live.fill), pin()));
        live.handle = Arc::downgrade(&handle);
        Some(handle)
    }

    /// Makes the handle's fill the one of its digest.
    pub(crate) fn insert(&self, handle: &Arc<FillHandle>) {
        let live = LiveFill {
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

    /// Waits until no other task brings pieces to the index.
    pub(crate) fn save(&self) -> Saving<'_> {
        let held = self.saving.lock();
        Saving { live: self, held }
    }

    /// As [`LiveFills::save`], unless another task brings pieces to the index right now.
    pub(crate) fn try_save(&self) -> Option<Saving<'_>> {
        let held = self.saving.try_lock()?;
        Some(Saving { live: self, held })
    }
}

impl Saving<'_> {
    /// The progress of each fill that the index does not know yet.
    pub(crate) fn take_unsaved(&self) -> Vec<(Arc<Fill>, Progress)> {
        let fills = self.live.fills.lock();
        fills
            .values()
            .filter(|live| live.fill.has_unsaved())
            .map(|live| (Arc::clone(&live.fill), live.fill.take_unsaved()))
            .collect()
    }

    /// Forgets the fills without a handle whose pieces are in the index; they wait on disk to be resumed.
    pub(crate) fn retire(&self) {
        let is_over = |live: &LiveFill| live.handle.strong_count() == 0 && !live.fill.has_unsaved();
        let mut fills = self.live.fills.lock();
        let retired: Vec<_> = fills.extract_if(|_, live| is_over(live)).collect();
        drop(fills);
        // After the lock: this closes their files.
        drop(retired);
    }
}
