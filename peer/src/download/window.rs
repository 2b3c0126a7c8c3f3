//! Which pieces a download asks the mirror for without a lease. Pure.
//!
//! A piece is here, in flight or neither, never two of them; what a client waits for is asked for first, then the rest in order.

use std::collections::HashMap;

use piecemeal_proto::PieceSet;

/// The pieces in flight, leased or not, and the number of requests without a lease.
#[derive(Debug)]
pub(crate) struct Window {
    in_flight: PieceSet,
    direct: PieceSet,
    leases: HashMap<u64, Vec<u32>>,
}

impl Window {
    /// For a blob of `count` pieces.
    pub(crate) fn new(count: u32) -> Self {
        Self {
            in_flight: PieceSet::new(count),
            direct: PieceSet::new(count),
            leases: HashMap::new(),
        }
    }

    /// A lease begins; gives the pieces that it is to fetch: those that are neither here nor in flight.
    pub(crate) fn lease(&mut self, lease: u64, pieces: impl Iterator<Item = u32>, have: &PieceSet) -> Vec<u32> {
        let taken: Vec<u32> = pieces
            .filter(|&piece| !have.contains(piece) && self.in_flight.insert(piece))
            .collect();
        self.leases.insert(lease, taken.clone());
        taken
    }

    /// A lease has ended, whatever it has brought.
    pub(crate) fn lease_ended(&mut self, lease: u64) {
        for piece in self.leases.remove(&lease).unwrap_or_default() {
            self.in_flight.remove(piece);
        }
    }

    /// The next piece to ask the mirror for, while fewer than `size` requests without a lease are in flight.
    pub(crate) fn poll_request(&mut self, size: usize, have: &PieceSet, wanted: Option<u32>) -> Option<u32> {
        if self.direct.count() as usize >= size {
            return None;
        }
        let free = |piece: &u32| !have.contains(*piece) && !self.in_flight.contains(*piece);
        let piece = wanted.filter(free).or_else(|| have.missing().find(free))?;
        self.in_flight.insert(piece);
        self.direct.insert(piece);
        Some(piece)
    }

    /// A request without a lease has ended, whatever it has brought.
    pub(crate) fn request_ended(&mut self, piece: u32) {
        self.direct.remove(piece);
        self.in_flight.remove(piece);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn a_waiting_client_comes_first_then_the_order() {
        let mut window = Window::new(6);
        let mut have = PieceSet::new(6);
        have.insert(0);
        assert_eq!(window.lease(7, 1..3, &have), [1, 2]);
        assert_eq!(window.poll_request(2, &have, Some(5)), Some(5));
        assert_eq!(window.poll_request(2, &have, Some(5)), Some(3));
        assert_eq!(window.poll_request(2, &have, None), None);
        window.request_ended(5);
        window.lease_ended(7);
        assert_eq!(window.poll_request(2, &have, Some(1)), Some(1));
    }

    proptest! {
        #[test]
        fn no_piece_is_in_flight_twice_and_every_piece_comes(steps in vec((0_u8..4, 0_u32..40), 0..400)) {
            let mut window = Window::new(40);
            let mut have = PieceSet::new(40);
            let (mut direct, mut leases, mut next) = (Vec::new(), Vec::<(u64, Vec<u32>)>::new(), 0);
            for (step, piece) in steps {
                match step {
                    0 => direct.extend(window.poll_request(4, &have, Some(piece))),
                    1 if !direct.is_empty() => {
                        let done = direct.swap_remove(piece as usize % direct.len());
                        window.request_ended(done);
                        have.insert(done);
                    }
                    2 => {
                        next += 1;
                        leases.push((next, window.lease(next, piece..(piece + 4).min(40), &have)));
                    }
                    3 if !leases.is_empty() => {
                        let (lease, pieces) = leases.swap_remove(piece as usize % leases.len());
                        window.lease_ended(lease);
                        pieces.into_iter().step_by(2).for_each(|piece| { have.insert(piece); });
                    }
                    _ => {}
                }
                let mut in_flight: Vec<u32> = direct.iter().chain(leases.iter().flat_map(|(_, pieces)| pieces)).copied().collect();
                let all = in_flight.len();
                in_flight.sort_unstable();
                in_flight.dedup();
                prop_assert_eq!(in_flight.len(), all, "a piece is in flight twice");
                prop_assert!(direct.len() <= 4);
                prop_assert!(in_flight.iter().all(|&piece| !have.contains(piece)));
            }
            for (lease, _) in leases { window.lease_ended(lease); }
            for piece in direct { window.request_ended(piece); }
            while let Some(piece) = window.poll_request(1, &have, None) {
                window.request_ended(piece);
                have.insert(piece);
            }
            prop_assert!(have.is_full());
        }
    }
}
