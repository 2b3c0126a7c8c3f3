//! Complete blobs.
//!
//! A handle reads from a file that stays open, so neither eviction nor removal can pull the bytes away under it; eviction
//! does not even try. A file that does not match its row is a miss: the row is deleted, and the next pull fetches the blob again.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use piecemeal_proto::{Digest, FillId, PieceMap};
use tracing::warn;

use crate::{
    Extent, FillFailure, PieceHash, Store, StoreError,
    blocking::blocking,
    evict::Swept,
    files::OpenFile,
    fill::{read_now, read_range},
    gate::GateGuard,
    handle::Pin,
    index::{BlobRow, Durability, Progress, blobs, partials},
    quota::{Generation, Kind},
    store::Shared,
};

/// The most that one read returns, in bytes: enough to keep a disk busy, little enough to hold once per client.
pub const READ_BYTES_MAX: u64 = 1024 * 1024;

/// A complete blob. Cheap to clone; nothing evicts it while a clone lives.
#[derive(Clone)]
pub struct Blob {
    inner: Arc<Inner>,
}

struct Inner {
    row: BlobRow,
    file: Arc<dyn OpenFile>,
    pin: Pin,
}

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadBlobError {
    /// The caller's mistake: the range runs backwards or over the end.
    #[error("the range {}..{} does not lie in a blob of {blob_bytes} bytes", range.start, range.end)]
    OutOfRange { range: Range<u64>, blob_bytes: u64 },
    /// The file is shorter than its blob. The blob was dropped; ask for it again from elsewhere.
    #[error("the file of {digest} is shorter than the blob")]
    Truncated { digest: Digest },
    /// A piece no longer matches its hash, or cannot be read. The blob was dropped; ask for it again.
    #[error("piece {piece} of {digest} is damaged on disk")]
    Damaged { digest: Digest, piece: u32 },
    /// There was no room to keep the blob, and the reader was too far behind the others: what it wants is gone.
    #[error("the blob is not cached here, and the requested bytes have already passed")]
    Passed,
    /// The fill ended without the blob; what was read before is still good.
    #[error("the fill was abandoned")]
    Abandoned(#[source] FillFailure),
    /// The local disk; ask elsewhere.
    #[error("failed to read from the store")]
    Io(#[from] io::Error),
}

impl Store {
    /// The blob, if it is here, complete and proven. Counts as a use.
    ///
    /// # Errors
    /// [`StoreError::Index`] and [`StoreError::Io`]; a missing or damaged file is `None`.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let Some(pin) = self.shared.pin_blob(digest) else {
            return Ok(None);
        };
        let generation = pin.generation();
        let opened = self
            .run(|shared| {
                let blob = shared.open_blob(pin);
                shared.batch_if_due();
                blob
            })
            .await?;
        if opened.is_none() {
            self.drop_damaged(*digest, generation).await?;
        }
        Ok(opened)
    }

    /// Removes a complete blob, such as a damaged one, or a partial without a live fill. Returns whether there was one.
    /// Handles that are open go on reading. A live fill is not touched: abandon it.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the file cannot be removed.
    pub async fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        let gate = self.shared.gates.enter(digest).await;
        self.run(move |shared| {
            if shared.is_held(gate.digest()) {
                return Ok(false);
            }
            Ok(shared.discard(&gate, &mut Swept::default())?)
        })
        .await
    }

    /// Hashes one piece of a complete blob again, for a peer that got wrong bytes. A damaged blob is dropped, so that it is
    /// fetched again. Returns whether it was damaged.
    ///
    /// # Errors
    /// As [`Store::blob`].
    pub async fn recheck(&self, digest: &Digest, piece: u32) -> Result<bool, StoreError> {
        let Some(blob) = self.blob(digest).await? else {
            return Ok(false);
        };
        let Some(&expected) = blob.inner.row.piece_hashes.get(piece as usize) else {
            return Ok(false);
        };
        let (inner, range) = (Arc::clone(&blob.inner), blob.map().range(piece));
        let is_whole = self
            .run(move |_| {
                let bytes = read_range(inner.file.as_ref(), range)?;
                Ok::<_, StoreError>(Digest::Sha256(expected).matches(&bytes))
            })
            .await?;
        if !is_whole {
            self.drop_damaged(*digest, blob.inner.pin.generation()).await?;
        }
        Ok(!is_whole)
    }

    pub(crate) async fn drop_damaged(&self, digest: Digest, generation: Generation) -> Result<(), StoreError> {
        let gate = self.shared.gates.enter(&digest).await;
        self.run(move |shared| Ok(shared.discard_damaged(&gate, generation)?))
            .await
    }
}

impl Shared {
    /// Pins a complete blob and counts a use.
    pub(crate) fn pin_blob(self: &Arc<Self>, digest: &Digest) -> Option<Pin> {
        let now = self.now();
        let mut state = self.state.lock();
        state.ledger.get(digest).filter(|entry| entry.kind == Kind::Blob)?;
        let generation = state.ledger.pin(digest)?;
        state.ledger.touch(digest, now);
        state.touched.blobs.insert(*digest);
        drop(state);
        Some(Pin::new(self, *digest, generation))
    }

    /// Pins a complete blob, and leaves its last use as it is.
    pub(crate) fn pin_unused(self: &Arc<Self>, digest: &Digest) -> Option<Pin> {
        let mut state = self.state.lock();
        state.ledger.get(digest).filter(|entry| entry.kind == Kind::Blob)?;
        let generation = state.ledger.pin(digest)?;
        drop(state);
        Some(Pin::unused(self, *digest, generation))
    }

