//! Placement: sources with room find receivers, receivers with room find sources.
//!
//! Invariant: no source ever has more leases than its uploads and queue allow, and no receiver more than `leases_deep`.

use super::{
    Brain, Command, Priority, pairing::PieceSelection, receiver_class::ReceiverClass, run::Run, sample_set::SampleSet,
    swarm::Swarm,
};

impl Brain {
    /// Finds receivers for a source while it has room, in `swarm` first, then in its other swarms, in turn.
    pub(super) fn find_receivers(&mut self, source_slot: u32, swarm: u32, out: &mut Vec<Command>) {
        let mirror = self.members.get(source_slot).is_some_and(|member| member.is_mirror());
        let selections: &[PieceSelection] = if mirror {
            &[PieceSelection::Inject, PieceSelection::Rarest]
        } else {
            &[PieceSelection::Rarest]
        };
        for &selection in selections {
            let mut swarm = Some(swarm);
            let mut misses = 0;
            while let Some(tried) = swarm
                && misses < SWARMS_SAMPLED
                && self.has_room(source_slot, false)
            {
                if !self.lease_in_swarm(source_slot, tried, selection, out) {
                    misses += 1;
                    swarm = self.next_swarm(source_slot);
                }
            }
        }
    }

    /// The swarm whose turn it is at a source; forgets the swarms that no member wants any more.
    fn next_swarm(&mut self, source_slot: u32) -> Option<u32> {
        for _ in 0..SWARMS_SAMPLED {
            let member = &mut self.members[source_slot];
            let next = member
                .live_swarms
                .range(member.last_swarm + 1..)
                .next()
                .or_else(|| member.live_swarms.first());
            let &swarm = next?;
            member.last_swarm = swarm;
            if member.swarms.contains_key(&swarm) && self.swarms[swarm].is_live() {
                return Some(swarm);
            }
            self.members[source_slot].live_swarms.remove(&swarm);
        }
        None
    }

    fn lease_in_swarm(
        &mut self,
        source_slot: u32,
        swarm: u32,
        selection: PieceSelection,
        out: &mut Vec<Command>,
    ) -> bool {
        let Some(&source) = self.members[source_slot].swarms.get(&swarm) else {
            return false;
        };
        let state = &self.swarms[swarm];
        if !state.is_live() || !state.sources.contains(source) {
            return false;
        }
        if self.lease_to_waiting((swarm, source), out) {
            return true;
        }
        if self.members[source_slot].count(ReceiverClass::Idle) == 0 {
            return self.lease_to_sampled(
                source_slot,
                (swarm, source),
                &[|state| &state.receivers],
                selection,
                out,
            );
        }
        self.lease_to_sampled(
            source_slot,
            (swarm, source),
            &[|state| &state.landing_receivers, |state| &state.new_receivers],
            selection,
            out,
        ) || self.lease_to_sampled(
            source_slot,
            (swarm, source),
            &[|state| &state.idle_receivers],
            selection,
            out,
        )
    }

    /// Leases from the source to the best receiver of a sample of each set that it can serve.
    fn lease_to_sampled(
        &mut self,
        source_slot: u32,
        (swarm, source): (u32, u32),
        sets: &[fn(&Swarm) -> &SampleSet],
        selection: PieceSelection,
        out: &mut Vec<Command>,
    ) -> bool {
        let mut sampled = Vec::new();
        for set in sets {
            self.sample(swarm, *set, &mut sampled);
        }
        let state = &self.swarms[swarm];
        let pieces = state.pieces();
        let zone = state.members[source].zone;
        // Equals come in the order of the sample: by index, the first to join would always come first.
        let mut ranked: Vec<(bool, bool, bool, u32, bool, usize, u32)> = sampled
            .into_iter()
            .enumerate()
            .map(|(place, receiver)| {
                let member = &state.members[receiver];
                // A piece that only a slow uplink has keeps every receiver waiting.
                let slow = selection == PieceSelection::Inject && self.members[member.slot].slow;
                let rank = member.rank(pieces, self.now, self.policy.aging);
                let doubtful = self.members[member.slot].is_doubtful();
                (
                    doubtful,
                    member.is_absent,
                    slow,
                    rank,
                    member.zone != zone,
                    place,
                    receiver,
                )
            })
            .collect();
        while let Some((.., receiver)) = take_least(&mut ranked) {
            if let Some(run) = self.match_pair(swarm, source, receiver, selection) {
                self.issue_lease((swarm, receiver), Some(source_slot), run, Priority::Normal, out);
                return true;
            }
        }
        false
    }

