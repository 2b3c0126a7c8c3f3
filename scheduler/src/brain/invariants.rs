//! Invariants of the brain, recounted from scratch.
//!
//! Invariant: they hold between any two calls.

use piecemeal_proto::PieceSet;

use super::{
    Brain,
    brain::Timer,
    lease_table::LeaseState,
    member::{MemberState, STALLED_FACTOR},
    receiver_class::ReceiverClass,
    swarm::Swarm,
    swarm_member::SwarmMember,
};

impl Brain {
    /// Asserts the invariants of all files of the brain. For tests: it costs O(everything).
    pub fn check_invariants(&self) {
        assert!(
            self.pending_sources.is_empty() && self.pending_receivers.is_empty(),
            "every member was matched"
        );
        assert!(self.pending_clients.is_empty(), "mirrors were told");
        self.check_members();
        self.check_pools();
        self.holdings.check();
        for (slot, swarm) in self.swarms.iter() {
            self.check_swarm(slot, swarm);
        }
        for lease in self.leases.iter() {
            self.check_lease(lease);
        }
    }

    fn check_lease(&self, lease: &LeaseState) {
        let swarm = &self.swarms[lease.swarm];
        assert_eq!(swarm.members[lease.index].slot, lease.receiver);
        assert!(self.members[lease.receiver].fetching.contains(&lease.id));
        assert!(swarm.issued.contains(&lease.id));
        match lease.source {
            Some(source) => assert!(self.members[source].serving.contains(&lease.id)),
            None => assert_eq!(swarm.upstream, Some(lease.index), "one member fetches from upstream"),
        }
    }

    fn check_members(&self) {
        assert_eq!(self.ids.len(), self.members.len());
        let timers = self.timers.iter();
        let watches = timers.filter(|(_, timer)| matches!(timer, Timer::Silence(_)));
        let watched = self.members.iter().filter(|(_, member)| member.silence_watched);
        assert!(watches.count() >= watched.count());
        for (slot, member) in self.members.iter() {
            assert_eq!(self.ids[&member.id], slot);
            assert_eq!(self.nodes[&member.info.node], member.id);
            self.check_leases_of(member);
            self.check_watch_of(member);
            let swarms = member.swarms.iter();
            let in_swarms = swarms.map(|(&swarm, &index)| &self.swarms[swarm].members[index]);
            assert!(in_swarms.clone().all(|in_swarm| in_swarm.slot == slot));
            assert_eq!(
                in_swarms.clone().filter(|in_swarm| in_swarm.wants).count(),
                member.wants
            );
            assert_eq!(in_swarms.map(|in_swarm| in_swarm.reserved).sum::<u64>(), member.pieces);
        }
        let fetching: usize = self.members.iter().map(|(_, member)| member.fetching.len()).sum();
        assert_eq!(fetching, self.leases.len());
    }

    fn check_leases_of(&self, member: &MemberState) {
        assert!(
            member.serving.len() <= member.serving_max(&self.policy) * STALLED_FACTOR,
            "a source's queue is bounded"
        );
        assert!(
            member.fetching.len() <= self.policy.leases_max as usize + 1,
            "a receiver's too"
        );
        for class in ReceiverClass::ALL {
            let serving = member.serving.iter().filter_map(|&id| self.leases.get(id));
            let counted = serving.filter(|lease| self.members[lease.receiver].receiver_class() == class);
            assert_eq!(counted.count(), member.count(class), "{class:?}");
        }
    }

    fn check_watch_of(&self, member: &MemberState) {
        assert!(
            member.stall_watched || member.fetching.is_empty(),
            "a stall would be noticed"
        );
        let has_no_lease = member.serving.is_empty() && member.fetching.is_empty();
        assert!(!member.silent || has_no_lease, "the silent are not used");
        let needs_no_watch = has_no_lease && !member.is_mirror() || member.silent;
        assert!(member.silence_watched || needs_no_watch, "silence would be noticed");
    }

