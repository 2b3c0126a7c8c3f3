//! Outcome of leases: how they end, and the consequences for their sources and receivers.
//!
//! Invariant: whatever the outcome, pieces that have not landed are missing again before anything is matched.

use piecemeal_proto::Digest;

use super::{Brain, Command, LeaseId, MemberId, Outcome, lease_table::LeaseState, lease_time};

impl Brain {
    pub(super) fn ended(&mut self, member: MemberId, id: LeaseId, outcome: Outcome, out: &mut Vec<Command>) {
        let Some(slot) = self.note_heard(member) else {
            return;
        };
        if self.leases.get(id).is_none_or(|lease| lease.receiver != slot) {
            return;
        }
        if outcome == Outcome::Done {
            self.land(id);
        }
        let Some((lease, _)) = self.remove_lease(id) else {
            return;
        };
        self.note_lease_time(slot, self.now - lease.issued_at, outcome);
        if outcome == Outcome::Cancelled {
            self.note_given_up(slot, lease.issued_at);
        }
        let Some(source) = lease.source else {
            if outcome != Outcome::Done && outcome != Outcome::Cancelled {
                let state = &mut self.swarms[lease.swarm];
                state.members[lease.index]
                    .upstream_backoff
                    .strike(self.now, &self.policy);
                self.retire_from_upstream(lease.swarm, lease.index, out);
            }
            return;
        };
        let source_backoff = &mut self.members[source].source_backoff;
        match outcome {
            Outcome::Done => source_backoff.serve(member),
            Outcome::Cancelled => {}
            Outcome::Unreachable | Outcome::Stalled => source_backoff.accuse(member, self.now, &self.policy),
            Outcome::Refused => source_backoff.strike(member, self.now, &self.policy),
            Outcome::Missing { piece } => self.report_missing(&lease, source, piece),
            Outcome::Corrupt { piece } => self.report_corrupt(&lease, source, piece, out),
        }
    }

    /// The receiver holds every piece of the lease.
    fn land(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.get(id) else {
            return;
        };
        let (receiver, issued_at) = (lease.receiver, lease.issued_at);
        if self.members[receiver].landed_at <= issued_at || lease.run.pieces().any(|piece| self.is_leased(lease, piece))
        {
            self.note_landing(receiver);
        }
        let Some(lease) = self.leases.get(id) else {
            return;
        };
        let state = &mut self.swarms[lease.swarm];
        for piece in lease.run.pieces() {
            state.gain(lease.index, piece, self.now);
        }
        let member = &mut state.members[lease.index];
        member.stolen = member.stolen.saturating_sub(1);
        let Some(source) = lease.source else {
            return;
        };
        if lease.issued_at < self.awake_since {
            return;
        }
        let took = self.now - lease.issued_at;
        let member = &mut self.members[source];
        if let Some(lease_time) = state.lease_time {
            member.note_pace(took, lease_time, &self.policy);
        }
        if !member.is_mirror() {
            state.lease_time = Some(lease_time::smoothed(state.lease_time, took));
        }
    }

    fn is_leased(&self, lease: &LeaseState, piece: u32) -> bool {
        self.swarms[lease.swarm].members[lease.index].leased.contains(piece)
    }

    /// The source does not hold a piece that it said it holds: it has only the others.
    fn report_missing(&mut self, lease: &LeaseState, source: u32, piece: u32) {
        let Some(&index) = self.members[source].swarms.get(&lease.swarm) else {
            return;
        };
        if !lease.run.contains(piece) {
            return;
        }
        let covered = self.is_covered(source, lease.swarm, piece);
        let state = &mut self.swarms[lease.swarm];
        if state.members[index].complete {
            state.unmark_complete(index, self.now);
        }
        state.lose(index, piece, covered);
        self.requeue(lease.swarm, index);
        self.remove_if_vacant(lease.swarm, index);
    }

    /// The source sent other bytes than the hash says. The brain believes a few such reports of a peer: with more, one liar
    /// could take every source from the others. Only this receiver stops to use a mirror, which verifies what it holds, and a
    /// source whose bytes differ from what another peer claims.
    fn report_corrupt(&mut self, lease: &LeaseState, source: u32, piece: u32, out: &mut Vec<Command>) {
        let accuser = self.members[lease.receiver].id;
        self.members[source]
            .source_backoff
            .strike(accuser, self.now, &self.policy);
        let id = self.members[source].id;
        let is_claimants_fault = lease.run.contains(piece) && self.doubt_claim(lease.swarm, id, piece);
        let Some(&index) = self.members[source].swarms.get(&lease.swarm) else {
            return;
        };
        let digest = self.swarms[lease.swarm].digest;
        if is_claimants_fault || self.members[source].is_mirror() || !self.may_accuse(lease.receiver, digest) {
            return;
        }
        self.expel(lease.swarm, index, out);
    }

