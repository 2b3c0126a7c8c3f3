//! Conviction of peers that stated wrong piece hashes, and dispute of hashes that may be wrong.
//!
//! Invariant: only proven bytes convict: a signed list, a mirror that holds the whole blob, or a mirror that has proven its
//! download. Until then a mirror's download may be the bad one, and a peer that states other hashes is disputed, not convicted.

use std::collections::{BTreeMap, BTreeSet};

use piecemeal_proto::{Digest, FillId};

use super::{Brain, Command, Conviction, MemberId, fill::Claim};

impl Brain {
    /// The blob's own digest proves the fill in force: claims that differ from it were wrong.
    pub(super) fn prove_fill(&mut self, swarm: u32, out: &mut Vec<Command>) {
        if let Some(fill) = &mut self.swarms[swarm].fill {
            let lies = fill.prove();
            self.convict_liars(swarm, &lies, out);
        }
    }

    /// The authority has stated other hashes of proven bytes than these claims: the claimants are not believed any more.
    pub(super) fn convict_liars(&mut self, swarm: u32, lies: &[(u32, Claim)], out: &mut Vec<Command>) {
        let digest = self.swarms[swarm].digest;
        let mut liars: BTreeMap<MemberId, Conviction> = BTreeMap::new();
        for &(piece, claim) in lies {
            let (node, signed) = (claim.node, claim.signed);
            let conviction = Conviction {
                node,
                signed,
                digest,
                piece,
            };
            liars.entry(claim.member).or_insert(conviction);
        }
        self.discard_claims(swarm, &liars.keys().copied().collect());
        for (liar, conviction) in liars {
            self.convicted.put((conviction.node, conviction.signed), ());
            self.convictions.push(conviction);
            if let Some(index) = self.index_of(swarm, liar) {
                self.expel(swarm, index, out);
            }
        }
        self.convictions
            .drain(..self.convictions.len().saturating_sub(CONVICTIONS_MAX));
    }

    /// A mirror states other hashes than these claims, and has not proven its download yet. It is the authority for the fill,
    /// but it may be wrong. A claimant that holds the whole blob serves no peer until the bytes are proven.
    pub(super) fn dispute(&mut self, swarm: u32, differing: &[(u32, Claim)], out: &mut Vec<Command>) {
        let claimants = differing.iter().map(|(_, claim)| claim.member).collect();
        self.discard_claims(swarm, &claimants);
        for claimant in claimants {
            if let Some(index) = self.index_of(swarm, claimant)
                && self.swarms[swarm].members[index].complete
            {
                let slot = self.swarms[swarm].members[index].slot;
                self.swarms[swarm].dispute(index);
                self.cancel_uploads(slot, swarm, out);
                self.requeue(swarm, index);
            }
        }
    }

    /// A peer held every piece, and the whole did not have the blob's digest: one of the claims in use was wrong. A claimant
    /// that says it holds the whole blob is expelled. The brain believes a few such reports of a peer, and none of a peer that
    /// landed no piece here.
    pub(super) fn doubt(&mut self, member: MemberId, digest: &Digest, fill: FillId, out: &mut Vec<Command>) {
        let Some((swarm, index)) = self
            .note_heard(member)
            .and_then(|slot| self.find_swarm_member(slot, digest))
        else {
            return;
        };
        let state = &mut self.swarms[swarm];
        let Some(filled) = state.fill.as_ref().filter(|filled| filled.id == fill) else {
            return;
        };
        let claimants = filled.claimants();
        let doubting = &state.members[index];
        let (may, slot) = (doubting.wants && doubting.landed, doubting.slot);
        if claimants.is_empty() || !may || !self.may_accuse(slot, *digest) {
            return;
        }
        self.discard_claims(swarm, &claimants);
        for claimant in claimants {
            let index = self.index_of(swarm, claimant);
            if let Some(index) = index.filter(|&index| self.swarms[swarm].members[index].complete) {
                self.expel(swarm, index, out);
            }
        }
        self.schedule_tick(swarm);
    }

