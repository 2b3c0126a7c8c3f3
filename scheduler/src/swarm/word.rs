//! Whose word for a piece's hash counts.
//!
//! The authority's does: a mirror says it in its session, and a list that `authority.key` signed may come from anybody. A peer's own
//! word is used only where no mirror has the piece or brings it in time, of one peer at a time, and written down (`Fill`'s claims).
//!
//! Invariant: what was taken by a claim that the authority contradicts is ordered to be dropped before anything is matched again.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use piecemeal_proto::{Digest, FillId, PieceHash, SignedPieceHashes};

use super::{Brain, Command, Conviction, Member, MemberId, fill::Claim};

impl Brain {
    /// Whether a peer's own word for hashes is better than to wait: no mirror has brought anything for a while, or nothing of this
    /// blob for a longer one.
    pub(super) fn words_count(&self, swarm: u32) -> bool {
        let state = &self.swarms[swarm];
        let pool = &self.pools[state.pool];
        let quiet_since = state.live_since.max(state.progress_at).max(pool.mirrors_changed);
        let is_idle = self.now >= pool.progress_at.max(quiet_since) + self.policy.word_patience;
        state.is_live() && (is_idle || self.now >= quiet_since + self.policy.mirror_grace)
    }

    /// A mirror has brought something new of a blob.
    pub(super) fn note_progress(&mut self, swarm: u32) {
        let state = &mut self.swarms[swarm];
        state.progress_at = self.now;
        self.pools[state.pool].progress_at = self.now;
    }

    /// Whether the seat's word for `piece` is used now: of the one peer that states hashes, and of what a seat itself had from
    /// upstream in the mirror's place.
    fn may_claim(&mut self, swarm: u32, seat: u32) -> bool {
        let member = &self.members[self.swarms[swarm].seats[seat].member];
        if member.is_mirror() || self.has_lied(&member.info) || !self.words_count(swarm) {
            return false;
        }
        let now = self.now;
        let state = &mut self.swarms[swarm];
        let taking = &state.seats[seat];
        if taking.banned || taking.word.is_active(now) {
            return false;
        }
        if state.upstream == Some(seat) {
            return true;
        }
        if state.stater.is_none() && (taking.complete || state.complete_peers == 0) {
            state.stater = Some(seat);
        }
        let is_turn = state.stater == Some(seat);
        state.stater_owes &= !is_turn;
        is_turn
    }

    pub(super) fn has_lied(&self, of: &Member) -> bool {
        self.convicted.contains(&(of.node, of.signed))
    }

    /// A mirror states hashes of the pieces from `first`.
    pub(super) fn state_hashes(
        &mut self,
        swarm: u32,
        first: u32,
        hashes: &[Option<PieceHash>],
        out: &mut Vec<Command>,
    ) {
        let state = &mut self.swarms[swarm];
        let Some(fill) = &mut state.fill else {
            return;
        };
        let (mut lies, mut news) = (Vec::new(), false);
        for (piece, hash) in (first..).zip(hashes) {
            let Some(hash) = hash else {
                continue;
            };
            news |= fill.stated_hash(piece).is_none();
            lies.extend(fill.state(piece, *hash).into_iter().map(|claim| (piece, claim)));
        }
        if news {
            self.note_progress(swarm);
        }
        self.convict_liars(swarm, &lies, out);
    }

