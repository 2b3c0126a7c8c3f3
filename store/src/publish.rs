//! The two ends of a fill: its blob is published, or it is abandoned.
//!
//! Publishing goes: verify, sync the file, rename it, sync the folders, then the row, synced. So a row always stands for
//! bytes that survived. Clients get the final piece as soon as the digest is proven; they do not wait for the disk.

use std::{io, path::Path, sync::Arc};

use piecemeal_proto::Digest;
use tracing::warn;

use crate::{
    Blob, FillFailure, Filling, IndexError, Repository, StoreError,
    blocking::blocking,
    evict::Swept,
    fill::Fill,
    gate::GateGuard,
    handle::{Handle, Pin},
    index::{BlobRow, Durability, blobs, names, partials},
    store::Shared,
};

/// Why a blob could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishBlobError {
    #[error("{missing} pieces are missing")]
    Incomplete { missing: u32 },
    /// The bytes do not have the blob's digest. The fill has ended, its readers get an error, and nothing of it is kept.
    #[error("digest mismatch: expected {expected}, computed {computed}")]
    DigestMismatch {
        expected: Box<Digest>,
        computed: Box<Digest>,
    },
    /// The fill was ended by another task.
    #[error("the fill was abandoned")]
    Abandoned(#[source] FillFailure),
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The disk would not read it back, or not keep it. When the blob is proven ([`Filling::is_proven`]), its handles go on
    /// reading, and nothing remains on disk: abandon it once they are done. Else abandon it, and begin again.
    #[error("failed to publish a blob")]
    Io(#[from] io::Error),
}

impl Filling {
    /// Proves the blob and makes it one of the store's, together with its `sources`, the repositories under which an upstream
    /// has sent it: no reader finds the blob without them. Again on a published blob, returns it. Cancel safe: once begun,
    /// it runs to its end.
    ///
    /// # Errors
    /// [`PublishBlobError`].
    pub async fn publish(&self, sources: &[Repository]) -> Result<Blob, PublishBlobError> {
        let gate = self.handle.shared().gates.enter(self.digest()).await;
        let (handle, sources) = (Arc::clone(&self.handle), sources.to_vec());
        blocking(move || handle.shared().publish(&gate, &handle, &sources)).await?
    }

    /// Proves the blob of a passing fill, of which every piece has come. Its readers get the rest, and nothing is kept.
    ///
    /// # Errors
    /// As [`Filling::publish`].
    pub async fn pass(&self) -> Result<(), PublishBlobError> {
        let gate = self.handle.shared().gates.enter(self.digest()).await;
        let handle = Arc::clone(&self.handle);
        blocking(move || handle.shared().pass(&gate, &handle.fill)).await?
    }

    /// Ends the fill: its readers and writers get `why`, and the blob can be begun again at once. What arrived is kept for
    /// that, unless `why` says that it is bad. Does nothing to a fill that has ended before. Cancel safe.
    pub async fn abandon(&self, why: FillFailure) {
        let gate = self.handle.shared().gates.enter(self.digest()).await;
        let handle = Arc::clone(&self.handle);
        // An error means that the runtime is shutting down.
        let _ = blocking(move || handle.shared().abandon(&gate, &handle.fill, why)).await;
    }
}

impl Shared {
    fn publish(
        self: &Arc<Self>,
        gate: &GateGuard,
        handle: &Handle,
        sources: &[Repository],
    ) -> Result<Blob, PublishBlobError> {
        let fill = &handle.fill;
        if let Some(why) = fill.failure() {
            return Err(PublishBlobError::Abandoned(why));
        }
        if fill.is_published() {
            return self.published(fill);
        }
        if fill.is_lost() {
            return Err(io::Error::other("an earlier attempt failed").into());
        }
        let missing = fill.missing();
        if missing > 0 {
            return Err(PublishBlobError::Incomplete { missing });
        }
        self.prove(gate, fill)?;
        let row = BlobRow {
            map: fill.map(),
            fill: fill.id(),
            piece_hashes: fill.hashes(),
            signature: None,
        };
        match self.keep(fill, &row, sources) {
            Ok(()) => Ok(self.promote(fill, row)),
            Err(error) => {
                fill.end_lost();
                self.discard_for_good(gate);
                Err(error)
            }
        }
    }

    fn pass(&self, gate: &GateGuard, fill: &Fill) -> Result<(), PublishBlobError> {
        if let Some(why) = fill.failure() {
            return Err(PublishBlobError::Abandoned(why));
        }
        let missing = fill.missing();
        if missing > 0 {
            return Err(PublishBlobError::Incomplete { missing });
        }
        self.prove(gate, fill)?;
        fill.end_passed();
        Ok(())
    }

    fn prove(&self, gate: &GateGuard, fill: &Fill) -> Result<(), PublishBlobError> {
        let expected = *fill.digest();
        let computed = fill.compute_digest()?;
        if computed == expected {
            fill.prove();
            return Ok(());
        }
        fill.fail(FillFailure::DigestMismatch);
        if !fill.is_passing() {
            self.discard_logged(gate);
        }
        Err(PublishBlobError::DigestMismatch {
            expected: Box::new(expected),
            computed: Box::new(computed),
        })
    }

    /// The disk's part of publishing.
    fn keep(&self, fill: &Fill, row: &BlobRow, sources: &[Repository]) -> Result<(), PublishBlobError> {
        let digest = fill.digest();
        fill.file().sync()?;
        let dir = self.layout.blob_dir(digest);
        self.make_blob_dir(digest, &dir)?;
        self.files
            .rename(&self.layout.partial(digest), &self.layout.blob(digest))?;
        self.files.sync_dir(&dir)?;
        let now = self.now();
        self.write(Durability::Synced, |transaction| {
            partials::delete(transaction, &digest.to_string())?;
            blobs::insert(transaction, digest, row, now)?;
            for at in sources {
                names::put_source(transaction, at, digest, now)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Makes the folder durable once in each run: an existing folder may still be lost in a power cut.
    fn make_blob_dir(&self, digest: &Digest, dir: &Path) -> io::Result<()> {
        if self.durable_dirs.lock().contains(dir) {
            return Ok(());
        }
        self.files.create_dir(dir)?;
        self.files.sync_dir(&self.layout.algorithm(digest.algorithm()))?;
        self.durable_dirs.lock().insert(dir.to_owned());
        Ok(())
    }

    fn promote(self: &Arc<Self>, fill: &Fill, row: BlobRow) -> Blob {
        let digest = *fill.digest();
        let now = self.now();
        let mut state = self.state.lock();
        state.ledger.promote(&digest, now);
        let generation = state.ledger.pin(&digest).expect("its filling pins it");
        let live = state.live.remove(&digest);
        drop(state);
        drop(live);
        fill.end_published();
        Blob::published(row, Arc::clone(fill.file()), Pin::new(self, digest, generation))
    }

    /// The blob of a fill that was published before; it may have been removed since.
    fn published(self: &Arc<Self>, fill: &Fill) -> Result<Blob, PublishBlobError> {
        let opened = match self.pin_blob(fill.digest()).map(|pin| self.open_blob(pin)).transpose() {
            Ok(blob) => blob.flatten(),
            Err(StoreError::Index(error)) => return Err(error.into()),
            Err(error) => return Err(io::Error::other(error).into()),
        };
        opened.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound).into())
    }

    fn abandon(&self, gate: &GateGuard, fill: &Arc<Fill>, why: FillFailure) {
        let was_lost = fill.is_lost();
        let discards = why.discards();
        // A fill that was lost has nothing on disk any more; what is there by now belongs to another.
        if !fill.fail(why) || was_lost {
            return;
        }
        fill.drain_writes();
        if fill.is_passing() {
            // A passing fill has nothing on the disk that a later one could resume.
            self.forget_live(fill);
            return;
        }
        if discards {
            self.discard_logged(gate);
            return;
        }
        self.save_pieces(fill);
        self.forget_live(fill);
    }

    pub(crate) fn forget_live(&self, fill: &Arc<Fill>) {
        let mut state = self.state.lock();
        let ours = state
            .live
            .get(fill.digest())
            .is_some_and(|live| Arc::ptr_eq(&live.fill, fill));
        let live = ours.then(|| state.live.remove(fill.digest())).flatten();
        drop(state);
        // Dropped after the lock is released, since its drop may take locks.
        drop(live);
    }

    fn save_pieces(&self, fill: &Fill) {
        let progress = fill.take_unsaved();
        let now = self.now();
        let saved = self.write(Durability::Batched, |transaction| {
            partials::save(transaction, fill.row(), &progress, now)
        });
        if let Err(error) = saved {
            let digest = fill.digest();
            warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to record the pieces of {digest}");
        }
    }

    /// Neither a file whose sync failed nor one between two names can be trusted again: it reads well from the system's memory,
    /// and a second sync may succeed without having written anything. If it cannot be removed, no row may refer to it.
    fn discard_for_good(&self, gate: &GateGuard) {
        let digest = gate.digest();
        let key = digest.to_string();
        let deleted = self.write(Durability::Batched, |transaction| {
            blobs::delete(transaction, &key)?;
            partials::delete(transaction, &key)
        });
        if let Err(error) = deleted {
            warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to delete the row of {digest}");
        }
        self.discard_logged(gate);
    }

    fn discard_logged(&self, gate: &GateGuard) {
        if let Err(error) = self.discard(gate, &mut Swept::default()) {
            let digest = gate.digest();
            warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to remove what is left of {digest}");
        }
    }
}