    /// A source sent other bytes than a claim says; says whether the claimant may be at fault. Which of the two is wrong cannot
    /// be known: after a few doubts the claim is discarded.
    pub(super) fn doubt_claim(&mut self, swarm: u32, source: MemberId, piece: u32) -> bool {
        let Some(fill) = &mut self.swarms[swarm].fill else {
            return false;
        };
        let Some(claim) = fill.claim_of(piece) else {
            return false;
        };
        claim.doubts += 1;
        let (claimant, doubts) = (claim.member, claim.doubts);
        if claimant == source {
            self.discard_claims(swarm, &BTreeSet::from([claimant]));
            return false;
        }
        if doubts >= self.policy.doubts_max {
            self.discard_claims(swarm, &BTreeSet::from([claimant]));
        }
        true
    }

    /// Uses the members' claims no more, and asks them for no others for a while.
    pub(super) fn discard_claims(&mut self, swarm: u32, claimants: &BTreeSet<MemberId>) {
        if let Some(fill) = &mut self.swarms[swarm].fill {
            fill.retract_claims(claimants);
        }
        for &claimant in claimants {
            if let Some(index) = self.index_of(swarm, claimant) {
                let state = &mut self.swarms[swarm];
                state.members[index].claim_backoff.strike(self.now, &self.policy);
                state.hash_source = state.hash_source.filter(|&hash_source| hash_source != index);
            }
        }
    }

    /// Fetches nothing of the blob from the member any more: what it holds counts for nothing.
    pub(super) fn expel(&mut self, swarm: u32, index: u32, out: &mut Vec<Command>) {
        let slot = self.swarms[swarm].members[index].slot;
        self.swarms[swarm].ban(index);
        self.cancel_uploads(slot, swarm, out);
        self.retire_from_upstream(swarm, index, out);
        self.requeue(swarm, index);
    }

    /// The index of a connected member in the swarm.
    fn index_of(&self, swarm: u32, member: MemberId) -> Option<u32> {
        let &slot = self.ids.get(&member)?;
        self.members[slot].swarms.get(&swarm).copied()
    }

    /// The peers that were convicted since this was last called.
    pub fn take_convictions(&mut self) -> Vec<Conviction> {
        std::mem::take(&mut self.convictions)
    }
}

