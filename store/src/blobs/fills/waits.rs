//! Waits of a fill's readers: which pieces each of them needs, and since when.
//!
//! A reader is here only while it has no byte. Clients of other daemons are known by their pieces alone.

use std::{
    collections::{BTreeMap, VecDeque},
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

/// The most waits that are told at a time: more than a fill has connections.
const TOLD_MAX: usize = 64;
/// The most pieces that clients of other daemons are known to wait for: with more, the oldest comes in its turn.
const ELSEWHERE_MAX: usize = 64;

/// A reader without a byte.
#[derive(Clone)]
struct Wait {
    /// What it wants to read, never empty. It has no byte of the first one.
    pieces: Range<u32>,
    since: Duration,
}

impl Waits {
    /// Returns the id of the wait.
    pub(super) fn begin(&mut self, pieces: Range<u32>, since: Duration) -> u64 {
        self.begun += 1;
        self.waits.insert(self.begun, Wait { pieces, since });
        self.begun
    }

    pub(super) fn end(&mut self, id: u64) {
        self.waits.remove(&id);
    }

    /// The lowest piece that a reader waits for and that has not landed.
    pub(super) fn wanted(&self, landed: &PieceSet) -> Option<u32> {
        let pieces = self.waits.values().map(|wait| wait.pieces.start);
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

    /// The pieces of each reader whose first one has not landed, and those that clients elsewhere wait for, ascending, one range for all that
    /// wait for the same piece; of many the lowest.
    pub(super) fn pieces(&self, landed: &PieceSet) -> Vec<Range<u32>> {
        let here = self.waits.values().map(|wait| wait.pieces.clone());
        let mut elsewhere: Vec<u32> = self.elsewhere.iter().copied().collect();
        elsewhere.retain(|piece| !landed.contains(*piece));
        elsewhere.sort_unstable();
        let runs = elsewhere.chunk_by(|a, b| a + 1 == *b);
        let elsewhere = runs.map(|run| run[0]..run[run.len() - 1] + 1);
        let mut ends = BTreeMap::new();
        for pieces in here.chain(elsewhere).filter(|pieces| !landed.contains(pieces.start)) {
            let end = ends.entry(pieces.start).or_insert(pieces.end);
            *end = pieces.end.max(*end);
        }
        ends.into_iter().map(|(start, end)| start..end).take(TOLD_MAX).collect()
    }

    /// The piece that was waited for longest, and how long.
    pub(super) fn longest(&self, now: Duration) -> Option<(u32, Duration)> {
        let wait = self.waits.values().min_by_key(|wait| wait.since)?;
        Some((wait.pieces.start, now.saturating_sub(wait.since)))
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "one range is what is expected")]
mod tests {
    use super::*;

    #[test]
    fn readers_that_wait_for_the_same_piece_are_told_once_and_those_whose_piece_is_here_not_at_all() {
        let mut waits = Waits::default();
        let ids = [7..9, 3..4, 7..8, 5..6].map(|pieces| waits.begin(pieces, Duration::ZERO));
        let mut landed = PieceSet::new(10);
        landed.insert(5);
        assert_eq!(waits.pieces(&landed), [3..4, 7..9]);
        assert_eq!(waits.wanted(&landed), Some(3));
        waits.end(ids[1]);
        waits.end(ids[0]);
        assert_eq!(waits.pieces(&landed), [7..8]);
    }

    #[test]
    fn of_very_many_waits_the_lowest_are_told() {
        let mut waits = Waits::default();
        for piece in (0..1000).rev() {
            waits.begin(piece..1000, Duration::ZERO);
        }
        let told = waits.pieces(&PieceSet::new(1000));
        assert_eq!((told.len(), told[0].start), (TOLD_MAX, 0));
    }

    #[test]
    fn what_clients_elsewhere_wait_for_counts_until_it_has_landed() {
        let (mut waits, mut landed) = (Waits::default(), PieceSet::new(100));
        let reader = waits.begin(30..31, Duration::ZERO);
        waits.note_elsewhere(90);
        waits.note_elsewhere(8);
        waits.note_elsewhere(7);
        assert_eq!(waits.pieces(&landed), [7..9, 30..31, 90..91]);
        landed.insert(90);
        waits.end(reader);
        assert_eq!(waits.pieces(&landed), [7..9]);
    }

    #[test]
    fn of_the_pieces_that_clients_elsewhere_wait_for_the_latest_are_kept() {
        let (mut waits, landed) = (Waits::default(), PieceSet::new(1000));
        let most = u32::try_from(ELSEWHERE_MAX).unwrap();
        (0..most).for_each(|piece| waits.note_elsewhere(piece));
        waits.note_elsewhere(0);
        waits.note_elsewhere(most);
        let pieces = waits.pieces(&landed);
        assert_eq!(pieces, [0..1, 2..most + 1], "1 was the oldest");
    }
}
