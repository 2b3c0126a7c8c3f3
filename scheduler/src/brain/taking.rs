//! How a receiver uses its leases: one that lands nothing holds up no other, and loses them.
//!
//! Nothing here rests on a receiver's word alone but that a piece of its own lease has landed, and that ends its part in the lease.
//!
//! Invariant: a lease of a stalled receiver takes no place of its source's. Nor does one of a receiver that had its time and never
//! landed a piece, and such a lease ends when another needs the room: however many they are, they keep no place from others.

use super::{
    Brain, Command, LeaseId, MemberId, Outcome, Time,
    brain::Timer,
    lease_table::LeaseState,
    member::{MemberState, ReceiverClass},
    run::LEASE_TIME_INITIAL,
};

impl Brain {
    /// Whether a member may be leased one more. `urgent`: one beyond its depth.
    pub(super) fn may_take(&self, slot: u32, urgent: bool) -> bool {
        let member = &self.members[slot];
        let allowance = match member.allowance {
            0..=1 => 1,
            more => more + usize::from(urgent),
        };
        !member.stalled && !member.lease_backoff.is_active(self.now) && member.fetching.len() < allowance
    }

    /// A lease has gone out: from now on the receiver's silence about pieces is noticed.
    pub(super) fn watch_stall(&mut self, slot: u32) {
        let now = self.now;
        let member = &mut self.members[slot];
        if member.fetching.len() == 1 {
            member.landed_at = now;
        }
        if !std::mem::replace(&mut member.stall_watched, true) {
            let timer = Timer::Stall(member.id);
            let at = now + self.stalls_after(slot);
            self.timers.insert((at, timer));
        }
    }

    /// How long a receiver may land nothing before its leases take no place. One that has never landed a piece gets a few times what
    /// a lease usually takes from peers: from a mirror it may take longer, and without anything usual nothing is known.
    fn stalls_after(&self, slot: u32) -> Time {
        let most = self.policy.stalled_after;
        let member = &self.members[slot];
        if member.landed {
            return most;
        }
        let leases = member.fetching.iter().filter_map(|&id| self.leases.get(id));
        let times = leases.map(|lease| {
            let is_peers = lease.source.is_some_and(|source| !self.members[source].is_mirror());
            let lease_time = self.swarms[lease.swarm].lease_time.filter(|_| is_peers);
            lease_time.map_or(most, |lease_time| lease_time * self.policy.straggler_factor)
        });
        let time = times.max().unwrap_or(most);
        time.clamp(self.policy.rematch_every * 2, most)
    }

    /// The time has come at which a receiver may have stalled.
    pub(super) fn check_stall(&mut self, id: MemberId, out: &mut Vec<Command>) {
        let Some(&slot) = self.ids.get(&id) else {
            return;
        };
        let since = self.members[slot].landed_at.max(self.awake_since);
        let expires_at = since + self.patience_with(slot);
        let member = &mut self.members[slot];
        member.stall_watched = false;
        if member.fetching.is_empty() {
            return;
        }
        if self.now >= expires_at {
            self.expire_leases(slot, out);
            return;
        }
        let stalls_at = since + self.stalls_after(slot);
        let next = if self.now < stalls_at { stalls_at } else { expires_at };
        if self.now >= stalls_at {
            self.stall(slot);
        }
        self.members[slot].stall_watched = true;
        self.timers.insert((next, Timer::Stall(id)));
    }

    /// How long a receiver may land nothing. Its own usual time counts, and each time that was not enough it gets twice as long, one
    /// lease at a time: its link or its cap may be that slow.
    fn patience_with(&self, slot: u32) -> Time {
        let member = &self.members[slot];
        let from_upstream = |&id| self.leases.get(id).is_some_and(|lease| lease.source.is_none());
        let least = match member.fetching.iter().any(from_upstream) {
            true => self.policy.mirror_grace,
            false => self.policy.expires_after,
        };
        let lease_time = member
            .lease_time
            .map_or(Time::ZERO, |lease_time| lease_time * LEASE_TIME_FACTOR);
        least.max(lease_time) * (1 << member.expiries.min(EXPIRIES_MAX))
    }

