//! Leases: issued, removed, cancelled.
//!
//! Invariant: a piece is leased to a member of a swarm exactly when one outstanding lease of that member covers it and the
//! member does not have it.

use super::{Brain, Command, Lease, LeaseId, Priority, Source, lease_table::LeaseState, run::Run};

impl Brain {
    /// Orders a member that lacks all of `run` to fetch it from `source` (`None`: upstream).
    pub(super) fn issue_lease(
        &mut self,
        (swarm, index): (u32, u32),
        source: Option<u32>,
        run: Run,
        priority: Priority,
        out: &mut Vec<Command>,
    ) {
        let receiver = self.swarms[swarm].members[index].slot;
        if let Some(source) = source.filter(|&source| self.members[source].is_full(&self.policy))
            && let Some(idle) = self.preemptable_by(receiver, source)
        {
            self.expire_leases(idle, out);
        }
        let issued_at = self.now;
        let id = self.leases.insert(|id| LeaseState {
            id,
            swarm,
            index,
            receiver,
            source,
            run,
            issued_at,
        });
        self.swarms[swarm].note_lease(index, id, run, source.is_none(), issued_at);
        self.trim(swarm);
        let lease = self.order(id, swarm, source, run, priority);
        self.swarms[swarm].update_sets(index, self.policy.leases_deep);
        self.members[receiver].fetching.push(id);
        self.watch_silence(receiver);
        self.watch_stall(receiver);
        if let Some(source) = source {
            self.members[source].serving.push(id);
            self.note_lease(receiver, source);
            self.members[source].live_swarms.insert(swarm);
            self.watch_silence(source);
        }
        self.schedule_tick(swarm);
        let to = self.members[receiver].id;
        out.push(Command::Lease { to, lease });
    }

    /// The order that the receiver gets. From now on the hashes in it count as used.
    fn order(&mut self, id: LeaseId, swarm: u32, source: Option<u32>, run: Run, priority: Priority) -> Lease {
        let state = &mut self.swarms[swarm];
        let fill = state
            .fill
            .as_mut()
            .expect("a member that wants a blob has stated a fill");
        if source.is_some() {
            fill.note_use(run.pieces());
        }
        Lease {
            id,
            digest: state.digest,
            fill: fill.id,
            map: fill.map,
            first: run.first,
            count: run.count,
            source: source.map_or(Source::Upstream, |slot| Source::Member(self.members[slot].id)),
            priority,
            hashes: run.pieces().map(|piece| fill.hash(piece)).collect(),
        }
    }

    /// Ended leases leave the front of the queue, two for each lease that joins it.
    fn trim(&mut self, swarm: u32) {
        let queue = &mut self.swarms[swarm].issued;
        for _ in 0..2 {
            if queue.front().is_some_and(|&id| self.leases.get(id).is_none()) {
                queue.pop_front();
            }
        }
    }

    /// Removes a lease; pieces that have not landed are missing again. Yields the lease and the number of those pieces.
    pub(super) fn remove_lease(&mut self, id: LeaseId) -> Option<(LeaseState, u32)> {
        let lease = self.leases.remove(id)?;
        let state = &mut self.swarms[lease.swarm];
        let missing = lease
            .run
            .pieces()
            .filter(|&piece| state.unlease_piece(lease.index, piece));
        let missing = u32::try_from(missing.count()).expect("a run's length is u32");
        state.members[lease.index].leases -= 1;
        state.outstanding -= 1;
        if state.outstanding == 0 {
            state.issued.clear();
        }
        self.note_lease_over(id, lease.receiver, lease.source);
        if let Some(source) = lease.source {
            self.members[source].serving.retain(|&other| other != id);
            self.pending_sources.push_back((source, lease.swarm));
        }
        self.requeue(lease.swarm, lease.index);
        Some((lease, missing))
    }

    /// Ends a lease for a reason that is not its receiver's, and tells the receiver.
    pub(super) fn cancel(&mut self, id: LeaseId, out: &mut Vec<Command>) {
        let Some((lease, missing)) = self.remove_lease(id) else {
            return;
        };
        let member = &mut self.swarms[lease.swarm].members[lease.index];
        member.taken = member.taken.saturating_sub(missing).max(member.accounted());
        out.push(Command::Cancel {
            to: self.members[lease.receiver].id,
            lease: id,
        });
    }

