//! Rarity of a fill's pieces: how many peers have each or are being sent it.
//!
//! Invariant: `scarce` holds exactly the pieces without a copy. Peers that hold the whole blob, and mirrors, are not counted.

use piecemeal_proto::PieceSet;

use super::Time;

pub(super) struct Rarity {
    /// By piece: peers that have it or are being sent it.
    copies: Vec<u32>,
    /// By piece: when the first of its present copies set out.
    out_since: Vec<Time>,
    /// Pieces without a copy.
    scarce: PieceSet,
    /// First bitmap word that may hold a scarce piece.
    scarce_from: usize,
    /// Changes of `copies`.
    #[cfg(test)]
    pub(super) changes: u64,
}

impl Rarity {
    /// `count` pieces without a copy.
    pub(super) fn new(count: u32) -> Self {
        Self {
            copies: vec![0; count as usize],
            out_since: vec![Time::ZERO; count as usize],
            scarce: PieceSet::full(count),
            scarce_from: 0,
            #[cfg(test)]
            changes: 0,
        }
    }

    /// Whether any peer has a piece or is being sent one.
    pub(super) fn is_in_use(&self) -> bool {
        !self.scarce.is_full()
    }

    pub(super) fn is_scarce(&self, piece: u32) -> bool {
        self.scarce.contains(piece)
    }

    /// The scarce pieces of a bitmap word.
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
        #[cfg(test)]
        {
            self.changes += 1;
        }
        if self.scarce.remove(piece) {
            self.out_since[piece as usize] = now;
            while self.scarce.words().get(self.scarce_from) == Some(&0) {
                self.scarce_from += 1;
            }
        }
    }

    /// One peer fewer has `piece` or is being sent it.
    pub(super) fn remove_copy(&mut self, piece: u32) {
        #[cfg(test)]
        {
            self.changes += 1;
        }
        let copies = &mut self.copies[piece as usize];
        *copies -= 1;
        if *copies == 0 {
            self.scarce.insert(piece);
            self.scarce_from = self.scarce_from.min(piece as usize / 64);
        }
    }

    /// No peer has any of `pieces` any more, or is being sent one.
    pub(super) fn remove_copies(&mut self, pieces: &PieceSet) {
        for piece in pieces.iter() {
            #[cfg(test)]
            {
                self.changes += 1;
            }
            self.copies[piece as usize] = 0;
            self.scarce.insert(piece);
            self.scarce_from = self.scarce_from.min(piece as usize / 64);
        }
    }

    pub(super) fn check(&self, copies: &[u32]) {
        assert_eq!(self.copies, copies, "copies are counted");
        for (piece, &count) in (0..).zip(copies) {
            assert_eq!(self.is_scarce(piece), count == 0);
            assert!(count > 0 || piece as usize / 64 >= self.scarce_from);
        }
    }
}
