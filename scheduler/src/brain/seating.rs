//! Seats in swarms: they are taken, accounted for, and left; a swarm begins and ends with its seats.
//!
//! Invariant: of a blob that no member wants, only the holders of all of it (`holdings.rs`), the mirrors' fills, and the banned seats are
//! kept.

use piecemeal_proto::{Digest, PieceSet};

use super::{Brain, brain::Timer, swarm::Swarm, swarm_member::SwarmMember};

impl Brain {
    /// The member's seat in the blob's swarm, taken if it has none; `None` when it sits in too many.
    pub(super) fn sit(&mut self, slot: u32, digest: Digest) -> Option<(u32, u32)> {
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
        let seat = self.swarms[swarm].seat(SwarmMember {
            member: slot,
            mirror: member.is_mirror(),
            zone: member.zone,
            have: PieceSet::new(pieces),
            leased: PieceSet::new(pieces),
            ..SwarmMember::default()
        });
        member.seats.insert(swarm, seat);
        Some((swarm, seat))
    }

    /// Counts a seat's bitmaps in its member's budget; says whether they fit.
    pub(super) fn reserve(&mut self, swarm: u32, seat: u32) -> bool {
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

    pub(super) fn release(&mut self, swarm: u32, seat: u32) {
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

    /// Of a swarm that no member wants any more remain the holders of the whole blob, in a few bytes, and the mirrors' fills.
    pub(super) fn idle(&mut self, swarm: u32) {
        let Some(state) = self.swarms.get(swarm).filter(|state| !state.is_live()) else {
            return;
        };
        let leaving = state
            .seats
            .iter()
            .filter(|(_, seat)| (seat.complete || !seat.mirror) && !seat.banned);
        let (digest, leaving) = (
            state.digest,
            leaving.map(|(index, seat)| (index, seat.member, seat.complete)),
        );
        for (seat, member, complete) in leaving.collect::<Vec<_>>() {
            self.leave_seat(swarm, seat);
            if complete {
                self.note_holding(member, &digest);
            }
        }
        self.forget_fill(swarm);
    }

    /// Empties a seat of which nothing is known, and with the last one the swarm.
    pub(super) fn tidy(&mut self, swarm: u32, seat: u32) {
        let seats = self.swarms.get(swarm).map(|state| &state.seats);
        if seats
            .and_then(|seats| seats.get(seat))
            .is_some_and(SwarmMember::is_vacant)
        {
            self.leave_seat(swarm, seat);
        }
        self.forget_fill(swarm);
    }

    /// Drops the fill of a swarm that no member wants, unless a mirror is filling it.
    fn forget_fill(&mut self, swarm: u32) {
        let Some(state) = self.swarms.get_mut(swarm).filter(|state| !state.is_live()) else {
            return;
        };
        let filling = |&mirror: &u32| !state.seats[mirror].complete && !state.seats[mirror].have.is_empty();
        if state.fill.is_some() && !state.mirrors.iter().any(filling) {
            state.fill = None;
            for seat in state.seats.iter_mut() {
                seat.have = PieceSet::default();
                seat.unproven = PieceSet::default();
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
                self.timers.remove(&(at, Timer::Tick(swarm)));
            }
        }
    }
}
