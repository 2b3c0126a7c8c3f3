//! Complete blob, opened.
//!
//! A handle reads from a file that stays open, so neither eviction nor removal can pull the bytes away under it; eviction
//! does not even try. A file that does not match its row is a miss: the row is deleted, and the next pull fetches the blob again.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use piecemeal_proto::{Digest, FillId, PieceHash, PieceMap};

use crate::{
    blobs::{
        blob_store::OpenBlob,
        entry::Generation,
        read::{ReadBlobError, check_range},
    },
    disk::{
        blocking::blocking,
        extent::Extent,
        files::{OpenFile, read_now, read_range},
    },
    shared::Shared,
};

/// A complete blob. Cheap to clone; nothing evicts it while a clone lives.
#[derive(Clone)]
pub struct Blob {
    inner: Arc<Inner>,
}

struct Inner {
    open: OpenBlob,
    shared: Arc<Shared>,
}

impl Blob {
    pub(crate) fn new(shared: &Arc<Shared>, open: OpenBlob) -> Self {
        let shared = Arc::clone(shared);
        Self {
            inner: Arc::new(Inner { open, shared }),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    pub(crate) fn generation(&self) -> Generation {
        self.inner.open.pin.generation()
    }

    pub(crate) fn file(&self) -> &Arc<dyn OpenFile> {
        &self.inner.open.file
    }

    pub fn digest(&self) -> &Digest {
        self.inner.open.pin.digest()
    }

    pub fn map(&self) -> PieceMap {
        self.inner.open.row.map
    }

    /// The id of the fill that brought it.
    pub fn fill(&self) -> FillId {
        self.inner.open.row.fill
    }

    /// One for each piece.
    pub fn piece_hashes(&self) -> Arc<[PieceHash]> {
        Arc::clone(&self.inner.open.row.piece_hashes)
    }

    /// The place of `range` in the file, or of its first [`crate::READ_BYTES_MAX`] bytes when it is longer. `None` where that can
    /// only be read.
    ///
    /// # Errors
    /// [`ReadBlobError::OutOfRange`].
    pub fn extent(&self, range: Range<u64>) -> Result<Option<Extent>, ReadBlobError> {
        let range = check_range(range, self.map().blob_bytes())?;
        Ok(Extent::new(&self.inner.open.file, range, Arc::clone(&self.inner) as _))
    }

    /// Reads `range`, or its first [`crate::READ_BYTES_MAX`] bytes when it is longer; never less than that. Cancel safe.
    ///
    /// # Errors
    /// [`ReadBlobError`], never `Abandoned`.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes, ReadBlobError> {
        let range = check_range(range, self.map().blob_bytes())?;
        if let Some(bytes) = read_now(self.inner.open.file.as_ref(), &range) {
            return Ok(bytes.into());
        }
        let inner = Arc::clone(&self.inner);
        let read = blocking(move || read_range(inner.open.file.as_ref(), range)).await?;
        match read {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let digest = *self.digest();
                self.shared().drop_damaged_logged(digest, self.generation()).await;
                Err(ReadBlobError::Truncated { digest })
            }
            Err(error) => Err(error.into()),
        }
    }
}
