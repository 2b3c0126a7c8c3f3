//! What a connected client waits for is leased before anything else.
//!
//! Invariant: a seat is on the waiting roll exactly while the piece that its client waits in is missing and it has room for it.

use piecemeal_proto::Digest;

use super::{Brain, Command, MemberId, Priority, placement::Choice};

impl Brain {
    /// A client of `member` waits in `piece`; the latest report counts.
    pub(super) fn wait(&mut self, member: MemberId, digest: &Digest, piece: u32) {
        let Some((swarm, seat)) = self.hear(member).and_then(|slot| self.seat_of(slot, digest)) else {
            return;
        };
        let state = &mut self.swarms[swarm];
        if piece < state.pieces() {
            state.seats[seat].waiting = Some(piece);
            self.touch(swarm, seat);
        }
    }

    /// Serves a waiting receiver from a source with room.
    pub(super) fn give_waiting(&mut self, (swarm, source): (u32, u32), out: &mut Vec<Command>) -> bool {
        let state = &self.swarms[swarm];
        let len = state.waiting.len();
        let start = self.dice.below(len);
        for step in 0..len.min(self.policy.receivers_sampled) {
            let state = &self.swarms[swarm];
            let receiver = state.waiting.as_slice()[(start + step) % len];
            let Some(piece) = state.seats[receiver].waiting else {
                continue;
            };
            let giver = state.seats[source].member;
            if let Some(run) = self.match_pair(swarm, source, receiver, Choice::Piece(piece)) {
                self.grant((swarm, receiver), Some(giver), run, Priority::Waiting, out);
                return true;
            }
        }
        false
    }

    /// Finds a source for what a receiver waits in.
    pub(super) fn supply_waiting(&mut self, swarm: u32, seat: u32, out: &mut Vec<Command>) -> bool {
        let Some(state) = self.swarms.get(swarm).filter(|state| state.waiting.contains(seat)) else {
            return false;
        };
        let Some(piece) = state.seats[seat].waiting else {
            return false;
        };
        let choice = Choice::Piece(piece);
        let found = self
            .pick_source(swarm, seat, choice, true)
            .or_else(|| self.pick_source(swarm, seat, choice, false));
        let Some((source, run)) = found else {
            return false;
        };
        self.grant((swarm, seat), Some(source), run, Priority::Waiting, out);
        true
    }
}