    /// Its leases go on, and make room for others at their sources.
    fn stall(&mut self, slot: u32) {
        if self.members[slot].stalled {
            return;
        }
        self.reclassify(slot, |member| {
            member.stalled = true;
            member.stalls += 1;
            if member.stalls >= STALLS_MAX {
                (member.allowance, member.prompt) = (1, false);
            }
        });
        for id in self.members[slot].fetching.clone() {
            let Some(lease) = self.leases.get(id) else {
                continue;
            };
            let (swarm, index) = (lease.swarm, lease.index);
            self.pending_sources.extend(lease.source.map(|source| (source, swarm)));
            if !self.members[slot].landed {
                self.swarms[swarm].members[index].idle = true;
                self.swarms[swarm].update_sets(index, self.policy.leases_deep);
            }
        }
    }

    /// Changes what a receiver's leases count as, at each of its sources.
    fn reclassify(&mut self, slot: u32, change: impl FnOnce(&mut MemberState)) {
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

    /// The receiver whose lease of `source` ends if one more is given to `taker`, where that needs the room: an idle newcomer that
    /// had its time, of these the one that lost its leases most often, or has this one for the shortest time. So the others
    /// keep theirs until they lapse, in case all of them are only slow.
    pub(super) fn preemptable_by(&self, taker: u32, source: u32) -> Option<u32> {
        let taking = &self.members[taker];
        if taking.receiver_class() == ReceiverClass::Idle {
            return None;
        }
        let had_its_time = |lease: &&LeaseState| {
            let lease_time = self.swarms[lease.swarm].lease_time.unwrap_or_default();
            let time = lease_time.max(taking.lease_time.unwrap_or(LEASE_TIME_INITIAL)) * self.policy.straggler_factor;
            lease.issued_at.max(self.awake_since) + time <= self.now
        };
        let leases = self.members[source]
            .serving
            .iter()
            .filter_map(|&id| self.leases.get(id));
        leases
            .filter(|lease| self.members[lease.receiver].receiver_class() == ReceiverClass::Idle)
            .filter(had_its_time)
            .max_by_key(|lease| (self.members[lease.receiver].expiries, lease.issued_at))
            .map(|lease| lease.receiver)
    }

    /// It lands nothing: its leases end, and it waits before it gets another. If it was to fetch from upstream, another does.
    pub(super) fn expire_leases(&mut self, slot: u32, out: &mut Vec<Command>) {
        self.stall(slot);
        for id in self.members[slot].fetching.clone() {
            // What was taken stays taken: it goes behind those who land theirs.
            let Some((lease, _)) = self.remove_lease(id) else {
                continue;
            };
            let to = self.members[slot].id;
            out.push(Command::Cancel { to, lease: id });
            if lease.source.is_none() {
                let member = &mut self.swarms[lease.swarm].members[lease.index];
                member.upstream_backoff.strike(self.now, &self.policy);
                self.pass_upstream_on(lease.swarm, lease.index);
            }
        }
        let member = &mut self.members[slot];
        (member.allowance, member.prompt, member.landed) = (1, false, false);
        member.expiries += 1;
        member.lease_backoff.strike(self.now, &self.policy);
    }

    /// A piece of one of its leases has landed.
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

    /// A lease begins: what it takes of its source's room.
    pub(super) fn note_lease(&mut self, receiver: u32, source: u32) {
        let class = self.members[receiver].receiver_class();
        *self.members[source].count_mut(class) += 1;
    }

    /// A lease is over: what it took of its source's room, and what it says of the receiver.
    pub(super) fn note_lease_over(&mut self, id: LeaseId, receiver: u32, source: Option<u32>) {
        let class = self.members[receiver].receiver_class();
        if let Some(source) = source {
            *self.members[source].count_mut(class) -= 1;
        }
        self.members[receiver].fetching.retain(|&other| other != id);
        if self.members[receiver].fetching.is_empty() {
            // Its sources may be what has stalled.
            self.members[receiver].stalled = false;
        }
    }

    /// The receiver itself ended a lease of which nothing has landed: a few in a row, and it waits before it gets another.
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

    /// As a receiver it took so long for a lease, in its own way of going about it.
    pub(super) fn note_lease_time(&mut self, slot: u32, took: Time, outcome: Outcome) {
        if outcome == Outcome::Done {
            let member = &mut self.members[slot];
            let lease_time = member.lease_time.unwrap_or(took);
            member.lease_time = Some(lease_time - lease_time / LEASE_TIME_WEIGHT + took / LEASE_TIME_WEIGHT);
        }
    }
}

/// A receiver may take so many times its usual time.
const LEASE_TIME_FACTOR: u32 = 4;
/// One in so many parts of it is the latest lease's.
const LEASE_TIME_WEIGHT: u32 = 8;
/// A receiver that stalls so often without a piece in good time in between gets one lease at a time: once, it may be its sources.
const STALLS_MAX: u32 = 2;
/// The time doubles at most so often.
const EXPIRIES_MAX: u32 = 5;

#[cfg(test)]
mod tests {
    use super::super::{
        Command, Event, Lease, MemberId, Outcome, Role,
        testing::{MIRROR, Site, peer},
    };
    use super::*;