    /// Samples as many members of a set as one event looks at, from a random one on.
    pub(super) fn sample(&mut self, swarm: u32, set: fn(&Swarm) -> &SampleSet, into: &mut Vec<u32>) {
        let set = set(&self.swarms[swarm]);
        let start = self.rng.below(set.len());
        let members = set.as_slice().iter().cycle().skip(start);
        into.extend(members.take(self.policy.receivers_sampled.min(set.len())));
    }

    /// Finds sources for a receiver while it has room.
    pub(super) fn find_sources(&mut self, swarm: u32, index: u32, out: &mut Vec<Command>) {
        while self.lease_waited_for(swarm, index, out) || self.lease_from_source(swarm, index, out) {}
    }

    fn lease_from_source(&mut self, swarm: u32, index: u32, out: &mut Vec<Command>) -> bool {
        if !self
            .swarms
            .get(swarm)
            .is_some_and(|state| state.receivers.contains(index))
        {
            return false;
        }
        let found = self
            .pick_source(swarm, index, PieceSelection::Inject, true)
            .or_else(|| self.pick_source(swarm, index, PieceSelection::Rarest, true))
            .or_else(|| self.pick_source(swarm, index, PieceSelection::Rarest, false));
        match found {
            Some((source, run)) => {
                self.issue_lease((swarm, index), Some(source), run, Priority::Normal, out);
                true
            }
            None => self.lease_from_upstream(swarm, index, out),
        }
    }

    /// A mirror, or the nearest and least busy peer of a sample, that can serve the receiver; with the pieces to fetch.
    pub(super) fn pick_source(
        &mut self,
        swarm: u32,
        receiver: u32,
        selection: PieceSelection,
        mirrors: bool,
    ) -> Option<(u32, Run)> {
        let state = &self.swarms[swarm];
        let urgent = matches!(selection, PieceSelection::Piece(_));
        let mut sample: Vec<(bool, usize, u32)> = if mirrors {
            state.mirrors.iter().map(|&source| (false, 0, source)).collect()
        } else {
            let zone = state.members[receiver].zone;
            let start = self.rng.below(state.sources.len());
            let sample = state.sources.as_slice().iter().cycle().skip(start);
            sample
                .take(self.policy.sources_sampled.min(state.sources.len()))
                .filter(|&&source| !state.members[source].mirror)
                .filter(|&&source| self.has_room(state.members[source].slot, urgent))
                .map(|&source| {
                    let member = &self.members[state.members[source].slot];
                    (state.members[source].zone != zone, member.serving.len(), source)
                })
                .collect()
        };
        while let Some((_, _, source)) = take_least(&mut sample) {
            let source_slot = self.swarms[swarm].members[source].slot;
            if self.has_room(source_slot, urgent)
                && let Some(run) = self.match_pair(swarm, source, receiver, selection)
            {
                return Some((source_slot, run));
            }
        }
        None
    }
}

/// Takes the least out. The first match nearly always succeeds, so sorting all would be a waste.
fn take_least<T: Ord>(sample: &mut Vec<T>) -> Option<T> {
    let least = (0..sample.len()).min_by_key(|&index| &sample[index])?;
    Some(sample.swap_remove(least))
}

