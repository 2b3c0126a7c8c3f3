//! Partial piece of a fill: the first bytes of a piece that has not arrived in full.
//!
//! A piece is up to 4 MiB. Its first bytes survive a cut and a crash in the place where the piece will be, and only the
//! fill's owner ever sees them. A fill remembers one for each of the few pieces that are on their way at once. It is
//! a hint: it counts only while the file has bytes with the hash that is kept for it, and the whole piece is written and
//! hashed again in the end.

use std::collections::BTreeSet;

use piecemeal_proto::{Algorithm, Digest, Hasher, PieceHash, PieceMap};

use crate::{
    disk::files::{OpenFile, read_range},
    index::{PartialPieceChange, PartialPieceRow},
};

/// The most partial pieces of one fill: of the eight pieces that are on their way at once, and of as many that broke off and wait for
/// their turn.
pub(crate) const PARTIAL_PIECES_MAX: usize = 16;

/// The partial pieces of one fill.
#[derive(Default)]
pub(crate) struct PartialPieces {
    /// PartialPieces of different pieces; the one that was written to last comes last.
    pieces: Vec<PartialPiece>,
    /// Pieces whose beginnings the index does not know as they are.
    unsaved: BTreeSet<u32>,
}

impl PartialPieces {
    pub(crate) fn get(&self, index: u32) -> Option<&PartialPiece> {
        self.pieces.iter().find(|piece| piece.index == index)
    }

    /// Replaces what was here of the piece. Beyond [`PARTIAL_PIECES_MAX`] the one that has not grown for longest is forgotten.
    pub(crate) fn keep(&mut self, partial: PartialPiece) {
        self.unsaved.insert(partial.index);
        self.adopt(partial);
    }

    /// As [`PartialPieces::keep`], for one that the index knows.
    pub(crate) fn adopt(&mut self, partial: PartialPiece) {
        self.pieces.retain(|other| other.index != partial.index);
        if self.pieces.len() >= PARTIAL_PIECES_MAX {
            let oldest = self.pieces.remove(0);
            self.unsaved.insert(oldest.index);
        }
        self.pieces.push(partial);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len).sum()
    }

    /// The whole piece is here.
    pub(crate) fn forget(&mut self, index: u32) {
        let had = self.pieces.len();
        self.pieces.retain(|piece| piece.index != index);
        if self.pieces.len() < had {
            self.unsaved.insert(index);
        }
    }

    pub(crate) fn indexes(&self) -> Vec<u32> {
        self.pieces.iter().map(|piece| piece.index).collect()
    }

    pub(crate) fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    pub(crate) fn take_unsaved(&mut self) -> Vec<PartialPieceChange> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let change = |piece| PartialPieceChange {
            piece,
            now: self.get(piece).map(PartialPiece::row),
        };
        unsaved.into_iter().map(change).collect()
    }

    pub(crate) fn give_back_unsaved(&mut self, changes: &[PartialPieceChange]) {
        self.unsaved.extend(changes.iter().map(|change| change.piece));
    }
}

/// The first `len` bytes of a piece, hashed.
#[derive(Clone)]
pub(crate) struct PartialPiece {
    index: u32,
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
