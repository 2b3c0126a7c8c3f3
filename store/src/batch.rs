//! Batched writes to the index: pieces that landed, tails of those that have not, and last uses.
//!
//! A commit per piece would cost more than the piece. All are hints, so losing the last batch in a crash costs a few pieces
//! again and makes a blob look a little older. The batch is written by the first operation that finds the last one
//! [`BATCH_INTERVAL`] old, by a sweep, and on close: there is no thread that could outlive its store.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use piecemeal_proto::Digest;
use tracing::warn;

use crate::{
    IndexError, Repository, Store,
    blocking::blocking,
    clock::Age,
    fill::Fill,
    index::{Durability, Progress, blobs, names, partials},
    store::Shared,
};

/// The progress that a crash may lose and that is downloaded again: at 100 Mbit/s some 60 KB. A commit that need not reach
/// the disk costs some 100 µs, so that two hundred a second cost little.
const BATCH_INTERVAL: Duration = Duration::from_millis(5);
/// The same for last uses, which may lose a second: a node that only serves complete blobs hardly writes to its disk.
const TOUCHED_INTERVAL: Duration = Duration::from_secs(1);
/// Last uses remembered before a batch is due early.
const TOUCHED_MAX: usize = 10_000;

/// Uses since the last batch. The last uses of blobs themselves are in the ledger.
#[derive(Default)]
pub(crate) struct Touched {
    pub(crate) blobs: HashSet<Digest>,
    pub(crate) manifests: HashMap<Digest, Age>,
    pub(crate) sources: HashMap<(Digest, Repository), Age>,
    pub(crate) tags: HashMap<(Repository, String), Age>,
}

impl Touched {
    fn len(&self) -> usize {
        self.blobs.len() + self.manifests.len() + self.sources.len() + self.tags.len()
    }
}

/// One batch, taken out of the state; given back when it could not be written.
#[derive(Default)]
struct Batch {
    touched: Touched,
    blobs: Vec<(Digest, Age)>,
    fills: Vec<(Arc<Fill>, Progress)>,
}

impl Store {
    /// Writes pending changes to the index. A failure is logged, and the changes stay pending.
    pub async fn flush(&self) {
        let shared = Arc::clone(&self.shared);
        let _ = blocking(move || shared.write_batch(Durability::Synced)).await;
    }

    /// Writes pending changes to the index and tidies it. The folder stays locked until the last handle is gone.
    pub async fn close(&self) {
        let shared = Arc::clone(&self.shared);
        let _ = blocking(move || {
            shared.write_batch(Durability::Synced);
            if let Err(error) = shared.index.checkpoint() {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "failed to tidy the store's index"
                );
            }
        })
        .await;
    }
}

impl Shared {
    /// Writes a batch if one is due and the index is idle: the caller has a piece to hand on, and the next call finds the
    /// batch still due. Call on a blocking thread, holding no lock.
    pub(crate) fn batch_if_due(&self) {
        let now = self.clock.monotonic();
        let due = {
            let state = self.state.lock();
            let waited = now.saturating_sub(state.batched_at);
            let has_progress = || state.live.values().any(|live| live.fill.has_unsaved());
            waited >= TOUCHED_INTERVAL
                || state.touched.len() >= TOUCHED_MAX
                || (waited >= BATCH_INTERVAL && has_progress())
        };
        if due && self.index.is_idle() {
            self.write_batch(Durability::Batched);
        }
    }

    pub(crate) fn write_batch(&self, durability: Durability) {
        let batch = self.take_batch();
        match self.write_rows(durability, &batch) {
            Ok(()) => self.retire(),
            Err(error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "failed to record progress; a crash now would lose more of it"
                );
                self.give_back(batch);
            }
        }
    }

    fn take_batch(&self) -> Batch {
        let mut state = self.state.lock();
        state.batched_at = self.clock.monotonic();
        let touched = std::mem::take(&mut state.touched);
        let blobs = touched
            .blobs
            .iter()
            .filter_map(|digest| Some((*digest, state.ledger.get(digest)?.used)))
            .collect();
        let fills = state
            .live
            .values()
            .filter(|live| live.fill.has_unsaved())
            .map(|live| (Arc::clone(&live.fill), live.fill.take_unsaved()))
            .collect();
        Batch { touched, blobs, fills }
    }

    fn write_rows(&self, durability: Durability, batch: &Batch) -> Result<(), IndexError> {
        let now = self.now();
        self.write(durability, |transaction| {
            for (fill, progress) in &batch.fills {
                partials::save(transaction, fill.row(), progress, now)?;
            }
            for (digest, used) in &batch.blobs {
                blobs::touch(transaction, digest, *used)?;
            }
            for (digest, used) in &batch.touched.manifests {
                names::touch_manifest(transaction, digest, *used)?;
            }
            for ((digest, at), used) in &batch.touched.sources {
                names::touch_source(transaction, at, digest, *used)?;
            }
            for ((at, tag), used) in &batch.touched.tags {
                names::touch_tag(transaction, at, tag, *used)?;
            }
            Ok(())
        })
    }

    fn give_back(&self, batch: Batch) {
        for (fill, progress) in batch.fills {
            fill.give_back_unsaved(progress);
        }
        let mut state = self.state.lock();
        // Bounded even while the index fails: last uses beyond that are forgotten.
        if state.touched.len() < TOUCHED_MAX {
            state.touched.blobs.extend(batch.touched.blobs);
            for (digest, used) in batch.touched.manifests {
                state.touched.manifests.entry(digest).or_insert(used);
            }
            for (key, used) in batch.touched.sources {
                state.touched.sources.entry(key).or_insert(used);
            }
            for (key, used) in batch.touched.tags {
                state.touched.tags.entry(key).or_insert(used);
            }
        }
    }

    /// Forgets the fillings without a handle whose pieces are in the index; they wait on disk to be resumed.
    fn retire(&self) {
        self.state
            .lock()
            .live
            .retain(|_, live| live.handle.strong_count() > 0 || live.fill.has_unsaved());
    }
}