/// Convictions that wait for [`Brain::take_convictions`].
const CONVICTIONS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use piecemeal_proto::{NodeId, PieceMap};

    use super::super::{
        Event, Role, Time,
        testing::{MIRROR, Site, is_from, peer},
    };
    use super::*;

    /// Peer 1 holds the whole blob of 4 pieces and has stated the hashes, by which peer 2 is leased pieces. Then a mirror comes.
    fn stated_by_a_peer() -> Site {
        let mut site = Site::without_mirror(4, 2);
        site.complete(peer(1));
        site.want(peer(2), []);
        site.have(peer(1), 0..4);
        assert!(site.leases().iter().all(|(_, lease)| is_from(lease, peer(1))));
        assert_eq!(site.leases().len(), 3);
        site.join(MIRROR, 0, Role::Mirror);
        site
    }

    /// The mirror holds pieces of a download of its own, and says what their hash is.
    fn mirror_states(site: &mut Site, fill: u64, pieces: Range<u32>, hash: u8) {
        site.fill = FillId(fill);
        site.event(Event::Have {
            member: MIRROR,
            digest: site.digest,
            map: site.map,
            fill: site.fill,
            first: pieces.start,
            hashes: vec![Some([hash; 32]); pieces.len()],
        });
    }

    fn mirror_revokes(site: &mut Site) {
        let (member, digest, fill) = (MIRROR, site.digest, site.fill);
        site.event(Event::Revoke { member, digest, fill });
    }

    fn mirror_proves(site: &mut Site) {
        let (member, digest, fill) = (MIRROR, site.digest, site.fill);
        site.event(Event::Proven { member, digest, fill });
    }

    fn convicted(site: &mut Site) -> Vec<NodeId> {
        let convictions = site.brain.take_convictions();
        convictions.iter().map(|conviction| conviction.node).collect()
    }

    fn serves(site: &Site, number: u32) -> bool {
        let slot = site.brain.ids[&peer(number)];
        let (_, swarm) = site.brain.swarms.iter().next().unwrap();
        let mut sources = swarm.sources.as_slice().iter();
        sources.any(|&index| swarm.members[index].slot == slot)
    }

    #[test]
    fn an_honest_stater_is_not_convicted_by_a_download_that_its_mirror_revokes() {
        let mut site = stated_by_a_peer();
        mirror_states(&mut site, 9, 0..4, 2);
        assert!(!serves(&site, 1), "one of the two is wrong");
        mirror_revokes(&mut site);
        assert!(serves(&site, 1));
        mirror_states(&mut site, 10, 0..4, 1);
        mirror_proves(&mut site);
        assert!(serves(&site, 1) && convicted(&mut site).is_empty());
    }

    #[test]
    fn a_liar_is_convicted_once_the_mirror_has_proven_its_download() {
        let mut site = stated_by_a_peer();
        mirror_states(&mut site, 9, 0..2, 2);
        assert!(convicted(&mut site).is_empty());
        mirror_states(&mut site, 9, 2..4, 1);
        mirror_proves(&mut site);
        assert_eq!(convicted(&mut site).len(), 1);
        assert!(!serves(&site, 1));
        mirror_proves(&mut site);
        assert!(convicted(&mut site).is_empty());
    }

    #[test]
    fn a_liar_is_convicted_by_the_next_download_when_the_first_was_bad_too() {
        let mut site = stated_by_a_peer();
        mirror_states(&mut site, 9, 0..4, 2);
        mirror_revokes(&mut site);
        mirror_states(&mut site, 10, 0..4, 3);
        mirror_proves(&mut site);
        assert_eq!(convicted(&mut site).len(), 1);
    }

    #[test]
    fn a_mirror_that_holds_the_whole_blob_has_proven_what_it_states() {
        let mut site = stated_by_a_peer();
        mirror_states(&mut site, 9, 0..4, 2);
        site.complete(MIRROR);
        assert_eq!(convicted(&mut site).len(), 1);
        let mut site = stated_by_a_peer();
        site.complete(MIRROR);
        mirror_states(&mut site, 9, 0..4, 2);
        assert_eq!(convicted(&mut site).len(), 1);
    }

    #[test]
    fn pieces_of_another_size_are_not_compared() {
        let mut site = stated_by_a_peer();
        site.map = PieceMap::new(4 << 20, 1 << 19).unwrap();
        mirror_states(&mut site, 9, 0..8, 2);
        mirror_proves(&mut site);
        assert!(serves(&site, 1) && convicted(&mut site).is_empty());
    }

    #[test]
    fn who_landed_no_piece_of_a_blob_raises_no_doubt() {
        let mut site = Site::without_mirror(4, 3);
        site.complete(peer(1));
        site.want(peer(2), []);
        site.want(peer(3), 0..4);
        site.have(peer(1), 0..4);
        let lease = site.leases()[0].1.clone();
        let doubts = |site: &mut Site, member| {
            let (digest, fill) = (site.digest, site.brain.status().swarms[0].fill.unwrap());
            site.event(Event::Doubt { member, digest, fill });
            !serves(site, 1)
        };
        assert!(!doubts(&mut site, peer(3)), "it brought along what it holds");
        assert!(!doubts(&mut site, peer(2)));
        site.have(peer(2), lease.first..lease.first + 1);
        assert!(doubts(&mut site, peer(2)));
    }

    #[test]
    fn a_stater_that_contradicts_itself_loses_its_turn() {
        let mut site = Site::without_mirror(2, 3);
        for number in [1, 3] {
            site.want(peer(number), 0..1);
        }
        site.want(peer(2), []);
        site.have(peer(1), 0..1);
        assert!(is_from(&site.lease().1, peer(1)));
        site.have(peer(2), 0..1);
        let (digest, fill) = (site.digest, site.fill);
        let member = peer(2);
        site.event(Event::Doubt { member, digest, fill });
        site.pass(Time::from_secs(2), &[]);
        site.event(Event::Have {
            member: peer(1),
            digest,
            map: site.map,
            fill,
            first: 0,
            hashes: vec![Some([9; 32])],
        });
        site.have(peer(3), 0..1);
        let (_, swarm) = site.brain.swarms.iter().next().unwrap();
        assert_eq!(swarm.fill.as_ref().unwrap().hash(0), Some([1; 32]));
    }
}
