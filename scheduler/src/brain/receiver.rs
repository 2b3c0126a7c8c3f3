//! Receivers: how a member uses its leases, and how many more it may get.
//!
//! Invariant: nothing here rests on a receiver's word alone, but that a piece of its own lease has landed, and that ends its
//! part in the lease. Receivers that land nothing keep no place of a source from others, however many they are.

use super::{
    Brain, LeaseId, Outcome, Time, lease_table::LeaseState, lease_time, member::MemberState,
    receiver_class::ReceiverClass,
};

impl Brain {
    /// Whether a receiver may get one more lease. `urgent`: one above its allowance.
    pub(super) fn may_take(&self, slot: u32, urgent: bool) -> bool {
        let member = &self.members[slot];
        let allowance = match member.allowance {
            0..=1 => 1,
            more => more + usize::from(urgent),
        };
        !member.stalled && !member.lease_backoff.is_active(self.now) && member.fetching.len() < allowance
    }

    /// Counts a lease that begins at its source.
    pub(super) fn note_lease(&mut self, receiver: u32, source: u32) {
        let class = self.members[receiver].receiver_class();
        *self.members[source].count_mut(class) += 1;
    }

    /// Counts a lease that is over no more, at its source and at its receiver.
    pub(super) fn note_lease_over(&mut self, id: LeaseId, receiver: u32, source: Option<u32>) {
        let class = self.members[receiver].receiver_class();
        if let Some(source) = source {
            *self.members[source].count_mut(class) -= 1;
        }
        self.members[receiver].fetching.retain(|&other| other != id);
        if self.members[receiver].fetching.is_empty() {
            // The sources may have stalled, not the receiver.
            self.members[receiver].stalled = false;
        }
    }

    /// A piece of one of the receiver's leases has landed.
    pub(super) fn note_landing(&mut self, slot: u32) {
        let now = self.now;
        let most = self.policy.leases_max as usize;
        self.reclassify(slot, |member| {
            (member.landed_at, member.expiries, member.gave_up) = (now, 0, 0);
            (member.lease_backoff, member.landed) = (Default::default(), true);
            if !std::mem::take(&mut member.stalled) {
                (member.prompt, member.stalls) = (true, 0);
                member.allowance = (member.allowance * 2).min(most);
            }
        });
    }

    /// The receiver itself ended a lease of which nothing has landed. After a few in a row it waits before it gets another.
    pub(super) fn note_given_up(&mut self, slot: u32, issued_at: Time) {
        let (now, policy) = (self.now, &self.policy);
        let member = &mut self.members[slot];
        if member.landed_at > issued_at {
            return;
        }
        member.gave_up += 1;
        if member.gave_up >= policy.given_up_max {
            (member.prompt, member.allowance) = (false, 1);
            member.lease_backoff.strike(now, policy);
        }
    }

    /// A lease of the receiver ended after the time `took`.
    pub(super) fn note_lease_time(&mut self, slot: u32, took: Time, outcome: Outcome) {
        if outcome == Outcome::Done {
            let member = &mut self.members[slot];
            member.lease_time = Some(lease_time::smoothed(member.lease_time, took));
        }
    }

    /// Changes a receiver, and with its class what its leases count as at their sources.
    pub(super) fn reclassify(&mut self, slot: u32, change: impl FnOnce(&mut MemberState)) {
        let before = self.members[slot].receiver_class();
        change(&mut self.members[slot]);
        let after = self.members[slot].receiver_class();
        if before == after {
            return;
        }
        for id in self.members[slot].fetching.clone() {
            if let Some(source) = self.leases.get(id).and_then(|lease| lease.source) {
                *self.members[source].count_mut(before) -= 1;
                *self.members[source].count_mut(after) += 1;
            }
        }
    }

    /// The receiver that `taker` preempts at a full source: its leases expire to make room. It is an idle receiver that had its
    /// time; of these the one whose leases expired most often, or that has this lease for the shortest time. So the others keep
    /// theirs until they expire, in case all of them are only slow.
    pub(super) fn preemptable_by(&self, taker: u32, source: u32) -> Option<u32> {
        let taking = &self.members[taker];
        if taking.receiver_class() == ReceiverClass::Idle {
            return None;
        }
        let had_its_time = |lease: &&LeaseState| {
            let of_swarm = self.swarms[lease.swarm].lease_time.unwrap_or_default();
            let time = of_swarm.max(taking.lease_time.unwrap_or(lease_time::INITIAL)) * self.policy.straggler_factor;
            lease.issued_at.max(self.awake_since) + time <= self.now
        };
        let serving = self.members[source].serving.iter();
        serving
            .filter_map(|&id| self.leases.get(id))
            .filter(|lease| self.members[lease.receiver].receiver_class() == ReceiverClass::Idle)
            .filter(had_its_time)
            .max_by_key(|lease| (self.members[lease.receiver].expiries, lease.issued_at))
            .map(|lease| lease.receiver)
    }
}
