//! Holders of blobs that no member wanted until now: they join the swarm when a member wants the blob.
//!
//! Invariant: a holder is in the table of holdings or in the blob's swarm, never in both.

use std::sync::Arc;

use piecemeal_proto::{Digest, SignedPieceHashes};

use super::{Brain, Command, holdings::Key};

impl Brain {
    /// Notes that a member holds a blob that no member wants.
    pub(super) fn note_holding(&mut self, slot: u32, digest: &Digest) {
        let member = &self.members[slot];
        let key = Key::new(member.pool, digest);
        let (peer, policy) = (!member.is_mirror(), &self.policy);
        let member_max = if peer {
            policy.holdings_max
        } else {
            policy.holdings_all_max / 2
        };
        self.holdings
            .insert(slot, peer, key, (member_max, policy.holdings_all_max));
    }

    /// Adds holders of a blob that is wanted, as many as one event may cost. The swarm's tick adds more.
    pub(super) fn add_holders(&mut self, swarm: u32) {
        let state = &self.swarms[swarm];
        let (digest, key) = (state.digest, Key::new(state.pool, &state.digest));
        let start = self.rng.below(u32::MAX as usize);
        let start = u32::try_from(start).unwrap_or(0);
        let holders: Vec<u32> = self.holdings.holders(key, start).take(HOLDERS_ADDED).collect();
        for slot in holders {
            self.holdings.remove(slot, key);
            let Some((swarm, index)) = self.enter_swarm(slot, digest) else {
                continue;
            };
            let state = &mut self.swarms[swarm];
            if !state.members[index].complete && !state.members[index].wants {
                state.complete(index);
            }
            self.requeue(swarm, index);
        }
    }

    /// Sends a signed list of piece hashes to the holders of a blob that no member wants.
    pub(super) fn send_list_to_holders(&self, from: u32, list: &Arc<SignedPieceHashes>, out: &mut Vec<Command>) {
        let key = Key::new(self.members[from].pool, list.digest());
        for slot in self.holdings.holders(key, 0).take(LISTENERS_MAX) {
            let member = &self.members[slot];
            if slot != from && member.info.features.piece_hashes && !member.is_mirror() {
                let (to, list) = (member.id, Arc::clone(list));
                out.push(Command::PieceHashes { to, list });
            }
        }
    }
}

/// Holders that join a swarm in one event.
pub(super) const HOLDERS_ADDED: usize = 64;
/// Holders that one list is sent to.
const LISTENERS_MAX: usize = 1024;
