//! Passing fills: the blob is not kept, since there is no room for it. Pieces come into memory, wait there for their readers
//! within a window, and go.
//!
//! The window moves only when a writer has a piece beyond it, and never past a reader or past the first piece that is not hashed
//! into the blob's digest. So the slowest reader holds up the source; a reader that has read nothing for [`LAG_MAX`], while
//! another has read all that there is room for, loses its seat. A fill without readers stands still.
//!
//! [`Window`] is pure: it says which pieces go, and owns none of them.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    ops::Range,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use piecemeal_proto::{Digest, FillId, PieceMap};
use tokio::sync::OwnedSemaphorePermit;

use crate::{BeginFillError, Filling, Store, files::OpenFile, fill::Fill, gate::GateGuard, store::Shared};

/// The memory of one passing fill, in bytes: enough pieces of any size for leases two deep, and for peers to trade in.
const WINDOW_BYTES: u64 = 32 * 1024 * 1024;
/// The most passing fills at a time.
pub(crate) const PASSING_MAX: usize = 4;
/// The most fills apart at a time, those included that have ended and are still read.
pub(crate) const APART_MAX: usize = 8;
/// How long a reader may hold up the others.
const LAG_MAX: Duration = Duration::from_secs(30);

/// Whether others may find a passing fill by its digest, and take its pieces from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    Pieces,
    Nothing,
}

/// Where a piece is, seen from the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Passed,
    Within,
    Beyond,
}

/// The pieces that there is room for, and the readers among them.
pub(crate) struct Window {
    first: u32,
    count: u32,
    /// One after the highest piece that a writer has, or would have if there were room.
    wanted_end: u32,
    seats: BTreeMap<u64, Seat>,
    seats_taken: u64,
}

#[derive(Clone, Copy)]
struct Seat {
    piece: u32,
    since: Duration,
}

impl Window {
    pub(crate) fn new(map: PieceMap) -> Self {
        let count = u32::try_from(WINDOW_BYTES / map.piece_bytes()).unwrap_or(u32::MAX);
        Self {
            first: 0,
            count: count.max(2),
            wanted_end: 0,
            seats: BTreeMap::new(),
            seats_taken: 0,
        }
    }

    pub(crate) fn range(&self) -> Range<u32> {
        self.first..self.first.saturating_add(self.count)
    }

    /// The pieces that there would be room for if they came: the window moves only when one does.
    pub(crate) fn room(&self, hashed: u32) -> Range<u32> {
        let slowest = self.seats.values().map(|seat| seat.piece).min();
        let start = slowest.map_or(self.first, |slowest| slowest.min(hashed).max(self.first));
        start..start.saturating_add(self.count)
    }

    pub(crate) fn place(&self, piece: u32) -> Place {
        match piece {
            piece if piece < self.first => Place::Passed,
            piece if self.range().contains(&piece) => Place::Within,
            _ => Place::Beyond,
        }
    }

    /// A new reader, at `piece`; `None` when that has passed.
    pub(crate) fn sit(&mut self, piece: u32, now: Duration) -> Option<u64> {
        (self.place(piece) != Place::Passed).then(|| {
            self.seats_taken += 1;
            self.seats.insert(self.seats_taken, Seat { piece, since: now });
            self.seats_taken
        })
    }

    /// The reader goes on to `piece`; `false` when it has lost its seat, or wants what has passed.
    pub(crate) fn move_to(&mut self, seat: u64, piece: u32, now: Duration) -> bool {
        let passed = self.place(piece) == Place::Passed;
        match self.seats.get_mut(&seat) {
            Some(seat) if !passed => {
                *seat = Seat { piece, since: now };
                true
            }
            _ => false,
        }
    }

    pub(crate) fn leave(&mut self, seat: u64) {
        self.seats.remove(&seat);
    }

    pub(crate) fn has_readers(&self) -> bool {
        !self.seats.is_empty()
    }

    /// A writer has `piece`.
    pub(crate) fn want(&mut self, piece: u32) {
        self.wanted_end = self.wanted_end.max(piece.saturating_add(1));
    }

    /// Moves on as far as it must and may; returns the pieces that go. `hashed`: the first piece that the digest lacks.
    pub(crate) fn slide(&mut self, hashed: u32, now: Duration) -> Range<u32> {
        let target = self.wanted_end.saturating_sub(self.count).min(hashed);
        // A reader has read all that there is room for, and waits for slower ones.
        let end = self.range().end;
        if self.seats.values().any(|seat| seat.piece >= end) {
            self.seats
                .retain(|_, seat| seat.piece >= target || now.saturating_sub(seat.since) < LAG_MAX);
        }
        let Some(slowest) = self.seats.values().map(|seat| seat.piece).min() else {
            return self.first..self.first;
        };
        let from = self.first;
        self.first = target.min(slowest).max(from);
        from..self.first
    }
}

/// A file in memory, of the pieces that are within the window.
pub(crate) struct MemoryFile {
    map: PieceMap,
    pieces: Mutex<HashMap<u32, Box<[u8]>>>,
}

impl MemoryFile {
    pub(crate) fn new(map: PieceMap) -> Self {
        Self {
            map,
            pieces: Mutex::default(),
        }
    }

