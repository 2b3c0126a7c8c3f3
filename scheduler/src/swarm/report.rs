//! What members say of a blob: what they want, hold, and have lost, and which fill is in force.
//!
//! Invariant: pieces are only ever counted under the fill in force. A mirror's word sets it; a peer's only while no mirror has
//! spoken and nobody has a piece of another.

use piecemeal_proto::{Digest, FillId, PieceMap, PieceSet};

use super::{Brain, Command, MemberId, fill::Fill, seat::Seat, swarm::Swarm};

impl Brain {
    pub(super) fn want(
        &mut self,
        member: MemberId,
        digest: Digest,
        map: PieceMap,
        fill: FillId,
        have: &PieceSet,
        out: &mut Vec<Command>,
    ) {
        let Some(slot) = self.hear(member) else {
            return;
        };
        if map.is_empty() || have.capacity() != map.count() {
            return;
        }
        let mirror = self.members[slot].is_mirror();
        let wanted = self.seat_of(slot, &digest);
        let first = wanted.is_none_or(|(swarm, seat)| !self.swarms[swarm].seats[seat].wants);
        if first && !mirror && self.members[slot].wants >= self.policy.wants_max {
            return;
        }
        let Some((swarm, seat)) = self.sit(slot, digest) else {
            return;
        };
        let in_force = self.agree((swarm, seat), (fill, map), out);
        if !self.reserve(swarm, seat) {
            self.tidy(swarm, seat);
            return;
        }
        if self.swarms[swarm].seats[seat].complete {
            self.swarms[swarm].forget_claims(seat);
        }
        let old: Vec<u32> = self.swarms[swarm].seats[seat].have.iter().collect();
        for piece in old {
            if !in_force || !have.contains(piece) {
                let covered = self.is_covered(slot, swarm, piece);
                self.swarms[swarm].lose(seat, piece, covered);
            }
        }
        if in_force {
            for piece in have.iter() {
                self.swarms[swarm].gain(seat, piece, self.now);
            }
        }
        if first && !mirror {
            let state = &mut self.swarms[swarm];
            state.seats[seat].wants = true;
            state.seats[seat].fed_at = self.now;
            state.wanting += 1;
            self.members[slot].wants += 1;
            let pool = state.pool;
            self.pools[pool].miss_mirror(self.now);
        }
        self.touch(swarm, seat);
        self.tidy(swarm, seat);
        self.describe(swarm, out);
    }

    pub(super) fn unwant(&mut self, member: MemberId, digest: &Digest, out: &mut Vec<Command>) {
        let Some(slot) = self.hear(member) else {
            return;
        };
        if let Some((swarm, seat)) = self.seat_of(slot, digest) {
            self.cancel_fetches(slot, swarm, out);
            self.stop_wanting(swarm, seat);
            self.tidy(swarm, seat);
        }
    }

    /// `hashes`: of the pieces from `first` that it holds under `fill`, cut by `map`. Who verified the whole blob may not know
    /// the fill, and states hashes that are good under any.
    pub(super) fn have(
        &mut self,
        member: MemberId,
        digest: Digest,
        (fill, map): (FillId, PieceMap),
        first: u32,
        hashes: &[Option<[u8; 32]>],
        out: &mut Vec<Command>,
    ) {
        let Some(slot) = self.hear(member) else {
            return;
        };
        let fits = u32::try_from(hashes.len())
            .ok()
            .and_then(|len| first.checked_add(len))
            .is_some_and(|end| end <= map.count());
        let mirror = self.members[slot].is_mirror();
        let key = (self.members[slot].pool, digest);
        let live = self
            .digests
            .get(&key)
            .is_some_and(|&swarm| self.swarms[swarm].is_live());
        if !fits || hashes.is_empty() || !(mirror || live) {
            return;
        }
        let Some((swarm, seat)) = self.sit(slot, digest) else {
            return;
        };
        let state = &self.swarms[swarm];
        let verified = state.seats[seat].complete && state.fill.as_ref().is_some_and(|known| known.map == map);
        let good = verified && !mirror || self.agree((swarm, seat), (fill, map), out) && self.reserve(swarm, seat);
        if !good {
            self.tidy(swarm, seat);
            return;
        }
        let state = &mut self.swarms[swarm];
        let mut unhashed = false;
        for (piece, hash) in (first..).zip(hashes) {
            if !state.seats[seat].complete {
                state.gain(seat, piece, self.now);
            }
            let filled = state.fill.as_mut().expect("agreed upon just now");
            match hash {
                Some(hash) if !state.seats[seat].banned => filled.state(piece, *hash, mirror),
                _ => unhashed |= !filled.hashed.contains(piece),
            }
        }
        self.touch(swarm, seat);
        if unhashed {
            self.describe(swarm, out);
        }
    }

