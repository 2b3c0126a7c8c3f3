//! Recall of pieces that were fetched by a wrong hash: they are taken back, and their holders are ordered to drop them.
//!
//! Invariant: the cost of one recall grows with the members and with the pieces, not with the pieces that each member holds.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use piecemeal_proto::PieceSet;

use super::{Brain, Command, fill::Claim, swarm_member::SwarmMember};

impl Brain {
    /// Takes back the pieces of wrong claims, and orders every peer that wants the blob to drop them: a peer may hold one that
    /// it has not reported. It costs a few words of bitmap a peer.
    pub(super) fn recall_pieces(&mut self, swarm: u32, claims: &[(u32, Claim)], out: &mut Vec<Command>) {
        if claims.is_empty() {
            return;
        }
        let mut wrong = PieceSet::new(self.swarms[swarm].pieces());
        for &(piece, _) in claims {
            wrong.insert(piece);
        }
        let fetching = self.cancel_leases_of(swarm, &wrong, out);
        let concerned = self.recalled_from(swarm, &wrong, &fetching);
        self.swarms[swarm].take_from_all(&wrong);
        let pieces = ranges(wrong.iter());
        for (index, recall) in concerned {
            match recall {
                Recall::Pieces => self.send_drop((swarm, index), Arc::clone(&pieces), out),
                Recall::All => self.drop_all((swarm, index), out),
                Recall::Nothing => {}
            }
            self.swarms[swarm].update_sets(index, self.policy.leases_deep);
        }
        let mirrors = self.swarms[swarm].mirrors.iter();
        let mirrors = mirrors.map(|&index| (self.swarms[swarm].members[index].slot, swarm));
        self.pending_sources.extend(mirrors);
        self.schedule_tick(swarm);
    }

    /// Cancels the leases of any of `wrong`; yields the indexes of their receivers.
    fn cancel_leases_of(&mut self, swarm: u32, wrong: &PieceSet, out: &mut Vec<Command>) -> BTreeSet<u32> {
        let mut receivers = BTreeSet::new();
        for id in self.swarms[swarm].issued.clone() {
            let lease = self.leases.get(id);
            if let Some(lease) = lease.filter(|lease| lease.run.pieces().any(|piece| wrong.contains(piece))) {
                receivers.insert(lease.index);
                self.cancel(id, out);
            }
        }
        receivers
    }

    /// The peers that hold some of the blob, with the order that each can follow.
    fn recalled_from(&self, swarm: u32, wrong: &PieceSet, fetching: &BTreeSet<u32>) -> Vec<(u32, Recall)> {
        let recall = |index: u32, member: &SwarmMember| match self.members[member.slot].info.features.drop {
            true => Recall::Pieces,
            false if fetching.contains(&index) || member.have.has_any(wrong) => Recall::All,
            false => Recall::Nothing,
        };
        let members = self.swarms[swarm].members.iter();
        let peers = members.filter(|(_, member)| !member.mirror && !member.complete);
        peers.map(|(index, member)| (index, recall(index, member))).collect()
    }

    /// Orders a peer to drop the pieces that it says it holds and that do not have their hash. A peer of the last release can
    /// only be told to drop all pieces.
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
}

/// The pieces that a peer is ordered to drop.
enum Recall {
    /// The wrong pieces.
    Pieces,
    /// Every piece of the fill: a peer of the last release knows no other order.
    All,
    /// Nothing: a peer of the last release that holds no wrong piece.
    Nothing,
}

/// Ascending pieces as ranges.
fn ranges(pieces: impl Iterator<Item = u32>) -> Arc<[Range<u32>]> {
    let pieces: Vec<u32> = pieces.collect();
    let runs = pieces.chunk_by(|a, b| a + 1 == *b);
    runs.map(|run| run[0]..run[run.len() - 1] + 1).collect()
}

const FILLED: &str = "pieces are only held under a fill";

#[cfg(test)]
mod tests {
    use piecemeal_proto::NodeId;

    use super::super::{
        Event, Features, Member, Role,
        testing::{MIRROR, Site, peer},
    };
    use super::*;

    const MEMBERS: u32 = 1000;
    const PIECES: u32 = 1024;

    /// A peer that can be ordered to drop pieces.
    fn dropping(number: u32) -> Member {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_le_bytes());
        Member {
            node: NodeId(id),
            signed: true,
            role: Role::Peer,
            pool: "site".into(),
            zone: "rack".into(),
            may_use_upstream: true,
            features: Features {
                drop: true,
                ..Features::default()
            },
        }
    }

    /// A thousand members hold a thousand pieces each by the word of one, when a mirror that holds the blob states other hashes.
    #[test]
    fn a_conviction_costs_no_more_the_more_pieces_members_hold() {
        let mut site = Site::without_mirror(PIECES, 0);
        let mut out = Vec::new();
        for number in 1..=MEMBERS {
            let info = dropping(number);
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
                .rarity
                .changes
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