    const IDLE: u32 = 60;
    const HONEST: u32 = 100;
    /// Chance decides for some seconds which newcomer gets a mirror's free place.
    const PULL_MAX: Time = Time::from_secs(10);

    /// A mirror that holds 64 pieces, 60 members that want them and do `act` every 100 ms with what they were leased, and one honest
    /// peer that comes 20 s later and lands each lease after 10 ms. Says how long that one takes.
    fn honest_pull(mut act: impl FnMut(&mut Site, MemberId, &[Lease])) -> Time {
        let mut site = Site::new(64, 0);
        site.have(MIRROR, 0..64);
        let mut leased: std::collections::BTreeMap<MemberId, Vec<Lease>> = Default::default();
        let note = |site: &Site, leased: &mut std::collections::BTreeMap<MemberId, Vec<Lease>>| {
            for command in &site.out {
                match command {
                    Command::Lease { to, lease } => leased.entry(*to).or_default().push(lease.clone()),
                    Command::Cancel { to, lease } => {
                        leased.entry(*to).or_default().retain(|other| other.id != *lease);
                    }
                    _ => {}
                }
            }
        };
        for number in 1..=IDLE {
            site.join(peer(number), number, Role::Peer);
            site.want(peer(number), []);
            note(&site, &mut leased);
        }
        for _ in 0..200 {
            site.pass(Time::from_millis(100), &[]);
            note(&site, &mut leased);
            for number in 1..=IDLE {
                let theirs = leased.get(&peer(number)).cloned().unwrap_or_default();
                act(&mut site, peer(number), &theirs);
                note(&site, &mut leased);
            }
        }
        site.join(peer(HONEST), HONEST, Role::Peer);
        site.want(peer(HONEST), []);
        note(&site, &mut leased);
        let begun = site.now;
        let mut landed = 0;
        while landed < 64 {
            assert!(site.now - begun < Time::from_secs(300), "{landed} pieces in 300 s");
            site.pass(Time::from_millis(10), &[]);
            note(&site, &mut leased);
            for lease in std::mem::take(leased.entry(peer(HONEST)).or_default()) {
                site.have(peer(HONEST), lease.first..lease.first + lease.count);
                note(&site, &mut leased);
                site.end(peer(HONEST), lease.id, Outcome::Done);
                note(&site, &mut leased);
                landed += lease.count;
            }
            if site.now.subsec_millis().is_multiple_of(100) {
                for number in 1..=IDLE {
                    let theirs = leased.get(&peer(number)).cloned().unwrap_or_default();
                    act(&mut site, peer(number), &theirs);
                    note(&site, &mut leased);
                }
            }
        }
        site.now - begun
    }

