//! Waits of a fill's readers: which pieces each of them needs, and since when.
//!
//! A reader is here only while it has no byte.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use piecemeal_proto::PieceSet;

/// The most waits that are told at a time: more than a fill has connections.
const TOLD_MAX: usize = 64;

/// The readers of one fill that have no byte.
#[derive(Default)]
pub(super) struct Waits {
    waits: BTreeMap<u64, Wait>,
    /// The number of waits that have begun: the id of the latest.
    begun: u64,
}

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

    /// The pieces of each reader whose first one has not landed, ascending, one range for all that wait for the same piece; of many the
    /// lowest.
    pub(super) fn pieces(&self, landed: &PieceSet) -> Vec<Range<u32>> {
        let mut ends = BTreeMap::new();
        for Wait { pieces, .. } in self.waits.values() {
            if !landed.contains(pieces.start) {
                let end = ends.entry(pieces.start).or_insert(pieces.end);
                *end = pieces.end.max(*end);
            }
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
}
