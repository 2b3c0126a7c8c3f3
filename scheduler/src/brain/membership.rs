//! Membership in swarms: a member enters a swarm, counts there, and leaves it. A swarm ends with its last member.
//!
//! Invariant: of a blob that no member wants, the brain keeps only the holders of the whole blob (`holdings.rs`), the mirrors'
//! fills, and the banned members.

use piecemeal_proto::{Digest, PieceSet};

use super::{Brain, brain::Timer, swarm::Swarm, swarm_member::SwarmMember};

impl Brain {
    /// The member's swarm and index for the blob; it enters the swarm if it is not in it. `None`: it is in too many swarms.
    pub(super) fn enter_swarm(&mut self, slot: u32, digest: Digest) -> Option<(u32, u32)> {
        if let Some(seated) = self.find_swarm_member(slot, &digest) {
            return Some(seated);
        }
        let member = &mut self.members[slot];
        if member.swarms.len() >= self.policy.blobs_max {
            return None;
        }
        let key = (member.pool, digest);
        let swarms = &mut self.swarms;
        let &mut swarm = self
            .digests
            .entry(key)
            .or_insert_with(|| swarms.insert(Swarm::new(key.0, digest)));
        let pieces = self.swarms[swarm].pieces();
        let index = self.swarms[swarm].insert(SwarmMember {
            slot,
            mirror: member.is_mirror(),
            zone: member.zone,
            have: PieceSet::new(pieces),
            leased: PieceSet::new(pieces),
            ..SwarmMember::default()
        });
        member.swarms.insert(swarm, index);
        Some((swarm, index))
    }

    /// Counts a member's bitmaps in one swarm towards its `pieces_max`; says whether they fit.
    pub(super) fn reserve(&mut self, swarm: u32, index: u32) -> bool {
        let pieces = u64::from(self.swarms[swarm].pieces());
        let in_swarm = &mut self.swarms[swarm].members[index];
        let member = &mut self.members[in_swarm.slot];
        let after = member.pieces - in_swarm.reserved + pieces;
        let fits = in_swarm.mirror || after <= self.policy.pieces_max;
        if fits {
            member.pieces = after;
            in_swarm.reserved = pieces;
        }
        fits
    }

    pub(super) fn release(&mut self, swarm: u32, index: u32) {
        let in_swarm = &mut self.swarms[swarm].members[index];
        self.members[in_swarm.slot].pieces -= std::mem::take(&mut in_swarm.reserved);
    }

    /// The member does not want the blob any more. Its leases are over already.
    pub(super) fn stop_wanting(&mut self, swarm: u32, index: u32) {
        let state = &mut self.swarms[swarm];
        if std::mem::take(&mut state.members[index].wants) {
            state.wanting -= 1;
            let slot = state.members[index].slot;
            self.members[slot].wants -= 1;
            self.note_unwanted(swarm, index);
        }
        self.pass_upstream_on(swarm, index);
        self.swarms[swarm].update_sets(index, self.policy.leases_deep);
        self.shrink_if_unwanted(swarm);
    }

    /// Removes all members of a swarm whose blob no member wants any more, but the mirrors that fill it. Holders of the whole blob
    /// go to the table of holdings.
    pub(super) fn shrink_if_unwanted(&mut self, swarm: u32) {
        let Some(state) = self.swarms.get(swarm).filter(|state| !state.is_live()) else {
            return;
        };
        let leaving = state
            .members
            .iter()
            .filter(|(_, member)| (member.complete || !member.mirror) && !member.banned);
        let (digest, leaving) = (
            state.digest,
            leaving.map(|(index, member)| (index, member.slot, member.complete)),
        );
        for (index, slot, complete) in leaving.collect::<Vec<_>>() {
            self.leave_swarm(swarm, index);
            if complete {
                self.note_holding(slot, &digest);
            }
        }
        self.forget_fill(swarm);
    }

    /// Removes a member of which nothing is known, and with the last one the swarm.
    pub(super) fn remove_if_vacant(&mut self, swarm: u32, index: u32) {
        let members = self.swarms.get(swarm).map(|state| &state.members);
        if members
            .and_then(|members| members.get(index))
            .is_some_and(SwarmMember::is_vacant)
        {
            self.leave_swarm(swarm, index);
        }
        self.forget_fill(swarm);
    }

    /// Drops the fill of a swarm that no member wants, unless a mirror is filling it.
    fn forget_fill(&mut self, swarm: u32) {
        let Some(state) = self.swarms.get_mut(swarm).filter(|state| !state.is_live()) else {
            return;
        };
        let filling = |&mirror: &u32| !state.members[mirror].complete && !state.members[mirror].have.is_empty();
        if state.fill.is_some() && !state.mirrors.iter().any(filling) {
            state.fill = None;
            for member in state.members.iter_mut() {
                member.have = PieceSet::default();
                member.unproven = PieceSet::default();
                member.leased = PieceSet::default();
            }
        }
    }

    /// Removes a member whose leases are over already; the swarm goes with its last member.
    pub(super) fn leave_swarm(&mut self, swarm: u32, index: u32) {
        self.pass_upstream_on(swarm, index);
        self.release(swarm, index);
        let state = &mut self.swarms[swarm];
        let slot = state.members[index].slot;
        if state.members[index].wants {
            state.wanting -= 1;
            self.members[slot].wants -= 1;
            self.note_unwanted(swarm, index);
        }
        let state = &mut self.swarms[swarm];
        state.forget_claims(index);
        state.remove(index);
        let empty = state.members.len() == 0;
        self.members[slot].swarms.remove(&swarm);
        self.members[slot].live_swarms.remove(&swarm);
        if empty {
            let state = self.swarms.remove(swarm).expect("it had a member just now");
            self.digests.remove(&(state.pool, state.digest));
            if let Some(at) = state.tick_at {
                self.timers.remove(&(at, Timer::Tick(swarm)));
            }
        }
    }
}
