//! Begin of a fill: joins a live fill, resumes a partial, or starts from nothing.
//!
//! A partial found on disk is not trusted: each piece that the index claims is hashed again before it counts. The whole
//! blob's space is reserved first, so that no fill takes another's room. What other programs take, a fill finds out as it writes.

use std::{io, sync::Arc};

use piecemeal_proto::{Digest, FillId, PieceHash, PieceMap, piece_hash};
use tracing::{debug, info, warn};

use super::{
    blob_store::BlobStore,
    digest_lock::DigestGuard,
    entry::EntryKind,
    evictor::{RoomError, Swept},
    fills::{fill::Fill, live_fills::FillHandle, partial_piece::PartialPiece},
    inventory::Pin,
};
use crate::{
    disk::files::{OpenFile, read_range},
    index::{Durability, PartialRow, Progress, partials},
    values::error::IndexError,
};

/// Why a fill could not begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginFillError {
    /// There is nothing to fill: read the blob.
    #[error("the blob is complete")]
    AlreadyComplete,
    /// Another fill of the blob is under way, with another id or other pieces. Abandon that one first.
    #[error("the blob is being filled as {fill} in pieces of {piece_bytes} bytes", piece_bytes = map.piece_bytes())]
    Conflict { fill: FillId, map: PieceMap },
    /// Evicting everything that is not in use would not make room for it. Pass the blob on without keeping it.
    #[error("no space for {needed} bytes (quota {quota}, {free_bytes} bytes free on disk)", quota = quota_text(*quota_bytes))]
    NoSpace {
        needed: u64,
        quota_bytes: Option<u64>,
        free_bytes: u64,
    },
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The local disk. Pass the blob on without keeping it.
    #[error("failed to make the file of a fill")]
    Io(#[from] io::Error),
}

/// The blob's fill that is open, if it suits.
pub(crate) fn join(
    blobs: &BlobStore,
    digest: &Digest,
    map: PieceMap,
    id: Option<FillId>,
) -> Result<Option<Arc<FillHandle>>, BeginFillError> {
    let kind = blobs.inventory.ledger().get(digest).map(|entry| entry.kind);
    if kind == Some(EntryKind::Blob) {
        return Err(BeginFillError::AlreadyComplete);
    }
    match blobs.live.open(digest) {
        None => Ok(None),
        Some(handle) if handle.fill.suits(map, id) => Ok(Some(handle)),
        Some(handle) => Err(BeginFillError::Conflict {
            fill: handle.fill.id(),
            map: handle.fill.map(),
        }),
    }
}

/// Joins the blob's fill, resumes its partial or starts from nothing, and notes whether there was room for it.
pub(crate) fn begin(
    blobs: &BlobStore,
    lock: &DigestGuard,
    map: PieceMap,
    id: Option<FillId>,
) -> Result<Arc<FillHandle>, BeginFillError> {
    let begun = Beginning { blobs, lock, map, id }.run();
    note_trouble(blobs, map, &begun);
    begun
}

/// Resumes what the disk has of the blob, although it takes no more of it: the fill is to go on unstored.
pub(crate) fn resume_without_room(
    blobs: &BlobStore,
    lock: &DigestGuard,
    map: PieceMap,
    id: Option<FillId>,
) -> Result<Option<Arc<FillHandle>>, BeginFillError> {
    Beginning { blobs, lock, map, id }.resume(false)
}

fn note_trouble(blobs: &BlobStore, map: PieceMap, begun: &Result<Arc<FillHandle>, BeginFillError>) {
    let quota_bytes = blobs.evictor.limits().quota_bytes;
    let fits = quota_bytes.is_none_or(|quota| map.blob_bytes() <= quota);
    let trouble = match begun {
        Err(error @ (BeginFillError::NoSpace { .. } | BeginFillError::Io(_) | BeginFillError::Index(_))) if fits => {
            Some(format!("{error}; pulled blobs pass through and are not kept"))
        }
        Err(_) => return,
        Ok(_) => None,
    };
    *blobs.trouble.lock() = trouble;
}

/// One fill that begins, under its digest's lock.
struct Beginning<'a> {
    blobs: &'a BlobStore,
    lock: &'a DigestGuard,
    map: PieceMap,
    id: Option<FillId>,
}

