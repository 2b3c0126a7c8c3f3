//! The fill in force: its cut, its hashes, and how common each of its pieces is.
//!
//! Invariant: `scarce` holds exactly the pieces that no counted peer has or is being sent.

use piecemeal_proto::{FillId, PieceMap, PieceSet};

use super::Time;

pub(super) struct Fill {
    pub(super) id: FillId,
    pub(super) map: PieceMap,
    /// A mirror has spoken of it: a peer's word cannot replace it.
    pub(super) from_mirror: bool,
    pub(super) proven: bool,
    /// Pieces whose hash is known.
    pub(super) hashed: PieceSet,
    /// Pieces whose hash a mirror stated.
    stated: PieceSet,
    hashes: Vec<Option<[u8; 32]>>,
    /// By piece: peers that hold it or are being sent it, without those that hold the whole blob.
    copies: Vec<u32>,
    /// By piece: when the first of its present copies set out.
    out_since: Vec<Time>,
    scarce: PieceSet,
    /// No scarce piece is in a bitmap word below this one.
    scarce_from: usize,
}

impl Fill {
    pub(super) fn new(id: FillId, map: PieceMap) -> Self {
        let count = map.count();
        Self {
            id,
            map,
            from_mirror: false,
            proven: false,
            hashed: PieceSet::new(count),
            stated: PieceSet::new(count),
            hashes: Vec::new(),
            copies: vec![0; count as usize],
            out_since: vec![Time::ZERO; count as usize],
            scarce: PieceSet::full(count),
            scarce_from: 0,
        }
    }

    /// Whether any peer has a piece of it or is being sent one.
    pub(super) fn is_in_use(&self) -> bool {
        !self.scarce.is_full()
    }

    pub(super) fn is_scarce(&self, piece: u32) -> bool {
        self.scarce.contains(piece)
    }

    pub(super) fn scarce_word(&self, word: usize) -> u64 {
        self.scarce.words()[word]
    }

    /// The first bitmap word that may hold a scarce piece.
    pub(super) fn scarce_from(&self) -> usize {
        self.scarce_from
    }

    pub(super) fn copies(&self, piece: u32) -> u32 {
        self.copies[piece as usize]
    }

    pub(super) fn out_since(&self, piece: u32) -> Time {
        self.out_since[piece as usize]
    }

    /// One more peer has `piece` or is being sent it.
    pub(super) fn add_copy(&mut self, piece: u32, now: Time) {
        self.copies[piece as usize] += 1;
        if self.scarce.remove(piece) {
            self.out_since[piece as usize] = now;
            while self.scarce.words().get(self.scarce_from) == Some(&0) {
                self.scarce_from += 1;
            }
        }
    }

    /// One peer fewer.
    pub(super) fn remove_copy(&mut self, piece: u32) {
        let copies = &mut self.copies[piece as usize];
        *copies -= 1;
        if *copies == 0 {
            self.scarce.insert(piece);
            self.scarce_from = self.scarce_from.min(piece as usize / 64);
        }
    }

    pub(super) fn hash(&self, piece: u32) -> Option<[u8; 32]> {
        self.hashes.get(piece as usize).copied().flatten()
    }

    /// Takes a hash over: a mirror's always, a peer's only when none is known.
    pub(super) fn state(&mut self, piece: u32, hash: [u8; 32], by_mirror: bool) {
        if piece >= self.map.count() || (!by_mirror && self.hashed.contains(piece)) {
            return;
        }
        if self.hashes.is_empty() {
            self.hashes = vec![None; self.map.count() as usize];
        }
        self.hashes[piece as usize] = Some(hash);
        self.hashed.insert(piece);
        if by_mirror {
            self.stated.insert(piece);
        }
    }

    /// A piece turned out to be corrupt: if it was only a peer who stated its hash, that may be what was wrong.
    pub(super) fn doubt(&mut self, piece: u32) {
        if self.hashed.contains(piece) && !self.stated.contains(piece) {
            self.hashes[piece as usize] = None;
            self.hashed.remove(piece);
        }
    }

    pub(super) fn check(&self, copies: &[u32]) {
        assert_eq!(self.copies, copies, "copies are counted");
        for (piece, &count) in (0..).zip(copies) {
            assert_eq!(self.is_scarce(piece), count == 0);
            assert!(count > 0 || piece as usize / 64 >= self.scarce_from);
            assert_eq!(self.hash(piece).is_some(), self.hashed.contains(piece));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_hash_never_replaces_a_known_one() {
        let mut fill = Fill::new(FillId(1), PieceMap::new(300, 100).unwrap());
        fill.state(0, [1; 32], false);
        fill.state(0, [2; 32], false);
        assert_eq!(fill.hash(0), Some([1; 32]));
        fill.state(0, [3; 32], true);
        fill.state(0, [4; 32], false);
        fill.state(7, [4; 32], true);
        assert_eq!(fill.hash(0), Some([3; 32]));
        fill.doubt(0);
        assert_eq!(fill.hash(0), Some([3; 32]));
        fill.state(1, [5; 32], false);
        fill.doubt(1);
        assert_eq!(fill.hash(1), None);
    }
}
