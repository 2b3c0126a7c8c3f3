//! Hash claims: the hashes that peers state of pieces for which the authority has stated none yet.
//!
//! Invariant: claims are used only where no mirror has the piece or brings it in time, and of one peer at a time; a node that
//! was convicted is not believed again.

use std::collections::BTreeSet;

use piecemeal_proto::PieceHash;

use super::{Brain, Command, Member, Time, fill::Claim, member::MemberState, swarm::Swarm};

impl Brain {
    /// Whether to use a peer's claims instead of waiting: no mirror has brought anything for `claim_patience`, or nothing of
    /// this blob for `mirror_grace`.
    pub(super) fn accepts_claims(&self, swarm: u32) -> bool {
        let state = &self.swarms[swarm];
        let pool = &self.pools[state.pool];
        let quiet_since = state.live_since.max(state.progress_at).max(pool.mirrors_changed);
        let is_idle = self.now >= pool.progress_at.max(quiet_since) + self.policy.claim_patience;
        state.is_live() && (is_idle || self.now >= quiet_since + self.policy.mirror_grace)
    }

    /// Whether the member's claims are used now: those of the swarm's hash source, and those of the member that fetches from
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

    /// Whether the node was convicted.
    pub(super) fn has_lied(&self, of: &Member) -> bool {
        self.convicted.contains(&(of.node, of.signed))
    }

    /// A peer states hashes of pieces that it says it holds; says whether hashes are still to be asked for. Pieces whose hash
    /// differs from the authority's are dropped; hashes that no member has stated are taken if it is the peer's turn.
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
        let slot = state.members[index].slot;
        let member = &self.members[slot];
        let mut wrong = Vec::new();
        let (mut unhashed, mut landed, mut contradicts) = (false, false, false);
        for (piece, &hash) in (first..).zip(hashes) {
            let fill = state.fill.as_mut().expect("agreed upon just now");
            let stated = fill.stated_hash(piece);
            if stated.is_some() && hash.is_some() && stated != hash {
                wrong.push(piece);
                continue;
            }
            if let (None, Some(hash), true) = (fill.hash(piece), hash, may_claim) {
                contradicts |= fill.claim(piece, claim(member, hash));
            }
            unhashed |= fill.hash(piece).is_none();
            landed |= claim_piece(state, index, (piece, hash), now);
        }
        if contradicts {
            // Another peer's turn.
            self.discard_claims(swarm, &BTreeSet::from([self.members[slot].id]));
        }
        if landed {
            self.note_landing(slot);
        }
        if !wrong.is_empty() && !self.swarms[swarm].members[index].complete {
            self.order_drop((swarm, index), &wrong, out);
        }
        unhashed
    }
}

fn claim(member: &MemberState, hash: PieceHash) -> Claim {
    Claim {
        hash,
        member: member.id,
        node: member.info.node,
        signed: member.info.signed,
        doubts: 0,
        used: false,
    }
}

/// The peer holds the piece; says whether it was leased it.
fn claim_piece(state: &mut Swarm, index: u32, (piece, hash): (u32, Option<PieceHash>), now: Time) -> bool {
    if state.members[index].complete {
        return false;
    }
    let landed = state.members[index].leased.contains(piece);
    state.gain(index, piece, now);
    let known = state.fill.as_ref().and_then(|fill| fill.hash(piece));
    match hash {
        Some(_) if known == hash => drop(state.members[index].unproven.remove(piece)),
        // Compared once the authority has spoken.
        Some(_) => state.note_unproven(index, piece),
        None => {}
    }
    landed
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
