//! What must hold between any two calls, recounted from scratch.

use piecemeal_proto::PieceSet;

use super::{
    Brain, brain::Timer, lease_table::LeaseState, member::STALLED_FACTOR, receiver_class::ReceiverClass, swarm::Swarm,
};

impl Brain {
    /// Asserts everything that the other files promise. For tests: it costs O(everything).
    pub fn check_invariants(&self) {
        assert!(
            self.pending_sources.is_empty() && self.pending_receivers.is_empty(),
            "every member was matched"
        );
        self.check_members();
        self.holdings.check();
        for (slot, swarm) in self.swarms.iter() {
            self.check_swarm(slot, swarm);
        }
        for lease in self.leases.iter() {
            let member = &self.swarms[lease.swarm].members[lease.index];
            assert_eq!(member.slot, lease.receiver);
            assert!(self.members[lease.receiver].fetching.contains(&lease.id));
            assert!(self.swarms[lease.swarm].issued.contains(&lease.id));
            match lease.source {
                Some(source) => assert!(self.members[source].serving.contains(&lease.id)),
                None => assert_eq!(
                    self.swarms[lease.swarm].upstream,
                    Some(lease.index),
                    "one asks upstream"
                ),
            }
        }
    }

    fn check_members(&self) {
        assert_eq!(self.ids.len(), self.members.len());
        let watches = self
            .timers
            .iter()
            .filter(|(_, timer)| matches!(timer, Timer::Silence(_)));
        assert!(watches.count() >= self.members.iter().filter(|(_, member)| member.silence_watched).count());
        let mut fetching = 0;
        for (slot, member) in self.members.iter() {
            assert_eq!(self.ids[&member.id], slot);
            assert_eq!(self.nodes[&member.info.node], member.id);
            assert!(
                member.serving.len() <= member.serving_max(&self.policy) * STALLED_FACTOR,
                "a source's queue is bounded"
            );
            assert!(
                member.fetching.len() <= self.policy.leases_max as usize + 1,
                "a receiver's too"
            );
            fetching += member.fetching.len();
            for class in ReceiverClass::ALL {
                let serving = member.serving.iter().filter_map(|&id| self.leases.get(id));
                let counted = serving.filter(|lease| self.members[lease.receiver].receiver_class() == class);
                assert_eq!(counted.count(), member.count(class), "{class:?}");
            }
            assert!(
                member.stall_watched || member.fetching.is_empty(),
                "a stall would be noticed"
            );
            if member.silent {
                assert!(
                    member.serving.is_empty() && member.fetching.is_empty(),
                    "the silent are not used"
                );
            }
            let silence_watched = member.silence_watched;
            let idle = member.serving.is_empty() && member.fetching.is_empty() && !member.is_mirror();
            assert!(silence_watched || idle || member.silent, "silence would be noticed");
            let members = member
                .swarms
                .iter()
                .map(|(&swarm, &index)| &self.swarms[swarm].members[index]);
            assert!(members.clone().all(|member| member.slot == slot));
            assert_eq!(members.clone().filter(|member| member.wants).count(), member.wants);
            assert_eq!(members.map(|member| member.reserved).sum::<u64>(), member.pieces);
        }
        assert_eq!(fetching, self.leases.len());
        for (slot, pool) in self.pools.iter() {
            let members = || {
                self.members
                    .iter()
                    .map(|(_, member)| member)
                    .filter(|member| member.pool == slot)
            };
            assert_eq!(members().count(), pool.members);
            let mirrors = members().filter(|member| member.is_mirror() && !member.silent).count();
            assert_eq!(mirrors, pool.mirrors);
        }
    }

    fn check_swarm(&self, slot: u32, swarm: &Swarm) {
        let members = || swarm.members.iter().map(|(_, member)| member);
        assert!(swarm.members.len() > 0, "an empty swarm is forgotten");
        assert_eq!(members().filter(|member| member.wants).count(), swarm.wanting as usize);
        assert_eq!(
            members().filter(|member| member.complete && member.counts()).count(),
            swarm.complete_peers as usize
        );
        assert_eq!(members().map(|member| member.leases).sum::<u32>(), swarm.outstanding);
        let tick = swarm.tick_at.map(|at| (at, Timer::Tick(slot)));
        assert!(tick.is_none_or(|tick| self.timers.contains(&tick)));
        assert!(tick.is_some() || !swarm.is_busy(), "a busy swarm ticks");
        assert!(
            swarm.fill.is_some() || !swarm.is_live(),
            "who wants a blob has stated a fill"
        );
        let mut copies = vec![0; swarm.pieces() as usize];
        for (index, member) in swarm.members.iter() {
            assert_eq!(self.members[member.slot].swarms.get(&slot), Some(&index));
            assert!(
                !(member.complete && (member.wants || member.leases > 0)),
                "complete members want nothing"
            );
            let fetching = self.members[member.slot].fetching.iter();
            let leases: Vec<&LeaseState> = fetching
                .filter_map(|&id| self.leases.get(id))
                .filter(|lease| lease.swarm == slot && lease.index == index)
                .collect();
            assert_eq!(leases.len(), member.leases as usize);
            assert!(member.leases <= self.policy.leases_deep + 1, "leases are a few deep");
            assert!(member.wants || leases.is_empty(), "only who wants is leased to");
            assert!(!(member.wants && member.mirror), "a mirror only gives");
            let mut leased = PieceSet::new(member.have.capacity());
            for piece in leases.iter().flat_map(|lease| lease.run.pieces()) {
                if !member.have.contains(piece) {
                    assert!(leased.insert(piece), "one copy in flight per receiver and piece");
                }
            }
            assert_eq!(leased, member.leased, "had, leased or missing: exactly one");
            if member.counts() && !member.complete {
                for piece in member.have.iter().chain(member.leased.iter()) {
                    copies[piece as usize] += 1;
                }
            }
            let pieces = swarm.pieces();
            assert!(member.complete || member.have.capacity() == pieces);
            let lacking = member.wants && member.is_lacking(pieces);
            assert_eq!(
                swarm.receivers.contains(index),
                lacking && member.leases < self.policy.leases_deep
            );
            let parts = [&swarm.landing_receivers, &swarm.idle_receivers, &swarm.new_receivers];
            let parts = parts.iter().filter(|set| set.contains(index)).count();
            assert_eq!(
                parts,
                usize::from(swarm.receivers.contains(index)),
                "each of the hungry is of one part"
            );
            assert_eq!(
                swarm.sources.contains(index),
                member.is_believed() && (member.complete || !member.have.is_empty())
            );
            assert_eq!(swarm.mirrors.contains(&index), member.mirror);
            assert_eq!(swarm.unproven.contains(index), !member.unproven.is_empty());
        }
        if let Some(fill) = &swarm.fill {
            fill.check(&copies);
        }
    }
}
