//! Piece hashes that the authority states: a mirror in its session, and lists that `authority.key` signed, which may come from
//! any member.
//!
//! Invariant: pieces that were fetched by a claim that the authority contradicts are recalled before anything is matched again.

use std::sync::Arc;

use piecemeal_proto::{PieceHash, SignedPieceHashes};

use super::{Brain, Command, MemberId, fill::Claim};

impl Brain {
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

    /// A mirror has brought a new piece or hash of a blob.
    pub(super) fn note_progress(&mut self, swarm: u32) {
        let state = &mut self.swarms[swarm];
        state.progress_at = self.now;
        self.pools[state.pool].progress_at = self.now;
    }

    /// Takes a list that the authority signed. It is good under any fill of the same cut.
    pub(super) fn piece_hashes(&mut self, member: MemberId, list: &Arc<SignedPieceHashes>, out: &mut Vec<Command>) {
        let Some(slot) = self.note_heard(member) else {
            return;
        };
        let key = (self.members[slot].pool, *list.digest());
        let Some(&swarm) = self.digests.get(&key) else {
            // No member waits for the list. From a peer it is not passed on, since the peer could have it sent again and again.
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

    /// Takes the hashes of the swarm's list into the fill in force, if both are cut alike.
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

    /// Sends the swarm's list to a peer that keeps such lists.
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
