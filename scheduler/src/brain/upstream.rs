//! Leases from upstream: without a mirror, one peer per blob fetches the pieces that no peer has; the other peers get them from
//! it.
//!
//! Invariant: while a member is chosen, no other member of its swarm has a lease from upstream.

use super::{Brain, Command, Priority, run::scarce_run};

impl Brain {
    /// Leases the pieces that no peer of the swarm has from upstream, if the member is or may become the one that fetches
    /// there.
    pub(super) fn lease_from_upstream(&mut self, swarm: u32, index: u32, out: &mut Vec<Command>) -> bool {
        let state = &self.swarms[swarm];
        let taking = &state.members[index];
        let member = &self.members[taking.slot];
        if !self.pools[state.pool].is_on_its_own(self.now, self.policy.mirror_grace)
            || !member.info.may_use_upstream
            || taking.banned
            || taking.upstream_backoff.is_active(self.now)
            || member.fetching.len() >= self.policy.leases_max as usize
            || !self.is_usable(taking.slot)
            || !self.may_take(taking.slot, false)
            || state.complete_peers > 0
            || state
                .upstream
                .is_some_and(|chosen| chosen != index && !self.is_out_of_reach(swarm, chosen))
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
        if let Some(better) = self.better_for_upstream(swarm, index) {
            self.pending_receivers.push_back((swarm, better));
            return false;
        }
        self.issue_lease((swarm, index), None, run, Priority::Normal, out);
        true
    }

    /// Another receiver that is better to fetch from upstream: a member that lands pieces where this one has not landed any, or
    /// one that has not had the time to where this one had. An idle receiver would keep the others waiting until its leases
    /// expire.
    fn better_for_upstream(&self, swarm: u32, index: u32) -> Option<u32> {
        let state = &self.swarms[swarm];
        let rank = |index: u32| {
            let taking = &state.members[index];
            (!taking.idle, self.members[taking.slot].landed)
        };
        let may_ask = |index: u32| {
            let taking = &state.members[index];
            self.members[taking.slot].info.may_use_upstream
                && !taking.banned
                && !taking.upstream_backoff.is_active(self.now)
                && self.is_usable(taking.slot)
                && self.may_take(taking.slot, false)
        };
        let sets = [&state.landing_receivers, &state.new_receivers];
        let others = sets
            .into_iter()
            .flat_map(|set| set.as_slice().iter().take(RECEIVERS_COMPARED));
        others
            .copied()
            .find(|&other| rank(other) > rank(index) && may_ask(other))
    }

    /// Whether the chosen member has no lease and is not heard.
    fn is_out_of_reach(&self, swarm: u32, chosen: u32) -> bool {
        let member = &self.swarms[swarm].members[chosen];
        member.leases == 0 && !self.is_usable(member.slot)
    }

    /// The member's fetches from upstream fail, or it is not trusted: it stops, and another member takes over.
    pub(super) fn retire_from_upstream(&mut self, swarm: u32, index: u32, out: &mut Vec<Command>) {
        let slot = self.swarms[swarm].members[index].slot;
        for id in self.members[slot].fetching.clone() {
            let lease = self.leases.get(id);
            if lease.is_some_and(|lease| lease.swarm == swarm && lease.source.is_none()) {
                self.cancel(id, out);
            }
        }
        self.pass_upstream_on(swarm, index);
    }

    /// The member is not the one that fetches from upstream any more, if it was; the next receiver that may takes over.
    pub(super) fn pass_upstream_on(&mut self, swarm: u32, index: u32) {
        let Some(state) = self.swarms.get_mut(swarm) else {
            return;
        };
        if state.upstream == Some(index) {
            state.upstream = None;
            let receivers = state.receivers.as_slice().iter();
            let next = receivers
                .filter(|&&other| other != index)
                .take(self.policy.receivers_sampled);
            self.pending_receivers.extend(next.map(|&other| (swarm, other)));
        }
    }
}

/// Receivers of a set that are compared for the one to fetch from upstream.
const RECEIVERS_COMPARED: usize = 64;

#[cfg(test)]
mod tests {
    use super::super::{
        Event, MemberId, Outcome, Role, Source, Time,
        testing::{MIRROR, Site, peer},
    };

    fn upstream_receivers(site: &Site) -> Vec<MemberId> {
        let leases = site.leases().into_iter();
        let upstream = leases.filter(|(_, lease)| lease.source == Source::Upstream);
        upstream.map(|(to, _)| to).collect()
    }

