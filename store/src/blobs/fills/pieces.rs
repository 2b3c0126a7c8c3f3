//! Pieces of one fill: which are here, their hashes, and which of them the index does not know.
//!
//! Invariant: a piece has landed only with the hash that its bytes in the file have. It is here from then on, for ever unless the fill
//! lets it go or takes it back; a piece that is here has landed, and one that has landed is no partial piece. Pure: it owns no byte.

use piecemeal_proto::{PieceHash, PieceMap, PieceSet};

use super::{partial_piece::PartialPiece, partial_pieces::PartialPieces};
use crate::index::Progress;

/// The most times that a fill may lose pieces before it is given up.
const TAKEN_BACK_MAX: usize = 64;

/// The pieces of one fill.
pub(super) struct Pieces {
    map: PieceMap,
    have: PieceSet,
    landed: PieceSet,
    landed_bytes: u64,
    /// Of the pieces in `landed`; zeros elsewhere.
    hashes: Vec<PieceHash>,
    /// In `landed`, and not yet in the index.
    unsaved: Vec<u32>,
    /// The lowest piece of each lot that was taken back, in their order; at most [`TAKEN_BACK_MAX`].
    taken_back: Vec<u32>,
    /// Of pieces that are not in `landed`.
    partials: PartialPieces,
}

impl Pieces {
    pub(super) fn new(map: PieceMap) -> Self {
        Self {
            map,
            have: PieceSet::new(map.count()),
            landed: PieceSet::new(map.count()),
            landed_bytes: 0,
            hashes: vec![[0; 32]; map.count() as usize],
            unsaved: Vec::new(),
            taken_back: Vec::new(),
            partials: PartialPieces::default(),
        }
    }

    /// The pieces that can be read.
    pub(super) fn have(&self) -> &PieceSet {
        &self.have
    }

    /// The pieces that have been here.
    pub(super) fn landed(&self) -> &PieceSet {
        &self.landed
    }

    pub(super) fn hash(&self, piece: u32) -> Option<PieceHash> {
        self.landed.contains(piece).then(|| self.hashes[piece as usize])
    }

    /// One for each piece; zeros for those that have not landed.
    pub(super) fn hashes(&self) -> &[PieceHash] {
        &self.hashes
    }

    /// The number of pieces that have not landed.
    pub(super) fn missing(&self) -> u32 {
        self.landed.capacity() - self.landed.count()
    }

    pub(super) fn missing_bytes(&self) -> u64 {
        self.map.blob_bytes() - self.landed_bytes
    }

    /// The bytes of pieces that have landed, and of partial ones.
    pub(super) fn arrived_bytes(&self) -> u64 {
        self.landed_bytes + self.partials.bytes()
    }

    /// A piece was written to the file.
    pub(super) fn land(&mut self, piece: u32, hash: PieceHash) {
        self.adopt(piece, hash);
        self.unsaved.push(piece);
    }

    /// A piece is in the file, and the index need not learn of it.
    pub(super) fn adopt(&mut self, piece: u32, hash: PieceHash) {
        if self.landed.insert(piece) {
            self.have.insert(piece);
            self.landed_bytes += self.map.len(piece);
            self.hashes[piece as usize] = hash;
        }
        self.partials.forget(piece);
    }

    /// A piece can no longer be read.
    pub(super) fn let_go(&mut self, piece: u32) {
        self.have.remove(piece);
    }

    /// Those of the pieces that have landed, ascending.
    pub(super) fn landed_among(&self, pieces: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let landed = pieces.into_iter().filter(|&piece| self.landed.contains(piece));
        let mut landed: Vec<u32> = landed.collect();
        landed.sort_unstable();
        landed
    }

    /// Forgets pieces that have landed, ascending; `false` when that has happened too often.
    pub(super) fn take_back(&mut self, pieces: &[u32]) -> bool {
        if self.taken_back.len() >= TAKEN_BACK_MAX {
            return false;
        }
        for &piece in pieces {
            if self.landed.remove(piece) {
                self.landed_bytes -= self.map.len(piece);
            }
            self.have.remove(piece);
            self.unsaved.retain(|&unsaved| unsaved != piece);
        }
        self.taken_back.extend(pieces.first());
        true
    }

    /// The number of times that pieces were taken back so far.
    pub(super) fn takings(&self) -> usize {
        self.taken_back.len()
    }

    /// Whether a byte below `offset` was taken back since there were `seen` lots.
    pub(super) fn has_taken_back(&self, seen: usize, offset: u64) -> bool {
        let lowest = self.taken_back.iter().skip(seen);
        lowest.into_iter().any(|&piece| self.map.range(piece).start < offset)
    }

    pub(super) fn partials(&self) -> &PartialPieces {
        &self.partials
    }

    /// A partial piece's bytes are in the file.
    pub(super) fn keep_partial(&mut self, partial: PartialPiece) {
        self.partials.keep(partial);
    }

    /// As [`Pieces::keep_partial`], for one that the index knows.
    pub(super) fn adopt_partial(&mut self, partial: PartialPiece) {
        if !self.landed.contains(partial.index()) {
            self.partials.adopt(partial);
        }
    }

    pub(super) fn take_unsaved(&mut self) -> Progress {
        let unsaved = std::mem::take(&mut self.unsaved);
        let hashes = &self.hashes;
        Progress {
            partial_pieces: self.partials.take_unsaved(),
            pieces: unsaved
                .into_iter()
                .map(|piece| (piece, hashes[piece as usize]))
                .collect(),
        }
    }

    pub(super) fn give_back_unsaved(&mut self, progress: Progress) {
        self.partials.give_back_unsaved(&progress.partial_pieces);
        self.unsaved.extend(progress.pieces.into_iter().map(|(piece, _)| piece));
    }

    pub(super) fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty() || self.partials.has_unsaved()
    }

    /// The end of the bytes that are here from `start` on without a gap, looking no further than `bytes_max`; the blob's final piece
    /// counts only `with_last`.
    pub(super) fn contiguous_end(&self, start: u64, bytes_max: u64, with_last: bool) -> u64 {
        let mut end = start;
        while end - start < bytes_max
            && let Some(piece) = self.map.piece_at(end)
            && self.have.contains(piece)
            && (with_last || Some(piece) != self.map.last())
        {
            end = self.map.range(piece).end;
        }
        end.min(start.saturating_add(bytes_max))
    }
}
