//! Members come, fall silent, are heard again, and leave.
//!
//! Invariant: a member with leases, and every mirror, has a timer for its silence.

use super::{
    Brain, Command, Member, MemberId,
    brain::Timer,
    member::{MemberState, Pool},
};

impl Brain {
    pub(super) fn join(&mut self, id: MemberId, info: Member, out: &mut Vec<Command>) {
        if self.ids.contains_key(&id) {
            return;
        }
        if let Some(&older) = self.nodes.get(&info.node) {
            self.leave(older, out);
        }
        let pools = &mut self.pools;
        let &mut pool = self
            .pool_names
            .entry(info.pool.clone())
            .or_insert_with(|| pools.insert(Pool::new(info.pool.clone())));
        self.nodes.insert(info.node, id);
        let member = MemberState::new(id, info, pool, self.now, &self.policy);
        let mirror = member.is_mirror();
        self.pools[pool].members += 1;
        let slot = self.members.insert(member);
        self.ids.insert(id, slot);
        if mirror {
            self.pools[pool].gain_mirror();
            self.watch(slot);
        }
    }

    /// Everything of it goes; what others fetched from it is cancelled.
    pub(super) fn leave(&mut self, id: MemberId, out: &mut Vec<Command>) {
        let Some(slot) = self.ids.remove(&id) else {
            return;
        };
        self.drop_leases(slot, out);
        out.retain(|command| command.to() != id);
        let seats: Vec<(u32, u32)> = self.members[slot]
            .seats
            .iter()
            .map(|(&swarm, &seat)| (swarm, seat))
            .collect();
        for (swarm, seat) in seats {
            self.leave_seat(swarm, seat);
            self.idle(swarm);
        }
        let member = self.members.remove(slot).expect("its id was known");
        if self.nodes.get(&member.info.node) == Some(&id) {
            self.nodes.remove(&member.info.node);
        }
        let pool = &mut self.pools[member.pool];
        pool.members -= 1;
        if member.is_mirror() && !member.silent {
            pool.lose_mirror(self.now);
        }
        if pool.members == 0 {
            let pool = self.pools.remove(member.pool).expect("it had a member just now");
            self.pool_names.remove(&pool.name);
        }
    }

    /// The slot of a known member, which is not silent now.
    pub(super) fn hear(&mut self, id: MemberId) -> Option<u32> {
        let &slot = self.ids.get(&id)?;
        let member = &mut self.members[slot];
        let was_usable = !member.silent && member.heard + self.policy.silent_after > self.now;
        member.heard = self.now;
        if std::mem::take(&mut member.silent) && member.is_mirror() {
            let pool = member.pool;
            self.pools[pool].gain_mirror();
            self.watch(slot);
        }
        if !was_usable {
            self.welcome_back(slot);
        }
        Some(slot)
    }

    /// Matches a member that may be used again in the swarms where it sits, as far as one event may cost; their ticks do the rest.
    fn welcome_back(&mut self, slot: u32) {
        let member = &self.members[slot];
        let swarms: Vec<u32> = member.live.iter().copied().take(SWARMS_WELCOMED).collect();
        for swarm in swarms {
            let seat = self.members[slot].seats.get(&swarm).copied();
            if let Some(seat) = seat {
                self.touch(swarm, seat);
            }
        }
    }

    /// Whether leases may go out to or from the member: it was heard of late.
    pub(super) fn is_usable(&self, slot: u32) -> bool {
        let member = &self.members[slot];
        !member.silent && member.heard.max(self.awake_since) + self.policy.silent_after > self.now
    }

    /// Sets the timer for a member's silence.
    pub(super) fn watch(&mut self, slot: u32) {
        let member = &mut self.members[slot];
        if !std::mem::replace(&mut member.watched, true) {
            let at = member.heard.max(self.awake_since) + self.policy.silent_after;
            self.timers.insert((at, Timer::Silence(member.id)));
        }
    }

    /// The time has come at which a member may have fallen silent.
    pub(super) fn listen(&mut self, id: MemberId, out: &mut Vec<Command>) {
        let Some(&slot) = self.ids.get(&id) else {
            return;
        };
        let usable = self.is_usable(slot);
        let member = &mut self.members[slot];
        member.watched = false;
        let needed = member.is_mirror() || !member.fetching.is_empty() || !member.serving.is_empty();
        if !needed {
            return;
        }
        if usable {
            self.watch(slot);
            return;
        }
        member.silent = true;
        let (mirror, pool) = (member.is_mirror(), member.pool);
        if mirror {
            self.pools[pool].lose_mirror(self.now);
        }
        self.drop_leases(slot, out);
    }

    /// Cancels every lease to or from a member.
    fn drop_leases(&mut self, slot: u32, out: &mut Vec<Command>) {
        let member = &self.members[slot];
        let leases: Vec<_> = member.fetching.iter().chain(&member.serving).copied().collect();
        for lease in leases {
            self.cancel(lease, out);
        }
        let upstream: Vec<(u32, u32)> = self.members[slot]
            .live
            .iter()
            .filter_map(|swarm| Some((*swarm, *self.members[slot].seats.get(swarm)?)))
            .collect();
        for (swarm, seat) in upstream {
            self.pass_upstream_on(swarm, seat);
        }
    }
}

/// Swarms in which a member that is heard again is matched at once.
const SWARMS_WELCOMED: usize = 16;