impl Beginning<'_> {
    fn run(&self) -> Result<Arc<FillHandle>, BeginFillError> {
        let (blobs, digest) = (self.blobs, self.lock.digest());
        if let Some(handle) = join(blobs, digest, self.map, self.id)? {
            return Ok(handle);
        }
        // A fill that lost its last handle a moment ago is still in memory, and its file need not be read.
        let suits = |fill: &Fill| fill.suits(self.map, self.id);
        if let Some(handle) = blobs.live.revive(digest, suits, || self.pin()) {
            return Ok(handle);
        }
        if let Some(handle) = self.resume(true)? {
            return Ok(handle);
        }
        blobs.evictor.discard(self.lock)?;
        self.start(self.id.unwrap_or_else(|| blobs.random.fill_id()))
    }

    /// `None` when no partial on disk fits. `is_stored`: what is missing of it is to have room on the disk.
    fn resume(&self, is_stored: bool) -> Result<Option<Arc<FillHandle>>, BeginFillError> {
        let (blobs, digest, map) = (self.blobs, self.lock.digest(), self.map);
        if blobs.inventory.ledger().get(digest).is_none() {
            return Ok(None);
        }
        let Some(row) = blobs.index.partial(digest)? else {
            return Ok(None);
        };
        if row.is_unproven() {
            return self.resume_unproven(&row);
        }
        if row.map != map || self.id.is_some_and(|id| id != row.fill) {
            return Ok(None);
        }
        let Some(file) = blobs.files.open_partial(digest, map)? else {
            return Ok(None);
        };
        let fill = Fill::new(*digest, map, row.fill, row.id, file);
        let torn = rehash(&fill, &row);
        for piece in &row.partial_pieces {
            if let Some(partial) = PartialPiece::found(fill.file().as_ref(), map, *piece) {
                fill.adopt_partial_piece(partial);
            }
        }
        debug!(
            blob.digest = %digest, pieces.kept = map.count() - fill.missing(), pieces.torn = torn.len(),
            "resuming {digest}"
        );
        if !is_stored {
            return Ok(Some(self.attach(fill)));
        }
        if !torn.is_empty() {
            blobs.index.write(Durability::Batched, |transaction| {
                partials::drop_pieces(transaction, row.id, &torn)
            })?;
        }
        let reserving = blobs.evictor.reserve();
        blobs
            .evictor
            .make_room(&reserving, 0, fill.missing_bytes(), &mut Swept::default())
            .map_err(|error| no_room(error, fill.missing_bytes()))?;
        Ok(Some(self.attach(fill)))
    }

    /// A file that an index which is lost knew more of. It counts in full, under any fill, if it has the blob's digest.
    fn resume_unproven(&self, row: &PartialRow) -> Result<Option<Arc<FillHandle>>, BeginFillError> {
        let (blobs, digest, map) = (self.blobs, self.lock.digest(), self.map);
        if row.map.blob_bytes() != map.blob_bytes() {
            return Ok(None);
        }
        let Some(file) = blobs.files.open_partial(digest, map)? else {
            return Ok(None);
        };
        let Some(pieces) = prove(file.as_ref(), digest, map) else {
            return Ok(None);
        };
        info!(blob.digest = %digest, "{digest} was found here, and is good");
        let (id, now) = (self.id.unwrap_or_else(|| blobs.random.fill_id()), blobs.index.now());
        let progress = Progress {
            pieces,
            partial_pieces: Vec::new(),
        };
        let row = blobs.index.write(Durability::Batched, |transaction| {
            let row = partials::insert(transaction, digest, map, id, now)?;
            partials::save(transaction, row, &progress, now)?;
            Ok(row)
        })?;
        let fill = Fill::new(*digest, map, id, row, file);
        for (piece, hash) in progress.pieces {
            fill.adopt(piece, hash);
        }
        Ok(Some(self.attach(fill)))
    }

    fn start(&self, id: FillId) -> Result<Arc<FillHandle>, BeginFillError> {
        let (blobs, digest, blob_bytes) = (self.blobs, self.lock.digest(), self.map.blob_bytes());
        // Until the fill is attached, only this lock reserves the space that it has still to write.
        let reserving = blobs.evictor.reserve();
        blobs
            .evictor
            .make_room(&reserving, blob_bytes, blob_bytes, &mut Swept::default())
            .map_err(|error| no_room(error, blob_bytes))?;
        let now = blobs.index.now();
        blobs
            .inventory
            .ledger()
            .insert(*digest, EntryKind::Partial, blob_bytes, now);
        match self.make_partial(id) {
            Ok(fill) => Ok(self.attach(fill)),
            Err(error) => {
                if let Err(error) = blobs.evictor.discard(self.lock) {
                    warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to clean up {digest}");
                }
                Err(error)
            }
        }
    }

    fn make_partial(&self, id: FillId) -> Result<Fill, BeginFillError> {
        let (blobs, digest, now) = (self.blobs, self.lock.digest(), self.blobs.index.now());
        let row = blobs.index.write(Durability::Batched, |transaction| {
            partials::insert(transaction, digest, self.map, id, now)
        })?;
        let file = blobs.files.create_partial(digest, self.map)?;
        Ok(Fill::new(*digest, self.map, id, row, file))
    }

    /// Makes the first handle of a fill.
    fn attach(&self, fill: Fill) -> Arc<FillHandle> {
        let handle = Arc::new(FillHandle::stored(Arc::new(fill), self.pin()));
        self.blobs.live.insert(&handle);
        handle
    }

    /// Pins the space of the whole blob. It was reserved: a stored fill in memory and a partial on the disk have their entry in the
    /// ledger until [`super::evictor::Evictor::discard`] takes all three away, under the digest's lock.
    fn pin(&self) -> Pin {
        let (inventory, digest) = (&self.blobs.inventory, self.lock.digest());
        debug_assert!(
            inventory
                .ledger()
                .get(digest)
                .is_some_and(|entry| (entry.kind, entry.bytes) == (EntryKind::Partial, self.map.blob_bytes())),
            "the space of the whole blob is reserved"
        );
        inventory.pin(digest).expect("the entry is there and its lock is held")
    }
}