    /// A peer states hashes of pieces that it says it holds. What differs from the authority's is not kept; what nobody has stated
    /// is taken if its turn has come. Says whether hashes are still to be asked for.
    pub(super) fn claim_hashes(
        &mut self,
        (swarm, seat): (u32, u32),
        first: u32,
        hashes: &[Option<PieceHash>],
        out: &mut Vec<Command>,
    ) -> bool {
        let may_claim = hashes.iter().any(Option::is_some) && self.may_claim(swarm, seat);
        let now = self.now;
        let state = &mut self.swarms[swarm];
        let member = &self.members[state.seats[seat].member];
        let (member, node, signed) = (member.id, member.info.node, member.info.signed);
        let mut wrong = Vec::new();
        let (mut unhashed, mut landed) = (false, false);
        for (piece, hash) in (first..).zip(hashes) {
            let fill = state.fill.as_mut().expect("agreed upon just now");
            if let (Some(stated), Some(hash)) = (fill.stated_hash(piece), hash)
                && stated != *hash
            {
                wrong.push(piece);
                continue;
            }
            if let (None, Some(hash), true) = (fill.hash(piece), hash, may_claim) {
                let doubts = 0;
                let hash = *hash;
                fill.claim(
                    piece,
                    Claim {
                        hash,
                        member,
                        node,
                        signed,
                        doubts,
                    },
                );
            }
            let known = fill.hash(piece);
            unhashed |= known.is_none();
            if state.seats[seat].complete {
                continue;
            }
            landed |= state.seats[seat].leased.contains(piece);
            state.gain(seat, piece, now);
            match hash {
                Some(hash) if known == Some(*hash) => drop(state.seats[seat].unproven.remove(piece)),
                // Compared once the authority has spoken.
                Some(_) => state.note_unproven(seat, piece),
                None => {}
            }
        }
        let taking = &self.swarms[swarm].seats[seat];
        let (complete, slot) = (taking.complete, taking.member);
        if landed {
            self.note_landing(slot);
        }
        if !wrong.is_empty() && !complete {
            self.order_drop((swarm, seat), &wrong, out);
        }
        unhashed
    }

    /// A list that the authority signed: good under any fill that cuts the blob so.
    pub(super) fn piece_hashes(&mut self, member: MemberId, list: &Arc<SignedPieceHashes>, out: &mut Vec<Command>) {
        let Some(slot) = self.hear(member) else {
            return;
        };
        let key = (self.members[slot].pool, *list.digest());
        let Some(&swarm) = self.digests.get(&key) else {
            // Nobody waits for it. A peer could have it sent again and again.
            if self.members[slot].is_mirror() {
                self.send_list_to_holders(slot, list, out);
            }
            return;
        };
        let state = &mut self.swarms[swarm];
        let cut = state.fill.as_ref().map(|fill| fill.map);
        let is_better = |known: &Arc<SignedPieceHashes>| cut == Some(list.map()) && cut != Some(known.map());
        if state.list.as_ref().is_none_or(is_better) {
            state.list = Some(Arc::clone(list));
            let told: Vec<u32> = state.seats.iter().map(|(index, _)| index).collect();
            for seat in told {
                if self.swarms[swarm].seats[seat].member != slot {
                    self.send_list(swarm, seat, out);
                }
            }
        }
        self.use_list(swarm, out);
        if let Some(&seat) = self.members[slot].seats.get(&swarm) {
            self.touch(swarm, seat);
        }
        self.rouse(swarm);
    }

    /// Takes what a list says over into the fill in force, if it is cut alike.
    pub(super) fn use_list(&mut self, swarm: u32, out: &mut Vec<Command>) {
        let state = &mut self.swarms[swarm];
        let (Some(fill), Some(list)) = (&mut state.fill, &state.list) else {
            return;
        };
        if fill.signed || fill.map != list.map() {
            return;
        }
        let stated = (0..).zip(list.hashes());
        let lies: Vec<(u32, Claim)> = stated
            .flat_map(|(piece, hash)| fill.state(piece, *hash).into_iter().map(move |claim| (piece, claim)))
            .collect();
        fill.signed = true;
        self.convict_liars(swarm, &lies, out);
    }

    /// The swarm's list, for a member that keeps it.
    pub(super) fn send_list(&self, swarm: u32, seat: u32, out: &mut Vec<Command>) {
        let state = &self.swarms[swarm];
        let member = &self.members[state.seats[seat].member];
        if let Some(list) = &state.list
            && member.info.features.piece_hashes
            && !member.is_mirror()
        {
            out.push(Command::PieceHashes {
                to: member.id,
                list: Arc::clone(list),
            });
        }
    }