    pub(super) fn complete(&mut self, member: MemberId, digest: Digest, out: &mut Vec<Command>) {
        let Some(slot) = self.hear(member) else {
            return;
        };
        let Some((swarm, seat)) = self.sit(slot, digest) else {
            return;
        };
        self.cancel_fetches(slot, swarm, out);
        self.release(swarm, seat);
        self.swarms[swarm].complete(seat);
        self.stop_wanting(swarm, seat);
        self.touch(swarm, seat);
        self.tidy(swarm, seat);
        self.describe(swarm, out);
    }

    pub(super) fn lost(&mut self, member: MemberId, digest: &Digest, out: &mut Vec<Command>) {
        let Some(slot) = self.hear(member) else {
            return;
        };
        if let Some((swarm, seat)) = self.seat_of(slot, digest) {
            self.cancel_fetches(slot, swarm, out);
            self.cancel_uploads(slot, swarm, out);
            self.swarms[swarm].forget_claims(seat);
            self.touch(swarm, seat);
            self.tidy(swarm, seat);
        }
    }

    pub(super) fn proven(&mut self, member: MemberId, digest: &Digest, fill: FillId) {
        let Some((swarm, _)) = self.mirror_seat(member, digest) else {
            return;
        };
        if let Some(filled) = &mut self.swarms[swarm].fill
            && filled.id == fill
        {
            filled.proven = true;
        }
    }

    pub(super) fn revoke(&mut self, member: MemberId, digest: &Digest, fill: FillId, out: &mut Vec<Command>) {
        let Some((swarm, _)) = self.mirror_seat(member, digest) else {
            return;
        };
        let state = &mut self.swarms[swarm];
        if !state.revoked.contains(&fill) {
            state.revoked.push_back(fill);
            state.revoked.drain(..state.revoked.len().saturating_sub(REVOKED_MAX));
        }
        let revoked = Some(fill) == state.fill.as_ref().map(|filled| filled.id);
        let told = state.seats.iter().map(|(_, seat)| self.members[seat.member].id);
        out.extend(told.map(|to| Command::Revoked {
            to,
            digest: *digest,
            fill,
        }));
        if revoked {
            let map = self.swarms[swarm].fill.as_ref().expect("revoked just now").map;
            self.replace_fill(swarm, None, map, out);
        }
    }

    fn mirror_seat(&mut self, member: MemberId, digest: &Digest) -> Option<(u32, u32)> {
        let slot = self.hear(member).filter(|&slot| self.members[slot].is_mirror())?;
        self.seat_of(slot, digest)
    }

    /// Settles which fill is in force after a seat's report of `fill`; says whether it is that one.
    fn agree(&mut self, (swarm, seat): (u32, u32), (fill, map): (FillId, PieceMap), out: &mut Vec<Command>) -> bool {
        let state = &mut self.swarms[swarm];
        let mirror = state.seats[seat].mirror;
        let kept_by_another_mirror = state
            .mirrors
            .iter()
            .any(|&other| other != seat && !state.seats[other].have.is_empty());
        if state.revoked.contains(&fill) || (mirror && fill == NO_FILL) {
            if state.fill.is_none() {
                self.replace_fill(swarm, None, map, out);
            }
            return false;
        }
        match &mut state.fill {
            Some(known) if known.id == fill && known.map == map => {
                known.from_mirror |= mirror;
                return true;
            }
            Some(_) if mirror && kept_by_another_mirror => return false,
            Some(known) if !mirror && (fill == NO_FILL || known.from_mirror || known.is_in_use()) => return false,
            _ => {}
        }
        let stated = (fill != NO_FILL).then_some(fill);
        self.replace_fill(swarm, stated, map, out);
        if let Some(filled) = &mut self.swarms[swarm].fill {
            filled.from_mirror = mirror;
        }
        stated.is_some()
    }

    /// Begins a fill anew (`None`: one that nobody knows yet): every piece of another is forgotten, whole blobs are not.
    fn replace_fill(&mut self, swarm: u32, fill: Option<FillId>, map: PieceMap, out: &mut Vec<Command>) {
        let leases: Vec<_> = self.swarms[swarm].granted.iter().copied().collect();
        for lease in leases {
            self.cancel(lease, out);
        }
        let fill = fill.unwrap_or_else(|| FillId(self.dice.next().max(1)));
        let state = &mut self.swarms[swarm];
        let seats: Vec<u32> = state.seats.iter().map(|(index, _)| index).collect();
        state.fill = Some(Fill::new(fill, map));
        state.usual = None;
        for index in seats {
            let state = &mut self.swarms[swarm];
            let seat = &mut state.seats[index];
            if !seat.complete {
                seat.have = PieceSet::new(map.count());
                seat.leased = PieceSet::new(map.count());
                seat.taken = 0;
                seat.waiting = None;
            }
            state.refresh(index, self.policy.leases_deep);
        }
        self.rouse(swarm);
    }

