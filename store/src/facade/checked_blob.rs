//! Reading a complete blob through the hashes of its pieces.
//!
//! Only bytes of a piece that matches its hash go out, and exactly those that were verified: a piece is hashed as a whole,
//! and so is each of its blocks, and bytes that are read again to be sent are compared with the hash of their block. So a
//! reader holds one small buffer, however large its pieces are, and notices a file that changes in between. A piece that was
//! found good, in a file that was not written to since, is not verified again for a while.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use piecemeal_proto::{Algorithm, Digest, PieceHash, piece_hash};
use tracing::warn;

use super::blob::Blob;
use crate::{
    blobs::read::{READ_BYTES_MAX, ReadBlobError, check_range},
    disk::{
        blocking::blocking,
        extent::Extent,
        files::{OpenFile, read_range},
    },
};

/// The size of a block, in bytes.
const BLOCK_BYTES: u64 = 16 * 1024;

/// A complete blob, each piece of which is hashed again before it is read from.
pub struct CheckedBlob {
    blob: Blob,
    /// The piece that is being read.
    piece: Option<CheckedPiece>,
}

struct CheckedPiece {
    range: Range<u64>,
    /// The hash of each of its blocks.
    blocks: Arc<[PieceHash]>,
}

impl Blob {
    /// The blob, to be read through the hashes of its pieces.
    pub fn checked(self) -> CheckedBlob {
        CheckedBlob {
            blob: self,
            piece: None,
        }
    }
}

impl CheckedBlob {
    pub fn blob(&self) -> &Blob {
        &self.blob
    }

    /// The place of the beginning of `range`, as [`Blob::extent`], as far as its piece is known to be good. `None` where it has to
    /// be read.
    ///
    /// # Errors
    /// [`ReadBlobError::OutOfRange`].
    pub fn extent(&self, range: Range<u64>) -> Result<Option<Extent>, ReadBlobError> {
        let range = check_range(range, self.blob.map().blob_bytes())?;
        let Some(piece) = self.blob.map().piece_at(range.start) else {
            return Ok(None);
        };
        if self.is_reading(range.start) || !self.is_good(piece) {
            return Ok(None);
        }
        let end = range.end.min(self.blob.map().range(piece).end);
        self.blob.extent(range.start..end)
    }

    /// Reads the beginning of `range`, at most [`READ_BYTES_MAX`] bytes of one piece. A piece without its hash, or that cannot be
    /// read, makes the blob damaged: it is dropped, and its good pieces are kept for the next fill. Cancel safe.
    ///
    /// # Errors
    /// [`ReadBlobError::Damaged`] and [`ReadBlobError::OutOfRange`].
    pub async fn read(&mut self, range: Range<u64>) -> Result<Bytes, ReadBlobError> {
        let range = check_range(range, self.blob.map().blob_bytes())?;
        let Some(piece) = self.blob.map().piece_at(range.start).filter(|_| !range.is_empty()) else {
            return Ok(Bytes::new());
        };
        if !self.is_reading(range.start) {
            if self.is_good(piece) {
                let end = range.end.min(self.blob.map().range(piece).end);
                return self.blob.read(range.start..end).await;
            }
            self.piece = Some(self.check(piece).await?);
        }
        let checked = self.piece.as_ref().expect("it was checked above");
        let wanted = range.start..range.end.min(checked.range.end);
        match checked.read(Arc::clone(self.blob.file()), wanted).await? {
            Some(bytes) => Ok(bytes),
            None => Err(self.drop_damaged(piece).await),
        }
    }

    fn is_reading(&self, offset: u64) -> bool {
        self.piece.as_ref().is_some_and(|piece| piece.range.contains(&offset))
    }

    fn is_good(&self, piece: u32) -> bool {
        let shared = self.blob.shared();
        let (digest, now) = (self.blob.digest(), shared.index.monotonic());
        let stamp = self.blob.file().stamp();
        stamp.is_some_and(|stamp| shared.blobs.good.has(digest, piece, stamp, now))
    }

    async fn check(&self, piece: u32) -> Result<CheckedPiece, ReadBlobError> {
        let range = self.blob.map().range(piece);
        let expected = self.blob.piece_hashes()[piece as usize];
        let (file, of) = (Arc::clone(self.blob.file()), range.clone());
        // Taken before the read: a write in the meantime changes the stamp.
        let stamp = file.stamp();
        let hashed = blocking(move || hash(file.as_ref(), of)).await?;
        match hashed {
            Ok((hash, blocks)) if hash == Digest::Sha256(expected) => {
                let shared = self.blob.shared();
                if let Some(stamp) = stamp {
                    shared
                        .blobs
                        .good
                        .note(self.blob.digest(), piece, stamp, shared.index.monotonic());
                }
                shared
                    .blobs
                    .evictor
                    .counters
                    .verified_bytes
                    .add(range.end - range.start);
                let blocks = blocks.into();
                Ok(CheckedPiece { range, blocks })
            }
            Ok(_) => Err(self.drop_damaged(piece).await),
            Err(error) => {
                warn!(%error, "piece {piece} of {} cannot be read: {error}", self.blob.digest());
                Err(self.drop_damaged(piece).await)
            }
        }
    }

    async fn drop_damaged(&self, piece: u32) -> ReadBlobError {
        let digest = *self.blob.digest();
        self.blob
            .shared()
            .drop_damaged_logged(digest, self.blob.generation())
            .await;
        ReadBlobError::Damaged { digest, piece }
    }
}

impl CheckedPiece {
    /// The beginning of `wanted`, which lies in the piece; `None` when the bytes have changed.
    async fn read(&self, file: Arc<dyn OpenFile>, wanted: Range<u64>) -> io::Result<Option<Bytes>> {
        let start = self.range.start;
        let first = (wanted.start - start) / BLOCK_BYTES;
        let from = start + first * BLOCK_BYTES;
        let end = wanted.end.min(from + READ_BYTES_MAX);
        let to = (start + (end - start).next_multiple_of(BLOCK_BYTES)).min(self.range.end);
        let (blocks, skipped) = (Arc::clone(&self.blocks), wanted.start - from);
        blocking(move || {
            let bytes = Bytes::from(read_range(file.as_ref(), from..to).ok()?);
            let first = usize::try_from(first).ok()?;
            let is_good = bytes
                .chunks(block_bytes())
                .zip(blocks.get(first..)?)
                .all(|(block, hash)| piece_hash(block) == *hash);
            let at = |offset| usize::try_from(offset).ok();
            is_good.then_some(bytes.slice(at(skipped)?..at(end - from)?))
        })
        .await
    }
}

/// The hash of a range, and that of each of its blocks.
fn hash(file: &dyn OpenFile, range: Range<u64>) -> io::Result<(Digest, Vec<PieceHash>)> {
    let mut whole = Algorithm::Sha256.hasher();
    let mut blocks = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let end = range.end.min(at + READ_BYTES_MAX);
        for block in read_range(file, at..end)?.chunks(block_bytes()) {
            whole.update(block);
            blocks.push(piece_hash(block));
        }
        at = end;
    }
    Ok((whole.finish(), blocks))
}

fn block_bytes() -> usize {
    usize::try_from(BLOCK_BYTES).expect("a block is small")
}