    /// The authority has stated other hashes than these claims: their pieces are taken back from everybody, and their claimants
    /// are believed no more.
    fn convict_liars(&mut self, swarm: u32, lies: &[(u32, Claim)], out: &mut Vec<Command>) {
        if lies.is_empty() {
            return;
        }
        let wrong: BTreeSet<u32> = lies.iter().map(|(piece, _)| *piece).collect();
        let leases: Vec<_> = self.swarms[swarm].granted.iter().copied().collect();
        for id in leases {
            let lease = self.leases.get(id);
            if lease.is_some_and(|lease| lease.run.pieces().any(|piece| wrong.contains(&piece))) {
                self.cancel(id, out);
            }
        }
        let mut liars: Vec<(MemberId, Conviction)> = Vec::new();
        for &(piece, claim) in lies {
            if liars.iter().all(|(member, _)| *member != claim.member) {
                let conviction = Conviction {
                    node: claim.node,
                    signed: claim.signed,
                    digest: self.swarms[swarm].digest,
                    piece,
                };
                liars.push((claim.member, conviction));
            }
        }
        for (liar, conviction) in liars {
            self.convicted.put((conviction.node, conviction.signed), ());
            self.convictions.push(conviction);
            self.convictions
                .drain(..self.convictions.len().saturating_sub(CONVICTIONS_MAX));
            self.forget_word(swarm, liar);
            if let Some(slot) = self.ids.get(&liar).copied()
                && let Some(&seat) = self.members[slot].seats.get(&swarm)
            {
                self.expel(swarm, seat, out);
            }
        }
        // Everybody who wants the blob: what a lease brought just now may not have been reported yet.
        let wrong: Vec<u32> = wrong.into_iter().collect();
        let state = &self.swarms[swarm];
        let holders = state.seats.iter().filter(|(_, seat)| !seat.mirror && !seat.complete);
        let holders: Vec<u32> = holders.map(|(index, _)| index).collect();
        for seat in holders {
            self.order_drop((swarm, seat), &wrong, out);
        }
    }

    /// The member's claims are used no more, and it is asked for no others.
    fn forget_word(&mut self, swarm: u32, claimant: MemberId) {
        let seat = self
            .ids
            .get(&claimant)
            .and_then(|&slot| self.members[slot].seats.get(&swarm));
        let state = &mut self.swarms[swarm];
        if let Some(fill) = &mut state.fill {
            fill.set_claims_aside(claimant);
        }
        if let Some(&seat) = seat {
            state.seats[seat].word.strike(self.now, &self.policy);
            state.stater = state.stater.filter(|&stater| stater != seat);
        }
    }

    /// What the seat holds counts for nothing any more, and nothing is fetched from it.
    pub(super) fn expel(&mut self, swarm: u32, seat: u32, out: &mut Vec<Command>) {
        let member = self.swarms[swarm].seats[seat].member;
        self.swarms[swarm].ban(seat);
        self.cancel_uploads(member, swarm, out);
        self.retire_from_upstream(swarm, seat, out);
        self.touch(swarm, seat);
    }

    /// A peer drops pieces that are not what their hash says; of the last release it can only be told to drop all.
    fn order_drop(&mut self, (swarm, seat): (u32, u32), wrong: &[u32], out: &mut Vec<Command>) {
        let state = &self.swarms[swarm];
        let slot = state.seats[seat].member;
        let to = self.members[slot].id;
        let (digest, fill) = (state.digest, state.fill.as_ref().expect("it has pieces").id);
        if self.members[slot].info.features.drop {
            for &piece in wrong {
                let covered = self.is_covered(slot, swarm, piece);
                self.swarms[swarm].lose(seat, piece, covered);
            }
            let pieces = ranges(wrong);
            out.push(Command::Drop {
                to,
                digest,
                fill,
                pieces,
            });
        } else {
            let is_concerned = |piece: &&u32| {
                self.swarms[swarm].seats[seat].have.contains(**piece) || self.is_covered(slot, swarm, **piece)
            };
            if !wrong.iter().any(|piece| is_concerned(&piece)) {
                return;
            }
            self.cancel_fetches(slot, swarm, out);
            let held: Vec<u32> = self.swarms[swarm].seats[seat].have.iter().collect();
            for piece in held {
                self.swarms[swarm].lose(seat, piece, false);
            }
            out.push(Command::Revoked { to, digest, fill });
        }
        self.touch(swarm, seat);
    }

