//! Consequences of a stated piece hash that proves wrong, or is doubted.
//!
//! Only proven bytes convict: a signed list, a mirror that holds the whole blob, or one that has proven its download. Until then a
//! mirror's download may be what is bad, and a peer that states other hashes is set aside, not convicted.
//!
//! Invariant: what one event costs here grows with the members and with the pieces, not with the pieces that each member holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use piecemeal_proto::{Digest, FillId, PieceSet};

use super::{Brain, Command, Conviction, MemberId, fill::Claim, swarm_member::SwarmMember};

impl Brain {
    /// The blob's own digest has shown that what the fill in force states is right: claims that differ were wrong.
    pub(super) fn prove_fill(&mut self, swarm: u32, out: &mut Vec<Command>) {
        if let Some(fill) = &mut self.swarms[swarm].fill {
            let lies = fill.prove();
            self.convict_liars(swarm, &lies, out);
        }
    }

    /// The authority has stated other hashes than these claims, of proven bytes: their claimants are believed no more.
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

    /// A mirror states other hashes than these claims, and has not proven its download yet: it is the authority for the fill, but may
    /// be the one that is wrong. A claimant that holds the whole blob serves no peer until that is known.
    pub(super) fn dispute(&mut self, swarm: u32, differing: &[(u32, Claim)], out: &mut Vec<Command>) {
        let claimants = differing.iter().map(|(_, claim)| claim.member).collect();
        self.discard_claims(swarm, &claimants);
        for claimant in claimants {
            if let Some(index) = self.index_of(swarm, claimant)
                && self.swarms[swarm].members[index].complete
            {
                let member = self.swarms[swarm].members[index].slot;
                self.swarms[swarm].dispute(index);
                self.cancel_uploads(member, swarm, out);
                self.requeue(swarm, index);
            }
        }
    }

    fn index_of(&self, swarm: u32, member: MemberId) -> Option<u32> {
        let &slot = self.ids.get(&member)?;
        self.members[slot].swarms.get(&swarm).copied()
    }

    /// Pieces that were taken by wrong claims are taken back, and ordered to be dropped by every peer that wants the blob: a peer may
    /// hold one without having reported it. It costs a few words of bitmap a peer, whatever the peers hold.
    pub(super) fn recall_pieces(&mut self, swarm: u32, claims: &[(u32, Claim)], out: &mut Vec<Command>) {
        if claims.is_empty() {
            return;
        }
        let mut wrong = PieceSet::new(self.swarms[swarm].pieces());
        for &(piece, _) in claims {
            wrong.insert(piece);
        }
        let mut fetching = BTreeSet::new();
        for id in self.swarms[swarm].issued.clone() {
            let lease = self.leases.get(id);
            if let Some(lease) = lease.filter(|lease| lease.run.pieces().any(|piece| wrong.contains(piece))) {
                fetching.insert(lease.index);
                self.cancel(id, out);
            }
        }
        let state = &self.swarms[swarm];
        let members = state
            .members
            .iter()
            .filter(|(_, member)| !member.mirror && !member.complete);
        // A daemon of the last release can only be told to drop all.
        let all = |(index, member): (u32, &SwarmMember)| {
            let drops_all = !self.members[member.slot].info.features.drop;
            let is_concerned = fetching.contains(&index) || member.have.has_any(&wrong);
            (index, drops_all.then_some(is_concerned))
        };
        let members: Vec<(u32, Option<bool>)> = members.map(all).collect();
        self.swarms[swarm].take_from_all(&wrong);
        let pieces = ranges(wrong.iter());
        for (index, drops_all) in members {
            match drops_all {
                None => self.send_drop((swarm, index), Arc::clone(&pieces), out),
                Some(true) => self.drop_all((swarm, index), out),
                Some(false) => {}
            }
            self.swarms[swarm].update_sets(index, self.policy.leases_deep);
        }
        let sources = self.swarms[swarm].mirrors.iter();
        let sources = sources.map(|&index| (self.swarms[swarm].members[index].slot, swarm));
        self.pending_sources.extend(sources);
        self.schedule_tick(swarm);
    }

    /// The members' claims are used no more, and they are asked for no others.
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

    /// What the seat holds counts for nothing any more, and nothing is fetched from it.
    pub(super) fn expel(&mut self, swarm: u32, index: u32, out: &mut Vec<Command>) {
        let member = self.swarms[swarm].members[index].slot;
        self.swarms[swarm].ban(index);
        self.cancel_uploads(member, swarm, out);
        self.retire_from_upstream(swarm, index, out);
        self.requeue(swarm, index);
    }

    /// A peer drops pieces that it says it holds and that are not what their hash says; of the last release it can only be told to
    /// drop all.
    pub(super) fn order_drop(&mut self, (swarm, index): (u32, u32), wrong: &[u32], out: &mut Vec<Command>) {
        let slot = self.swarms[swarm].members[index].slot;
        if self.members[slot].info.features.drop {
            for &piece in wrong {
                let covered = self.is_covered(slot, swarm, piece);
                self.swarms[swarm].lose(index, piece, covered);
            }
            self.send_drop((swarm, index), ranges(wrong.iter().copied()), out);
        } else {
            self.drop_all((swarm, index), out);
        }
        self.requeue(swarm, index);
    }

