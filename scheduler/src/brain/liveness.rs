//! Liveness of members: they join, fall silent, are heard again, and leave.
//!
//! Invariant: a member with leases, and every mirror, has a timer for its silence.

use super::{Brain, Command, Member, MemberId, brain::Timer, member::MemberState, pool::Pool};

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
            self.pools[pool].mirror_slots.push(slot);
            self.tell_all_clients(slot, out);
            self.pools[pool].gain_mirror(self.now);
            self.watch_silence(slot);
        }
    }

    /// Removes a member and everything that it holds; leases to and from it are cancelled.
    pub(super) fn leave(&mut self, id: MemberId, out: &mut Vec<Command>) {
        let Some(slot) = self.ids.remove(&id) else {
            return;
        };
        self.drop_leases(slot, out);
        out.retain(|command| command.to() != id);
        let members: Vec<(u32, u32)> = self.members[slot]
            .swarms
            .iter()
            .map(|(&swarm, &index)| (swarm, index))
            .collect();
        for (swarm, index) in members {
            self.leave_swarm(swarm, index);
            self.shrink_if_unwanted(swarm);
        }
        self.holdings.remove_member(slot);
        let member = self.members.remove(slot).expect("its id was known");
        if self.nodes.get(&member.info.node) == Some(&id) {
            self.nodes.remove(&member.info.node);
        }
        let pool = &mut self.pools[member.pool];
        pool.members -= 1;
        pool.mirror_slots.retain(|&mirror| mirror != slot);
        if member.is_mirror() && !member.silent {
            pool.lose_mirror(self.now);
        }
        if pool.members == 0 {
            let pool = self.pools.remove(member.pool).expect("it had a member just now");
            self.pool_names.remove(&pool.name);
        }
    }

    /// The slot of a known member, which is not silent now.
    pub(super) fn note_heard(&mut self, id: MemberId) -> Option<u32> {
        let &slot = self.ids.get(&id)?;
        let member = &mut self.members[slot];
        let was_usable = !member.silent && member.heard + self.policy.silent_after > self.now;
        member.heard = self.now;
        if std::mem::take(&mut member.silent) && member.is_mirror() {
            let pool = member.pool;
            self.pools[pool].gain_mirror(self.now);
            self.watch_silence(slot);
        }
        if !was_usable {
            self.welcome_back(slot);
        }
        Some(slot)
    }

    /// Matches a member that may be used again, in as many of its swarms as one event may cost; their ticks do the rest.
    fn welcome_back(&mut self, slot: u32) {
        let member = &self.members[slot];
        let swarms: Vec<u32> = member.live_swarms.iter().copied().take(SWARMS_WELCOMED).collect();
        for swarm in swarms {
            let index = self.members[slot].swarms.get(&swarm).copied();
            if let Some(index) = index {
                self.requeue(swarm, index);
            }
        }
    }

    /// Whether leases may go to or from the member: it was heard at most `silent_after` ago.
    pub(super) fn is_usable(&self, slot: u32) -> bool {
        let member = &self.members[slot];
        !member.silent && member.heard.max(self.awake_since) + self.policy.silent_after > self.now
    }

    /// Sets the timer for a member's silence.
    pub(super) fn watch_silence(&mut self, slot: u32) {
        let member = &mut self.members[slot];
        if !std::mem::replace(&mut member.silence_watched, true) {
            let at = member.heard.max(self.awake_since) + self.policy.silent_after;
            self.timers.insert((at, Timer::Silence(member.id)));
        }
    }

    /// The timer of a member has come: it may have fallen silent.
    pub(super) fn check_silence(&mut self, id: MemberId, out: &mut Vec<Command>) {
        let Some(&slot) = self.ids.get(&id) else {
            return;
        };
        let usable = self.is_usable(slot);
        let member = &mut self.members[slot];
        member.silence_watched = false;
        let needed = member.is_mirror() || !member.fetching.is_empty() || !member.serving.is_empty();
        if !needed {
            return;
        }
        if usable {
            self.watch_silence(slot);
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
            .live_swarms
            .iter()
            .filter_map(|swarm| Some((*swarm, *self.members[slot].swarms.get(swarm)?)))
            .collect();
        for (swarm, index) in upstream {
            self.pass_upstream_on(swarm, index);
        }
    }
}

/// Swarms in which a member that is heard again is matched at once.
const SWARMS_WELCOMED: usize = 16;

#[cfg(test)]
mod tests {
    use super::super::{
        Event, Role, Time,
        testing::{MIRROR, Site, is_from, peer},
    };

    #[test]
    fn a_silent_source_loses_its_leases_to_another() {
        let mut site = Site::without_mirror(1, 3);
        site.complete(peer(1));
        site.want(peer(3), []);
        site.have(peer(1), 0..1);
        let lost = site.lease().1;
        site.complete(peer(2));
        site.pass(Time::from_millis(1100), &[peer(1)]);
        assert_eq!(site.cancelled(), [lost.id]);
        assert!(is_from(&site.lease().1, peer(2)));
    }

    #[test]
    fn a_silent_receiver_is_not_used_until_it_is_heard() {
        let mut site = Site::new(8, 1);
        site.have(MIRROR, 0..8);
        site.want(peer(1), []);
        assert_eq!(site.leases().len(), 4);
        site.pass(Time::from_secs(5), &[peer(1)]);
        assert_eq!((site.cancelled().len(), site.leases().len()), (4, 0));
        site.event(Event::Heard { member: peer(1) });
        assert_eq!(site.leases().len(), 4);
    }

    #[test]
    fn who_leaves_takes_everything_along() {
        let mut site = Site::new(8, 2);
        site.have(MIRROR, 0..8);
        site.want(peer(1), []);
        site.want(peer(2), []);
        site.event(Event::Left { member: MIRROR });
        assert!(site.leases().is_empty() && !site.cancelled().is_empty());
        site.event(Event::Left { member: peer(1) });
        site.event(Event::Left { member: peer(2) });
        let status = site.brain.status();
        assert!(status.members.is_empty() && status.swarms.is_empty() && status.idle_swarms == 0);
        assert!(site.brain.pools.len() == 0 && site.brain.nodes.is_empty());
    }

    #[test]
    fn a_new_connection_of_a_node_replaces_the_old_one() {
        let mut site = Site::new(8, 1);
        site.have(MIRROR, 0..8);
        site.want(peer(1), []);
        site.join(peer(9), 1, Role::Peer);
        assert_eq!(site.brain.status().members.len(), 2);
        assert_eq!(site.brain.leases.len(), 0);
        site.want(peer(9), 0..4);
        assert!(
            site.leases()
                .iter()
                .all(|(to, lease)| *to == peer(9) && lease.first >= 4)
        );
        site.event(Event::Left { member: peer(1) });
        assert_eq!(site.brain.status().members.len(), 2);
    }

    #[test]
    fn a_pause_of_the_brain_is_nobodys_silence() {
        let mut site = Site::new(8, 1);
        site.have(MIRROR, 0..8);
        site.want(peer(1), []);
        site.now += Time::from_secs(5);
        site.out.clear();
        site.brain.handle_timeout(site.now, &mut site.out);
        assert!(site.out.is_empty(), "{:?}", site.out);
    }
}