    /// A peer held every piece, and the whole was not the blob: one of the peers' words that are used was wrong. A claimant that says
    /// to have proven the whole is left alone from then on; as with wrong bytes, a peer is believed a few such reports.
    pub(super) fn doubt(&mut self, member: MemberId, digest: &Digest, fill: FillId, out: &mut Vec<Command>) {
        let Some((swarm, seat)) = self.hear(member).and_then(|slot| self.seat_of(slot, digest)) else {
            return;
        };
        let state = &mut self.swarms[swarm];
        let Some(filled) = state.fill.as_ref().filter(|filled| filled.id == fill) else {
            return;
        };
        let claimants = filled.claimants();
        let doubting = &mut state.seats[seat];
        let (wants, slot) = (doubting.wants, doubting.member);
        if claimants.is_empty() || !wants || !self.may_accuse(slot, *digest) {
            return;
        }
        for claimant in claimants {
            self.forget_word(swarm, claimant);
            let slot = self.ids.get(&claimant);
            let seat = slot.and_then(|&slot| self.members[slot].seats.get(&swarm)).copied();
            if let Some(seat) = seat.filter(|&seat| self.swarms[swarm].seats[seat].complete) {
                self.expel(swarm, seat, out);
            }
        }
        self.rouse(swarm);
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
            self.forget_word(swarm, claimant);
            return false;
        }
        if doubts >= self.policy.doubts_max {
            self.forget_word(swarm, claimant);
        }
        true
    }

    /// The peers that were found to have stated wrong hashes since this was last called.
    pub fn take_convictions(&mut self) -> Vec<Conviction> {
        std::mem::take(&mut self.convictions)
    }
}

/// Ascending pieces as ranges.
fn ranges(pieces: &[u32]) -> Vec<Range<u32>> {
    pieces
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| run[0]..run[run.len() - 1] + 1)
        .collect()
}

/// Convictions that wait to be told.
const CONVICTIONS_MAX: usize = 64;
/// Nodes that are remembered as liars; beyond it the one that was convicted first is forgotten.
pub(super) const CONVICTED_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Event, Role,
            testing::{MIRROR, Site, peer},
        },
        *,
    };

    #[test]
    fn what_a_session_states_that_did_not_sign_is_not_held_against_the_node_whose_id_it_says() {
        let mut site = Site::without_mirror(4, 1);
        let info = Member {
            node: piecemeal_proto::NodeId([9; 16]),
            signed: false,
            role: Role::Peer,
            pool: "site".into(),
            zone: "rack".into(),
            may_use_upstream: true,
            features: super::super::Features::default(),
        };
        let (member, node) = (
            peer(9),
            Member {
                signed: true,
                ..info.clone()
            },
        );
        site.event(Event::Joined {
            member,
            info: info.clone(),
        });
        site.want(peer(1), []);
        site.want(member, 0..4);
        site.have(member, 0..4);
        site.join(MIRROR, 100, Role::Mirror);
        site.event(Event::Have {
            member: MIRROR,
            digest: site.digest,
            map: site.map,
            fill: site.fill,
            first: 0,
            hashes: vec![Some([2; 32]); 4],
        });
        let convicted = site.brain.take_convictions();
        assert_eq!(
            convicted.iter().map(|of| (of.node, of.signed)).collect::<Vec<_>>(),
            [(info.node, false)]
        );
        assert!(site.brain.has_lied(&info) && !site.brain.has_lied(&node));
    }
}
