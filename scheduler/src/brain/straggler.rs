//! Stragglers: a lease that takes far longer than usual goes to another source.
//!
//! Invariant: a piece stays with one lease; the old one is cancelled before the new one is issued.

use super::{Brain, Command, LeaseId, Priority, Time, lease_time, pairing::PieceSelection};

impl Brain {
    /// Looks at the swarm's oldest leases. A straggler is stolen when its receiver waits for nothing else: before that, a slow
    /// source is better than none.
    pub(super) fn steal(&mut self, swarm: u32, out: &mut Vec<Command>) {
        let usual = self.swarms[swarm].lease_time.unwrap_or(lease_time::INITIAL);
        let limit = (usual * self.policy.straggler_factor).max(self.policy.rematch_every * 2);
        for _ in 0..self.policy.receivers_sampled {
            let Some(&id) = self.swarms[swarm].issued.front() else {
                return;
            };
            let issued_at = self.leases.get(id).map(|lease| lease.issued_at);
            if issued_at.is_some_and(|issued_at| issued_at.max(self.awake_since) + limit > self.now) {
                return;
            }
            let queue = &mut self.swarms[swarm].issued;
            queue.pop_front();
            if issued_at.is_some() {
                queue.push_back(id);
                self.steal_one(id, limit, out);
            }
        }
    }

    /// Steals one lease. The more leases of a receiver were stolen without one that came through, the longer the next one gets:
    /// if the receiver's own link is slow, every theft only throws away what has arrived.
    fn steal_one(&mut self, id: LeaseId, limit: Time, out: &mut Vec<Command>) {
        let Some(lease) = self.leases.get(id) else {
            return;
        };
        let (swarm, index, slow, run) = (lease.swarm, lease.index, lease.source, lease.run);
        let state = &self.swarms[swarm];
        let taking = &state.members[index];
        let finishing = !taking.is_lacking(state.pieces());
        let waited_for = taking.waiting.iter().any(|&piece| run.contains(piece));
        let Some(piece) = run.pieces().find(|&piece| taking.leased.contains(piece)) else {
            return;
        };
        let since = lease.issued_at.max(self.awake_since);
        let patient = since + limit * (1 << taking.stolen.min(STOLEN_MAX)) > self.now;
        if slow.is_none() || patient || !(finishing || waited_for) {
            return;
        }
        let faster = self
            .pick_holder(swarm, index, piece, slow, false)
            .or_else(|| self.pick_holder(swarm, index, piece, slow, true));
        let Some(faster) = faster else {
            return;
        };
        self.cancel(id, out);
        self.swarms[swarm].members[index].stolen += 1;
        let source = self.members[faster].swarms[&swarm];
        if let Some(run) = self.match_pair(swarm, source, index, PieceSelection::Piece(piece)) {
            self.issue_lease((swarm, index), Some(faster), run, Priority::Waiting, out);
        }
    }

    /// Another source than `slow` with room that holds `piece`.
    fn pick_holder(&mut self, swarm: u32, index: u32, piece: u32, slow: Option<u32>, mirrors: bool) -> Option<u32> {
        let state = &self.swarms[swarm];
        let set = if mirrors {
            &state.mirrors
        } else {
            state.sources.as_slice()
        };
        let start = self.rng.below(set.len());
        let receiver = self.members[state.members[index].slot].id;
        let sample = set
            .iter()
            .cycle()
            .skip(start)
            .take(set.len().min(self.policy.sources_sampled));
        sample
            .map(|&source| &state.members[source])
            .find(|source| {
                source.holds(piece)
                    && Some(source.slot) != slow
                    && self.has_room(source.slot, true)
                    && !self.members[source.slot]
                        .source_backoff
                        .is_active_for(receiver, self.now)
            })
            .map(|source| source.slot)
    }
}

/// Doublings of the time of one lease.
const STOLEN_MAX: u32 = 10;

#[cfg(test)]
mod tests {
    use super::super::{
        Time,
        testing::{MIRROR, Site, is_from, peer},
    };

    #[test]
    fn the_last_lease_is_stolen_from_a_slow_source_and_then_left_in_peace() {
        let mut site = Site::without_mirror(1, 3);
        site.complete(peer(1));
        site.want(peer(3), []);
        site.have(peer(1), 0..1);
        let slow = site.lease().1;
        site.complete(peer(2));
        site.pass(Time::from_millis(700), &[]);
        assert!(site.cancelled().is_empty());
        site.pass(Time::from_millis(200), &[]);
        assert_eq!(site.cancelled(), [slow.id]);
        let stolen = site.lease().1;
        assert!(is_from(&stolen, peer(2)));
        site.pass(Time::from_millis(1200), &[]);
        assert!(site.cancelled().is_empty(), "twice the time");
        site.pass(Time::from_millis(400), &[]);
        assert_eq!(site.cancelled(), [stolen.id]);
    }

    #[test]
    fn a_slow_source_is_better_than_none() {
        let mut site = Site::new(1, 1);
        site.have(MIRROR, 0..1);
        site.want(peer(1), []);
        site.pass(Time::from_secs(4), &[]);
        assert!(site.cancelled().is_empty());
    }
}
