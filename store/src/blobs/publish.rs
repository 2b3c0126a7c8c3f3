//! End of a fill: its blob is published, or it is abandoned.
//!
//! Publishing goes: verify, sync the file, rename it, sync the folders, then the row, synced. So a row always stands for
//! bytes that survived. Clients get the final piece as soon as the digest is proven; they do not wait for the disk.

use std::{io, sync::Arc};

use piecemeal_proto::Digest;
use tracing::warn;

use super::{
    blob_store::{BlobStore, OpenBlob},
    digest_lock::DigestGuard,
    fills::{end::End, failure::FillFailure, fill::Fill},
};
use crate::{
    disk::files::OpenFile as _,
    index::{BlobRow, Durability, blobs, partials, sources},
    values::{
        error::{IndexError, StoreError},
        repository::Repository,
    },
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
    /// The disk would not read it back, or not keep it. When the blob is proven ([`crate::Filling::is_proven`]), its handles go on
    /// reading, and nothing remains on disk: abandon it once they are done. Else abandon it, and begin again.
    #[error("failed to publish a blob")]
    Io(#[from] io::Error),
}

/// One fill that ends, under its digest's lock.
pub(crate) struct Ending<'a> {
    pub(crate) blobs: &'a BlobStore,
    pub(crate) lock: &'a DigestGuard,
    pub(crate) fill: &'a Arc<Fill>,
}

impl Ending<'_> {
    pub(crate) fn publish(&self, repositories: &[Repository]) -> Result<OpenBlob, PublishBlobError> {
        let fill = self.fill;
        match fill.end() {
            Some(End::Failed(why)) => return Err(PublishBlobError::Abandoned(why)),
            Some(End::Published) => return self.published(),
            Some(End::Lost) => return Err(io::Error::other("an earlier attempt failed").into()),
            Some(End::FinishedUnstored) | None => self.prove()?,
        }
        if fill.is_unstored() {
            // Some of it is in memory, or all.
            fill.finish(End::FinishedUnstored);
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the disk has not taken all of it").into());
        }
        let row = BlobRow {
            map: fill.map(),
            fill: fill.id(),
            piece_hashes: fill.hashes(),
            signature: None,
        };
        match self.keep(&row, repositories) {
            Ok(()) => Ok(self.promote(row)),
            Err(error) => {
                fill.finish(End::Lost);
                self.discard_for_good();
                self.blobs.note_trouble(&error);
                Err(error)
            }
        }
    }

    /// Proves an unstored fill of which every piece has come.
    pub(crate) fn prove_unstored(&self) -> Result<(), PublishBlobError> {
        match self.fill.failure() {
            Some(why) => Err(PublishBlobError::Abandoned(why)),
            None => self.prove(),
        }
    }

    /// Ends an unstored fill of which every piece has come.
    pub(crate) fn finish_unstored(&self) -> Result<(), PublishBlobError> {
        self.prove_unstored()?;
        self.fill.finish(End::FinishedUnstored);
        Ok(())
    }

    fn prove(&self) -> Result<(), PublishBlobError> {
        let (fill, expected) = (self.fill, *self.fill.digest());
        let missing = fill.missing();
        if missing > 0 {
            return Err(PublishBlobError::Incomplete { missing });
        }
        let computed = fill.compute_digest()?;
        if computed == expected {
            fill.prove();
            return Ok(());
        }
        fill.fail(FillFailure::DigestMismatch);
        if fill.is_on_disk() {
            self.discard_logged();
        }
        Err(PublishBlobError::DigestMismatch {
            expected: Box::new(expected),
            computed: Box::new(computed),
        })
    }

    /// The disk's part of publishing.
    fn keep(&self, row: &BlobRow, repositories: &[Repository]) -> Result<(), PublishBlobError> {
        let (digest, index) = (self.fill.digest(), &self.blobs.index);
        self.fill.file().sync()?;
        self.blobs.files.publish(digest)?;
        let now = index.now();
        index.write(Durability::Synced, |transaction| {
            partials::delete(transaction, &digest.to_string())?;
            blobs::insert(transaction, digest, row, now)?;
            for at in repositories {
                sources::put(transaction, at, digest, now)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn promote(&self, row: BlobRow) -> OpenBlob {
        let (fill, inventory) = (self.fill, &self.blobs.inventory);
        let now = self.blobs.index.now();
        inventory.ledger().promote(fill.digest(), now);
        let pin = inventory.pin(fill.digest()).expect("its filling pins it");
        self.blobs.live.forget(fill);
        fill.finish(End::Published);
        let file = Arc::clone(fill.file().disk());
        OpenBlob { row, file, pin }
    }

    /// The blob of a fill that was published before; it may have been removed since.
    fn published(&self) -> Result<OpenBlob, PublishBlobError> {
        let pin = self.blobs.inventory.pin_blob(self.fill.digest());
        let opened = match pin.map(|pin| self.blobs.open_blob(pin)).transpose() {
            Ok(blob) => blob.flatten(),
            Err(StoreError::Index(error)) => return Err(error.into()),
            Err(error) => return Err(io::Error::other(error).into()),
        };
        opened.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound).into())
    }

    /// Ends the fill without its blob. Does nothing to one that has ended before.
    pub(crate) fn abandon(&self, why: FillFailure) {
        let (fill, live) = (self.fill, &self.blobs.live);
        let was_lost = fill.end() == Some(End::Lost);
        let discards = why.discards();
        // A fill that was lost has nothing on disk any more; what is there by now belongs to another.
        if !fill.fail(why) || was_lost {
            return;
        }
        fill.drain_writes();
        if !fill.is_on_disk() {
            // There is nothing that a later fill could resume.
            live.forget(fill);
            return;
        }
        if discards {
            self.discard_logged();
            live.forget(fill);
            return;
        }
        // A batch may have taken some of its pieces, and give them back.
        let _saving = live.save();
        self.save_pieces();
        live.forget(fill);
    }

    fn save_pieces(&self) {
        let (fill, index) = (self.fill, &self.blobs.index);
        let progress = fill.take_unsaved();
        let now = index.now();
        let saved = index.write(Durability::Batched, |transaction| {
            partials::save(transaction, fill.row(), &progress, now)
        });
        if let Err(error) = saved {
            let digest = fill.digest();
            warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to record the pieces of {digest}");
        }
    }

    /// Neither a file whose sync failed nor one between two names can be trusted again: it reads well from the system's memory,
    /// and a second sync may succeed without having written anything. If it cannot be removed, no row may refer to it.
    fn discard_for_good(&self) {
        let digest = self.lock.digest();
        if let Err(error) = self.blobs.evictor.delete_rows(digest) {
            warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to delete the row of {digest}");
        }
        self.discard_logged();
    }

    fn discard_logged(&self) {
        if let Err(error) = self.blobs.evictor.discard(self.lock) {
            let digest = self.lock.digest();
            warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to remove what is left of {digest}");
        }
    }
}