    /// `None` when the row or the file is not what it should be.
    pub(crate) fn open_blob(&self, pin: Pin) -> Result<Option<Blob>, StoreError> {
        let Some(row) = self.index.blob(pin.digest())? else {
            return Ok(None);
        };
        let file = match self.files.open(&self.layout.blob(pin.digest())) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if file.len()? != row.map.blob_bytes() {
            return Ok(None);
        }
        Ok(Some(Blob {
            inner: Arc::new(Inner { row, file, pin }),
        }))
    }

    /// Drops the blob of that generation, if it is still the one that is here. Its good pieces stay, and the next fill adds
    /// the rest.
    fn discard_damaged(&self, gate: &GateGuard, generation: Generation) -> io::Result<()> {
        let digest = gate.digest();
        let same = self
            .state
            .lock()
            .ledger
            .get(digest)
            .is_some_and(|entry| entry.generation == generation);
        if same {
            warn!(blob.digest = %digest, "the file of {digest} is missing or damaged; dropped, the wrong parts will be fetched again");
            match self.demote(gate) {
                Ok(true) => {}
                Ok(false) => _ = self.discard(gate, &mut Swept::default())?,
                Err(error) => {
                    warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "no part of {digest} can be kept");
                    self.discard(gate, &mut Swept::default())?;
                }
            }
            self.counters.damaged_blobs.add(1);
        }
        Ok(())
    }

    /// Makes a partial of a complete blob, with all its pieces as hints: the next fill hashes each, and fetches those that are
    /// wrong. `false` when it has no file. The row comes first: after a crash the file is taken back from the blob's name.
    fn demote(&self, gate: &GateGuard) -> Result<bool, StoreError> {
        let digest = gate.digest();
        let (blob, partial) = (self.layout.blob(digest), self.layout.partial(digest));
        let Some(row) = self.index.blob(digest)? else {
            return Ok(false);
        };
        match self.files.open(&blob) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        // Finding it damaged does not count as a use.
        let used = self
            .state
            .lock()
            .ledger
            .get(digest)
            .map_or_else(|| self.now(), |entry| entry.used);
        let pieces = (0..row.map.count()).zip(row.piece_hashes.iter().copied()).collect();
        let progress = Progress {
            pieces,
            tails: Vec::new(),
        };
        self.write(Durability::Synced, |transaction| {
            blobs::delete(transaction, &digest.to_string())?;
            let id = partials::insert(transaction, digest, row.map, row.fill, used)?;
            partials::save(transaction, id, &progress, used)
        })?;
        self.files.rename(&blob, &partial)?;
        self.state
            .lock()
            .ledger
            .insert(*digest, Kind::Partial, row.map.blob_bytes(), used);
        // A send without receivers is no error.
        let _ = self.evictions.send(*digest);
        Ok(true)
    }
}

impl Blob {
    /// The handle for what was just published: the row and the open file are at hand.
    pub(crate) fn published(row: BlobRow, file: Arc<dyn OpenFile>, pin: Pin) -> Self {
        Self {
            inner: Arc::new(Inner { row, file, pin }),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        self.inner.pin.shared()
    }

    pub(crate) fn generation(&self) -> Generation {
        self.inner.pin.generation()
    }

    pub(crate) fn file(&self) -> &Arc<dyn OpenFile> {
        &self.inner.file
    }

    pub fn digest(&self) -> &Digest {
        self.inner.pin.digest()
    }

    pub fn map(&self) -> PieceMap {
        self.inner.row.map
    }

    /// The id of the fill that brought it.
    pub fn fill(&self) -> FillId {
        self.inner.row.fill
    }

    /// One for each piece.
    pub fn piece_hashes(&self) -> Arc<[PieceHash]> {
        Arc::clone(&self.inner.row.piece_hashes)
    }

    /// Where `range` lies, or its first [`READ_BYTES_MAX`] bytes when it is longer. `None` where that can only be read.
    ///
    /// # Errors
    /// [`ReadBlobError::OutOfRange`].
    pub fn extent(&self, range: Range<u64>) -> Result<Option<Extent>, ReadBlobError> {
        let range = check_range(range, self.map().blob_bytes())?;
        Ok(Extent::new(&self.inner.file, range, Arc::clone(&self.inner) as _))
    }

    /// Reads `range`, or its first [`READ_BYTES_MAX`] bytes when it is longer; never less than that. Cancel safe.
    ///
    /// # Errors
    /// [`ReadBlobError`], never `Abandoned`.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes, ReadBlobError> {
        let range = check_range(range, self.map().blob_bytes())?;
        if let Some(bytes) = read_now(self.inner.file.as_ref(), &range) {
            return Ok(bytes.into());
        }
        let inner = Arc::clone(&self.inner);
        let read = blocking(move || read_range(inner.file.as_ref(), range)).await?;
        match read {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let digest = *self.digest();
                let store = Store {
                    shared: Arc::clone(self.inner.pin.shared()),
                };
                if let Err(error) = store.drop_damaged(digest, self.inner.pin.generation()).await {
                    warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to drop the damaged {digest}");
                }
                Err(ReadBlobError::Truncated { digest })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Refuses a range outside the blob, and shortens a long one to what one read returns.
pub(crate) fn check_range(range: Range<u64>, blob_bytes: u64) -> Result<Range<u64>, ReadBlobError> {
    if range.start > range.end || range.end > blob_bytes {
        return Err(ReadBlobError::OutOfRange { range, blob_bytes });
    }
    let end = range.end.min(range.start.saturating_add(READ_BYTES_MAX));
    Ok(range.start..end)
}
