//! Waits of a fill's readers: which piece each of them needs, and since when.
//!
//! A reader is here only while it has no byte. Clients of other daemons are known by their pieces alone.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    time::Duration,
};

use piecemeal_proto::PieceSet;

/// The readers of one fill that have no byte.
#[derive(Default)]
pub(super) struct Waits {
    waits: BTreeMap<u64, Wait>,
    /// The number of waits that have begun: the id of the latest.
    begun: u64,
    /// Pieces that clients of other daemons wait for, the latest last; at most [`ELSEWHERE_MAX`].
    elsewhere: VecDeque<u32>,
}

/// The most pieces that are told at a time.
const TOLD_MAX: usize = 64;
/// The most pieces that clients of other daemons are known to wait for: with more, the oldest comes in its turn.
const ELSEWHERE_MAX: usize = 64;

/// A reader without a byte.
#[derive(Clone, Copy)]
struct Wait {
    piece: u32,
    since: Duration,
}

impl Waits {
    /// Returns the id of the wait.
    pub(super) fn begin(&mut self, piece: u32, since: Duration) -> u64 {
        self.begun += 1;
        self.waits.insert(self.begun, Wait { piece, since });
        self.begun
    }

    pub(super) fn end(&mut self, id: u64) {
        self.waits.remove(&id);
    }

    /// The lowest piece that a reader waits for and that has not landed.
    pub(super) fn wanted(&self, landed: &PieceSet) -> Option<u32> {
        let pieces = self.waits.values().map(|wait| wait.piece);
        pieces.filter(|piece| !landed.contains(*piece)).min()
    }

    /// A client of another daemon waits for the piece.
    pub(super) fn note_elsewhere(&mut self, piece: u32) {
        self.elsewhere.retain(|noted| *noted != piece);
        if self.elsewhere.len() == ELSEWHERE_MAX {
            self.elsewhere.pop_front();
        }
        self.elsewhere.push_back(piece);
    }

    /// The pieces that are waited for and have not landed, here and elsewhere, ascending; of many the lowest.
    pub(super) fn pieces(&self, landed: &PieceSet) -> Vec<Range<u32>> {
        let here = self.waits.values().map(|wait| wait.piece);
        let pieces: BTreeSet<u32> = here
            .chain(self.elsewhere.iter().copied())
            .filter(|piece| !landed.contains(*piece))
            .collect();
        let told = pieces.into_iter().take(TOLD_MAX);
        told.map(|piece| piece..piece + 1).collect()
    }

    /// The piece that was waited for longest, and how long.
    pub(super) fn longest(&self, now: Duration) -> Option<(u32, Duration)> {
        let wait = self.waits.values().min_by_key(|wait| wait.since)?;
        Some((wait.piece, now.saturating_sub(wait.since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_elsewhere_wait_for_counts_until_it_has_landed() {
        let (mut waits, mut landed) = (Waits::default(), PieceSet::new(100));
        let reader = waits.begin(30, Duration::ZERO);
        waits.note_elsewhere(90);
        waits.note_elsewhere(7);
        assert_eq!(waits.pieces(&landed), [7..8, 30..31, 90..91]);
        landed.insert(90);
        waits.end(reader);
        assert_eq!(waits.pieces(&landed), [7..8]);
    }

    #[test]
    fn of_the_pieces_that_clients_elsewhere_wait_for_the_latest_are_kept() {
        let (mut waits, landed) = (Waits::default(), PieceSet::new(1000));
        let most = u32::try_from(ELSEWHERE_MAX).unwrap();
        (0..most).for_each(|piece| waits.note_elsewhere(piece));
        waits.note_elsewhere(0);
        waits.note_elsewhere(most);
        let pieces = waits.pieces(&landed);
        assert_eq!(
            (pieces.len(), &pieces[..2]),
            (ELSEWHERE_MAX, &[0..1, 2..3][..]),
            "1 was the oldest"
        );
    }
}