    fn check_pools(&self) {
        for (slot, pool) in self.pools.iter() {
            let members = || {
                let members = self.members.iter().map(|(_, member)| member);
                members.filter(|member| member.pool == slot)
            };
            assert_eq!(members().count(), pool.members);
            let mirrors = members().filter(|member| member.is_mirror() && !member.silent).count();
            assert_eq!(mirrors, pool.mirrors);
            assert_eq!(
                members().filter(|member| member.is_mirror()).count(),
                pool.mirror_slots.len()
            );
        }
    }

    fn check_swarm(&self, slot: u32, swarm: &Swarm) {
        let members = || swarm.members.iter().map(|(_, member)| member);
        assert!(swarm.members.len() > 0, "an empty swarm is forgotten");
        assert_eq!(members().filter(|member| member.wants).count(), swarm.wanting as usize);
        let attending = members().filter(|member| member.wants && !member.is_absent).count();
        assert_eq!(attending, swarm.attending as usize);
        let complete_peers = members().filter(|member| member.complete && member.counts());
        assert_eq!(complete_peers.count(), swarm.complete_peers as usize);
        assert_eq!(members().map(|member| member.leases).sum::<u32>(), swarm.outstanding);
        let tick = swarm.tick_at.map(|at| (at, Timer::Tick(slot)));
        assert!(tick.is_none_or(|tick| self.timers.contains(&tick)));
        assert!(tick.is_some() || !swarm.is_busy(), "a busy swarm ticks");
        assert!(
            swarm.fill.is_some() || !swarm.is_live(),
            "a member that wants a blob has stated a fill"
        );
        for (index, member) in swarm.members.iter() {
            assert_eq!(self.members[member.slot].swarms.get(&slot), Some(&index));
            self.check_pieces(slot, index, member);
            self.check_sets(swarm, index, member);
        }
        if let Some(fill) = &swarm.fill {
            fill.check(&copies(swarm));
        }
    }

    fn check_pieces(&self, swarm: u32, index: u32, member: &SwarmMember) {
        assert!(
            !(member.complete && (member.wants || member.leases > 0)),
            "complete members want nothing"
        );
        let fetching = self.members[member.slot].fetching.iter();
        let leases: Vec<&LeaseState> = fetching
            .filter_map(|&id| self.leases.get(id))
            .filter(|lease| lease.swarm == swarm && lease.index == index)
            .collect();
        assert_eq!(leases.len(), member.leases as usize);
        assert!(member.leases <= self.policy.leases_deep + 1, "leases are a few deep");
        assert!(
            member.wants || leases.is_empty(),
            "only a member that wants is leased to"
        );
        assert!(!(member.wants && member.mirror), "a mirror only serves");
        let mut leased = PieceSet::new(member.have.capacity());
        for piece in leases.iter().flat_map(|lease| lease.run.pieces()) {
            if !member.have.contains(piece) {
                assert!(leased.insert(piece), "one copy in flight per receiver and piece");
            }
        }
        assert_eq!(leased, member.leased, "had, leased or missing: exactly one");
    }

    fn check_sets(&self, swarm: &Swarm, index: u32, member: &SwarmMember) {
        let pieces = swarm.pieces();
        assert!(member.complete || member.have.capacity() == pieces);
        let is_receiver = swarm.receivers.contains(index);
        let lacking = member.wants && member.is_lacking(pieces);
        assert_eq!(is_receiver, lacking && member.leases < self.policy.leases_deep);
        let parts = [&swarm.landing_receivers, &swarm.idle_receivers, &swarm.new_receivers];
        let parts = parts.iter().filter(|set| set.contains(index)).count();
        assert_eq!(parts, usize::from(is_receiver), "each receiver is of one part");
        assert_eq!(
            swarm.sources.contains(index),
            member.is_believed() && (member.complete || !member.have.is_empty())
        );
        assert_eq!(swarm.mirrors.contains(&index), member.mirror);
        assert_eq!(swarm.unproven.contains(index), !member.unproven.is_empty());
    }
}

/// By piece: copies at peers that count, had or in flight.
fn copies(swarm: &Swarm) -> Vec<u32> {
    let mut copies = vec![0; swarm.pieces() as usize];
    let members = swarm.members.iter().map(|(_, member)| member);
    for member in members.filter(|member| member.counts() && !member.complete) {
        for piece in member.have.iter().chain(member.leased.iter()) {
            copies[piece as usize] += 1;
        }
    }
    copies
}
