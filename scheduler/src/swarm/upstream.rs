//! Without a mirror, one peer per blob fetches from upstream what nobody has; the others get it from that peer.
//!
//! Invariant: while a seat is chosen, no other seat of its swarm has a lease from upstream.

use super::{Brain, Command, Priority, run::scarce_run};

impl Brain {
    /// Orders from upstream what no peer of the swarm has, if `seat` is or may become the one that asks there.
    pub(super) fn supply_from_upstream(&mut self, swarm: u32, seat: u32, out: &mut Vec<Command>) -> bool {
        let state = &self.swarms[swarm];
        let taking = &state.seats[seat];
        let member = &self.members[taking.member];
        if !self.pools[state.pool].is_on_its_own(self.now, self.policy.mirror_grace)
            || !member.info.may_use_upstream
            || taking.banned
            || taking.upstream.is_active(self.now)
            || member.fetching.len() >= self.policy.leases_max as usize
            || !self.is_usable(taking.member)
            || state.complete_peers > 0
            || state
                .upstream
                .is_some_and(|chosen| chosen != seat && !self.is_out_of_reach(swarm, chosen))
        {
            return false;
        }
        let Some(run) = state
            .fill
            .as_ref()
            .and_then(|fill| scarce_run(fill, self.policy.lease_bytes_max))
        else {
            return false;
        };
        self.grant((swarm, seat), None, run, Priority::Normal, out);
        true
    }

    /// The chosen seat has nothing under way and is not heard.
    fn is_out_of_reach(&self, swarm: u32, chosen: u32) -> bool {
        let seat = &self.swarms[swarm].seats[chosen];
        seat.leases == 0 && !self.is_usable(seat.member)
    }

    /// The seat is not the one that asks upstream any more, if it was; the next hungry one that may takes over.
    pub(super) fn pass_upstream_on(&mut self, swarm: u32, seat: u32) {
        let Some(state) = self.swarms.get_mut(swarm) else {
            return;
        };
        if state.upstream == Some(seat) {
            state.upstream = None;
            let hungry = state.hungry.as_slice().iter();
            let next = hungry
                .filter(|&&other| other != seat)
                .take(self.policy.receivers_sampled);
            self.takers.extend(next.map(|&other| (swarm, other)));
        }
    }
}
