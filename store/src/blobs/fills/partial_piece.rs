//! Partial piece of a fill: the first bytes of a piece that has not arrived in full.
//!
//! A piece is up to 4 MiB. Its first bytes survive a cut and a crash in the place where the piece will be, and only the
//! fill's owner ever sees them. A partial piece is a hint: it counts only while the file has bytes with the hash that is kept for it,
//! and the whole piece is written and hashed again in the end.

use piecemeal_proto::{Algorithm, Digest, Hasher, PieceHash, PieceMap};

use crate::{
    disk::files::{OpenFile, read_range},
    index::PartialPieceRow,
};

/// The first `len` bytes of a piece, hashed.
#[derive(Clone)]
pub(crate) struct PartialPiece {
    index: u32,
    /// In bytes.
    len: u64,
    hasher: Hasher,
}

impl PartialPiece {
    pub(crate) fn new(index: u32) -> Self {
        Self {
            index,
            len: 0,
            hasher: Algorithm::Sha256.hasher(),
        }
    }

    /// The partial piece of the row, when its bytes are in the file.
    pub(crate) fn found(file: &dyn OpenFile, map: PieceMap, row: PartialPieceRow) -> Option<Self> {
        let start = map.range(row.piece).start;
        let bytes = read_range(file, start..start + row.bytes).ok()?;
        let partial = Self::new(row.piece).extended(&bytes);
        (partial.row() == row).then_some(partial)
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// In bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn row(&self) -> PartialPieceRow {
        PartialPieceRow {
            piece: self.index,
            bytes: self.len,
            hash: self.hash(),
        }
    }

    fn hash(&self) -> PieceHash {
        match self.hasher.clone().finish() {
            Digest::Sha256(hash) => hash,
            Digest::Sha512(_) => unreachable!("a partial piece is hashed with sha256"),
        }
    }

    pub(crate) fn extended(mut self, bytes: &[u8]) -> Self {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        self
    }

    /// Its bytes; `None` when the file does not have them any more.
    pub(crate) fn read(&self, file: &dyn OpenFile, map: PieceMap) -> Option<Vec<u8>> {
        let start = map.range(self.index).start;
        let bytes = read_range(file, start..start + self.len).ok()?;
        (Self::new(self.index).extended(&bytes).hash() == self.hash()).then_some(bytes)
    }
}
