//! Window of an unstored fill: the pieces that there is room for, and the readers among them.
//!
//! It moves only when a writer has a piece beyond it, and never past a reader or past the first piece that is not hashed into the
//! blob's digest. So the slowest reader holds up the source; a reader that has read nothing for [`LAG_MAX`], while another has read
//! all that there is room for, loses its seat. A fill without readers stands still.
//!
//! Pure: it says which pieces go, and owns none of them.

use std::{collections::BTreeMap, mem, ops::Range, time::Duration};

use piecemeal_proto::PieceMap;

/// The memory of one unstored fill, in bytes: enough pieces of any size for leases two deep, and for peers to trade in.
const WINDOW_BYTES: u64 = 32 * 1024 * 1024;
/// The longest time for which a reader may hold up the others.
const LAG_MAX: Duration = Duration::from_secs(30);

/// The time in which nodes that took pieces of a stored fill find out that there are no more of them, and come as readers.
const JOIN_TIME: Duration = Duration::from_secs(4);

/// Position of a piece, seen from the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    Passed,
    Within,
    Beyond,
}

/// The pieces that there is room for, and the readers among them.
pub(super) struct Window {
    first: u32,
    count: u32,
    /// Pieces below this one are on the disk: they count as within as long as the window has not moved.
    kept_end: u32,
    /// The time that it gives to readers that do not know of it yet, from the moment when there is no more room.
    join_time: Duration,
    /// It stands still until then.
    still_until: Option<Duration>,
    /// One after the highest piece that a writer has, or would have if there were room.
    wanted_end: u32,
    seats: BTreeMap<u64, Reader>,
    /// The number of seats that were taken: the id of the latest.
    seats_taken: u64,
    /// Pieces that left and are still in the file.
    gone: Vec<u32>,
}

/// A reader that has a seat: where it is, and since when.
#[derive(Clone, Copy)]
struct Reader {
    piece: u32,
    since: Duration,
}

impl Window {
    pub(super) fn new(map: PieceMap) -> Self {
        let count = u32::try_from(WINDOW_BYTES / map.piece_bytes()).unwrap_or(u32::MAX);
        Self {
            first: 0,
            count: count.max(2),
            kept_end: 0,
            join_time: Duration::ZERO,
            still_until: None,
            wanted_end: 0,
            seats: BTreeMap::new(),
            seats_taken: 0,
            gone: Vec::new(),
        }
    }

    /// A window behind pieces that are on the disk. When there is no more room it stands still for [`JOIN_TIME`] first: nodes that took
    /// pieces of the fill do not know yet that they have to read.
    pub(super) fn after(map: PieceMap, kept_end: u32) -> Self {
        Self {
            first: kept_end,
            kept_end,
            join_time: JOIN_TIME,
            ..Self::new(map)
        }
    }

    pub(super) fn range(&self) -> Range<u32> {
        self.first..self.first.saturating_add(self.count)
    }

    /// The pieces that there would be room for if they came: the window moves only when one does.
    pub(super) fn room(&self, hashed: u32) -> Range<u32> {
        let slowest = self.slowest();
        let start = slowest.map_or(self.first, |slowest| slowest.min(hashed).max(self.first));
        start..start.saturating_add(self.count)
    }

    pub(super) fn position(&self, piece: u32) -> Position {
        match piece {
            piece if piece < self.first && self.first == self.kept_end => Position::Within,
            piece if piece < self.first => Position::Passed,
            piece if self.range().contains(&piece) => Position::Within,
            _ => Position::Beyond,
        }
    }

    /// A new reader, at `piece`; `None` when that has passed.
    pub(super) fn sit(&mut self, piece: u32, now: Duration) -> Option<u64> {
        (self.position(piece) != Position::Passed).then(|| {
            self.seats_taken += 1;
            self.seats.insert(self.seats_taken, Reader { piece, since: now });
            self.seats_taken
        })
    }

    /// The reader goes on to `piece`; `false` when it has lost its seat, or wants what has passed.
    pub(super) fn move_to(&mut self, seat: u64, piece: u32, now: Duration) -> bool {
        let passed = self.position(piece) == Position::Passed;
        match self.seats.get_mut(&seat) {
            Some(reader) if !passed => {
                *reader = Reader { piece, since: now };
                true
            }
            _ => false,
        }
    }

    pub(super) fn leave(&mut self, seat: u64) {
        self.seats.remove(&seat);
    }

    pub(super) fn has_readers(&self) -> bool {
        !self.seats.is_empty()
    }

    /// A writer has `piece`.
    pub(super) fn want(&mut self, piece: u32) {
        self.wanted_end = self.wanted_end.max(piece.saturating_add(1));
    }

    /// Moves on as far as it must and may; returns the pieces that go. `hashed`: the first piece that the digest lacks.
    pub(super) fn slide(&mut self, hashed: u32, now: Duration) -> Range<u32> {
        let target = self.wanted_end.saturating_sub(self.count).min(hashed);
        // A reader has read all that there is room for, and waits for slower ones.
        let end = self.range().end;
        if self.seats.values().any(|reader| reader.piece >= end) {
            self.seats
                .retain(|_, reader| reader.piece >= target || now.saturating_sub(reader.since) < LAG_MAX);
        }
        let is_still = target > self.first && now < *self.still_until.get_or_insert(now.saturating_add(self.join_time));
        let Some(slowest) = self.slowest().filter(|_| !is_still) else {
            return self.first..self.first;
        };
        let from = self.first;
        self.first = target.min(slowest).max(from);
        self.gone.extend(from..self.first);
        from..self.first
    }