    fn send_drop(&self, (swarm, index): (u32, u32), pieces: Arc<[Range<u32>]>, out: &mut Vec<Command>) {
        let state = &self.swarms[swarm];
        out.push(Command::Drop {
            to: self.members[state.members[index].slot].id,
            digest: state.digest,
            fill: state.fill.as_ref().expect(FILLED).id,
            pieces,
        });
    }

    fn drop_all(&mut self, (swarm, index): (u32, u32), out: &mut Vec<Command>) {
        let slot = self.swarms[swarm].members[index].slot;
        self.cancel_fetches(slot, swarm, out);
        let held: Vec<u32> = self.swarms[swarm].members[index].have.iter().collect();
        for piece in held {
            self.swarms[swarm].lose(index, piece, false);
        }
        let state = &self.swarms[swarm];
        out.push(Command::Revoked {
            to: self.members[slot].id,
            digest: state.digest,
            fill: state.fill.as_ref().expect(FILLED).id,
        });
    }

    /// A peer held every piece, and the whole was not the blob: one of the peers' words that are used was wrong. A claimant that says
    /// to have proven the whole is left alone from then on; as with wrong bytes, a peer is believed a few such reports, and none that
    /// was never leased a piece here which landed.
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

    /// A source sent other bytes than a claim says. Which of the two is wrong cannot be known: after a few, the claim is given up.
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

    /// The peers that were found to have stated wrong hashes since this was last called.
    pub fn take_convictions(&mut self) -> Vec<Conviction> {
        std::mem::take(&mut self.convictions)
    }
}

/// Ascending pieces as ranges.
fn ranges(pieces: impl Iterator<Item = u32>) -> Arc<[Range<u32>]> {
    let pieces: Vec<u32> = pieces.collect();
    let runs = pieces.chunk_by(|a, b| a + 1 == *b);
    runs.map(|run| run[0]..run[run.len() - 1] + 1).collect()
}

const FILLED: &str = "pieces are only held under a fill";

/// Convictions that wait to be told.
const CONVICTIONS_MAX: usize = 64;

#[cfg(test)]
mod tests {
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

    /// A thousand members hold a thousand pieces each by the word of one, when a mirror that holds the blob states other hashes.
    #[test]
    fn a_conviction_costs_no_more_the_more_pieces_members_hold() {
        const MEMBERS: u32 = 1000;
        const PIECES: u32 = 1024;
        let mut site = Site::without_mirror(PIECES, 0);
        let mut out = Vec::new();
        for number in 1..=MEMBERS {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_le_bytes());
            let features = super::super::Features {
                drop: true,
                ..Default::default()
            };
            let info = super::super::Member {
                node: NodeId(id),
                signed: true,
                role: Role::Peer,
                pool: "site".into(),
                zone: "rack".into(),
                may_use_upstream: true,
                features,
            };
            let member = peer(number);
            site.brain.handle(site.now, Event::Joined { member, info }, &mut out);
            let want = Event::Want {
                member,
                digest: site.digest,
                map: site.map,
                fill: site.fill,
                have: site.set(1..PIECES),
                window: None,
            };
            site.brain.handle(site.now, want, &mut out);
        }
        let have = |member, hash| Event::Have {
            member,
            digest: site.digest,
            map: site.map,
            fill: site.fill,
            first: 0,
            hashes: vec![Some([hash; 32]); PIECES as usize],
        };
        site.brain.handle(site.now, have(peer(1), 1), &mut out);
        let (mirror, digest) = (
            Event::Complete {
                member: MIRROR,
                digest: site.digest,
            },
            site.digest,
        );
        let states = have(MIRROR, 2);
        site.join(MIRROR, 0, Role::Mirror);
        site.brain.handle(site.now, mirror, &mut out);
        let counted = |site: &Site| {
            let key = (site.brain.members[0].pool, digest);
            site.brain.swarms[site.brain.digests[&key]]
                .fill
                .as_ref()
                .unwrap()
                .counted
        };
        out.clear();
        let (before, started) = (counted(&site), std::time::Instant::now());
        site.brain.handle(site.now, states, &mut out);
        let (changes, took) = (counted(&site) - before, started.elapsed());
        let drops = out
            .iter()
            .filter(|command| matches!(command, Command::Drop { .. }))
            .count();
        println!("{changes} changes of copies, {} commands, {took:.2?}", out.len());
        assert_eq!((site.brain.take_convictions().len(), drops), (1, MEMBERS as usize));
        assert!(
            changes < u64::from(PIECES) * 4,
            "{changes} of {} pieces held",
            MEMBERS * PIECES
        );
        site.brain.check_invariants();
    }
}