    /// Counts a report by which a source is expelled; says whether it is believed. The count is per member and blob: a member
    /// that gives the blob up and wants it again keeps its count.
    pub(super) fn may_accuse(&mut self, accuser: u32, digest: Digest) -> bool {
        let count = self.members[accuser].accusations.get_or_insert_mut(digest, || 0);
        let may = *count < self.policy.accusations_max;
        *count += u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::Digest;

    use super::super::{
        Event, Outcome, Source, Time,
        testing::{MIRROR, Site, is_from, peer},
    };

    /// One receiver (3) of one piece that two complete peers hold, served by the first of them.
    fn two_sources() -> (Site, super::super::Lease) {
        let mut site = Site::without_mirror(1, 3);
        site.complete(peer(1));
        site.want(peer(3), []);
        site.have(peer(1), 0..1);
        let lease = site.lease().1;
        site.complete(peer(2));
        (site, lease)
    }

    #[test]
    fn a_failed_source_is_left_alone_and_another_takes_over_at_once() {
        for outcome in [Outcome::Unreachable, Outcome::Stalled, Outcome::Refused] {
            let (mut site, lease) = two_sources();
            site.end(peer(3), lease.id, outcome);
            assert!(is_from(&site.lease().1, peer(2)));
        }
    }

    #[test]
    fn the_only_source_is_tried_again_after_a_second() {
        let mut site = Site::without_mirror(1, 2);
        site.complete(peer(1));
        site.want(peer(2), []);
        site.have(peer(1), 0..1);
        let lease = site.lease().1;
        site.end(peer(2), lease.id, Outcome::Unreachable);
        assert!(site.leases().is_empty());
        site.pass(Time::from_millis(900), &[]);
        assert!(site.leases().is_empty());
        site.pass(Time::from_millis(200), &[]);
        assert!(is_from(&site.lease().1, peer(1)));
    }

    #[test]
    fn a_corrupt_source_is_never_used_for_the_blob_again() {
        let (mut site, lease) = two_sources();
        site.end(peer(3), lease.id, Outcome::Corrupt { piece: 0 });
        site.have(peer(2), 0..1);
        let second = site.lease().1;
        assert!(is_from(&second, peer(2)));
        site.end(peer(3), second.id, Outcome::Unreachable);
        site.complete(peer(1));
        site.have(peer(1), 0..1);
        site.pass(Time::from_secs(10), &[]);
        assert!(!site.leases().is_empty());
        assert!(site.leases().iter().all(|(_, lease)| is_from(lease, peer(2))));
    }

    #[test]
    fn one_liar_cannot_take_every_source_from_the_others() {
        let mut site = Site::without_mirror(1, 12);
        for number in 1..=10 {
            site.complete(peer(number));
        }
        site.want(peer(11), []);
        site.have(peer(1), 0..1);
        let mut leases = site.leases();
        while let Some((to, lease)) = leases.pop() {
            site.end(to, lease.id, Outcome::Corrupt { piece: 0 });
            let Source::Member(source) = lease.source else {
                unreachable!();
            };
            // Only peers state hashes here, so that each doubt has to be dispelled.
            let another = (1..=10).map(peer).find(|&member| member != source);
            site.have(another.unwrap(), 0..1);
            leases = site.leases();
        }
        site.want(peer(12), []);
        site.have(peer(10), 0..1);
        site.pass(Time::from_millis(200), &[]);
        let honest = site.brain.swarms.iter().next().unwrap().1.sources.len();
        assert!(honest >= 6, "{honest}");
    }

    #[test]
    fn what_a_member_accuses_others_of_is_counted_on_when_it_gives_the_blob_up_and_wants_it_again() {
        let mut site = Site::new(1, 2);
        let (member, digest) = (peer(1), site.digest);
        let slot = site.brain.ids[&member];
        let believed = |site: &mut Site| (0..6).filter(|_| site.brain.may_accuse(slot, digest)).count();
        site.want(member, []);
        assert_eq!(believed(&mut site), 4);
        site.event(Event::Unwant { member, digest });
        site.want(member, []);
        assert_eq!(believed(&mut site), 0);
        let other = Digest::of(b"other");
        assert!(
            site.brain.may_accuse(slot, other),
            "of another blob nothing was said yet"
        );
    }

    #[test]
    fn a_missing_piece_is_struck_and_only_it() {
        let mut site = Site::new(2, 2);
        site.have(MIRROR, 0..2);
        site.want(peer(1), []);
        let lease = site.leases()[0].1.clone();
        assert_eq!(lease.first, 0);
        site.end(peer(1), lease.id, Outcome::Missing { piece: 0 });
        site.pass(Time::from_millis(900), &[]);
        assert!(site.leases().is_empty(), "no source has it");
        site.have(MIRROR, 0..1);
        assert_eq!(site.lease().1.first, 0);
    }

    #[test]
    fn a_piece_that_a_whole_blob_lacks_is_struck_too() {
        let mut site = Site::new(3, 2);
        site.brain.policy.claim_patience = Time::ZERO;
        site.complete(peer(2));
        site.want(peer(1), []);
        site.have(peer(2), 0..3);
        let (_, lease) = site.leases().into_iter().find(|(_, lease)| lease.first == 1).unwrap();
        site.end(peer(1), lease.id, Outcome::Missing { piece: 1 });
        site.end(peer(1), lease.id, Outcome::Missing { piece: 9 });
        let (_, swarm) = site.brain.swarms.iter().next().unwrap();
        let held = swarm
            .members
            .iter()
            .map(|(_, member)| member)
            .find(|member| member.slot == 1);
        assert_eq!(held.unwrap().have.iter().collect::<Vec<_>>(), [0, 2]);
    }
}