    /// The part of `len` bytes from `offset` on that lies in one piece: the piece, and the range in it.
    fn within(&self, offset: u64, len: usize) -> Option<(u32, Range<usize>)> {
        let piece = self.map.piece_at(offset)?;
        let range = self.map.range(piece);
        let start = usize::try_from(offset - range.start).ok()?;
        let end = usize::try_from(range.end - range.start)
            .ok()?
            .min(start.saturating_add(len));
        Some((piece, start..end))
    }
}

impl OpenFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some((piece, range)) = self.within(offset, buffer.len()) else {
            return Ok(0);
        };
        let pieces = self.pieces.lock();
        let Some(bytes) = pieces.get(&piece) else {
            return Ok(0);
        };
        let part = &bytes[range];
        buffer[..part.len()].copy_from_slice(part);
        Ok(part.len())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let (piece, range) = self
            .within(offset, bytes.len())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let piece_bytes = usize::try_from(self.map.len(piece)).map_err(io::Error::other)?;
        let mut pieces = self.pieces.lock();
        let place = pieces
            .entry(piece)
            .or_insert_with(|| vec![0; piece_bytes].into_boxed_slice());
        let len = range.len();
        place[range].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool {
        crate::files::read_exact_at(self, buffer, offset).is_ok()
    }

    fn set_len(&self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.map.blob_bytes())
    }

    fn forget(&self, pieces: Range<u64>) {
        let (first, end) = (self.map.piece_at(pieces.start), self.map.piece_at(pieces.end));
        let mut kept = self.pieces.lock();
        kept.retain(|&piece, _| first.is_none_or(|first| piece < first) || end.is_some_and(|end| piece >= end));
    }
}

impl Store {
    /// Begins a passing fill, for a blob that there is no room for: see [`BeginFillError::NoSpace`]. Joins the live one, if
    /// that is offered too. It ends with [`Filling::pass`], and is gone with its last handle.
    ///
    /// Waits for its turn while there are four of them, for as long as the caller has patience: each is here only
    /// as long as it is read, and a client that is refused goes elsewhere over the WAN. Cancel safe.
    ///
    /// # Errors
    /// [`BeginFillError`], except `NoSpace`.
    pub async fn begin_passing(
        &self,
        digest: &Digest,
        map: PieceMap,
        fill: Option<FillId>,
        offer: Offer,
    ) -> Result<Filling, BeginFillError> {
        // A caller that joins a live fill takes no place.
        if let Some(filling) = self.shared.join(digest, map, fill)? {
            return Ok(filling);
        }
        let place = Arc::clone(&self.shared.passing).acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        let gate = self.shared.gates.enter(digest).await;
        self.run(move |shared| shared.begin_passing(&gate, place, map, fill, offer))
            .await
    }
}

impl Store {
    /// Begins a passing fill beside any other fill of the blob: for a source that disagrees with the source of that one, as long as
    /// neither is proven. It joins no other fill, cannot be found, and does not touch theirs.
    ///
    /// Waits for its turn while there are eight of them. Cancel safe.
    pub async fn begin_apart(&self, digest: &Digest, map: PieceMap) -> Filling {
        let place = Arc::clone(&self.shared.apart).acquire_owned().await;
        let place = place.expect("the semaphore is never closed");
        let fill = Fill::passing(*digest, map, self.shared.new_fill());
        self.shared.attach_passing(Arc::new(fill), place, Offer::Nothing)
    }
}

impl Shared {
    fn begin_passing(
        self: &Arc<Self>,
        gate: &GateGuard,
        place: OwnedSemaphorePermit,
        map: PieceMap,
        id: Option<FillId>,
        offer: Offer,
    ) -> Result<Filling, BeginFillError> {
        let digest = gate.digest();
        if let Some(filling) = self.join(digest, map, id)? {
            return Ok(filling);
        }
        let fill = Fill::passing(*digest, map, id.unwrap_or_else(|| self.new_fill()));
        Ok(self.attach_passing(Arc::new(fill), place, offer))
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
            [1, 2, 5, 6].map(|piece| window.place(piece)),
            [Place::Passed, Place::Within, Place::Within, Place::Beyond]
        );
        assert_eq!(window.sit(1, SECOND), None);
        assert!(!window.move_to(seat, 1, SECOND));
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

    #[test]
    fn a_file_in_memory_holds_what_was_written_until_it_is_forgotten() {
        let file = MemoryFile::new(PieceMap::new(10, 4).unwrap());
        assert_eq!(file.write_at(b"0123456789", 0).unwrap(), 4, "to the piece's end");
        assert_eq!(file.write_at(b"67", 6).unwrap(), 2);
        assert_eq!(file.write_at(b"89", 8).unwrap(), 2);
        let mut buffer = [0; 8];
        assert_eq!(file.read_at(&mut buffer, 1).unwrap(), 3);
        assert_eq!(&buffer[..3], b"123");
        file.forget(0..4);
        assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 0);
        assert_eq!(file.read_at(&mut buffer, 8).unwrap(), 2);
        file.forget(4..10);
        assert_eq!(file.read_at(&mut buffer, 9).unwrap(), 0);
        assert_eq!(file.read_at(&mut buffer, 10).unwrap(), 0);
    }
}
