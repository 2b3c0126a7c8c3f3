//! Progress of a reader through the bytes of a blob, from one fill to the next.
//!
//! A reader that has had bytes of one fill reads of another only what follows the same pieces: its client never has bytes of two contents.

use std::ops::Range;

use piecemeal_proto::PieceHash;
use piecemeal_store::{Blob, FillFailure, Filling, ReadBlobError};

/// Progress of a reader through the bytes of its fills.
#[derive(Default)]
pub struct Reading {
    /// The offset of the first byte that it has asked for.
    from: Option<u64>,
    /// It has gone back, as a reader of several ranges may: what it has had may lie anywhere.
    is_scattered: bool,
    /// Bytes that it has had of an earlier fill, which the present one has not brought yet.
    had: Option<Box<Had>>,
}

/// Bytes that a reader has had, by the hashes of their pieces.
struct Had {
    filling: Filling,
    bytes: Range<u64>,
}

impl Reading {
    pub(super) fn begin(&mut self, offset: u64) {
        let from = *self.from.get_or_insert(offset);
        self.is_scattered |= offset < from;
    }

    /// The fill ends here for a reader that goes on at `offset`. What no fill since has brought stays compared with the first.
    pub(super) fn leave(&mut self, filling: &Filling, offset: u64) {
        let bytes = match self.is_scattered {
            true => 0..filling.map().blob_bytes(),
            false => self.from.unwrap_or(offset)..offset,
        };
        if self.had.is_none() && !bytes.is_empty() {
            let filling = filling.witness();
            self.had = Some(Box::new(Had { filling, bytes }));
        }
    }

    /// Waits until the fill has brought all that the reader has had.
    pub(super) async fn compare(&mut self, filling: &Filling) -> Result<(), ReadBlobError> {
        let Some(had) = &self.had else { return Ok(()) };
        if filling.map() != had.filling.map() {
            return Err(other_bytes());
        }
        for piece in had.pieces() {
            let hash = filling.wait_hash(piece).await?;
            had.require(piece, hash)?;
        }
        had.require_all()?;
        self.had = None;
        Ok(())
    }

    /// The same with the blob itself, which is all here.
    pub(super) fn compare_blob(&mut self, blob: &Blob) -> Result<(), ReadBlobError> {
        let Some(had) = self.had.take() else { return Ok(()) };
        if blob.map() != had.filling.map() {
            return Err(other_bytes());
        }
        for piece in had.pieces() {
            had.require(piece, blob.piece_hashes()[piece as usize])?;
        }
        had.require_all()
    }
}

impl Had {
    fn pieces(&self) -> Range<u32> {
        let map = self.filling.map();
        let last = self.bytes.end.checked_sub(1).and_then(|last| map.piece_at(last));
        match (map.piece_at(self.bytes.start), last) {
            (Some(first), Some(last)) => first..last + 1,
            _ => 0..0,
        }
    }

    /// A piece that was taken back may have come again since, with other bytes than the reader has had.
    fn require_all(&self) -> Result<(), ReadBlobError> {
        match self.filling.has_lost(self.bytes.end) {
            true => Err(other_bytes()),
            false => Ok(()),
        }
    }

    fn require(&self, piece: u32, hash: PieceHash) -> Result<(), ReadBlobError> {
        match self.filling.hash(piece) == Some(hash) {
            true => Ok(()),
            false => Err(other_bytes()),
        }
    }
}

fn other_bytes() -> ReadBlobError {
    given_up("the blob now comes from another download, which has other bytes; resume")
}

/// A stream ends for this reason.
pub(super) fn given_up(why: &str) -> ReadBlobError {
    ReadBlobError::Abandoned(FillFailure::Upstream(why.to_owned()))
}
