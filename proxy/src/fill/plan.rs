//! Plan of a fill: which bytes the next connection asks for. Pure.
//!
//! Segments are handed out in ascending order, so that a client that reads from the start is never far behind the download.
//! Only a piece that a client waits for comes first. A segment is long enough that the round trip before it does not count,
//! and gets shorter towards the end of the blob, so that all connections end together.

use std::{ops::Range, time::Duration};

use piecemeal_proto::{PieceMap, PieceSet};

/// Long enough that requests are few, short enough that a client's place in the blob does not lag far behind the rest.
const SEGMENT_TIME: Duration = Duration::from_secs(2);
const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Until a connection's rate is known, the first one gets so much and each further one as much more: their ends are spread,
/// and what a client reads first is there first.
const FIRST_SEGMENT_BYTES: u64 = 256 * 1024;
/// With one connection there is nothing to share out: a segment ends only so that others may join in.
const LONE_SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// The pieces of a fill that are missing and not yet assigned to a connection.
#[derive(Debug)]
pub(super) struct Plan {
    map: PieceMap,
    /// Pieces that have landed, or lie outside this plan.
    done: PieceSet,
    /// Pieces that are on their way: none of them is done.
    assigned: PieceSet,
}

/// What a segment's length depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// The connections that the fill may use.
    pub(super) connections: usize,
    /// Those that are in use.
    pub(super) busy: usize,
    /// The rate of one connection, in bytes a second; 0 while it is unknown.
    pub(super) connection_rate: u64,
}

impl Plan {
    /// A plan for what is missing of `within`, which begins and ends with a piece.
    pub(super) fn new(map: PieceMap, have: &PieceSet, within: &Range<u64>) -> Self {
        let mut done = PieceSet::new(map.count());
        for piece in 0..map.count() {
            let range = map.range(piece);
            if have.contains(piece) || range.start < within.start || range.end > within.end {
                done.insert(piece);
            }
        }
        let assigned = PieceSet::new(map.count());
        Self { map, done, assigned }
    }

    /// Takes the next segment, as a range of bytes; `None` when nothing is left to be taken.
    pub(super) fn take(&mut self, wanted: Option<u32>, pace: Pace) -> Option<Range<u64>> {
        let wanted = wanted.filter(|&piece| self.lacks(piece));
        let first = wanted.or_else(|| self.done.missing().find(|&piece| self.lacks(piece)))?;
        let bytes_max = pace.segment_bytes(self.missing_bytes());
        let mut end = first;
        while end < self.map.count()
            && self.lacks(end)
            && (end == first || self.map.range(end).end - self.map.range(first).start <= bytes_max)
        {
            self.assigned.insert(end);
            end += 1;
        }
        Some(self.map.range(first).start..self.map.range(end - 1).end)
    }

    /// Takes everything from `start` on, for a connection that carries all of it in any case.
    pub(super) fn take_rest(&mut self, start: u64) -> Range<u64> {
        let first = self.map.piece_at(start).unwrap_or(self.map.count());
        for piece in (first..self.map.count()).filter(|&piece| !self.done.contains(piece)) {
            self.assigned.insert(piece);
        }
        start..self.map.blob_bytes()
    }

    /// A segment has ended: what has not landed of it is assigned again, but for pieces that another connection brings as well.
    pub(super) fn give_back(&mut self, segment: &Range<u64>, landed: &PieceSet, is_elsewhere: impl Fn(u32) -> bool) {
        for piece in self.pieces(segment).filter(|&piece| !is_elsewhere(piece)) {
            if self.assigned.remove(piece) && landed.contains(piece) {
                self.done.insert(piece);
            }
        }
    }

    /// No piece is on its way any more.
    pub(super) fn give_all_back(&mut self) {
        self.assigned = PieceSet::new(self.map.count());
    }

    /// The pieces of a segment.
    pub(super) fn pieces(&self, segment: &Range<u64>) -> Range<u32> {
        let piece_at = |offset| self.map.piece_at(offset).unwrap_or(self.map.count());
        let end = segment.end.checked_sub(1).map_or(0, |last| piece_at(last) + 1);
        piece_at(segment.start)..end.min(self.map.count())
    }

    /// The bytes of the whole blob.
    pub(super) fn all(&self) -> Range<u64> {
        0..self.map.blob_bytes()
    }

    /// Whether all pieces have landed.
    pub(super) fn is_done(&self) -> bool {
        self.done.is_full()
    }

