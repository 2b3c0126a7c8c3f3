//! Waiting receivers: pieces that a connected client waits for are leased before anything else.
//!
//! Invariant: a member is in the set of waiting receivers exactly while the piece that its client waits for is missing and it
//! has room for it.

use piecemeal_proto::Digest;

use super::{Brain, Command, MemberId, Priority, pairing::PieceSelection};

impl Brain {
    /// A client of `member` waits for `piece`; the latest report counts.
    pub(super) fn wait(&mut self, member: MemberId, digest: &Digest, piece: u32) {
        let Some((swarm, index)) = self
            .note_heard(member)
            .and_then(|slot| self.find_swarm_member(slot, digest))
        else {
            return;
        };
        let slot = self.swarms[swarm].members[index].slot;
        let state = &mut self.swarms[swarm];
        if piece < state.pieces() && self.members[slot].allowance > 1 {
            state.members[index].waiting = Some(piece);
            self.requeue(swarm, index);
        }
    }

    /// Leases from a source with room to a waiting receiver.
    pub(super) fn lease_to_waiting(&mut self, (swarm, source): (u32, u32), out: &mut Vec<Command>) -> bool {
        let state = &self.swarms[swarm];
        let len = state.waiting_receivers.len();
        let start = self.rng.below(len);
        for step in 0..len.min(self.policy.receivers_sampled) {
            let state = &self.swarms[swarm];
            let receiver = state.waiting_receivers.as_slice()[(start + step) % len];
            let Some(piece) = state.members[receiver].waiting else {
                continue;
            };
            let source_slot = state.members[source].slot;
            if let Some(run) = self.match_pair(swarm, source, receiver, PieceSelection::Piece(piece)) {
                self.issue_lease((swarm, receiver), Some(source_slot), run, Priority::Waiting, out);
                return true;
            }
        }
        false
    }

    /// Finds a source for the piece that a receiver waits for.
    pub(super) fn lease_waited_for(&mut self, swarm: u32, index: u32, out: &mut Vec<Command>) -> bool {
        let Some(state) = self
            .swarms
            .get(swarm)
            .filter(|state| state.waiting_receivers.contains(index))
        else {
            return false;
        };
        let Some(piece) = state.members[index].waiting else {
            return false;
        };
        let selection = PieceSelection::Piece(piece);
        let found = self
            .pick_source(swarm, index, selection, true)
            .or_else(|| self.pick_source(swarm, index, selection, false));
        let Some((source, run)) = found else {
            return false;
        };
        self.issue_lease((swarm, index), Some(source), run, Priority::Waiting, out);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Event, Outcome, Priority,
        testing::{MIRROR, Site, peer},
    };

    #[test]
    fn what_a_client_waits_for_is_leased_next() {
        let mut site = Site::new(64, 1);
        site.have(MIRROR, 0..64);
        site.want(peer(1), []);
        let leased = site.leases();
        assert_eq!(leased.len(), 4);
        site.event(Event::Waiting {
            member: peer(1),
            digest: site.digest,
            piece: 40,
        });
        let (_, lease) = site.lease();
        assert_eq!((lease.first, lease.priority), (40, Priority::Waiting));
        site.end(peer(1), leased[0].1.id, Outcome::Done);
        assert!(
            site.leases()
                .iter()
                .all(|(_, lease)| lease.priority == Priority::Normal)
        );
    }

    #[test]
    fn a_piece_that_comes_later_goes_to_who_waits_for_it() {
        let mut site = Site::new(64, 2);
        site.want(peer(1), 0..8);
        site.want(peer(2), []);
        site.event(Event::Waiting {
            member: peer(1),
            digest: site.digest,
            piece: 8,
        });
        site.have(MIRROR, 8..9);
        let (to, lease) = site.lease();
        assert_eq!((to, lease.priority), (peer(1), Priority::Waiting));
    }

    #[test]
    fn a_piece_beyond_the_blob_is_ignored() {
        let mut site = Site::new(4, 1);
        site.want(peer(1), []);
        for piece in [4, u32::MAX] {
            site.event(Event::Waiting {
                member: peer(1),
                digest: site.digest,
                piece,
            });
        }
        assert!(site.out.is_empty());
    }
}