/// Swarms that a source with room looks at in one event.
const SWARMS_SAMPLED: usize = 8;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};

    use super::super::{
        Event, Outcome, Role,
        testing::{MIRROR, Site, is_from, peer, trusting},
    };

    #[test]
    fn a_mirror_injects_every_piece_once_in_order() {
        let mut site = Site::new(8, 3);
        for number in 1..=3 {
            site.want(peer(number), []);
        }
        site.have(MIRROR, 0..8);
        let mut injected = Vec::new();
        let mut leases = VecDeque::from(site.leases());
        while let Some((to, lease)) = leases.pop_front() {
            if is_from(&lease, MIRROR) {
                injected.push(lease.first);
            }
            site.now += super::super::Time::from_millis(10);
            site.end(to, lease.id, Outcome::Done);
            leases.extend(site.leases());
        }
        assert_eq!(injected.iter().collect::<BTreeSet<_>>().len(), 8);
        assert_eq!(injected.len(), 8, "links were fast: no peer needed the mirror twice");
    }

    #[test]
    fn the_least_complete_receiver_is_served_first() {
        let mut site = Site::new(64, 3);
        site.want(peer(1), 0..40);
        site.want(peer(2), 0..10);
        site.want(peer(3), 0..60);
        site.have(MIRROR, 63..64);
        let (to, lease) = site.lease();
        assert_eq!((to, lease.first, lease.count), (peer(2), 63, 1));
    }

    #[test]
    fn a_receiver_that_got_nothing_for_long_is_served_before_the_least_complete() {
        let mut site = Site::new(64, 2);
        site.want(peer(1), 0..40);
        site.pass(site.brain.policy.aging, &[]);
        site.want(peer(2), 0..10);
        site.have(MIRROR, 63..64);
        assert_eq!(site.lease().0, peer(1));
    }

    #[test]
    fn a_member_that_landed_pieces_of_another_blob_is_no_newcomer() {
        let mut site = Site::new(64, 2);
        site.want(peer(2), []);
        site.have(MIRROR, 0..1);
        site.end(peer(2), site.lease().1.id, Outcome::Done);
        site.digest = piecemeal_proto::Digest::of(b"another");
        site.want(peer(1), []);
        site.want(peer(2), []);
        let swarm = site.brain.digests[&(site.brain.members[0].pool, site.digest)];
        let state = &site.brain.swarms[swarm];
        assert_eq!((state.new_receivers.len(), state.landing_receivers.len()), (1, 1));
    }

    #[test]
    fn claims_to_have_lost_everything_gain_nothing() {
        let mut site = Site::new(64, 2);
        site.want(peer(1), 0..40);
        site.want(peer(2), 0..39);
        site.want(peer(1), []);
        site.have(MIRROR, 63..64);
        assert_eq!(site.lease().0, peer(2));
    }

    #[test]
    fn the_rarest_piece_goes_first() {
        let mut site = Site::without_mirror(4, 4);
        for number in 1..=3 {
            site.want(peer(number), []);
            site.have(peer(number), 0..3);
        }
        site.have(peer(3), 3..4);
        assert_eq!(site.described(), [peer(3)], "another one's turn to state hashes");
        site.have(peer(3), 3..4);
        let early: Vec<u32> = site.leases().iter().map(|(_, lease)| lease.first).collect();
        assert_eq!(early, [3, 3], "the two who lack it get it at once");
    }

    #[test]
    fn a_source_of_the_own_zone_is_preferred() {
        for seed in 0..10 {
            let mut site = Site::without_mirror(1, 0);
            site.brain = super::super::Brain::new(trusting(), seed);
            for (number, zone) in [(1, "east"), (2, "west"), (3, "west"), (4, "east")] {
                let mut info = super::super::Member {
                    node: piecemeal_proto::NodeId([0; 16]),
                    signed: true,
                    role: Role::Peer,
                    pool: "site".into(),
                    zone: zone.into(),
                    may_use_upstream: true,
                    features: super::super::Features::default(),
                };
                info.node.0[0] = number;
                let member = peer(u32::from(number));
                site.event(Event::Joined { member, info });
            }
            for number in [1, 2] {
                site.complete(peer(number));
            }
            site.want(peer(4), []);
            let asked = site.described()[0];
            site.have(asked, 0..1);
            site.want(peer(3), []);
            let (to, lease) = site.lease();
            assert!(to == peer(3) && is_from(&lease, peer(2)), "seed {seed}: {lease:?}");
        }
    }

    #[test]
    fn pools_do_not_mix() {
        let mut site = Site::new(4, 0);
        site.have(MIRROR, 0..4);
        let info = super::super::Member {
            node: piecemeal_proto::NodeId([9; 16]),
            signed: true,
            role: Role::Peer,
            pool: "another site".into(),
            zone: "rack".into(),
            may_use_upstream: true,
            features: super::super::Features::default(),
        };
        site.event(Event::Joined { member: peer(9), info });
        site.want(peer(9), []);
        site.pass(super::super::Time::from_millis(200), &[]);
        assert!(site.leases().is_empty());
        assert_eq!(site.brain.status().swarms.len(), 1);
    }
}
