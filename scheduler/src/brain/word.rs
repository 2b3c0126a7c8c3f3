//! Sources of piece hashes: which member's statement is used.
//!
//! The authority's counts: a mirror states it in its session, and a list that `authority.key` signed may come from any member. A
//! peer's own statement is used only where no mirror has the piece or brings it in time, of one peer at a time, and is recorded
//! (`Fill`'s claims).
//!
//! What follows when a word proves wrong is in `verdict.rs`.
//!
//! Invariant: what was taken by a claim that the authority contradicts is ordered to be dropped before anything is matched again.

use std::{collections::BTreeSet, sync::Arc};

use piecemeal_proto::{PieceHash, SignedPieceHashes};

use super::{Brain, Command, Member, MemberId, fill::Claim};

impl Brain {
    /// Whether a peer's own word for hashes is better than to wait: no mirror has brought anything for a while, or nothing of this
    /// blob for a longer one.
    pub(super) fn accepts_claims(&self, swarm: u32) -> bool {
        let state = &self.swarms[swarm];
        let pool = &self.pools[state.pool];
        let quiet_since = state.live_since.max(state.progress_at).max(pool.mirrors_changed);
        let is_idle = self.now >= pool.progress_at.max(quiet_since) + self.policy.claim_patience;
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
    fn may_claim(&mut self, swarm: u32, index: u32) -> bool {
        let member = &self.members[self.swarms[swarm].members[index].slot];
        if member.is_mirror() || self.has_lied(&member.info) || !self.accepts_claims(swarm) {
            return false;
        }
        let now = self.now;
        let state = &mut self.swarms[swarm];
        let taking = &state.members[index];
        if taking.banned || taking.claim_backoff.is_active(now) {
            return false;
        }
        if state.upstream == Some(index) {
            return true;
        }
        if state.hash_source.is_none() && (taking.complete || state.complete_peers == 0) {
            state.hash_source = Some(index);
        }
        let is_turn = state.hash_source == Some(index);
        state.hash_source_owes &= !is_turn;
        is_turn
    }

    pub(super) fn has_lied(&self, of: &Member) -> bool {
        self.convicted.contains(&(of.node, of.signed))
    }

    /// A mirror states hashes of the pieces from `first`.
    pub(super) fn state_hashes(
        &mut self,
        (swarm, index): (u32, u32),
        first: u32,
        hashes: &[Option<PieceHash>],
        out: &mut Vec<Command>,
    ) {
        let state = &mut self.swarms[swarm];
        let Some(fill) = &mut state.fill else {
            return;
        };
        let proven = fill.proven || state.members[index].complete;
        let (mut differing, mut news) = (Vec::new(), false);
        for (piece, hash) in (first..).zip(hashes) {
            let Some(hash) = hash else {
                continue;
            };
            news |= fill.stated_hash(piece).is_none();
            differing.extend(fill.state(piece, *hash, proven).into_iter().map(|claim| (piece, claim)));
        }
        if news {
            self.note_progress(swarm);
        }
        self.recall_pieces(swarm, &differing, out);
        if proven {
            self.convict_liars(swarm, &differing, out);
        } else {
            self.dispute(swarm, &differing, out);
        }
    }

    /// A peer states hashes of pieces that it says it holds. What differs from the authority's is not kept; what no member has stated
    /// is taken if its turn has come. Says whether hashes are still to be asked for.
    pub(super) fn claim_hashes(
        &mut self,
        (swarm, index): (u32, u32),
        first: u32,
        hashes: &[Option<PieceHash>],
        out: &mut Vec<Command>,
    ) -> bool {
        let may_claim = hashes.iter().any(Option::is_some) && self.may_claim(swarm, index);
        let now = self.now;
        let state = &mut self.swarms[swarm];
        let member = &self.members[state.members[index].slot];
        let (member, node, signed) = (member.id, member.info.node, member.info.signed);
        let mut wrong = Vec::new();
        let (mut unhashed, mut landed, mut contradicts) = (false, false, false);
        for (piece, hash) in (first..).zip(hashes) {
            let fill = state.fill.as_mut().expect("agreed upon just now");
            if let (Some(stated), Some(hash)) = (fill.stated_hash(piece), hash)
                && stated != *hash
            {
                wrong.push(piece);
                continue;
            }
            if let (None, Some(hash), true) = (fill.hash(piece), hash, may_claim) {
                let claim = Claim {
                    hash: *hash,
                    member,
                    node,
                    signed,
                    doubts: 0,
                    used: false,
                };
                contradicts |= fill.claim(piece, claim);
            }
            let known = fill.hash(piece);
            unhashed |= known.is_none();
            if state.members[index].complete {
                continue;
            }
            landed |= state.members[index].leased.contains(piece);
            state.gain(index, piece, now);
            match hash {
                Some(hash) if known == Some(*hash) => drop(state.members[index].unproven.remove(piece)),
                // Compared once the authority has spoken.
                Some(_) => state.note_unproven(index, piece),
                None => {}
            }
        }
        if contradicts {
            // Another's turn.
            self.discard_claims(swarm, &BTreeSet::from([member]));
        }
        let taking = &self.swarms[swarm].members[index];
        let (complete, slot) = (taking.complete, taking.slot);
        if landed {
            self.note_landing(slot);
        }
        if !wrong.is_empty() && !complete {
            self.order_drop((swarm, index), &wrong, out);
        }
        unhashed
    }

    /// A list that the authority signed: good under any fill that cuts the blob so.
    pub(super) fn piece_hashes(&mut self, member: MemberId, list: &Arc<SignedPieceHashes>, out: &mut Vec<Command>) {
        let Some(slot) = self.note_heard(member) else {
            return;
        };
        let key = (self.members[slot].pool, *list.digest());
        let Some(&swarm) = self.digests.get(&key) else {
            // No member waits for it. A peer could have it sent again and again.
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
            let told: Vec<u32> = state.members.iter().map(|(index, _)| index).collect();
            for index in told {
                if self.swarms[swarm].members[index].slot != slot {
                    self.send_list(swarm, index, out);
                }
            }
        }
        self.use_list(swarm, out);
        if let Some(&index) = self.members[slot].swarms.get(&swarm) {
            self.requeue(swarm, index);
        }
        self.schedule_tick(swarm);
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
            .flat_map(|(piece, hash)| {
                fill.state(piece, *hash, true)
                    .into_iter()
                    .map(move |claim| (piece, claim))
            })
            .collect();
        fill.signed = true;
        self.recall_pieces(swarm, &lies, out);
        self.convict_liars(swarm, &lies, out);
        let state = &mut self.swarms[swarm];
        let disputed = state
            .members
            .iter()
            .filter(|(_, member)| member.disputed && !member.banned);
        for index in disputed.map(|(index, _)| index).collect::<Vec<_>>() {
            self.swarms[swarm].clear_dispute(index);
            self.requeue(swarm, index);
        }
    }

    /// The swarm's list, for a member that keeps it.
    pub(super) fn send_list(&self, swarm: u32, index: u32, out: &mut Vec<Command>) {
        let state = &self.swarms[swarm];
        let member = &self.members[state.members[index].slot];
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
}

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
        site.complete(MIRROR);
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
