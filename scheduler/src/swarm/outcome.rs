//! How leases end, and what follows for their sources.
//!
//! Invariant: whatever the outcome, what has not landed is missing again before anything is matched.

use super::{Brain, Command, LeaseId, MemberId, Outcome, lease::LeaseState};

impl Brain {
    pub(super) fn ended(&mut self, member: MemberId, id: LeaseId, outcome: Outcome, out: &mut Vec<Command>) {
        let Some(slot) = self.hear(member) else {
            return;
        };
        if !self.leases.get(id).is_some_and(|lease| lease.receiver == slot) {
            return;
        }
        if outcome == Outcome::Done {
            self.land(id);
        }
        let Some((lease, _)) = self.take_back(id) else {
            return;
        };
        let Some(source) = lease.source else {
            if outcome != Outcome::Done && outcome != Outcome::Cancelled {
                let state = &mut self.swarms[lease.swarm];
                state.seats[lease.seat].upstream.strike(self.now, &self.policy);
                self.pass_upstream_on(lease.swarm, lease.seat);
            }
            return;
        };
        let asides = &mut self.members[source].asides;
        match outcome {
            Outcome::Done => asides.serve(member),
            Outcome::Cancelled => {}
            Outcome::Unreachable | Outcome::Stalled => asides.accuse(member, self.now, &self.policy),
            Outcome::Refused => asides.strike(member, self.now, &self.policy),
            Outcome::Missing { piece } => self.strike_piece(&lease, source, piece),
            Outcome::Corrupt { piece } => self.convict(&lease, source, piece, out),
        }
    }

    /// The receiver holds every piece of the lease.
    fn land(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.get(id) else {
            return;
        };
        let state = &mut self.swarms[lease.swarm];
        for piece in lease.run.pieces() {
            state.gain(lease.seat, piece, self.now);
        }
        let seat = &mut state.seats[lease.seat];
        seat.stolen = seat.stolen.saturating_sub(1);
        let Some(source) = lease.source else {
            return;
        };
        if lease.granted < self.awake_since {
            return;
        }
        let took = self.now - lease.granted;
        let member = &mut self.members[source];
        if let Some(usual) = state.usual {
            member.note_pace(took, usual, &self.policy);
        }
        if !member.is_mirror() {
            let usual = state.usual.unwrap_or(took);
            state.usual = Some(usual - usual / USUAL_WEIGHT + took / USUAL_WEIGHT);
        }
    }

    /// The source does not hold a piece that it claimed.
    fn strike_piece(&mut self, lease: &LeaseState, source: u32, piece: u32) {
        let Some(&seat) = self.members[source].seats.get(&lease.swarm) else {
            return;
        };
        if !lease.run.contains(piece) {
            return;
        }
        let covered = self.is_covered(source, lease.swarm, piece);
        let state = &mut self.swarms[lease.swarm];
        if state.seats[seat].complete {
            state.spell_out(seat, self.now);
        }
        state.lose(seat, piece, covered);
        self.touch(lease.swarm, seat);
        self.tidy(lease.swarm, seat);
    }

    /// The source sent other bytes than it claimed. A peer is believed a few such reports: with more, one liar could take every
    /// source from the others. A mirror, which verifies what it holds, is only left alone by this receiver.
    fn convict(&mut self, lease: &LeaseState, source: u32, piece: u32, out: &mut Vec<Command>) {
        let state = &mut self.swarms[lease.swarm];
        if let Some(fill) = &mut state.fill
            && lease.run.contains(piece)
        {
            fill.doubt(piece);
        }
        let accuser = self.members[lease.receiver].id;
        self.members[source].asides.strike(accuser, self.now, &self.policy);
        let Some(&seat) = self.members[source].seats.get(&lease.swarm) else {
            return;
        };
        let accusations = &mut state.seats[lease.seat].accusations;
        if self.members[source].is_mirror() || *accusations >= self.policy.accusations_max {
            return;
        }
        *accusations += 1;
        state.ban(seat);
        self.cancel_uploads(source, lease.swarm, out);
        self.pass_upstream_on(lease.swarm, seat);
        self.touch(lease.swarm, seat);
    }
}

/// One in so many parts of the usual lease time is the latest lease's.
const USUAL_WEIGHT: u32 = 8;
