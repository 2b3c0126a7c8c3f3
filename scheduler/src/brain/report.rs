//! Members' reports about a blob: what they want, hold, and have lost, and which fill is in force.
//!
//! Invariant: pieces are only ever counted under the fill in force. A mirror's word sets it; a peer's want, whose grant a mirror
//! signed, only while no mirror has spoken and no peer has a piece of another.

use std::ops::Range;

use piecemeal_proto::{Digest, FillId, PieceMap, PieceSet};

use super::{Brain, Command, MemberId, fill::Fill, holdings::Key, swarm::Swarm};

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
        let wanted = self.find_swarm_member(slot, &digest);
        let first = wanted.is_none_or(|(swarm, index)| !self.swarms[swarm].members[index].wants);
        if first && !mirror && self.members[slot].wants >= self.policy.wants_max {
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
        if self.swarms[swarm].members[index].complete {
            self.swarms[swarm].forget_claims(index);
        }
        self.swarms[swarm].members[index].window = window;
        let old: Vec<u32> = self.swarms[swarm].members[index].have.iter().collect();
        for piece in old {
            if !in_force || !have.contains(piece) {
                let covered = self.is_covered(slot, swarm, piece);
                self.swarms[swarm].lose(index, piece, covered);
            }
        }
        if in_force {
            for piece in have.iter() {
                let news = self.swarms[swarm].gain(index, piece, self.now);
                if news && !mirror {
                    self.swarms[swarm].note_unproven(index, piece);
                }
            }
        }
        if first && !mirror {
            let state = &mut self.swarms[swarm];
            state.members[index].wants = true;
            state.members[index].fed_at = self.now;
            state.members[index].is_known = self.members[slot].landed;
            if state.wanting == 0 {
                state.live_since = self.now;
            }
            state.wanting += 1;
            self.members[slot].wants += 1;
            let pool = state.pool;
            self.pools[pool].miss_mirror(self.now);
            self.add_holders(swarm);
            self.send_list(swarm, index, out);
        }
        self.use_list(swarm, out);
        self.compare(swarm, index, out);
        self.requeue(swarm, index);
        self.remove_if_vacant(swarm, index);
        self.describe(swarm, out);
    }

    pub(super) fn unwant(&mut self, member: MemberId, digest: &Digest, out: &mut Vec<Command>) {
        let Some(slot) = self.note_heard(member) else {
            return;
        };
        if let Some((swarm, index)) = self.find_swarm_member(slot, digest) {
            let fetching = self.members[slot].fetching.iter().filter_map(|&id| self.leases.get(id));
            let issued_at = fetching
                .filter(|lease| lease.swarm == swarm)
                .map(|lease| lease.issued_at)
                .min();
            self.cancel_fetches(slot, swarm, out);
            if let Some(issued_at) = issued_at {
                self.note_given_up(slot, issued_at);
            }
            self.stop_wanting(swarm, index);
            self.remove_if_vacant(swarm, index);
        }
    }

    /// `hashes`: of the pieces from `first` that it holds under `fill`, cut by `map`. A peer that verified the whole blob may not
    /// know the fill, and states hashes that are good under any.
    pub(super) fn have(
        &mut self,
        member: MemberId,
        digest: Digest,
        (fill, map): (FillId, PieceMap),
        first: u32,
        hashes: &[Option<[u8; 32]>],
        out: &mut Vec<Command>,
    ) {
        let Some(slot) = self.note_heard(member) else {
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
        let Some((swarm, index)) = self.enter_swarm(slot, digest) else {
            return;
        };
        let state = &self.swarms[swarm];
        let verified = state.members[index].complete && state.fill.as_ref().is_some_and(|known| known.map == map);
        let good = verified && !mirror
            || self.agree_on_fill((swarm, index), (fill, map), mirror, out) && self.reserve(swarm, index);
        if !good {
            self.remove_if_vacant(swarm, index);
            return;
        }
        let unhashed = if mirror {
            let state = &mut self.swarms[swarm];
            let (complete, mut news) = (state.members[index].complete, false);
            for piece in (first..).take(hashes.len()) {
                news |= !complete && state.gain(index, piece, self.now);
            }
            if news {
                self.note_progress(swarm);
            }
            self.state_hashes((swarm, index), first, hashes, out);
            let fill = self.swarms[swarm].fill.as_ref();
            fill.is_some_and(|fill| (first..).take(hashes.len()).any(|piece| !fill.hashed.contains(piece)))
        } else {
            self.claim_hashes((swarm, index), first, hashes, out)
        };
        self.requeue(swarm, index);
        if unhashed {
            self.describe(swarm, out);
        }
    }

    pub(super) fn complete(&mut self, member: MemberId, digest: Digest, out: &mut Vec<Command>) {
        let Some(slot) = self.note_heard(member) else {
            return;
        };
        let key = (self.members[slot].pool, digest);
        let swarm = self.digests.get(&key).map(|&swarm| &self.swarms[swarm]);
        if self.find_swarm_member(slot, &digest).is_none() && !swarm.is_some_and(Swarm::is_live) {
            self.note_holding(slot, &digest);
            return;
        }
        let Some((swarm, index)) = self.enter_swarm(slot, digest) else {
            return;
        };
        self.cancel_fetches(slot, swarm, out);
        let held = &self.swarms[swarm].members[index];
        if held.mirror && held.have.capacity() > 0 && held.have.is_full() {
            // All that it stated of this fill is of the blob that it has proven.
            self.prove_fill(swarm, out);
        }
        self.release(swarm, index);
        self.swarms[swarm].complete(index);
        self.stop_wanting(swarm, index);
        if self.find_swarm_member(slot, &digest).is_none() {
            // No member wants it any more.
            return;
        }
        self.requeue(swarm, index);
        self.remove_if_vacant(swarm, index);
        self.describe(swarm, out);
    }

    pub(super) fn lost(&mut self, member: MemberId, digest: &Digest, out: &mut Vec<Command>) {
        let Some(slot) = self.note_heard(member) else {
            return;
        };
        let key = Key::new(self.members[slot].pool, digest);
        self.holdings.remove(slot, key);
        if let Some((swarm, index)) = self.find_swarm_member(slot, digest) {
            self.cancel_fetches(slot, swarm, out);
            self.cancel_uploads(slot, swarm, out);
            self.swarms[swarm].forget_claims(index);
            self.requeue(swarm, index);
            self.remove_if_vacant(swarm, index);
        }
    }

    pub(super) fn proven(&mut self, member: MemberId, digest: &Digest, fill: FillId, out: &mut Vec<Command>) {
        let Some((swarm, _)) = self.find_mirror(member, digest) else {
            return;
        };
        let is_in_force = self.swarms[swarm].fill.as_ref().is_some_and(|filled| filled.id == fill);
        if is_in_force {
            self.prove_fill(swarm, out);
        }
    }

    pub(super) fn revoke(&mut self, member: MemberId, digest: &Digest, fill: FillId, out: &mut Vec<Command>) {
        let Some((swarm, _)) = self.find_mirror(member, digest) else {
            return;
        };
        let state = &mut self.swarms[swarm];
        if !state.revoked.contains(&fill) {
            state.revoked.push_back(fill);
            state.revoked.drain(..state.revoked.len().saturating_sub(REVOKED_MAX));
        }
        let revoked = Some(fill) == state.fill.as_ref().map(|filled| filled.id);
        let told = state.members.iter().map(|(_, member)| self.members[member.slot].id);
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

    fn find_mirror(&mut self, member: MemberId, digest: &Digest) -> Option<(u32, u32)> {
        let slot = self.note_heard(member).filter(|&slot| self.members[slot].is_mirror())?;
        self.find_swarm_member(slot, digest)
    }

    /// Settles which fill is in force after a seat's report of `fill`, which a mirror stated or `granted`; says whether it is that
    /// one.
    fn agree_on_fill(
        &mut self,
        (swarm, index): (u32, u32),
        (fill, map): (FillId, PieceMap),
        granted: bool,
        out: &mut Vec<Command>,
    ) -> bool {
        let state = &mut self.swarms[swarm];
        let mirror = state.members[index].mirror;
        let kept_by_another_mirror = state
            .mirrors
            .iter()
            .any(|&other| other != index && !state.members[other].have.is_empty());
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
            _ if !granted => return false,
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

    /// Begins another fill (`None`: one that no member knows yet): every piece of the former one is forgotten, whole blobs are not.
    fn replace_fill(&mut self, swarm: u32, fill: Option<FillId>, map: PieceMap, out: &mut Vec<Command>) {
        let leases: Vec<_> = self.swarms[swarm].issued.iter().copied().collect();
        for lease in leases {
            self.cancel(lease, out);
        }
        let fill = fill.unwrap_or_else(|| FillId(self.rng.next().max(1)));
        let state = &mut self.swarms[swarm];
        let members: Vec<u32> = state.members.iter().map(|(index, _)| index).collect();
        state.fill = Some(match state.fill.take() {
            Some(old) => old.succeed(fill, map),
            None => Fill::new(fill, map),
        });
        state.lease_time = None;
        for index in members {
            let state = &mut self.swarms[swarm];
            let member = &mut state.members[index];
            if !member.complete {
                member.have = PieceSet::new(map.count());
                member.unproven = PieceSet::default();
                member.leased = PieceSet::new(map.count());
                member.taken = 0;
                member.waiting = None;
            }
            state.clear_dispute(index);
            state.update_sets(index, self.policy.leases_deep);
        }
        self.schedule_tick(swarm);
    }
}

/// What a peer says that knows of no fill.
const NO_FILL: FillId = FillId(0);

/// Revoked fills that a swarm remembers, against reports that were on their way.
const REVOKED_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::super::{
        Command, Event, Role, Time,
        testing::{MIRROR, Site, peer},
    };
    use super::*;

    #[test]
    fn a_mirrors_new_fill_replaces_the_old_and_cancels_its_leases() {
        let mut site = Site::new(8, 1);
        site.have(MIRROR, 0..8);
        site.want(peer(1), []);
        site.fill = FillId(2);
        site.have(MIRROR, 0..1);
        assert_eq!(site.cancelled().len(), 4);
        assert_eq!(site.lease().1.fill, FillId(2));
        assert!(
            !site
                .out
                .iter()
                .any(|command| matches!(command, Command::Revoked { .. }))
        );
    }

    #[test]
    fn a_peer_cannot_replace_a_mirrors_fill() {
        let mut site = Site::new(8, 2);
        site.have(MIRROR, 0..4);
        site.fill = FillId(66);
        site.want(peer(1), 0..8);
        site.have(peer(1), 0..8);
        assert!(site.leases().iter().all(|(_, lease)| lease.fill == FillId(1)));
        assert_eq!(site.brain.status().swarms[0].pieces_held, 0);
    }

    #[test]
    fn a_peers_fill_is_adopted_while_nothing_better_is_known() {
        let mut site = Site::without_mirror(8, 3);
        site.fill = FillId(0);
        site.want(peer(1), []);
        let minted = site.brain.status().swarms[0].fill;
        site.fill = FillId(5);
        site.want(peer(2), 0..4);
        assert_ne!(minted, Some(FillId(5)));
        assert_eq!(site.brain.status().swarms[0].fill, Some(FillId(5)));
        site.fill = FillId(6);
        site.want(peer(3), 0..8);
        assert_eq!(
            site.brain.status().swarms[0].fill,
            Some(FillId(5)),
            "a peer has pieces of it"
        );
    }

    #[test]
    fn a_revoked_fill_is_forgotten_and_every_member_of_the_swarm_is_told() {
        let mut site = Site::new(8, 3);
        site.complete(peer(3));
        site.have(MIRROR, 0..8);
        site.want(peer(1), 0..2);
        site.want(peer(2), []);
        let outstanding = site.brain.leases.len();
        let (digest, fill) = (site.digest, site.fill);
        site.event(Event::Revoke {
            member: MIRROR,
            digest,
            fill,
        });
        let told = site
            .out
            .iter()
            .filter(|command| matches!(command, Command::Revoked { .. }));
        assert_eq!(told.count(), 4);
        assert_eq!(site.cancelled().len(), outstanding);
        site.have(peer(1), 0..2);
        site.have(MIRROR, 0..2);
        let status = site.brain.status().swarms[0].clone();
        assert_eq!((status.pieces_held, status.partial, status.complete), (0, 0, 1));
        site.fill = FillId(2);
        site.have(MIRROR, 0..1);
        assert_eq!(site.lease().1.fill, FillId(2));
    }

    #[test]
    fn a_peer_revokes_and_proves_nothing() {
        let mut site = Site::new(8, 1);
        site.have(MIRROR, 0..8);
        site.want(peer(1), []);
        let (digest, fill) = (site.digest, site.fill);
        let member = peer(1);
        site.event(Event::Revoke { member, digest, fill });
        site.event(Event::Proven { member, digest, fill });
        assert!(site.out.is_empty() && !site.brain.status().swarms[0].proven);
        site.event(Event::Proven {
            member: MIRROR,
            digest,
            fill,
        });
        assert!(site.brain.status().swarms[0].proven);
    }

    #[test]
    fn what_does_not_fit_is_ignored() {
        let mut site = Site::new(8, 1);
        let (digest, fill, map) = (site.digest, site.fill, site.map);
        for (first, len) in [(7, 2), (8, 1), (u32::MAX, 2), (0, 0)] {
            site.event(Event::Have {
                member: MIRROR,
                digest,
                map,
                fill,
                first,
                hashes: vec![None; len],
            });
        }
        site.event(Event::Want {
            member: peer(1),
            digest,
            map,
            fill,
            have: PieceSet::new(9),
            window: None,
        });
        site.event(Event::Want {
            member: peer(1),
            digest,
            map: PieceMap::new(0, 1).unwrap(),
            fill,
            have: PieceSet::new(0),
            window: None,
        });
        site.event(Event::Heard { member: peer(77) });
        assert_eq!(site.brain.swarms.len(), 0);
    }

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

    #[test]
    fn the_second_mirror_of_a_pool_does_not_replace_the_firsts_fill() {
        let mut site = Site::new(8, 1);
        site.join(peer(8), 8, Role::Mirror);
        site.want(peer(1), []);
        site.have(MIRROR, 0..1);
        site.fill = FillId(2);
        site.have(peer(8), 0..1);
        assert_eq!(site.brain.status().swarms[0].fill, Some(FillId(1)));
    }

    #[test]
    fn a_swarm_without_a_receiver_keeps_only_its_holders() {
        let mut site = Site::new(8, 2);
        site.complete(MIRROR);
        site.want(peer(1), 0..3);
        site.complete(peer(2));
        let digest = site.digest;
        site.event(Event::Unwant {
            member: peer(1),
            digest,
        });
        assert_eq!((site.brain.swarms.len(), site.brain.holdings.blobs()), (0, 1));
        site.pass(Time::from_secs(1), &[]);
        site.want(peer(1), []);
        assert_eq!(site.described(), [MIRROR]);
        site.have(MIRROR, 0..8);
        assert_eq!(site.leases().len(), 4);
    }
}
