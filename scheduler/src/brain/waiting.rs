//! Waiting receivers: pieces that a connected client waits for are leased before anything else, and filled before anything else where no
//! member holds them yet.
//!
//! Invariant: a member is in the set of waiting receivers exactly while a piece that its clients wait for is missing and it has room for it.

use piecemeal_proto::Digest;

use super::{Brain, Command, MemberId, Priority, Time, pairing::PieceSelection, run::Run, swarm::Swarm};

impl Brain {
    /// A client of `member` waits for `piece`.
    pub(super) fn wait(&mut self, member: MemberId, digest: &Digest, piece: u32, out: &mut Vec<Command>) {
        let Some((swarm, index)) = self
            .note_heard(member)
            .and_then(|slot| self.find_swarm_member(slot, digest))
        else {
            return;
        };
        let slot = self.swarms[swarm].members[index].slot;
        let state = &mut self.swarms[swarm];
        if piece < state.pieces() && state.members[index].wants && self.members[slot].allowance > 1 {
            state.members[index].note_waiting(piece);
            self.requeue(swarm, index);
            self.tell_mirrors(swarm, piece, out);
        }
    }

    /// Tells the pool's mirrors that a client waits for a piece, unless a member holds it, or they were told just now.
    fn tell_mirrors(&mut self, swarm: u32, piece: u32, out: &mut Vec<Command>) {
        let (now, state) = (self.now, &mut self.swarms[swarm]);
        if state.is_held(piece) || !state.note_told(piece, now) {
            return;
        }
        let (pool, digest) = (state.pool, state.digest);
        let mirrors = self.pools[pool].mirror_slots.iter().map(|&slot| &self.members[slot]);
        out.extend(
            mirrors
                .filter(|mirror| mirror.info.features.clients)
                .map(|mirror| Command::Clients {
                    to: mirror.id,
                    digest,
                    connected: None,
                    waiting: vec![piece],
                }),
        );
    }

    /// Leases from a source with room to a waiting receiver.
    pub(super) fn lease_to_waiting(&mut self, (swarm, source): (u32, u32), out: &mut Vec<Command>) -> bool {
        let state = &self.swarms[swarm];
        let len = state.waiting_receivers.len();
        let start = self.rng.below(len);
        for step in 0..len.min(self.policy.receivers_sampled) {
            let state = &self.swarms[swarm];
            let receiver = state.waiting_receivers.as_slice()[(start + step) % len];
            let source_slot = state.members[source].slot;
            let waiting = state.members[receiver].waiting.clone();
            let matched = |piece| self.match_pair(swarm, source, receiver, PieceSelection::Piece(piece));
            if let Some(run) = waiting.into_iter().find_map(matched) {
                self.issue_lease((swarm, receiver), Some(source_slot), run, Priority::Waiting, out);
                return true;
            }
        }
        false
    }

    /// Finds a source for a piece that a receiver waits for.
    pub(super) fn lease_waited_for(&mut self, swarm: u32, index: u32, out: &mut Vec<Command>) -> bool {
        let Some(state) = self
            .swarms
            .get(swarm)
            .filter(|state| state.waiting_receivers.contains(index))
        else {
            return false;
        };
        let lacking = state.members[index].waiting.iter().copied();
        let lacking: Vec<u32> = lacking.filter(|&piece| state.members[index].lacks(piece)).collect();
        let found = lacking
            .into_iter()
            .find_map(|piece| self.pick_for_waiting(swarm, index, piece));
        let Some((source, run)) = found else {
            return false;
        };
        self.issue_lease((swarm, index), Some(source), run, Priority::Waiting, out);
        true
    }

    fn pick_for_waiting(&mut self, swarm: u32, index: u32, piece: u32) -> Option<(u32, Run)> {
        let selection = PieceSelection::Piece(piece);
        self.pick_source(swarm, index, selection, true)
            .or_else(|| self.pick_source(swarm, index, selection, false))
    }
}

impl Swarm {
    /// Whether a member that is believed holds the piece.
    fn is_held(&self, piece: u32) -> bool {
        let is_copied = || self.fill.as_ref().is_some_and(|fill| !fill.rarity.is_scarce(piece));
        self.complete_peers > 0 || is_copied() || self.mirrors.iter().any(|&mirror| self.members[mirror].holds(piece))
    }