    #[test]
    fn one_peer_asks_upstream_after_the_grace_and_another_when_it_fails() {
        let mut site = Site::without_mirror(8, 3);
        for number in 1..=3 {
            site.want(peer(number), []);
        }
        site.pass(Time::from_millis(29_900), &[]);
        assert!(site.leases().is_empty());
        site.pass(Time::from_millis(200), &[]);
        let asking = upstream_receivers(&site);
        assert_eq!(asking, [asking[0]; 4]);
        let lease = site.leases()[0].1.clone();
        for number in 1..=3 {
            site.end(peer(number), lease.id, Outcome::Unreachable);
            if peer(number) == asking[0] {
                break;
            }
        }
        site.pass(Time::from_millis(200), &[]);
        let next = upstream_receivers(&site);
        assert!(next.iter().all(|&to| to == next[0] && to != asking[0]), "{next:?}");
    }

    #[test]
    fn one_that_was_to_ask_upstream_and_does_nothing_is_followed_by_another() {
        let mut site = Site::without_mirror(8, 3);
        for number in 1..=3 {
            site.want(peer(number), []);
        }
        site.pass(Time::from_millis(30_100), &[]);
        let mut asked = std::collections::BTreeSet::from_iter(upstream_receivers(&site));
        for _ in 0..2 {
            site.pass(Time::from_secs(31), &[]);
            asked.extend(upstream_receivers(&site));
        }
        assert_eq!(asked.len(), 3, "one after the other");
    }

    #[test]
    fn a_member_that_lands_pieces_asks_upstream_before_any_newcomer() {
        let mut site = Site::new(8, 21);
        site.want(peer(1), []);
        site.have(MIRROR, 0..1);
        let (_, lease) = site.lease();
        site.end(peer(1), lease.id, Outcome::Done);
        site.event(Event::Left { member: MIRROR });
        let digest = site.digest;
        let member = peer(1);
        site.event(Event::Unwant { member, digest });
        site.digest = piecemeal_proto::Digest::of(b"other");
        for number in 2..=21 {
            site.want(peer(number), []);
        }
        site.want(peer(1), []);
        site.pass(Time::from_secs(31), &[]);
        assert_eq!(upstream_receivers(&site), [peer(1); 4]);
    }

    #[test]
    fn a_newcomer_asks_upstream_where_the_others_may_not() {
        let mut site = Site::new(8, 2);
        site.want(peer(1), []);
        site.have(MIRROR, 0..1);
        let (_, lease) = site.lease();
        site.end(peer(1), lease.id, Outcome::Done);
        let slot = site.brain.ids[&peer(1)];
        site.brain.members[slot].info.may_use_upstream = false;
        site.event(Event::Left { member: MIRROR });
        site.want(peer(2), 0..1);
        site.pass(Time::from_secs(31), &[]);
        assert!(upstream_receivers(&site).contains(&peer(2)));
    }

    #[test]
    fn a_mirror_that_is_back_ends_it() {
        let mut site = Site::without_mirror(20, 1);
        site.want(peer(1), []);
        site.pass(Time::from_secs(31), &[]);
        let leases = site.leases();
        assert_eq!(leases.len(), 4);
        site.join(MIRROR, 0, Role::Mirror);
        site.end(peer(1), leases[0].1.id, Outcome::Done);
        assert!(site.leases().is_empty());
        site.have(MIRROR, 0..20);
        let (_, lease) = site.lease();
        assert_eq!((lease.source, lease.first), (Source::Member(MIRROR), 4));
    }

    #[test]
    fn what_the_one_has_fetched_the_others_get_from_it() {
        let mut site = Site::without_mirror(4, 2);
        site.want(peer(1), []);
        site.want(peer(2), []);
        site.pass(Time::from_secs(31), &[]);
        let (to, lease) = site.leases()[0].clone();
        site.have(to, lease.first..lease.first + lease.count);
        let (other, passed_on) = site.lease();
        assert!(other != to && passed_on.source == Source::Member(to) && passed_on.first == lease.first);
    }

    #[test]
    fn who_may_not_use_upstream_does_not() {
        let mut site = Site::without_mirror(4, 0);
        site.join(peer(1), 1, Role::Peer);
        let slot = site.brain.ids[&peer(1)];
        site.brain.members[slot].info.may_use_upstream = false;
        site.want(peer(1), []);
        site.pass(Time::from_secs(40), &[]);
        assert!(site.leases().is_empty());
        site.event(Event::Left { member: peer(1) });
    }
}
