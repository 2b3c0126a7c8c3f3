//! Pieces that members hold: some with their hashes, the whole blob, or none any more.
//!
//! Invariant: pieces are counted only under the fill in force; a whole blob is good under any.

use piecemeal_proto::{Digest, FillId, PieceHash, PieceMap};

use super::{Brain, Command, MemberId, holdings::Key};

impl Brain {
    /// `hashes`: one for each piece from `first` that the member holds under `fill`, cut by `map`. A peer that verified the whole blob
    /// may not know the fill, and states hashes that are good under any.
    pub(super) fn have(
        &mut self,
        member: MemberId,
        digest: Digest,
        (fill, map): (FillId, PieceMap),
        first: u32,
        hashes: &[Option<PieceHash>],
        out: &mut Vec<Command>,
    ) {
        let Some(slot) = self.note_heard(member) else {
            return;
        };
        let mirror = self.members[slot].is_mirror();
        if !fits(first, hashes.len(), map) || !(mirror || self.is_wanted(slot, digest)) {
            return;
        }
        let Some((swarm, index)) = self.enter_swarm(slot, digest) else {
            return;
        };
        let state = &self.swarms[swarm];
        let verified = state.members[index].complete && state.fill.as_ref().is_some_and(|known| known.map == map);
        let good = verified && !mirror
            || self.agree_on_fill((swarm, index), (fill, map), mirror, out) && self.reserve(swarm, index);
        if !good {
            self.remove_if_vacant(swarm, index);
            return;
        }
        let unhashed = match mirror {
            true => self.mirror_has((swarm, index), first, hashes, out),
            false => self.claim_hashes((swarm, index), first, hashes, out),
        };
        self.requeue(swarm, index);
        if unhashed {
            self.describe(swarm, out);
        }
    }

    /// Whether a member of the same pool wants the blob.
    fn is_wanted(&self, slot: u32, digest: Digest) -> bool {
        let swarm = self.digests.get(&(self.members[slot].pool, digest));
        swarm.is_some_and(|&swarm| self.swarms[swarm].is_live())
    }

    /// Says whether hashes of these pieces are still to be asked for.
    fn mirror_has(
        &mut self,
        (swarm, index): (u32, u32),
        first: u32,
        hashes: &[Option<PieceHash>],
        out: &mut Vec<Command>,
    ) -> bool {
        let state = &mut self.swarms[swarm];
        let (complete, mut news) = (state.members[index].complete, false);
        for piece in (first..).take(hashes.len()) {
            news |= !complete && state.gain(index, piece, self.now);
        }
        if news {
            self.note_progress(swarm);
        }
        self.state_hashes((swarm, index), first, hashes, out);
        let fill = self.swarms[swarm].fill.as_ref();
        fill.is_some_and(|fill| (first..).take(hashes.len()).any(|piece| !fill.hashed.contains(piece)))
    }

    pub(super) fn complete(&mut self, member: MemberId, digest: Digest, out: &mut Vec<Command>) {
        let Some(slot) = self.note_heard(member) else {
            return;
        };
        if self.find_swarm_member(slot, &digest).is_none() && !self.is_wanted(slot, digest) {
            self.note_holding(slot, &digest);
            return;
        }
        let Some((swarm, index)) = self.enter_swarm(slot, digest) else {
            return;
        };
        self.cancel_fetches(slot, swarm, out);
        let held = &self.swarms[swarm].members[index];
        if held.mirror && held.have.capacity() > 0 && held.have.is_full() {
            // All that it stated of this fill is of the blob that it has proven.
            self.prove_fill(swarm, out);
        }
        self.release(swarm, index);
        self.swarms[swarm].complete(index);
        self.stop_wanting(swarm, index);
        if self.find_swarm_member(slot, &digest).is_none() {
            // It was the last member that wanted the blob, and left the swarm.
            return;
        }
        self.requeue(swarm, index);
        self.remove_if_vacant(swarm, index);
        self.describe(swarm, out);
    }

    pub(super) fn lost(&mut self, member: MemberId, digest: &Digest, out: &mut Vec<Command>) {
        let Some(slot) = self.note_heard(member) else {
            return;
        };
        let key = Key::new(self.members[slot].pool, digest);
        self.holdings.remove(slot, key);
        if let Some((swarm, index)) = self.find_swarm_member(slot, digest) {
            self.cancel_fetches(slot, swarm, out);
            self.cancel_uploads(slot, swarm, out);
            self.swarms[swarm].forget_claims(index);
            self.requeue(swarm, index);
            self.remove_if_vacant(swarm, index);
        }
    }
}

/// Whether `count` pieces from `first` are some pieces of the blob.
fn fits(first: u32, count: usize, map: PieceMap) -> bool {
    let end = u32::try_from(count).ok().and_then(|count| first.checked_add(count));
    count > 0 && end.is_some_and(|end| end <= map.count())
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::PieceSet;

    use super::super::{
        Event, Time,
        testing::{MIRROR, Site, peer},
    };
    use super::*;

    #[test]
    fn what_does_not_fit_is_ignored() {
        let mut site = Site::new(8, 1);
        let (digest, fill, map) = (site.digest, site.fill, site.map);
        for (first, len) in [(7, 2), (8, 1), (u32::MAX, 2), (0, 0)] {
            site.event(Event::Have {
                member: MIRROR,
                digest,
                map,
                fill,
                first,
                hashes: vec![None; len],
            });
        }
        site.event(Event::Want {
            member: peer(1),
            digest,
            map,
            fill,
            have: PieceSet::new(9),
            window: None,
        });
        site.event(Event::Want {
            member: peer(1),
            digest,
            map: PieceMap::new(0, 1).unwrap(),
            fill,
            have: PieceSet::new(0),
            window: None,
        });
        site.event(Event::Heard { member: peer(77) });
        assert_eq!(site.brain.swarms.len(), 0);
    }

    #[test]
    fn a_swarm_without_a_receiver_keeps_only_its_holders() {
        let mut site = Site::new(8, 2);
        site.complete(MIRROR);
        site.want(peer(1), 0..3);
        site.complete(peer(2));
        let digest = site.digest;
        site.event(Event::Unwant {
            member: peer(1),
            digest,
        });
        assert_eq!((site.brain.swarms.len(), site.brain.holdings.blobs()), (0, 1));
        site.pass(Time::from_secs(1), &[]);
        site.want(peer(1), []);
        assert_eq!(site.described(), [MIRROR]);
        site.have(MIRROR, 0..8);
        assert_eq!(site.leases().len(), 4);
    }
}
