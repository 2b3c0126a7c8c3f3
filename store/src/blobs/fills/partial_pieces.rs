//! Partial pieces of one fill: a beginning of each of the few pieces that are on their way at once.
//!
//! There is one for a piece at most, and [`PARTIAL_PIECES_MAX`] in all.

use std::collections::BTreeSet;

use super::partial_piece::PartialPiece;
use crate::index::PartialPieceChange;

/// The most partial pieces of one fill: of the eight pieces that are on their way at once, and of as many that broke off and wait for
/// their turn.
const PARTIAL_PIECES_MAX: usize = 16;

/// The partial pieces of one fill.
#[derive(Default)]
pub(super) struct PartialPieces {
    /// One for each piece; the one that was written to last comes last.
    pieces: Vec<PartialPiece>,
    /// Pieces whose beginnings the index does not know as they are.
    unsaved: BTreeSet<u32>,
}

impl PartialPieces {
    pub(super) fn get(&self, index: u32) -> Option<&PartialPiece> {
        self.pieces.iter().find(|piece| piece.index() == index)
    }

    /// Replaces what was here of the piece. Beyond [`PARTIAL_PIECES_MAX`] the one that has not grown for longest is forgotten.
    pub(super) fn keep(&mut self, partial: PartialPiece) {
        self.unsaved.insert(partial.index());
        self.adopt(partial);
    }

    /// As [`PartialPieces::keep`], for one that the index knows.
    pub(super) fn adopt(&mut self, partial: PartialPiece) {
        self.pieces.retain(|other| other.index() != partial.index());
        if self.pieces.len() >= PARTIAL_PIECES_MAX {
            let oldest = self.pieces.remove(0);
            self.unsaved.insert(oldest.index());
        }
        self.pieces.push(partial);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.pieces.iter().map(PartialPiece::len).sum()
    }

    /// The whole piece is here.
    pub(super) fn forget(&mut self, index: u32) {
        let had = self.pieces.len();
        self.pieces.retain(|piece| piece.index() != index);
        if self.pieces.len() < had {
            self.unsaved.insert(index);
        }
    }

    pub(super) fn indexes(&self) -> Vec<u32> {
        self.pieces.iter().map(PartialPiece::index).collect()
    }

    pub(super) fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    pub(super) fn take_unsaved(&mut self) -> Vec<PartialPieceChange> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let change = |piece| PartialPieceChange {
            piece,
            now: self.get(piece).map(PartialPiece::row),
        };
        unsaved.into_iter().map(change).collect()
    }

    pub(super) fn give_back_unsaved(&mut self, changes: &[PartialPieceChange]) {
        self.unsaved.extend(changes.iter().map(|change| change.piece));
    }
}
