//! Pairing of a source and a receiver: whether the two may be matched, and which pieces the lease gets.
//!
//! Invariant: every piece of a lease is held by its source and missing at its receiver, and its hash is known.

use super::{
    Brain, Time,
    fill::Fill,
    lease_time::patience,
    receiver_class::ReceiverClass,
    run::{Run, WORDS_MAX, first_piece},
    swarm::Swarm,
    swarm_member::SwarmMember,
};

/// Selection of the piece that a receiver gets from a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceSelection {
    /// A piece that no peer has or is being sent: a mirror sends these first.
    Inject,
    /// The rarest piece. A mirror sends only pieces that the swarm has had the time to pass on.
    Rarest,
    /// The piece that a client waits for.
    Piece(u32),
}

impl Brain {
    /// The pieces that the receiver should fetch from the source, if the two may be matched at all.
    pub(super) fn match_pair(
        &mut self,
        swarm: u32,
        source: u32,
        receiver: u32,
        selection: PieceSelection,
    ) -> Option<Run> {
        let state = &self.swarms[swarm];
        if !self.may_match(state, source, receiver, selection) {
            return None;
        }
        let fill = state.fill.as_ref()?;
        let source = &state.members[source];
        let run_max = u32::try_from(self.policy.lease_bytes_max / fill.map.piece_bytes());
        let pairing = Pairing {
            fill,
            source,
            receiver: &state.members[receiver],
            run_max: run_max.unwrap_or(u32::MAX).max(1),
        };
        let patience = patience(state.lease_time, state.wanting);
        let ripe = |piece, patience| {
            !source.mirror
                || fill.rarity.is_scarce(piece)
                || fill.rarity.out_since(piece) <= self.now.saturating_sub(patience)
        };
        match selection {
            PieceSelection::Piece(piece) => pairing
                .at(piece)
                .filter(|_| ripe(piece, patience.min(WAITING_PATIENCE))),
            PieceSelection::Inject if state.complete_peers > 0 => None,
            PieceSelection::Inject => pairing.scarcest(),
            PieceSelection::Rarest => {
                let start = self.rng.next();
                pairing.rarest(start, self.policy.pieces_sampled, |piece| ripe(piece, patience))
            }
        }
    }

    fn may_match(&self, state: &Swarm, source: u32, receiver: u32, selection: PieceSelection) -> bool {
        let (source_slot, receiver_slot) = (state.members[source].slot, state.members[receiver].slot);
        let urgent = matches!(selection, PieceSelection::Piece(_));
        let (giving, taking) = (&self.members[source_slot], &self.members[receiver_slot]);
        source_slot != receiver_slot
            && state.sources.contains(source)
            && self.is_usable(receiver_slot)
            && taking.fetching.len() < self.policy.leases_max as usize + usize::from(urgent)
            && self.may_take(receiver_slot, urgent)
            && (!state.members[receiver].is_absent || self.has_unattended_room(receiver_slot))
            && (taking.prompt || urgent || giving.has_room_to_try(&self.policy))
            && self.has_room_for(source_slot, receiver_slot)
            && !giving.source_backoff.is_active_for(taking.id, self.now)
    }

    /// Whether a source has room for this receiver: idle receivers get the room that the others leave.
    fn has_room_for(&self, source_slot: u32, receiver_slot: u32) -> bool {
        let giving = &self.members[source_slot];
        match self.members[receiver_slot].receiver_class() {
            ReceiverClass::Idle => giving.has_room_for_idle(&self.policy),
            _ => !giving.is_full(&self.policy) || self.preemptable_by(receiver_slot, source_slot).is_some(),
        }
    }

    /// Whether one more lease may name the member as its source.
    pub(super) fn has_room(&self, slot: u32, urgent: bool) -> bool {
        self.members
            .get(slot)
            .is_some_and(|member| member.has_room(&self.policy, urgent))
            && self.is_usable(slot)
            && !self.members[slot].source_backoff.is_active_for_all(self.now)
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
                let piece = first_piece(word) + bit;
                if !ripe(piece) {
                    continue;
                }
                let copies = self.fill.rarity.copies(piece);
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
        let from = self.fill.rarity.scarce_from();
        let words = self.fill.hashed.words().len().min(from + WORDS_MAX);
        (from..words).find_map(|word| {
            let bits = self.word(word) & self.fill.rarity.scarce_word(word);
            (bits != 0)
                .then(|| first_piece(word) + bits.trailing_zeros())
                .and_then(|piece| self.stretch(piece, |next| self.fill.rarity.is_scarce(next)))
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

/// The longest time in which the swarm may pass on a piece that a client waits for: with the second before the client's report,
/// well below the 5 s in which the client must get a byte.
const WAITING_PATIENCE: Time = Time::from_secs(1);

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
                fill.rarity.add_copy(piece, Time::ZERO);
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
                prop_assert_eq!(Some(fill.rarity.copies(run.first)), fitting.iter().map(|&piece| fill.rarity.copies(piece)).min());
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
