//! Plan of a fill: which bytes the next connection asks for. Pure.
//!
//! Segments are handed out in ascending order, so that a client that reads from the start is never far behind the download.
//! Only what a client waits for comes first. A segment is as long as that allows, since each costs a request: registries count them.

use std::{ops::Range, time::Duration};

use piecemeal_proto::{PieceMap, PieceSet};

/// Long enough that requests are few, short enough that a client's place in the blob does not lag far behind the rest.
const SEGMENT_TIME: Duration = Duration::from_secs(8);
/// Of a large blob a segment is longer, and a client's place lags behind by this part of the rest.
const LAG_PARTS: u64 = 4;
/// Towards the end of the blob segments get shorter, so that all connections end together. This is where it ends.
const LAST_SEGMENT_TIME: Duration = Duration::from_millis(500);
const SEGMENT_BYTES_MIN: u64 = 512 * 1024;
/// Until a connection's rate is known, the first one gets so much and each further one as much more: their ends are spread,
/// and what a client reads first is there first.
const FIRST_SEGMENT_BYTES: u64 = 2 * 1024 * 1024;
/// With one connection there is nothing to share out: after the first segment it asks for all of the rest. Clients that read parts of a blob
/// begin early, and what they want costs least as long as it has not been asked for.
const LONE_SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// What is asked for beyond a fill's share at a time, for a client that waits, in bytes: the next client gets its turn soon.
pub(super) const READER_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The pieces of a fill that are missing and not yet assigned to a connection.
#[derive(Debug)]
pub(super) struct Plan {
    map: PieceMap,
    /// Pieces that have landed, or lie outside this plan.
    done: PieceSet,
    /// Pieces that are on their way: none of them is done.
    assigned: PieceSet,
    /// A segment was taken.
    has_begun: bool,
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
    /// The bytes that have not landed, each piece counted as a whole one.
    pub(super) left_bytes: u64,
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
        Self {
            map,
            done,
            assigned: PieceSet::new(map.count()),
            has_begun: false,
        }
    }

    /// Takes the next segment, as a range of bytes; `None` when nothing is left to be taken.
    pub(super) fn take(&mut self, pace: Pace) -> Option<Range<u64>> {
        let first = self.done.missing().find(|&piece| self.lacks(piece))?;
        let bytes_max = self.segment_bytes(pace);
        self.take_run(first..self.map.count(), bytes_max)
    }

    /// Takes what a client wants that waits for the first of these pieces, up to the first that is on its way. `None`: that is the first.
    pub(super) fn take_wanted(&mut self, pieces: Range<u32>, bytes_max: u64) -> Option<Range<u64>> {
        self.lacks(pieces.start)
            .then(|| self.take_run(pieces, bytes_max))
            .flatten()
    }

    /// Takes a run of unassigned pieces from the first of `pieces` on, which is one.
    fn take_run(&mut self, pieces: Range<u32>, bytes_max: u64) -> Option<Range<u64>> {
        let (first, mut end) = (pieces.start, pieces.start);
        while end < pieces.end.min(self.map.count())
            && self.lacks(end)
            && (end == first || self.map.range(end).end - self.map.range(first).start <= bytes_max)
        {
            self.assigned.insert(end);
            end += 1;
        }
        self.has_begun |= end > first;
        (end > first).then(|| self.bytes(first..end))
    }

    /// How long the next segment may be.
    pub(super) fn segment_bytes(&self, pace: Pace) -> u64 {
        match (pace.connections, self.has_begun) {
            (..=1, false) => LONE_SEGMENT_BYTES,
            (..=1, true) => u64::MAX,
            _ => pace.segment_bytes(),
        }
    }

    /// Takes everything from `start` on, for a connection that carries all of it in any case.
    pub(super) fn take_rest(&mut self, start: u64) -> Range<u64> {
        let first = self.map.piece_at(start).unwrap_or(self.map.count());
        self.assign(first..self.map.count());
        self.has_begun = true;
        start..self.map.blob_bytes()
    }

    /// Pieces that a connection carries are on their way again.
    pub(super) fn assign(&mut self, pieces: Range<u32>) {
        for piece in pieces.filter(|&piece| !self.done.contains(piece)) {
            self.assigned.insert(piece);
        }
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

    /// The bytes of some pieces, of which there is one at least.
    pub(super) fn bytes(&self, pieces: Range<u32>) -> Range<u64> {
        self.map.range(pieces.start).start..self.map.range(pieces.end - 1).end
    }

    /// The bytes of the whole blob.
    pub(super) fn all(&self) -> Range<u64> {
        0..self.map.blob_bytes()
    }

    pub(super) fn piece_bytes(&self) -> u64 {
        self.map.piece_bytes()
    }

    /// Whether all pieces have landed.
    pub(super) fn is_done(&self) -> bool {
        self.done.is_full()
    }

    /// Whether nothing has landed and nothing lies outside.
    pub(super) fn is_untouched(&self) -> bool {
        self.done.is_empty()
    }

    /// Whether a piece is missing and not yet assigned to a connection.
    pub(super) fn lacks(&self, piece: u32) -> bool {
        !self.done.contains(piece) && !self.assigned.contains(piece)
    }

    /// The pieces that are on their way.
    pub(super) fn assigned(&self) -> &PieceSet {
        &self.assigned
    }

    /// The size of the pieces that have not landed, in bytes, each counted as a whole piece.
    pub(super) fn left_bytes(&self, landed: &PieceSet) -> u64 {
        let left = self.done.missing().filter(|&piece| !landed.contains(piece));
        left.count() as u64 * self.map.piece_bytes()
    }
}