    /// Whether a piece is missing and not yet assigned to a connection.
    pub(super) fn lacks(&self, piece: u32) -> bool {
        !self.done.contains(piece) && !self.assigned.contains(piece)
    }

    /// The pieces that are on their way.
    pub(super) fn assigned(&self) -> &PieceSet {
        &self.assigned
    }

    /// The size of the unassigned pieces, in bytes, each counted as a whole piece.
    fn missing_bytes(&self) -> u64 {
        u64::from(self.map.count() - self.done.count() - self.assigned.count()) * self.map.piece_bytes()
    }
}

impl Pace {
    fn segment_bytes(self, missing_bytes: u64) -> u64 {
        if self.connections <= 1 {
            return LONE_SEGMENT_BYTES.max(self.steady_bytes());
        }
        let steady = match self.connection_rate {
            0 => FIRST_SEGMENT_BYTES * (self.busy as u64 + 1),
            _ => self.steady_bytes().max(FIRST_SEGMENT_BYTES),
        };
        steady.min(missing_bytes / (2 * self.connections as u64))
    }

    fn steady_bytes(self) -> u64 {
        (self.connection_rate * SEGMENT_TIME.as_secs()).min(SEGMENT_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn plan(blob_bytes: u64) -> (Plan, PieceMap) {
        let map = PieceMap::for_blob(blob_bytes).unwrap();
        (Plan::new(map, &PieceSet::new(map.count()), &(0..blob_bytes)), map)
    }

    fn pace(connections: usize, busy: usize, connection_rate: u64) -> Pace {
        Pace {
            connections,
            busy,
            connection_rate,
        }
    }

    #[test]
    fn segments_ascend_and_cover_the_blob_once() {
        for connections in 1..=8 {
            for blob_bytes in [1, 300_000, 30 * MIB, 30 * MIB + 1, 5000 * MIB] {
                let (mut plan, _) = plan(blob_bytes);
                let mut end = 0;
                while let Some(segment) = plan.take(None, pace(connections, 0, 3 * MIB)) {
                    assert_eq!(segment.start, end);
                    assert!(segment.end > segment.start);
                    end = segment.end;
                }
                assert_eq!(end, blob_bytes);
            }
        }
    }

    #[test]
    fn the_last_segments_are_short_so_that_all_connections_end_together() {
        let (mut plan, map) = plan(64 * MIB);
        let mut lengths = Vec::new();
        while let Some(segment) = plan.take(None, pace(8, 0, MIB)) {
            lengths.push(segment.end - segment.start);
        }
        assert_eq!(lengths[0], 2 * MIB);
        assert!(lengths.is_sorted_by(|a, b| a >= b), "{lengths:?}");
        assert_eq!(*lengths.last().unwrap(), map.piece_bytes());
    }

    #[test]
    fn a_piece_that_a_client_waits_for_comes_first() {
        let (mut plan, map) = plan(64 * MIB);
        assert!(plan.lacks(100));
        let segment = plan.take(Some(100), pace(8, 0, MIB)).unwrap();
        assert_eq!(segment.start, map.range(100).start);
        assert!(!plan.lacks(100));
        let next = plan.take(Some(100), pace(8, 1, MIB)).unwrap();
        assert_eq!(next.start, 0, "it is on its way");
    }

    #[test]
    fn what_broke_off_is_taken_again_without_what_came() {
        let (mut plan, map) = plan(64 * MIB);
        let segment = plan.take(None, pace(8, 0, MIB)).unwrap();
        let mut have = PieceSet::new(map.count());
        have.insert(0);
        plan.give_back(&segment, &have, |_| false);
        let again = plan.take(None, pace(8, 0, MIB)).unwrap();
        assert_eq!(again.start, map.range(1).start);
    }

    #[test]
    fn a_plan_ends_where_it_was_told() {
        let map = PieceMap::for_blob(64 * MIB).unwrap();
        let mut plan = Plan::new(map, &PieceSet::new(map.count()), &(MIB..2 * MIB));
        assert_eq!(plan.take(None, pace(1, 0, 0)), Some(MIB..2 * MIB));
        assert_eq!(plan.take(None, pace(1, 0, 0)), None);
    }

    #[test]
    fn a_connection_that_cannot_be_stopped_takes_the_rest() {
        let (mut plan, _) = plan(64 * MIB);
        let segment = plan.take(None, pace(8, 0, MIB)).unwrap();
        assert_eq!(plan.take_rest(segment.start), 0..64 * MIB);
        assert_eq!(plan.take(None, pace(8, 1, MIB)), None);
    }
}