    /// The pieces that have gone since the last call.
    pub(super) fn take_gone(&mut self) -> Vec<u32> {
        mem::take(&mut self.gone)
    }

    /// The piece of the slowest reader.
    fn slowest(&self) -> Option<u32> {
        self.seats.values().map(|reader| reader.piece).min()
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn window(count: u32) -> Window {
        Window {
            count,
            ..Window::new(PieceMap::new(1 << 30, 1 << 20).unwrap())
        }
    }

    #[test]
    fn it_moves_only_as_far_as_it_must_and_never_past_a_reader_or_the_digest() {
        let mut window = window(4);
        let seat = window.sit(0, SECOND).unwrap();
        window.want(3);
        assert_eq!(window.slide(4, SECOND), 0..0, "there is room");
        window.want(5);
        assert_eq!(window.slide(4, SECOND), 0..0, "the reader is at the beginning");
        assert_eq!(window.room(4), 0..4);
        assert!(window.move_to(seat, 3, SECOND));
        assert_eq!((window.room(4), window.room(1)), (3..7, 1..5));
        assert_eq!(window.slide(1, SECOND), 0..1, "not past the digest");
        assert_eq!(window.slide(4, SECOND), 1..2);
        assert_eq!(
            [1, 2, 5, 6].map(|piece| window.position(piece)),
            [Position::Passed, Position::Within, Position::Within, Position::Beyond]
        );
        assert_eq!(window.sit(1, SECOND), None);
        assert!(!window.move_to(seat, 1, SECOND));
    }

    #[test]
    fn behind_pieces_on_the_disk_it_waits_for_a_reader_among_them() {
        let mut window = Window {
            count: 4,
            ..Window::after(PieceMap::new(1 << 30, 1 << 20).unwrap(), 10)
        };
        assert_eq!(window.range(), 10..14);
        let seat = window.sit(3, SECOND).unwrap();
        window.want(15);
        let joined = SECOND + JOIN_TIME;
        assert_eq!(window.slide(15, SECOND), 10..10, "there is no more room from now on");
        let behind = window.slide(15, joined);
        assert_eq!(behind, 10..10, "the reader has not read what is on the disk");
        assert!(window.move_to(seat, 12, SECOND));
        assert_eq!(window.slide(15, SECOND), 10..10, "others may still come");
        assert_eq!(window.slide(15, joined), 10..12);
        assert_eq!(window.position(3), Position::Passed, "what follows it has gone");
        assert_eq!(window.sit(3, SECOND), None);
    }

    #[test]
    fn without_readers_it_stands_still() {
        let mut window = window(4);
        window.want(9);
        assert_eq!(window.slide(9, SECOND), 0..0);
        let seat = window.sit(4, SECOND).unwrap();
        assert_eq!(window.slide(9, SECOND), 0..4);
        window.leave(seat);
        assert!(!window.has_readers());
        assert_eq!(window.slide(9, SECOND), 4..4);
    }

    #[test]
    fn a_reader_that_stands_still_holds_up_the_others_only_for_a_while() {
        let mut window = window(4);
        let slow = window.sit(0, SECOND).unwrap();
        let fast = window.sit(0, SECOND).unwrap();
        assert!(window.move_to(fast, 4, SECOND * 2));
        window.want(7);
        assert_eq!(window.slide(8, LAG_MAX), 0..0);
        assert_eq!(window.slide(8, SECOND + LAG_MAX), 0..4);
        assert!(!window.move_to(slow, 5, SECOND + LAG_MAX));
    }

    #[test]
    fn the_only_reader_may_be_as_slow_as_it_likes() {
        let mut window = window(4);
        let seat = window.sit(0, SECOND).unwrap();
        window.want(7);
        assert_eq!(window.slide(8, LAG_MAX * 9), 0..0);
        assert!(window.move_to(seat, 1, LAG_MAX * 9));
    }

    proptest! {
        #[test]
        fn no_reader_that_keeps_its_seat_ever_misses_a_piece(steps in vec((0_u8..4, 0_u32..3, 0_usize..5), 0..300)) {
            let mut window = window(5);
            let mut readers: Vec<(u64, u32)> = Vec::new();
            let (mut hashed, mut now) = (0, SECOND);
            for (step, by, which) in steps {
                now += Duration::from_millis(1);
                match step {
                    0 => readers.extend(window.sit(window.first + by, now).map(|seat| (seat, window.first + by))),
                    1 if which < readers.len() => {
                        let (seat, at) = &mut readers[which];
                        prop_assert!(window.move_to(*seat, *at + by, now));
                        *at += by;
                    }
                    2 if which < readers.len() => window.leave(readers.swap_remove(which).0),
                    _ => {
                        window.want(window.first + by * 3);
                        hashed = hashed.max(window.first + by);
                        let gone = window.slide(hashed, now);
                        prop_assert!(gone.end <= hashed.max(gone.start));
                        prop_assert!(readers.iter().all(|&(_, at)| gone.end <= at || gone.is_empty()));
                    }
                }
            }
        }
    }
}