    #[test]
    fn sixty_members_that_do_nothing_with_their_leases_hardly_slow_a_pull() {
        let took = honest_pull(|_, _, _| {});
        assert!(took < PULL_MAX, "{took:?}");
    }

    #[test]
    fn nor_do_those_that_land_a_piece_just_in_time() {
        let mut last = std::collections::BTreeMap::new();
        let took = honest_pull(|site, member, leases| {
            let since = *last.entry(member).or_insert(site.now);
            if let Some(lease) = leases.first()
                && site.now - since >= Time::from_millis(4900)
            {
                last.insert(member, site.now);
                site.have(member, lease.first..lease.first + 1);
            }
        });
        assert!(took < PULL_MAX, "{took:?}");
    }

    #[test]
    fn nor_those_that_give_every_lease_up_at_once() {
        let took = honest_pull(|site, member, leases| {
            for lease in leases {
                site.end(member, lease.id, Outcome::Cancelled);
            }
        });
        assert!(took < PULL_MAX, "{took:?}");
    }

    #[test]
    fn nor_those_that_want_and_unwant() {
        let took = honest_pull(|site, member, _| {
            let digest = site.digest;
            site.event(Event::Unwant { member, digest });
            site.want(member, []);
        });
        assert!(took < PULL_MAX, "{took:?}");
    }

    #[test]
    fn nor_those_that_say_that_a_client_waits() {
        let took = honest_pull(|site, member, _| {
            let digest = site.digest;
            for piece in [5, 40] {
                site.event(Event::Waiting { member, digest, piece });
            }
        });
        assert!(took < PULL_MAX, "{took:?}");
    }

    #[test]
    fn nor_those_that_say_to_hold_other_pieces_than_they_were_leased() {
        let took = honest_pull(|site, member, leases| {
            let other = (0..64).find(|piece| leases.iter().all(|lease| lease.first != *piece));
            let piece = other.unwrap_or(0);
            site.have(member, piece..piece + 1);
        });
        assert!(took < PULL_MAX, "{took:?}");
    }

    #[test]
    fn leases_without_a_piece_end_after_five_seconds_and_come_one_at_a_time_until_one_lands() {
        let mut site = Site::new(8, 1);
        site.have(MIRROR, 0..8);
        site.want(peer(1), []);
        assert_eq!(site.leases().len(), 4);
        site.pass(Time::from_millis(4900), &[]);
        assert!(site.cancelled().is_empty());
        site.pass(Time::from_millis(200), &[]);
        assert_eq!((site.cancelled().len(), site.leases().len()), (4, 0));
        site.pass(Time::from_millis(1100), &[]);
        let (_, lease) = site.lease();
        site.have(peer(1), lease.first..lease.first + 1);
        let more = site.leases().len();
        site.end(peer(1), lease.id, Outcome::Done);
        assert_eq!((more, site.leases().len()), (1, 1));
    }

    #[test]
    fn a_receiver_whose_link_takes_longer_than_that_for_a_piece_gets_its_time() {
        let mut site = Site::new(2, 1);
        site.have(MIRROR, 0..2);
        site.want(peer(1), []);
        let mut begun: Option<(Lease, Time)> = None;
        for _ in 0..600 {
            site.pass(Time::from_millis(100), &[]);
            for (_, lease) in site.leases() {
                begun.get_or_insert((lease, site.now));
            }
            if begun
                .as_ref()
                .is_some_and(|(lease, _)| site.cancelled().contains(&lease.id))
            {
                begun = None;
            }
            if let Some((lease, since)) = &begun
                && site.now - *since > Time::from_secs(12)
            {
                let lease = lease.clone();
                site.have(peer(1), lease.first..lease.first + 1);
                return;
            }
        }
        panic!("it never had the twelve seconds that a piece takes");
    }
}
