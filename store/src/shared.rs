//! State that all handles of a store share: its blobs, its names, and the batches in which both reach the index.
//!
//! A commit per piece would cost more than the piece. Pieces that landed, partial pieces and last uses are hints, so losing the
//! last batch in a crash costs a few pieces again and makes a blob look a little older. The batch is written by the first operation
//! that finds the last one [`BATCH_INTERVAL`] old, by a sweep, and on close: there is no thread that could outlive its store.

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use piecemeal_proto::{Digest, NodeKey};
use tracing::warn;

use crate::{
    blobs::{
        blob_files::BlobFiles,
        blob_store::BlobStore,
        damage,
        entry::Generation,
        evictor::{Limits, RoomError, Swept},
        fills::{fill::Fill, live_fills::Saving},
        ledger::Ledger,
        random::Random,
    },
    disk::{blocking::blocking, files::Files, layout::Layout},
    index::{Durability, Index, Progress, blobs, partials},
    names::{name_store::NameStore, name_uses::NameUses},
    open::{
        claim::{Opened, begin_new_index, claim},
        config::{Env, StoreConfig},
        error::OpenStoreError,
        recover::recover,
    },
    values::{
        clock::Age,
        error::{IndexError, StoreError},
    },
};

/// The progress that a crash may lose and that is downloaded again: at 100 Mbit/s some 60 KB. A commit that need not reach
/// the disk costs some 100 µs, so that two hundred a second cost little.
const BATCH_INTERVAL: Duration = Duration::from_millis(5);
/// The age at which last uses are written: a node that only serves complete blobs hardly writes to its disk.
const USES_INTERVAL: Duration = Duration::from_secs(1);
/// Last uses remembered before a batch is due early.
const USES_MAX: usize = 10_000;

/// An open store.
pub(crate) struct Shared {
    pub(crate) blobs: BlobStore,
    pub(crate) names: NameStore,
    pub(crate) index: Arc<Index>,
    pub(crate) node_key: Arc<NodeKey>,
    /// Why the index was lost when the store was opened, if it was.
    index_lost: Option<String>,
    /// When the last batch was written, by the monotonic clock.
    batched_at: Mutex<Duration>,
    /// The log has a line about the batches that fail right now.
    has_told_loss: AtomicBool,
    #[expect(dead_code, reason = "the folder is this store's while this is open")]
    lock: fs::File,
}

/// One batch; given back when it could not be written.
struct Batch {
    fills: Vec<(Arc<Fill>, Progress)>,
    blobs: Vec<(Digest, Age)>,
    names: NameUses,
}

impl Shared {
    pub(crate) fn open(config: StoreConfig, env: Env) -> Result<Self, OpenStoreError> {
        let layout = Layout::new(config.dir);
        let mut opened = claim(&layout, &env.clock)?;
        let ledger = match restore(&layout, env.files.as_ref(), &opened) {
            // What is damaged in it shows only where it is read.
            Err(OpenStoreError::Index { source, .. }) if opened.index_lost.is_none() && source.is_spoilt() => {
                opened.index = begin_new_index(&layout, &env.clock)?;
                opened.index_lost = Some(source.to_string());
                restore(&layout, env.files.as_ref(), &opened)?
            }
            restored => restored?,
        };
        if let Some(why) = &opened.index_lost {
            warn!(
                blobs = ledger.partials().count,
                "the store's index was lost: {why}. A new one is begun, with the blobs that are in {}; tags, manifests and rights are asked for \
                 again. A spoilt index is kept as index.db.spoilt until its room is needed",
                layout.dir().display()
            );
        }
        let limits = Limits {
            quota_bytes: config.quota_bytes,
            free_bytes_min: config.free_bytes_min,
            ttl: config.ttl,
        };
        let index = Arc::new(opened.index);
        let files = BlobFiles::new(layout, env.files);
        Ok(Self {
            blobs: BlobStore::new(Arc::clone(&index), files, ledger, limits, Random::new(env.seed)),
            names: NameStore::new(Arc::clone(&index)),
            batched_at: Mutex::new(index.monotonic()),
            has_told_loss: AtomicBool::new(false),
            index,
            node_key: Arc::new(opened.node_key),
            index_lost: opened.index_lost,
            lock: opened.lock,
        })
    }

    /// Why the index was lost when the store was opened, if it was.
    pub(crate) fn index_lost(&self) -> Option<&str> {
        self.index_lost.as_deref()
    }

    /// Why content cannot be kept now, if it cannot.
    pub(crate) fn trouble(&self) -> Option<String> {
        let trouble = self.blobs.trouble.lock().clone();
        trouble.or_else(|| self.names.trouble())
    }

    /// Runs disk work on a blocking thread.
    pub(crate) async fn run<T, E>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<io::Error> + Send + 'static,
    {
        let shared = Arc::clone(self);
        blocking(move || work(&shared)).await?
    }

    /// Drops a damaged blob, if it is still the one of that generation.
    pub(crate) async fn drop_damaged(
        self: &Arc<Self>,
        digest: Digest,
        generation: Generation,
    ) -> Result<(), StoreError> {
        let lock = self.blobs.locks.enter(&digest).await;
        self.run(move |shared| Ok(damage::discard_damaged(&shared.blobs, &lock, generation)?))
            .await
    }

