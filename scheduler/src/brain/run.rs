//! Contiguous pieces, and which of them a receiver should take from a source.
//!
//! Invariant: every piece of a run is held by the source, missing at the receiver, and its hash is known.

use std::ops::Range;

use super::{Time, fill::Fill, swarm_member::SwarmMember};

/// Pieces `first..first + count`; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Run {
    pub(super) fn pieces(self) -> Range<u32> {
        self.first..self.first + self.count
    }

    pub(super) fn contains(self, piece: u32) -> bool {
        self.pieces().contains(&piece)
    }
}

/// A source and a receiver in one swarm.
pub(super) struct Pairing<'a> {
    pub(super) fill: &'a Fill,
    pub(super) source: &'a SwarmMember,
    pub(super) receiver: &'a SwarmMember,
    pub(super) run_max: u32,
}

impl Pairing<'_> {
    /// The rarest of the first `sample` pieces from a random place (`start`: word and bit), among those that `ripe` accepts.
    /// Ties go to the first one found.
    pub(super) fn rarest(&self, start: u64, sample: u32, ripe: impl Fn(u32) -> bool) -> Option<Run> {
        let words = self.fill.hashed.words().len();
        let first_word = usize::try_from(start >> 32).ok()? % words.max(1);
        let turn = u32::try_from(start % 64).ok()?;
        let mut best: Option<(u32, u32)> = None;
        let mut seen = 0;
        for word in (0..words.min(WORDS_MAX)).map(|step| (first_word + step) % words) {
            let mut bits = self.word(word).rotate_right(turn);
            while bits != 0 {
                let bit = (bits.trailing_zeros() + turn) % 64;
                bits &= bits - 1;
                let piece = index(word) + bit;
                if !ripe(piece) {
                    continue;
                }
                let copies = self.fill.copies(piece);
                if best.is_none_or(|(fewest, _)| copies < fewest) {
                    best = Some((copies, piece));
                }
                seen += 1;
                if seen == sample {
                    return self.stretch(best?.1, ripe);
                }
            }
        }
        self.stretch(best?.1, ripe)
    }

    /// The first piece that no peer has or is being sent.
    pub(super) fn scarcest(&self) -> Option<Run> {
        let from = self.fill.scarce_from();
        let words = self.fill.hashed.words().len().min(from + WORDS_MAX);
        (from..words).find_map(|word| {
            let bits = self.word(word) & self.fill.scarce_word(word);
            (bits != 0)
                .then(|| index(word) + bits.trailing_zeros())
                .and_then(|piece| self.stretch(piece, |next| self.fill.is_scarce(next)))
        })
    }

    /// Exactly `piece` and what fits behind it.
    pub(super) fn at(&self, piece: u32) -> Option<Run> {
        self.fits(piece).then(|| self.stretch(piece, |_| true)).flatten()
    }

    fn stretch(&self, first: u32, fits: impl Fn(u32) -> bool) -> Option<Run> {
        let more = (first + 1..first.saturating_add(self.run_max)).take_while(|&piece| self.fits(piece) && fits(piece));
        Some(Run {
            first,
            count: 1 + u32::try_from(more.count()).ok()?,
        })
    }

    fn fits(&self, piece: u32) -> bool {
        self.source.holds(piece) && self.receiver.lacks(piece) && self.fill.hashed.contains(piece)
    }

    fn word(&self, word: usize) -> u64 {
        self.source.held_word(word) & self.receiver.missing_word(word) & self.fill.hashed.words()[word]
    }
}

fn index(word: usize) -> u32 {
    u32::try_from(word * 64).expect("a PieceMap bounds the count")
}

/// Bitmap words that one look covers: all of a blob of 64 GiB. The next look at a larger one starts elsewhere.
const WORDS_MAX: usize = 256;

/// What a lease is taken to last before the first one is done.
pub(super) const LEASE_TIME_INITIAL: Time = Time::from_millis(250);

/// How long the swarm gets to pass a piece on before a mirror sends it again: as many lease times as a copy needs to reach
/// every peer by doubling, and some.
pub(super) fn patience(lease_time: Option<Time>, wanting: u32) -> Time {
    lease_time.unwrap_or(LEASE_TIME_INITIAL) * (4 + wanting.max(1).ilog2())
}

/// The first run of pieces, at most `bytes_max`, that no peer has or is being sent.
pub(super) fn scarce_run(fill: &Fill, bytes_max: u64) -> Option<Run> {
    let words = fill.hashed.words().len();
    let word = (fill.scarce_from()..words).find(|&word| fill.scarce_word(word) != 0)?;
    let first = index(word) + fill.scarce_word(word).trailing_zeros();
    let run_max = u32::try_from(bytes_max / fill.map.piece_bytes()).unwrap_or(u32::MAX);
    let more = (first + 1..first.saturating_add(run_max)).take_while(|&piece| fill.is_scarce(piece));
    Some(Run {
        first,
        count: 1 + u32::try_from(more.count()).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::{FillId, PieceMap, PieceSet};
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    const PIECES: u32 = 200;

    fn set(pieces: &std::collections::BTreeSet<u32>) -> PieceSet {
        let mut set = PieceSet::new(PIECES);
        for &piece in pieces {
            set.insert(piece);
        }
        set
    }

    proptest! {
        #[test]
        fn a_run_fits_and_is_found_whenever_there_is_one(
            held in btree_set(0..PIECES, 0..60),
            had in btree_set(0..PIECES, 0..150),
            unhashed in btree_set(0..PIECES, 0..20),
            copied in btree_set(0..PIECES, 0..PIECES as usize),
            start in any::<u64>(),
            run_max in 1_u32..5,
        ) {
            let mut fill = Fill::new(FillId(1), PieceMap::new(u64::from(PIECES), 1).unwrap());
            for piece in (0..PIECES).filter(|piece| !unhashed.contains(piece)) {
                fill.state(piece, [1; 32], true);
            }
            for &piece in &copied {
                fill.add_copy(piece, Time::ZERO);
            }
            let source = SwarmMember { have: set(&held), ..SwarmMember::default() };
            let receiver = SwarmMember { have: set(&had), leased: PieceSet::new(PIECES), ..SwarmMember::default() };
            let pairing = Pairing { fill: &fill, source: &source, receiver: &receiver, run_max };
            let fits = |piece: &u32| held.contains(piece) && !had.contains(piece) && !unhashed.contains(piece);
            let fitting: Vec<u32> = (0..PIECES).filter(fits).collect();

            let rarest = pairing.rarest(start, PIECES, |_| true);
            prop_assert_eq!(rarest.is_some(), !fitting.is_empty());
            if let Some(run) = rarest {
                prop_assert!(run.count >= 1 && run.count <= run_max && run.pieces().all(|piece| fits(&piece)));
                prop_assert_eq!(Some(fill.copies(run.first)), fitting.iter().map(|&piece| fill.copies(piece)).min());
            }
            let scarce: Vec<u32> = fitting.iter().copied().filter(|piece| !copied.contains(piece)).collect();
            let scarcest = pairing.scarcest();
            prop_assert_eq!(scarcest.map(|run| run.first), scarce.first().copied());
            prop_assert!(scarcest.is_none_or(|run| run.pieces().all(|piece| scarce.contains(&piece))));
            for piece in 0..PIECES {
                prop_assert_eq!(pairing.at(piece).is_some(), fits(&piece));
            }
        }
    }
}
