//! What must hold between any two calls, recounted from scratch.

use piecemeal_proto::PieceSet;

use super::{
    Brain,
    brain::Timer,
    lease_table::LeaseState,
    member::{STALLED_FACTOR, Standing},
    swarm::Swarm,
};

impl Brain {
    /// Asserts everything that the other files promise. For tests: it costs O(everything).
    pub fn check_invariants(&self) {
        assert!(
            self.givers.is_empty() && self.takers.is_empty(),
            "every member was matched"
        );
        self.check_members();
        self.holdings.check();
        for (slot, swarm) in self.swarms.iter() {
            self.check_swarm(slot, swarm);
        }
        for lease in self.leases.iter() {
            let seat = &self.swarms[lease.swarm].seats[lease.seat];
            assert_eq!(seat.member, lease.receiver);
            assert!(self.members[lease.receiver].fetching.contains(&lease.id));
            assert!(self.swarms[lease.swarm].granted.contains(&lease.id));
            match lease.source {
                Some(source) => assert!(self.members[source].serving.contains(&lease.id)),
                None => assert_eq!(self.swarms[lease.swarm].upstream, Some(lease.seat), "one asks upstream"),
            }
        }
    }

    fn check_members(&self) {
        assert_eq!(self.ids.len(), self.members.len());
        let watches = self
            .timers
            .iter()
            .filter(|(_, timer)| matches!(timer, Timer::Silence(_)));
        assert!(watches.count() >= self.members.iter().filter(|(_, member)| member.watched).count());
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
            for standing in Standing::ALL {
                let serving = member.serving.iter().filter_map(|&id| self.leases.get(id));
                let counted = serving.filter(|lease| self.members[lease.receiver].standing() == standing);
                assert_eq!(counted.count(), member.count(standing), "{standing:?}");
            }
            assert!(
                member.taking_watched || member.fetching.is_empty(),
                "a stall would be noticed"
            );
            if member.silent {
                assert!(
                    member.serving.is_empty() && member.fetching.is_empty(),
                    "the silent are not used"
                );
            }
            let watched = member.watched;
            let idle = member.serving.is_empty() && member.fetching.is_empty() && !member.is_mirror();
            assert!(watched || idle || member.silent, "silence would be noticed");
            let seats = member
                .seats
                .iter()
                .map(|(&swarm, &seat)| &self.swarms[swarm].seats[seat]);
            assert!(seats.clone().all(|seat| seat.member == slot));
            assert_eq!(seats.clone().filter(|seat| seat.wants).count(), member.wants);
            assert_eq!(seats.map(|seat| seat.reserved).sum::<u64>(), member.pieces);
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
        let seats = || swarm.seats.iter().map(|(_, seat)| seat);
        assert!(swarm.seats.len() > 0, "an empty swarm is forgotten");
        assert_eq!(seats().filter(|seat| seat.wants).count(), swarm.wanting as usize);
        assert_eq!(
            seats().filter(|seat| seat.complete && seat.counts()).count(),
            swarm.complete_peers as usize
        );
        assert_eq!(seats().map(|seat| seat.leases).sum::<u32>(), swarm.outstanding);
        let tick = swarm.tick_at.map(|at| (at, Timer::Tick(slot)));
        assert!(tick.is_none_or(|tick| self.timers.contains(&tick)));
        assert!(tick.is_some() || !swarm.is_busy(), "a busy swarm ticks");
        assert!(
            swarm.fill.is_some() || !swarm.is_live(),
            "who wants a blob has stated a fill"
        );
        let mut copies = vec![0; swarm.pieces() as usize];
        for (index, seat) in swarm.seats.iter() {
            assert_eq!(self.members[seat.member].seats.get(&slot), Some(&index));
            assert!(
                !(seat.complete && (seat.wants || seat.leases > 0)),
                "complete seats want nothing"
            );
            let fetching = self.members[seat.member].fetching.iter();
            let leases: Vec<&LeaseState> = fetching
                .filter_map(|&id| self.leases.get(id))
                .filter(|lease| lease.swarm == slot && lease.seat == index)
                .collect();
            assert_eq!(leases.len(), seat.leases as usize);
            assert!(seat.leases <= self.policy.leases_deep + 1, "leases are a few deep");
            assert!(seat.wants || leases.is_empty(), "only who wants is leased to");
            assert!(!(seat.wants && seat.mirror), "a mirror only gives");
            let mut leased = PieceSet::new(seat.have.capacity());
            for piece in leases.iter().flat_map(|lease| lease.run.pieces()) {
                if !seat.have.contains(piece) {
                    assert!(leased.insert(piece), "one copy in flight per receiver and piece");
                }
            }
            assert_eq!(leased, seat.leased, "had, leased or missing: exactly one");
            if seat.counts() && !seat.complete {
                for piece in seat.have.iter().chain(seat.leased.iter()) {
                    copies[piece as usize] += 1;
                }
            }
            let pieces = swarm.pieces();
            assert!(seat.complete || seat.have.capacity() == pieces);
            let lacking = seat.wants && seat.is_lacking(pieces);
            assert_eq!(
                swarm.hungry.contains(index),
                lacking && seat.leases < self.policy.leases_deep
            );
            let parts = [&swarm.landing, &swarm.idle, &swarm.new];
            let parts = parts.iter().filter(|roll| roll.contains(index)).count();
            assert_eq!(
                parts,
                usize::from(swarm.hungry.contains(index)),
                "each of the hungry is of one part"
            );
            assert_eq!(
                swarm.sources.contains(index),
                seat.is_believed() && (seat.complete || !seat.have.is_empty())
            );
            assert_eq!(swarm.mirrors.contains(&index), seat.mirror);
            assert_eq!(swarm.unproven.contains(index), !seat.unproven.is_empty());
        }
        if let Some(fill) = &swarm.fill {
            fill.check(&copies);
        }
    }
}