    /// Cancels the leases to a member in one swarm.
    pub(super) fn cancel_fetches(&mut self, slot: u32, swarm: u32, out: &mut Vec<Command>) {
        let fetching = self.members[slot].fetching.clone();
        self.cancel_in(fetching, swarm, out);
    }

    /// Cancels the leases from a member in one swarm.
    pub(super) fn cancel_uploads(&mut self, slot: u32, swarm: u32, out: &mut Vec<Command>) {
        let serving = self.members[slot].serving.clone();
        self.cancel_in(serving, swarm, out);
    }

    fn cancel_in(&mut self, ids: Vec<LeaseId>, swarm: u32, out: &mut Vec<Command>) {
        for id in ids {
            if self.leases.get(id).is_some_and(|lease| lease.swarm == swarm) {
                self.cancel(id, out);
            }
        }
    }

    /// Whether a lease to the member in `swarm` covers `piece`.
    pub(super) fn is_covered(&self, slot: u32, swarm: u32, piece: u32) -> bool {
        let mut leases = self.members[slot].fetching.iter().filter_map(|&id| self.leases.get(id));
        leases.any(|lease| lease.swarm == swarm && lease.run.contains(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Event, LeaseId, Outcome,
        testing::{MIRROR, Site, peer},
    };

    #[test]
    fn a_lease_is_a_run_of_small_pieces_up_to_its_bytes() {
        let mut site = Site::new(16, 1);
        site.map = piecemeal_proto::PieceMap::new(16 << 18, 1 << 18).unwrap();
        site.have(MIRROR, 0..16);
        site.want(peer(1), []);
        let runs: Vec<_> = site
            .leases()
            .iter()
            .map(|(_, lease)| (lease.first, lease.count))
            .collect();
        assert_eq!(runs, [(0, 4), (4, 4), (8, 4), (12, 4)]);
    }

    #[test]
    fn pieces_of_an_active_lease_are_offered_at_once() {
        let mut site = Site::new(16, 2);
        site.brain.policy.lease_bytes_max = 16 << 20;
        site.have(MIRROR, 0..16);
        site.want(peer(1), []);
        assert_eq!(site.lease().1.count, 16);
        site.want(peer(2), []);
        assert!(
            site.leases().is_empty(),
            "they are on their way to a peer that will pass them on"
        );
        site.have(peer(1), 0..1);
        let (to, lease) = site.lease();
        assert_eq!((to, lease.first, lease.count), (peer(2), 0, 1));
    }

    #[test]
    fn late_doubled_and_foreign_reports_change_nothing() {
        let mut site = Site::new(2, 2);
        site.have(MIRROR, 0..2);
        site.want(peer(1), []);
        let (_, lease) = site.leases()[0].clone();
        site.end(peer(2), lease.id, Outcome::Done);
        site.end(peer(1), LeaseId(0), Outcome::Done);
        assert_eq!(site.brain.leases.len(), 2);
        site.end(peer(1), lease.id, Outcome::Done);
        site.end(peer(1), lease.id, Outcome::Corrupt { piece: 0 });
        assert_eq!(site.brain.leases.len(), 1);
    }

    #[test]
    fn two_brains_give_different_ids() {
        let [one, other] = [1, 2].map(|seed| {
            let mut site = Site::new(1, 1);
            site.brain = super::super::Brain::new(super::super::Policy::default(), seed);
            site.join(MIRROR, 0, super::super::Role::Mirror);
            site.join(peer(1), 1, super::super::Role::Peer);
            site.have(MIRROR, 0..1);
            site.want(peer(1), []);
            site.lease().1.id
        });
        assert_ne!(one, other);
    }

    #[test]
    fn an_unwanted_blob_is_not_fetched_on() {
        let mut site = Site::new(8, 1);
        site.have(MIRROR, 0..8);
        site.want(peer(1), []);
        let digest = site.digest;
        site.event(Event::Unwant {
            member: peer(1),
            digest,
        });
        assert_eq!(site.cancelled().len(), 4);
        assert_eq!(site.brain.status().idle_swarms, 1);
    }
}
