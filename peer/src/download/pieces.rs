//! Pieces of one download: which are wanted, in flight or landed. Pure.
//!
//! Each piece is exactly one of the three, and each piece in flight belongs to one fetch. A piece that a client waits for is requested first,
//! then the rest in order.

use std::{collections::BTreeMap, ops::Range};

use piecemeal_proto::PieceSet;

use super::mode::DIRECT_WINDOW;

/// The state of every piece, and the fetches under way.
#[derive(Debug)]
pub(super) struct Pieces {
    landed: PieceSet,
    /// Pieces of all fetches under way, whether they have landed since or not.
    claimed: PieceSet,
    /// Pieces that are requested from the mirror without a lease.
    direct: PieceSet,
    leases: BTreeMap<u64, LeasedPieces>,
}

/// The pieces of one lease.
#[derive(Debug)]
struct LeasedPieces {
    /// All of the lease's pieces.
    range: Range<u32>,
    /// Pieces that its fetch brings.
    claimed: Vec<u32>,
    /// Its fetch is over. The lease lasts until the fetches of its other pieces are too.
    is_fetched: bool,
}

impl Pieces {
    /// `landed`: the pieces that an earlier download has left.
    pub(super) fn new(landed: PieceSet) -> Self {
        Self {
            claimed: PieceSet::new(landed.capacity()),
            direct: PieceSet::new(landed.capacity()),
            leases: BTreeMap::new(),
            landed,
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.landed.capacity()
    }

    pub(super) fn have_all(&self) -> bool {
        self.landed.is_full()
    }

    pub(super) fn landed(&self) -> &PieceSet {
        &self.landed
    }

    pub(super) fn has(&self, piece: u32) -> bool {
        self.landed.contains(piece)
    }

    /// The store has these pieces; returns whether one of them is new.
    pub(super) fn update(&mut self, landed: PieceSet) -> bool {
        let pairs = landed.words().iter().zip(self.landed.words());
        let has_new = pairs.into_iter().any(|(now, before)| now & !before != 0);
        self.landed = landed;
        has_new
    }

    /// The store no longer has the piece.
    pub(super) fn drop_piece(&mut self, piece: u32) {
        self.landed.remove(piece);
    }

    /// A lease begins; gives the pieces that it is to fetch: those that are wanted. `None`: the lease has begun before.
    pub(super) fn begin_lease(&mut self, lease: u64, range: Range<u32>) -> Option<Vec<u32>> {
        if self.leases.contains_key(&lease) {
            return None;
        }
        let claimed: Vec<u32> = range
            .clone()
            .filter(|&piece| !self.landed.contains(piece) && self.claimed.insert(piece))
            .collect();
        let pieces = claimed.clone();
        let leased = LeasedPieces {
            range,
            claimed,
            is_fetched: false,
        };
        self.leases.insert(lease, leased);
        Some(pieces)
    }

    /// A lease has ended, whatever it has brought; returns all of its pieces. `None`: it is not under way.
    pub(super) fn end_lease(&mut self, lease: u64) -> Option<Range<u32>> {
        let leased = self.leases.remove(&lease)?;
        for piece in leased.claimed {
            self.claimed.remove(piece);
        }
        Some(leased.range)
    }

    /// The fetch of a lease is over; returns whether the lease is under way.
    pub(super) fn end_fetch(&mut self, lease: u64) -> bool {
        let Some(leased) = self.leases.get_mut(&lease) else {
            return false;
        };
        leased.is_fetched = true;
        for piece in std::mem::take(&mut leased.claimed) {
            self.claimed.remove(piece);
        }
        true
    }

    /// Ends the leases whose fetch is over and of which no other fetch brings a piece. `have`: the pieces that are here.
    pub(super) fn end_settled(&mut self, have: &PieceSet) -> Vec<(u64, Range<u32>)> {
        let claimed = &self.claimed;
        let is_settled = |leased: &LeasedPieces| {
            let mut pieces = leased.range.clone();
            leased.is_fetched && pieces.all(|piece| have.contains(piece) || !claimed.contains(piece))
        };
        let settled = self.leases.extract_if(.., |_, leased| is_settled(leased));
        settled.map(|(lease, leased)| (lease, leased.range)).collect()
    }

    pub(super) fn leases(&self) -> Vec<u64> {
        self.leases.keys().copied().collect()
    }

    /// The leases that begin at `piece` or behind it.
    pub(super) fn leases_from(&self, piece: u32) -> Vec<u64> {
        let leases = self.leases.iter();
        let behind = leases.filter(|(_, leased)| leased.range.start >= piece);
        behind.map(|(lease, _)| *lease).collect()
    }

    /// The first piece that has not landed: a client that reads from the start waits for no other.
    pub(super) fn first_missing(&self) -> Option<u32> {
        self.landed.missing().next()
    }

    /// The next piece to request from the mirror, while fewer than `size` requests without a lease are in flight, or as many and a
    /// client waits for another piece.
    pub(super) fn begin_request(&mut self, size: usize, waited_for: &[u32]) -> Option<u32> {
        let in_flight = self.direct.count() as usize;
        if size == 0 || in_flight > size {
            return None;
        }
        let wanted = |piece: &u32| !self.landed.contains(*piece) && !self.claimed.contains(*piece);
        let mut waited_for = waited_for.iter().copied().filter(|piece| *piece < self.count());
        let first = waited_for.find(wanted);
        let piece = first.or_else(|| self.landed.missing().find(wanted).filter(|_| in_flight < size))?;
        self.claimed.insert(piece);
        self.direct.insert(piece);
        Some(piece)
    }

    /// A request without a lease has ended, whatever it has brought.
    pub(super) fn end_request(&mut self, piece: u32) {
        if self.direct.remove(piece) {
            self.claimed.remove(piece);
        }
    }

    /// # Panics
    /// When a piece belongs to two fetches, or too many requests are in flight.
    pub(super) fn assert_invariants(&self) {
        assert!(
            self.direct.count() as usize <= DIRECT_WINDOW + 1,
            "at most four direct requests, and one that a client waits for"
        );
        let mut unclaimed = self.claimed.clone();
        let leased = self.leases.values().flat_map(|lease| &lease.claimed).copied();
        for piece in self.direct.iter().chain(leased) {
            assert!(unclaimed.remove(piece), "piece {piece} belongs to two fetches");
        }
        assert!(unclaimed.is_empty(), "pieces {unclaimed:?} belong to no fetch");
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    impl Pieces {
        fn land(&mut self, piece: u32) {
            let mut landed = self.landed.clone();
            landed.insert(piece);
            self.update(landed);
        }
    }

    #[test]
    fn a_waiting_client_comes_first_then_the_order() {
        let mut pieces = Pieces::new(PieceSet::new(6));
        pieces.land(0);
        assert_eq!(pieces.begin_lease(7, 0..3), Some(vec![1, 2]));
        assert_eq!(pieces.begin_lease(7, 3..4), None, "a lease is tracked once");
        assert_eq!(pieces.begin_request(2, &[5]), Some(5));
        assert_eq!(pieces.begin_request(2, &[5]), Some(3));
        assert_eq!(pieces.begin_request(2, &[1, 5]), None, "they are on their way");
        pieces.end_request(5);
        assert_eq!(pieces.end_lease(7), Some(0..3));
        assert_eq!(pieces.begin_request(2, &[1]), Some(1));
        pieces.assert_invariants();
    }

    #[test]
    fn one_more_is_asked_for_while_a_client_waits_for_it() {
        let mut pieces = Pieces::new(PieceSet::new(40));
        let in_order: Vec<u32> = std::iter::from_fn(|| pieces.begin_request(4, &[])).collect();
        assert_eq!(in_order, [0, 1, 2, 3]);
        assert_eq!(pieces.begin_request(4, &[0, 3, 30, 31]), Some(30));
        assert_eq!(pieces.begin_request(4, &[0, 3, 30, 31]), None, "one at a time");
        assert_eq!(pieces.begin_request(0, &[31]), None, "the mirror is not asked");
        pieces.end_request(30);
        assert_eq!(pieces.begin_request(4, &[31, 99]), Some(31));
        pieces.assert_invariants();
    }

    proptest! {
        #[test]
        fn no_piece_is_in_flight_twice_and_every_piece_comes(steps in vec((0_u8..4, 0_u32..40), 0..400)) {
            let mut pieces = Pieces::new(PieceSet::new(40));
            let (mut direct, mut leases, mut next) = (Vec::new(), Vec::<(u64, Vec<u32>)>::new(), 0);
            for (step, piece) in steps {
                match step {
                    0 => direct.extend(pieces.begin_request(4, &[piece, (piece + 7) % 40])),
                    1 if !direct.is_empty() => {
                        let done = direct.swap_remove(piece as usize % direct.len());
                        pieces.end_request(done);
                        pieces.land(done);
                    }
                    2 => {
                        next += 1;
                        leases.push((next, pieces.begin_lease(next, piece..(piece + 4).min(40)).expect("a new lease")));
                    }
                    3 if !leases.is_empty() => {
                        let (lease, leased) = leases.swap_remove(piece as usize % leases.len());
                        pieces.end_lease(lease);
                        leased.into_iter().step_by(2).for_each(|piece| pieces.land(piece));
                    }
                    _ => {}
                }
                pieces.assert_invariants();
                let mut in_flight: Vec<u32> = direct.iter().chain(leases.iter().flat_map(|(_, pieces)| pieces)).copied().collect();
                let all = in_flight.len();
                in_flight.sort_unstable();
                in_flight.dedup();
                prop_assert_eq!(in_flight.len(), all, "a piece is in flight twice");
                prop_assert!(direct.len() <= 5);
                prop_assert!(in_flight.iter().all(|&piece| !pieces.has(piece)));
            }
            for (lease, _) in leases { pieces.end_lease(lease); }
            for piece in direct { pieces.end_request(piece); }
            while let Some(piece) = pieces.begin_request(1, &[]) {
                pieces.end_request(piece);
                pieces.land(piece);
            }
            prop_assert!(pieces.have_all());
        }
    }
}