    /// Notes that mirrors are told of the piece; `false`: they were told within [`TELL_EVERY`].
    fn note_told(&mut self, piece: u32, now: Time) -> bool {
        self.told.retain(|&(_, at)| now < at + TELL_EVERY);
        if self.told.iter().any(|&(told, _)| told == piece) {
            return false;
        }
        if self.told.len() == TOLD_MAX {
            self.told.pop_front();
        }
        self.told.push_back((piece, now));
        true
    }
}

/// Between two times that mirrors are told of one piece.
const TELL_EVERY: Time = Time::from_secs(1);
/// The most pieces of a blob that mirrors are known to have been told of: as many as they remember.
const TOLD_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use piecemeal_proto::wire::WAITING_MAX;

    use super::{
        super::{
            Event, MemberId, Outcome, Priority,
            testing::{MIRROR, Site, peer},
        },
        *,
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

    fn wait(site: &mut Site, member: MemberId, piece: u32) {
        let digest = site.digest;
        site.event(Event::Waiting { member, digest, piece });
    }

    /// The pieces that the mirror is told of.
    fn told(site: &Site) -> Vec<u32> {
        let told = site.out.iter().filter_map(|command| match command {
            Command::Clients { to, waiting, .. } if *to == MIRROR => Some(waiting.clone()),
            _ => None,
        });
        told.flatten().collect()
    }

    #[test]
    fn a_mirror_is_told_of_what_no_member_holds_once_a_second_however_many_wait() {
        let mut site = Site::new(64, 3);
        site.have(MIRROR, 0..8);
        (1..=3).for_each(|number| site.want(peer(number), []));
        wait(&mut site, peer(1), 40);
        assert_eq!(told(&site), [40]);
        wait(&mut site, peer(2), 40);
        assert!(told(&site).is_empty(), "just now");
        wait(&mut site, peer(3), 50);
        assert_eq!(told(&site), [50]);
        wait(&mut site, peer(3), 7);
        assert!(told(&site).is_empty(), "the mirror holds it");
        site.pass(TELL_EVERY, &[]);
        wait(&mut site, peer(2), 40);
        assert_eq!(told(&site), [40]);
    }

    #[test]
    fn near_the_end_of_what_others_have_the_mirror_is_told_and_the_piece_is_leased_as_it_comes() {
        let mut site = Site::new(100, 2);
        site.have(MIRROR, 0..90);
        site.want(peer(1), 0..90);
        site.want(peer(2), 0..90);
        site.have(peer(2), 0..90);
        wait(&mut site, peer(1), 97);
        assert_eq!(told(&site), [97]);
        site.have(MIRROR, 97..98);
        let (to, lease) = site.leases()[0].clone();
        assert_eq!((to, lease.first, lease.priority), (peer(1), 97, Priority::Waiting));
    }

    #[test]
    fn a_mirror_of_the_last_release_is_told_nothing_and_neither_is_one_for_a_peer_that_wants_nothing() {
        let mut site = Site::new(64, 1);
        site.want(peer(1), []);
        site.event(Event::Unwant {
            member: peer(1),
            digest: site.digest,
        });
        wait(&mut site, peer(1), 40);
        assert!(told(&site).is_empty());
        let mirror = site.brain.ids[&MIRROR];
        site.brain.members[mirror].info.features.clients = false;
        site.want(peer(1), []);
        wait(&mut site, peer(1), 40);
        assert!(told(&site).is_empty());
    }

    #[test]
    fn every_piece_that_clients_of_a_peer_wait_for_is_leased_before_others() {
        let mut site = Site::new(64, 1);
        site.want(peer(1), []);
        for piece in [40, 20, 60] {
            wait(&mut site, peer(1), piece);
        }
        site.have(MIRROR, 0..64);
        let leased: Vec<u32> = site.leases().iter().map(|(_, lease)| lease.first).collect();
        assert_eq!(leased[..3], [40, 20, 60]);
        (0..40).for_each(|piece| wait(&mut site, peer(1), piece));
        let swarm = site.brain.digests[&(site.brain.members[0].pool, site.digest)];
        let waiting = site.brain.swarms[swarm]
            .members
            .iter()
            .map(|(_, member)| member.waiting.len());
        assert!(waiting.max() <= Some(WAITING_MAX));
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