    /// The member's seat in the blob's swarm, taken if it has none; `None` when it sits in too many.
    fn sit(&mut self, slot: u32, digest: Digest) -> Option<(u32, u32)> {
        if let Some(seated) = self.seat_of(slot, &digest) {
            return Some(seated);
        }
        let member = &mut self.members[slot];
        if member.seats.len() >= self.policy.blobs_max {
            return None;
        }
        let key = (member.pool, digest);
        let swarms = &mut self.swarms;
        let &mut swarm = self
            .digests
            .entry(key)
            .or_insert_with(|| swarms.insert(Swarm::new(key.0, digest)));
        let pieces = self.swarms[swarm].pieces();
        let seat = self.swarms[swarm].seat(Seat {
            member: slot,
            mirror: member.is_mirror(),
            zone: member.zone,
            have: PieceSet::new(pieces),
            leased: PieceSet::new(pieces),
            ..Seat::default()
        });
        member.seats.insert(swarm, seat);
        Some((swarm, seat))
    }

    /// Counts a seat's bitmaps in its member's budget; says whether they fit.
    fn reserve(&mut self, swarm: u32, seat: u32) -> bool {
        let pieces = u64::from(self.swarms[swarm].pieces());
        let seat = &mut self.swarms[swarm].seats[seat];
        let member = &mut self.members[seat.member];
        let after = member.pieces - seat.reserved + pieces;
        let fits = seat.mirror || after <= self.policy.pieces_max;
        if fits {
            member.pieces = after;
            seat.reserved = pieces;
        }
        fits
    }

    fn release(&mut self, swarm: u32, seat: u32) {
        let seat = &mut self.swarms[swarm].seats[seat];
        self.members[seat.member].pieces -= std::mem::take(&mut seat.reserved);
    }

    /// Its leases are over already.
    pub(super) fn stop_wanting(&mut self, swarm: u32, seat: u32) {
        let state = &mut self.swarms[swarm];
        if std::mem::take(&mut state.seats[seat].wants) {
            state.wanting -= 1;
            let member = state.seats[seat].member;
            self.members[member].wants -= 1;
        }
        self.pass_upstream_on(swarm, seat);
        self.swarms[swarm].refresh(seat, self.policy.leases_deep);
        self.idle(swarm);
    }

    /// A swarm that nobody wants any more keeps its holders of the whole blob, and what mirrors are filling.
    pub(super) fn idle(&mut self, swarm: u32) {
        let Some(state) = self.swarms.get(swarm).filter(|state| !state.is_live()) else {
            return;
        };
        let partial = state
            .seats
            .iter()
            .filter(|(_, seat)| !seat.complete && !seat.mirror && !seat.banned);
        for seat in partial.map(|(index, _)| index).collect::<Vec<_>>() {
            self.leave_seat(swarm, seat);
        }
        self.forget_fill(swarm);
    }

    /// Empties a seat of which nothing is known, and with the last one the swarm.
    pub(super) fn tidy(&mut self, swarm: u32, seat: u32) {
        let seats = self.swarms.get(swarm).map(|state| &state.seats);
        if seats.and_then(|seats| seats.get(seat)).is_some_and(Seat::is_vacant) {
            self.leave_seat(swarm, seat);
        }
        self.forget_fill(swarm);
    }

    /// Drops the fill of a swarm that nobody wants, unless a mirror is filling it.
    fn forget_fill(&mut self, swarm: u32) {
        let Some(state) = self.swarms.get_mut(swarm).filter(|state| !state.is_live()) else {
            return;
        };
        let filling = |&mirror: &u32| !state.seats[mirror].complete && !state.seats[mirror].have.is_empty();
        if state.fill.is_some() && !state.mirrors.iter().any(filling) {
            state.fill = None;
            for seat in state.seats.iter_mut() {
                seat.have = PieceSet::default();
                seat.leased = PieceSet::default();
            }
        }
    }

    /// Its leases are over already.
    pub(super) fn leave_seat(&mut self, swarm: u32, seat: u32) {
        self.pass_upstream_on(swarm, seat);
        self.release(swarm, seat);
        let state = &mut self.swarms[swarm];
        let member = state.seats[seat].member;
        if state.seats[seat].wants {
            state.wanting -= 1;
            self.members[member].wants -= 1;
        }
        state.forget_claims(seat);
        state.unseat(seat);
        let empty = state.seats.len() == 0;
        self.members[member].seats.remove(&swarm);
        self.members[member].live.remove(&swarm);
        if empty {
            let state = self.swarms.remove(swarm).expect("it had a seat just now");
            self.digests.remove(&(state.pool, state.digest));
            if let Some(at) = state.tick_at {
                self.timers.remove(&(at, super::brain::Timer::Tick(swarm)));
            }
        }
    }
}

/// What a peer says that knows of no fill.
const NO_FILL: FillId = FillId(0);

/// Revoked fills that a swarm remembers, against reports that were on their way.
const REVOKED_MAX: usize = 8;