/// A quota as text for people.
fn quota_text(quota_bytes: Option<u64>) -> String {
    quota_bytes.map_or_else(|| "none".to_owned(), |bytes| format!("{bytes} bytes"))
}

/// Takes over each piece of the row whose bytes have their hash; returns the others.
fn rehash(fill: &Fill, row: &PartialRow) -> Vec<u32> {
    let mut torn = Vec::new();
    for &(index, hash) in &row.pieces {
        match read_range(fill.file().as_ref(), fill.map().range(index)) {
            Ok(bytes) if piece_hash(&bytes) == hash => {
                fill.adopt(index, hash);
                fill.advance_found(index, &bytes);
            }
            // Also when it cannot be read: fetching it again writes it elsewhere.
            _ => torn.push(index),
        }
    }
    torn
}

/// The hashes of all pieces, if the file is the blob.
fn prove(file: &dyn OpenFile, digest: &Digest, map: PieceMap) -> Option<Vec<(u32, PieceHash)>> {
    let mut whole = digest.algorithm().hasher();
    let mut pieces = Vec::new();
    for piece in 0..map.count() {
        let bytes = read_range(file, map.range(piece)).ok()?;
        whole.update(&bytes);
        pieces.push((piece, piece_hash(&bytes)));
    }
    (whole.finish() == *digest).then_some(pieces)
}

fn no_room(error: RoomError, needed: u64) -> BeginFillError {
    match error {
        RoomError::NoSpace {
            quota_bytes,
            free_bytes,
        } => BeginFillError::NoSpace {
            needed,
            quota_bytes,
            free_bytes,
        },
        RoomError::Io(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use tokio::sync::Semaphore;

    use super::*;
    use crate::{
        blobs::{blob_files::BlobFiles, evictor::Limits, fills::live_fills::LiveFills, ledger::Ledger, random::Random},
        disk::{disk_files::DiskFiles, layout::Layout},
        index::Index,
        values::clock::SystemClock,
    };

    fn store(dir: &Path, quota_bytes: u64) -> BlobStore {
        let layout = Layout::new(dir.to_owned());
        std::fs::create_dir_all(layout.partials()).unwrap();
        let index = Index::open(&layout.index(), Arc::new(SystemClock::new())).unwrap();
        let limits = Limits {
            quota_bytes: Some(quota_bytes),
            free_bytes_min: 0,
            ttl: Duration::MAX,
        };
        let files = BlobFiles::new(layout, Arc::new(DiskFiles));
        BlobStore::new(Arc::new(index), files, Ledger::default(), limits, Random::new(7))
    }

    #[tokio::test]
    async fn an_unstored_fill_whose_last_handle_is_going_becomes_no_stored_one() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = store(dir.path(), 10);
        let (digest, map) = (Digest::of(b"blob"), PieceMap::new(11, 4).unwrap());
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let fill = Arc::new(Fill::unstored(digest, map, FillId(5)));
        // Its drop forgets the fill elsewhere: here it is found without its handle, as before the end of that drop.
        let handle = Arc::new(FillHandle::unstored(fill, Arc::new(LiveFills::default()), place));
        blobs.live.insert(&handle);
        drop(handle);

        let lock = blobs.locks.enter(&digest).await;
        let begun = begin(&blobs, &lock, map, None);
        assert!(matches!(begun, Err(BeginFillError::NoSpace { .. })));
        assert_eq!(blobs.inventory.ledger().bytes(), 0);
        blobs.evictor.set_limits(Limits {
            quota_bytes: Some(11),
            ..blobs.evictor.limits()
        });
        let handle = begin(&blobs, &lock, map, None).unwrap();
        assert!(!handle.fill.is_unstored());
    }
}
