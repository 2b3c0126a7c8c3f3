//! Clients of the members that want a blob: whether one is connected anywhere, which mirrors are told of.
//!
//! Invariant: a swarm counts as attending the members that want the blob and have not said that their client has left. A member's wants
//! without a client have [`UNATTENDED_LEASES_MAX`] leases together, so that they hold up none with a client.

use piecemeal_proto::Digest;

use super::{Brain, Command, MemberId};

/// The most leases of one receiver for all blobs that no client of it waits for.
const UNATTENDED_LEASES_MAX: usize = 2;

impl Brain {
    /// A member says whether its client is connected.
    pub(super) fn client(&mut self, member: MemberId, digest: &Digest, connected: bool) {
        let found = self
            .note_heard(member)
            .and_then(|slot| self.find_swarm_member(slot, digest));
        let Some((swarm, index)) = found.filter(|&(swarm, index)| self.swarms[swarm].members[index].wants) else {
            return;
        };
        let was_absent = std::mem::replace(&mut self.swarms[swarm].members[index].is_absent, !connected);
        match (was_absent, connected) {
            (true, true) => self.attend(swarm),
            (false, false) => self.unattend(swarm),
            _ => return,
        }
        self.requeue(swarm, index);
    }

    /// A member begins to want the blob, or its client is back.
    pub(super) fn attend(&mut self, swarm: u32) {
        let state = &mut self.swarms[swarm];
        state.attending += 1;
        if state.attending == 1 {
            self.pending_clients.push((state.pool, state.digest, true));
        }
    }

    /// A member's client leaves, or a member whose client is connected wants the blob no more.
    pub(super) fn unattend(&mut self, swarm: u32) {
        let state = &mut self.swarms[swarm];
        state.attending -= 1;
        if state.attending == 0 {
            self.pending_clients.push((state.pool, state.digest, false));
        }
    }

    /// A member does not want the blob any more, whether or not its client has left before.
    pub(super) fn note_unwanted(&mut self, swarm: u32, index: u32) {
        if !std::mem::take(&mut self.swarms[swarm].members[index].is_absent) {
            self.unattend(swarm);
        }
    }

    /// Tells the mirrors what has changed.
    pub(super) fn tell_clients(&mut self, out: &mut Vec<Command>) {
        for (pool, digest, connected) in std::mem::take(&mut self.pending_clients) {
            let mirrors = self.pools.get(pool).map(|pool| pool.mirror_slots.as_slice());
            for &slot in mirrors.unwrap_or_default() {
                self.tell_client(slot, digest, connected, out);
            }
        }
    }

    /// Tells a mirror that has just joined of every blob that a client waits for.
    pub(super) fn tell_all_clients(&self, slot: u32, out: &mut Vec<Command>) {
        let pool = self.members[slot].pool;
        let attended = self.swarms.iter().map(|(_, state)| state);
        for state in attended.filter(|state| state.pool == pool && state.attending > 0) {
            self.tell_client(slot, state.digest, true, out);
        }
    }

    fn tell_client(&self, slot: u32, digest: Digest, connected: bool, out: &mut Vec<Command>) {
        let mirror = &self.members[slot];
        if mirror.info.features.clients {
            out.push(Command::Clients {
                to: mirror.id,
                digest,
                connected: Some(connected),
                waiting: Vec::new(),
            });
        }
    }

    /// Whether a receiver may get one more lease for a blob that no client of it waits for.
    pub(super) fn has_unattended_room(&self, receiver_slot: u32) -> bool {
        let leases = self.members[receiver_slot].fetching.iter();
        let leases = leases.filter_map(|&id| self.leases.get(id));
        let unattended = leases.filter(|lease| self.swarms[lease.swarm].members[lease.index].is_absent);
        unattended.count() < UNATTENDED_LEASES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Event, Outcome, Role,
        testing::{MIRROR, Site, peer},
    };
    use super::*;

    fn client(site: &mut Site, member: MemberId, connected: bool) {
        let digest = site.digest;
        site.event(Event::Client {
            member,
            digest,
            connected,
        });
    }

    /// What the mirror is told.
    fn told(site: &Site) -> Vec<bool> {
        let told = site.out.iter().filter_map(|command| match command {
            Command::Clients { to, connected, .. } if *to == MIRROR => *connected,
            _ => None,
        });
        told.collect()
    }

    #[test]
    fn mirrors_hear_when_the_first_client_comes_and_when_the_last_one_leaves() {
        let mut site = Site::new(8, 3);
        site.want(peer(1), []);
        assert_eq!(told(&site), [true]);
        site.want(peer(2), []);
        client(&mut site, peer(1), false);
        assert!(told(&site).is_empty(), "one is left");
        client(&mut site, peer(2), false);
        assert_eq!(told(&site), [false]);
        client(&mut site, peer(2), false);
        assert!(told(&site).is_empty(), "it is known");
        site.want(peer(2), []);
        assert!(told(&site).is_empty(), "a repeated want says nothing of a client");
        client(&mut site, peer(1), true);
        assert_eq!(told(&site), [true]);
        let digest = site.digest;
        site.event(Event::Unwant {
            member: peer(1),
            digest,
        });
        assert_eq!(told(&site), [false]);
        client(&mut site, peer(3), true);
        assert!(told(&site).is_empty(), "it wants nothing");
    }

    #[test]
    fn a_client_that_goes_with_its_node_has_left_and_a_mirror_that_comes_is_told_of_all() {
        let mut site = Site::new(8, 2);
        site.want(peer(1), []);
        site.event(Event::Left { member: peer(1) });
        assert_eq!(told(&site), [false]);
        site.want(peer(2), []);
        site.event(Event::Left { member: MIRROR });
        site.join(MIRROR, 0, Role::Mirror);
        assert_eq!(told(&site), [true]);
    }

    #[test]
    fn a_receiver_whose_client_waits_comes_before_less_complete_ones_without() {
        let mut site = Site::new(64, 2);
        site.want(peer(1), 0..40);
        site.want(peer(2), 0..10);
        client(&mut site, peer(2), false);
        site.have(MIRROR, 63..64);
        assert_eq!(site.lease().0, peer(1));
    }

    #[test]
    fn sixty_blobs_that_a_client_has_left_hold_up_no_other_of_its_node_and_go_on() {
        let mut site = Site::new(64, 1);
        let mut leases = Vec::new();
        for number in 0..60_u8 {
            site.digest = Digest::of(&[number]);
            site.want(peer(1), []);
            client(&mut site, peer(1), false);
            site.have(MIRROR, 0..64);
            leases.extend(site.leases());
        }
        assert_eq!(leases.len(), UNATTENDED_LEASES_MAX);
        site.digest = Digest::of(b"waited for");
        site.want(peer(1), []);
        site.have(MIRROR, 0..64);
        let at_once = site.leases();
        assert!(at_once.len() > 1 && at_once.iter().all(|(_, lease)| lease.digest == site.digest));
        site.end(peer(1), leases[0].1.id, Outcome::Done);
        let digests: Vec<Digest> = site.leases().iter().map(|(_, lease)| lease.digest).collect();
        assert!(digests.iter().any(|digest| *digest != site.digest), "the others go on");
    }
}
