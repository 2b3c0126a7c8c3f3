//! Stalls: a receiver that lands nothing makes room for others at its sources, and later loses its leases.
//!
//! Invariant: a member with leases has a timer for its stall. A lease of a stalled receiver takes no place at its source.

use super::{Brain, Command, MemberId, Time, brain::Timer};

impl Brain {
    /// Sets the timer for a receiver that was just issued a lease.
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

    /// The timer of a receiver has come: it may have stalled, and its leases may expire.
    pub(super) fn check_stall(&mut self, id: MemberId, out: &mut Vec<Command>) {
        let Some(&slot) = self.ids.get(&id) else {
            return;
        };
        let since = self.members[slot].landed_at.max(self.awake_since);
        let expires_at = since + self.expires_after(slot);
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

    /// The time without a landed piece after which a receiver's leases take no place. A receiver that has never landed a piece gets
    /// a few times the swarm's lease time, which is that of peers: a mirror may take longer, and without a lease time nothing is
    /// known.
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

    /// The time without a landed piece after which a receiver's leases expire. Its own lease time counts. Each time that its leases
    /// expired it gets twice as long, with one lease at a time: its link or its rate limit may be that slow.
    fn expires_after(&self, slot: u32) -> Time {
        let member = &self.members[slot];
        let from_upstream = |&id| self.leases.get(id).is_some_and(|lease| lease.source.is_none());
        let least = match member.fetching.iter().any(from_upstream) {
            true => self.policy.mirror_grace,
            false => self.policy.expires_after,
        };
        let own = member.lease_time.unwrap_or_default() * LEASE_TIME_FACTOR;
        least.max(own) * (1 << member.expiries.min(EXPIRIES_MAX))
    }

    /// The leases of a receiver go on, and make room for others at their sources.
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

    /// Ends the leases of a receiver that lands nothing; it waits before it gets another. If it was to fetch from upstream,
    /// another receiver does.
    pub(super) fn expire_leases(&mut self, slot: u32, out: &mut Vec<Command>) {
        self.stall(slot);
        for id in self.members[slot].fetching.clone() {
            // `taken` keeps these pieces, so that this receiver ranks behind those that land theirs.
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
}

/// A receiver's leases last at least so many times its own lease time.
const LEASE_TIME_FACTOR: u32 = 4;
/// After so many stalls without a piece in good time in between a receiver gets one lease at a time. The first may be its
/// sources' fault.
const STALLS_MAX: u32 = 2;
/// The time of a receiver whose leases expired doubles at most so often.
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

    /// A mirror that holds 64 pieces, 60 members that want them and do `act` every 100 ms with what they were leased, and one
    /// honest peer that comes 20 s later and lands each lease after 10 ms. Says how long that one takes.
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
