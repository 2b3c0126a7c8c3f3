//! Wants: the blobs that a member wants, with the pieces of them that it already has.
//!
//! Invariant: a repeated want replaces everything that the member said before about the pieces of the blob.

use std::ops::Range;

use piecemeal_proto::{Digest, FillId, PieceMap, PieceSet};

use super::{Brain, Command, MemberId};

impl Brain {
    pub(super) fn want(
        &mut self,
        member: MemberId,
        digest: Digest,
        (map, fill): (PieceMap, FillId),
        have: &PieceSet,
        window: Option<Range<u32>>,
        out: &mut Vec<Command>,
    ) {
        let Some(slot) = self.note_heard(member) else {
            return;
        };
        if map.is_empty() || have.capacity() != map.count() {
            return;
        }
        let mirror = self.members[slot].is_mirror();
        let known = self.find_swarm_member(slot, &digest);
        let is_new = !mirror && known.is_none_or(|(swarm, index)| !self.swarms[swarm].members[index].wants);
        if is_new && self.members[slot].wants >= self.policy.wants_max {
            return;
        }
        let Some((swarm, index)) = self.enter_swarm(slot, digest) else {
            return;
        };
        let in_force = self.agree_on_fill((swarm, index), (fill, map), true, out);
        if !self.reserve(swarm, index) {
            self.remove_if_vacant(swarm, index);
            return;
        }
        self.swarms[swarm].members[index].window = window;
        self.replace_pieces((swarm, index), have, in_force);
        if is_new {
            self.begin_wanting((swarm, index), out);
        }
        self.use_list(swarm, out);
        self.compare(swarm, index, out);
        self.requeue(swarm, index);
        self.remove_if_vacant(swarm, index);
        self.describe(swarm, out);
    }

    /// From now on the member has exactly the pieces `have`; none of them where they are not of the fill in force.
    fn replace_pieces(&mut self, (swarm, index): (u32, u32), have: &PieceSet, in_force: bool) {
        if self.swarms[swarm].members[index].complete {
            self.swarms[swarm].forget_claims(index);
        }
        let member = &self.swarms[swarm].members[index];
        let (slot, mirror) = (member.slot, member.mirror);
        let old: Vec<u32> = member.have.iter().collect();
        for piece in old {
            if !in_force || !have.contains(piece) {
                let covered = self.is_covered(slot, swarm, piece);
                self.swarms[swarm].lose(index, piece, covered);
            }
        }
        if !in_force {
            return;
        }
        for piece in have.iter() {
            let news = self.swarms[swarm].gain(index, piece, self.now);
            if news && !mirror {
                self.swarms[swarm].note_unproven(index, piece);
            }
        }
    }

    fn begin_wanting(&mut self, (swarm, index): (u32, u32), out: &mut Vec<Command>) {
        let state = &mut self.swarms[swarm];
        let member = &mut state.members[index];
        let slot = member.slot;
        (member.wants, member.is_absent) = (true, false);
        member.fed_at = self.now;
        member.is_known = self.members[slot].landed;
        if state.wanting == 0 {
            state.live_since = self.now;
        }
        state.wanting += 1;
        self.members[slot].wants += 1;
        let pool = state.pool;
        self.attend(swarm);
        self.pools[pool].miss_mirror(self.now);
        self.add_holders(swarm);
        self.send_list(swarm, index, out);
    }

    pub(super) fn unwant(&mut self, member: MemberId, digest: &Digest, out: &mut Vec<Command>) {
        let Some(slot) = self.note_heard(member) else {
            return;
        };
        let Some((swarm, index)) = self.find_swarm_member(slot, digest) else {
            return;
        };
        let fetching = self.members[slot].fetching.iter().filter_map(|&id| self.leases.get(id));
        let in_swarm = fetching.filter(|lease| lease.swarm == swarm);
        let first_issued_at = in_swarm.map(|lease| lease.issued_at).min();
        self.cancel_fetches(slot, swarm, out);
        if let Some(issued_at) = first_issued_at {
            self.note_given_up(slot, issued_at);
        }
        self.stop_wanting(swarm, index);
        self.remove_if_vacant(swarm, index);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Event,
        testing::{MIRROR, Site, peer},
    };
    use super::*;

    #[test]
    fn one_peer_cannot_fill_the_memory() {
        let mut site = Site::new(8, 1);
        site.brain.policy.pieces_max = 100;
        site.brain.policy.wants_max = 5;
        for number in 0..20_u8 {
            site.digest = Digest::of(&[number]);
            site.want(peer(1), []);
        }
        assert_eq!(site.brain.swarms.len(), 5);
        site.brain.policy.wants_max = 50;
        for number in 20..40_u8 {
            site.digest = Digest::of(&[number]);
            site.want(peer(1), []);
        }
        assert_eq!(site.brain.swarms.len(), 12, "of 8 pieces each");
    }

    #[test]
    fn who_has_no_room_for_all_is_sent_what_it_has_room_for_as_that_moves_on() {
        let mut site = Site::new(200, 1);
        site.have(MIRROR, 0..200);
        let want = |site: &mut Site, have: std::ops::Range<u32>, window: std::ops::Range<u32>| {
            let (digest, map, fill) = (site.digest, site.map, site.fill);
            let have = site.set(have);
            site.event(Event::Want {
                member: peer(1),
                digest,
                map,
                fill,
                have,
                window: Some(window),
            });
        };
        want(&mut site, 0..0, 62..66);
        let mut seen = std::collections::BTreeSet::new();
        let mut queue = site.leases();
        while let Some((_, lease)) = queue.pop() {
            seen.extend(lease.first..lease.first + lease.count);
            site.end(peer(1), lease.id, super::super::Outcome::Done);
            queue.extend(site.leases());
        }
        assert_eq!(seen, (62..66).collect(), "all of it and nothing else");
        // The first two have gone again.
        want(&mut site, 64..66, 64..68);
        let leased: Vec<u32> = site
            .leases()
            .iter()
            .flat_map(|(_, lease)| lease.first..lease.first + lease.count)
            .collect();
        assert_eq!(leased, [66, 67]);
        want(&mut site, 0..0, 500..600);
        assert!(
            site.leases().iter().all(|(to, _)| *to != peer(1)),
            "there are no such pieces"
        );
    }

    #[test]
    fn a_repeated_want_is_the_truth_as_of_now() {
        let mut site = Site::new(8, 1);
        site.have(MIRROR, 0..8);
        site.want(peer(1), 0..6);
        assert_eq!(site.leases().len(), 2);
        site.want(peer(1), 3..8);
        assert_eq!(site.brain.status().swarms[0].pieces_held, 5);
        let digest = site.digest;
        site.event(Event::Lost {
            member: peer(1),
            digest,
        });
        assert_eq!(site.brain.status().swarms[0].pieces_held, 0);
        assert_eq!(site.leases().len(), 4);
    }
}