    /// As [`Shared::drop_damaged`], for a caller that has an error of its own to return.
    pub(crate) async fn drop_damaged_logged(self: &Arc<Self>, digest: Digest, generation: Generation) {
        if let Err(error) = self.drop_damaged(digest, generation).await {
            warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to drop the damaged {digest}");
        }
    }

    /// Removes what was not used for the TTL, and then what is over the limits. Writes a batch.
    pub(crate) fn sweep(&self) -> Result<Swept, StoreError> {
        let evictor = &self.blobs.evictor;
        self.write_batch(Durability::Synced);
        // A lack of room is found again by the next fill, and a disk that fails by a try.
        let had_trouble = self.blobs.trouble.lock().is_some();
        if had_trouble && self.blobs.files.takes_bytes() {
            *self.blobs.trouble.lock() = None;
        }
        let mut swept = Swept::default();
        let unused_since = self.index.now().before(evictor.limits().ttl);
        if let Some(moment) = unused_since {
            evictor.expire(moment, &mut swept);
        }
        let reserving = evictor.reserve();
        match evictor.make_room(&reserving, 0, 0, &mut swept) {
            // All that may go is gone; what is left is in use.
            Ok(()) | Err(RoomError::NoSpace { .. }) => {}
            Err(RoomError::Io(error)) => return Err(error.into()),
        }
        drop(reserving);
        // After room was made: on a full disk it may need some.
        self.names.expire(unused_since)?;
        Ok(swept)
    }

    /// Writes a batch and checkpoints the index.
    pub(crate) fn close(&self) {
        self.write_batch(Durability::Synced);
        if let Err(error) = self.index.checkpoint() {
            warn!(
                error = &error as &dyn std::error::Error,
                "failed to checkpoint the store's index"
            );
        }
    }

    /// Writes a batch if one is due and the index is idle: the caller has a piece to hand on, and the next call finds the
    /// batch still due. Call on a blocking thread, holding no lock.
    pub(crate) fn batch_if_due(&self) {
        let waited = self.index.monotonic().saturating_sub(*self.batched_at.lock());
        let due = waited >= USES_INTERVAL
            || self.uses() >= USES_MAX
            || (waited >= BATCH_INTERVAL && self.blobs.live.has_unsaved());
        if due
            && self.index.is_idle()
            && let Some(saving) = self.blobs.live.try_save()
        {
            self.commit_batch(&saving);
        }
    }

    /// Last uses since the last batch.
    fn uses(&self) -> usize {
        self.blobs.inventory.uses() + self.names.uses()
    }

    pub(crate) fn write_batch(&self, durability: Durability) {
        let is_committed = self.commit_batch(&self.blobs.live.save());
        // The next batch need not wait for the disk.
        if is_committed
            && durability == Durability::Synced
            && let Err(error) = self.index.sync()
        {
            warn_of_loss(&error);
        }
    }

    /// Whether the batch is in the index.
    fn commit_batch(&self, saving: &Saving<'_>) -> bool {
        *self.batched_at.lock() = self.index.monotonic();
        let batch = Batch {
            names: self.names.take_uses(),
            blobs: self.blobs.inventory.take_uses(),
            fills: saving.take_unsaved(),
        };
        let written = self.write_rows(&batch);
        match &written {
            Ok(()) => saving.retire(),
            Err(error) => {
                if !self.has_told_loss.swap(true, Ordering::Relaxed) {
                    warn_of_loss(error);
                }
                self.give_back(batch);
            }
        }
        if written.is_ok() {
            self.has_told_loss.store(false, Ordering::Relaxed);
        }
        written.is_ok()
    }

    fn write_rows(&self, batch: &Batch) -> Result<(), IndexError> {
        let now = self.index.now();
        self.index.write(Durability::Batched, |transaction| {
            for (fill, progress) in &batch.fills {
                partials::save(transaction, fill.row(), progress, now)?;
            }
            for (digest, used) in &batch.blobs {
                blobs::touch(transaction, digest, *used)?;
            }
            batch.names.write(transaction)
        })
    }

    fn give_back(&self, batch: Batch) {
        for (fill, progress) in batch.fills {
            fill.give_back_unsaved(progress);
        }
        // Bounded even while the index fails: last uses beyond that are forgotten.
        if self.uses() < USES_MAX {
            self.blobs.inventory.give_back_uses(&batch.blobs);
            self.names.give_back_uses(batch.names);
        }
    }
}

/// Brings disk and rows together.
fn restore(layout: &Layout, files: &dyn Files, opened: &Opened) -> Result<Ledger, OpenStoreError> {
    // The index of an older release holds a random id.
    let identified = opened.index.set_identity(opened.node_key.id());
    identified.map_err(|source| OpenStoreError::Index {
        path: layout.index(),
        source,
    })?;
    recover(layout, files, &opened.index)
}

fn warn_of_loss(error: &IndexError) {
    warn!(
        error = error as &dyn std::error::Error,
        "failed to record progress; a crash now would lose more of it"
    );
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A caller may not have called `close`.
        self.write_batch(Durability::Batched);
    }
}