impl Pace {
    /// The length of a segment of several connections. All of them get about three quarters of the rest, and then of the rest of that, so that
    /// none has much more to do than another when the end comes.
    fn segment_bytes(self) -> u64 {
        let connections = self.connections as u64;
        let fair = self.left_bytes / connections * 3 / 4;
        let steady = match self.connection_rate {
            0 => FIRST_SEGMENT_BYTES * (self.busy as u64 + 1),
            rate => (rate * SEGMENT_TIME.as_secs()).max(self.left_bytes / (LAG_PARTS * connections)),
        };
        let least = u64::try_from(u128::from(self.connection_rate) * LAST_SEGMENT_TIME.as_millis() / 1000);
        steady.min(fair).max(least.unwrap_or(u64::MAX)).max(SEGMENT_BYTES_MIN)
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

    fn pace(connections: usize, busy: usize, connection_rate: u64, left_bytes: u64) -> Pace {
        Pace {
            connections,
            busy,
            connection_rate,
            left_bytes,
        }
    }

    /// The lengths of all segments of a fill whose connections are equally fast, and the steps that it takes: in each a connection brings a
    /// piece.
    fn lengths(blob_bytes: u64, connections: usize, rate: u64) -> (Vec<u64>, u64) {
        let (mut plan, map) = plan(blob_bytes);
        let (mut landed, mut lengths, mut steps) = (PieceSet::new(map.count()), Vec::new(), 0);
        let mut open: Vec<(Range<u64>, Range<u32>)> = Vec::new();
        loop {
            let rate = if landed.is_empty() { 0 } else { rate };
            let pace = pace(connections, open.len(), rate, plan.left_bytes(&landed));
            if open.len() < connections
                && let Some(segment) = plan.take(pace)
            {
                lengths.push(segment.end - segment.start);
                open.push((segment.clone(), plan.pieces(&segment)));
                continue;
            }
            if open.is_empty() {
                assert!(plan.is_done());
                return (lengths, steps);
            }
            steps += 1;
            open.retain_mut(|(segment, pieces)| {
                pieces.next().map(|piece| landed.insert(piece));
                if pieces.start == pieces.end {
                    plan.give_back(segment, &landed, |_| false);
                }
                pieces.start < pieces.end
            });
        }
    }

    #[test]
    fn segments_ascend_and_cover_the_blob_once() {
        for connections in 1..=8 {
            for blob_bytes in [1, 300_000, 30 * MIB, 30 * MIB + 1, 5000 * MIB] {
                let (mut plan, _) = plan(blob_bytes);
                let mut end = 0;
                while let Some(segment) = plan.take(pace(connections, 0, 3 * MIB, blob_bytes)) {
                    assert_eq!(segment.start, end);
                    assert!(segment.end > segment.start);
                    end = segment.end;
                }
                assert_eq!(end, blob_bytes);
            }
        }
    }

    #[test]
    fn one_connection_asks_once_for_a_usual_layer_and_twice_for_a_large_one() {
        for (blob_bytes, requests) in [
            (1, 1),
            (3_100_000, 1),
            (12_600_000, 1),
            (60_000_000, 2),
            (40_000_000_000, 2),
        ] {
            assert_eq!(lengths(blob_bytes, 1, MIB).0.len(), requests, "{blob_bytes}");
        }
    }

    #[test]
    fn several_connections_ask_hardly_more_often_than_they_are_and_for_a_large_blob_more_with_its_logarithm() {
        for (blob_bytes, requests_max) in [
            (300_000, 1),
            (3_100_000, 6),
            (12_600_000, 12),
            (100_000_000, 30),
            (1_000_000_000, 80),
            (40_000_000_000, 180),
        ] {
            let requests = lengths(blob_bytes, 6, 2 * MIB).0.len();
            assert!(requests <= requests_max, "{requests} for {blob_bytes}");
        }
    }

    #[test]
    fn the_last_segments_are_short_so_that_all_connections_end_together() {
        for (blob_bytes, connections) in [(64 * MIB, 8), (64 * MIB, 2), (12 * MIB, 6), (500 * MIB, 6)] {
            let (lengths, steps) = lengths(blob_bytes, connections, MIB);
            let pieces = u64::from(plan(blob_bytes).1.count());
            let at_best = pieces.div_ceil(connections as u64);
            assert!(
                steps <= at_best + at_best / 8 + 2,
                "{steps}, at best {at_best}: {lengths:?}"
            );
        }
    }

    #[test]
    fn what_a_client_waits_for_is_taken_as_far_as_it_reads_and_nothing_is_on_its_way() {
        let (mut plan, map) = plan(64 * MIB);
        let taken = |pieces: Range<u32>| Some(map.range(pieces.start).start..map.range(pieces.end - 1).end);
        assert_eq!(plan.take_wanted(100..102, MIB), taken(100..102));
        assert_eq!(plan.take_wanted(101..110, MIB), None, "it is on its way");
        assert_eq!(plan.take_wanted(98..110, MIB), taken(98..100));
        assert_eq!(plan.take_wanted(110..200, MIB), taken(110..114), "as much as it may");
        assert_eq!(plan.take(pace(8, 1, MIB, 64 * MIB)).unwrap().start, 0);
    }

    #[test]
    fn what_broke_off_is_taken_again_without_what_came() {
        let (mut plan, map) = plan(64 * MIB);
        let segment = plan.take(pace(8, 0, MIB, 64 * MIB)).unwrap();
        let mut have = PieceSet::new(map.count());
        have.insert(0);
        plan.give_back(&segment, &have, |_| false);
        let again = plan.take(pace(8, 0, MIB, 64 * MIB)).unwrap();
        assert_eq!(again.start, map.range(1).start);
    }

    #[test]
    fn a_plan_ends_where_it_was_told() {
        let map = PieceMap::for_blob(64 * MIB).unwrap();
        let mut plan = Plan::new(map, &PieceSet::new(map.count()), &(MIB..2 * MIB));
        assert_eq!(plan.left_bytes(&PieceSet::new(map.count())), MIB);
        assert_eq!(plan.take(pace(1, 0, 0, MIB)), Some(MIB..2 * MIB));
        assert_eq!(plan.take(pace(1, 0, 0, MIB)), None);
    }

    #[test]
    fn a_connection_that_cannot_be_stopped_takes_the_rest() {
        let (mut plan, _) = plan(64 * MIB);
        let segment = plan.take(pace(8, 0, MIB, 64 * MIB)).unwrap();
        assert_eq!(plan.take_rest(segment.start), 0..64 * MIB);
        assert_eq!(plan.take(pace(8, 1, MIB, 64 * MIB)), None);
    }
}
