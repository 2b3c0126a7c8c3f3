//! The fill in force: which download of a blob the pieces of a swarm belong to.
//!
//! Invariant: a mirror's word sets it. A peer's want, whose grant a mirror signed, sets it only while no mirror has spoken and
//! no peer has a piece of another fill.

use piecemeal_proto::{Digest, FillId, PieceMap};

use super::{Brain, Command, MemberId, fill::Fill};

impl Brain {
    pub(super) fn proven(&mut self, member: MemberId, digest: &Digest, fill: FillId, out: &mut Vec<Command>) {
        let Some((swarm, _)) = self.find_mirror(member, digest) else {
            return;
        };
        let is_in_force = self.swarms[swarm].fill.as_ref().is_some_and(|filled| filled.id == fill);
        if is_in_force {
            self.prove_fill(swarm, out);
        }
    }

    pub(super) fn revoke(&mut self, member: MemberId, digest: &Digest, fill: FillId, out: &mut Vec<Command>) {
        let Some((swarm, _)) = self.find_mirror(member, digest) else {
            return;
        };
        let state = &mut self.swarms[swarm];
        if !state.revoked.contains(&fill) {
            state.revoked.push_back(fill);
            state.revoked.drain(..state.revoked.len().saturating_sub(REVOKED_MAX));
        }
        let revoked = Some(fill) == state.fill.as_ref().map(|filled| filled.id);
        let told = state.members.iter().map(|(_, member)| self.members[member.slot].id);
        out.extend(told.map(|to| Command::Revoked {
            to,
            digest: *digest,
            fill,
        }));
        if revoked {
            let map = self.swarms[swarm].fill.as_ref().expect("revoked just now").map;
            self.replace_fill(swarm, None, map, out);
        }
    }

    /// The swarm and index of a member that is a mirror.
    fn find_mirror(&mut self, member: MemberId, digest: &Digest) -> Option<(u32, u32)> {
        let slot = self.note_heard(member).filter(|&slot| self.members[slot].is_mirror())?;
        self.find_swarm_member(slot, digest)
    }

    /// Decides which fill is in force after a member's report of `fill`; says whether it is that one. `granted`: a mirror
    /// stated the fill, in its session or in the grant that the member showed.
    pub(super) fn agree_on_fill(
        &mut self,
        (swarm, index): (u32, u32),
        (fill, map): (FillId, PieceMap),
        granted: bool,
        out: &mut Vec<Command>,
    ) -> bool {
        let state = &mut self.swarms[swarm];
        let mirror = state.members[index].mirror;
        let kept_by_another_mirror = state
            .mirrors
            .iter()
            .any(|&other| other != index && !state.members[other].have.is_empty());
        if state.revoked.contains(&fill) || (mirror && fill == NO_FILL) {
            if state.fill.is_none() {
                self.replace_fill(swarm, None, map, out);
            }
            return false;
        }
        match &mut state.fill {
            Some(known) if known.id == fill && known.map == map => {
                known.from_mirror |= mirror;
                return true;
            }
            _ if !granted => return false,
            Some(_) if mirror && kept_by_another_mirror => return false,
            Some(known) if !mirror && (fill == NO_FILL || known.from_mirror || known.rarity.is_in_use()) => {
                return false;
            }
            _ => {}
        }
        let stated = (fill != NO_FILL).then_some(fill);
        self.replace_fill(swarm, stated, map, out);
        if let Some(filled) = &mut self.swarms[swarm].fill {
            filled.from_mirror = mirror;
        }
        stated.is_some()
    }

    /// Puts another fill in force (`None`: one that no member knows yet). Every piece of the former fill is forgotten, whole
    /// blobs are not.
    fn replace_fill(&mut self, swarm: u32, fill: Option<FillId>, map: PieceMap, out: &mut Vec<Command>) {
        let leases: Vec<_> = self.swarms[swarm].issued.iter().copied().collect();
        for lease in leases {
            self.cancel(lease, out);
        }
        let fill = fill.unwrap_or_else(|| FillId(self.rng.next().max(1)));
        let state = &mut self.swarms[swarm];
        let members: Vec<u32> = state.members.iter().map(|(index, _)| index).collect();
        state.fill = Some(match state.fill.take() {
            Some(old) => old.succeed(fill, map),
            None => Fill::new(fill, map),
        });
        state.lease_time = None;
        for index in members {
            let state = &mut self.swarms[swarm];
            let member = &mut state.members[index];
            if !member.complete {
                member.begin_fill(map.count());
            }
            state.clear_dispute(index);
            state.update_sets(index, self.policy.leases_deep);
        }
        self.schedule_tick(swarm);
    }
}

/// The fill that a peer states while it knows of none.
const NO_FILL: FillId = FillId(0);

/// Revoked fills that a swarm remembers, against reports that were on their way.
const REVOKED_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::super::{
        Command, Event, Role,
        testing::{MIRROR, Site, peer},
    };
    use super::*;

    #[test]
    fn a_mirrors_new_fill_replaces_the_old_and_cancels_its_leases() {
        let mut site = Site::new(8, 1);
        site.have(MIRROR, 0..8);
        site.want(peer(1), []);
        site.fill = FillId(2);
        site.have(MIRROR, 0..1);
        assert_eq!(site.cancelled().len(), 4);
        assert_eq!(site.lease().1.fill, FillId(2));
        assert!(
            !site
                .out
                .iter()
                .any(|command| matches!(command, Command::Revoked { .. }))
        );
    }

    #[test]
    fn a_peer_cannot_replace_a_mirrors_fill() {
        let mut site = Site::new(8, 2);
        site.have(MIRROR, 0..4);
        site.fill = FillId(66);
        site.want(peer(1), 0..8);
        site.have(peer(1), 0..8);
        assert!(site.leases().iter().all(|(_, lease)| lease.fill == FillId(1)));
        assert_eq!(site.brain.status().swarms[0].pieces_held, 0);
    }

    #[test]
    fn a_peers_fill_is_adopted_while_nothing_better_is_known() {
        let mut site = Site::without_mirror(8, 3);
        site.fill = FillId(0);
        site.want(peer(1), []);
        let minted = site.brain.status().swarms[0].fill;
        site.fill = FillId(5);
        site.want(peer(2), 0..4);
        assert_ne!(minted, Some(FillId(5)));
        assert_eq!(site.brain.status().swarms[0].fill, Some(FillId(5)));
        site.fill = FillId(6);
        site.want(peer(3), 0..8);
        assert_eq!(
            site.brain.status().swarms[0].fill,
            Some(FillId(5)),
            "a peer has pieces of it"
        );
    }

    #[test]
    fn a_revoked_fill_is_forgotten_and_every_member_of_the_swarm_is_told() {
        let mut site = Site::new(8, 3);
        site.complete(peer(3));
        site.have(MIRROR, 0..8);
        site.want(peer(1), 0..2);
        site.want(peer(2), []);
        let outstanding = site.brain.leases.len();
        let (digest, fill) = (site.digest, site.fill);
        site.event(Event::Revoke {
            member: MIRROR,
            digest,
            fill,
        });
        let told = site
            .out
            .iter()
            .filter(|command| matches!(command, Command::Revoked { .. }));
        assert_eq!(told.count(), 4);
        assert_eq!(site.cancelled().len(), outstanding);
        site.have(peer(1), 0..2);
        site.have(MIRROR, 0..2);
        let status = site.brain.status().swarms[0].clone();
        assert_eq!((status.pieces_held, status.partial, status.complete), (0, 0, 1));
        site.fill = FillId(2);
        site.have(MIRROR, 0..1);
        assert_eq!(site.lease().1.fill, FillId(2));
    }

    #[test]
    fn a_peer_revokes_and_proves_nothing() {
        let mut site = Site::new(8, 1);
        site.have(MIRROR, 0..8);
        site.want(peer(1), []);
        let (digest, fill) = (site.digest, site.fill);
        let member = peer(1);
        site.event(Event::Revoke { member, digest, fill });
        site.event(Event::Proven { member, digest, fill });
        assert!(site.out.is_empty() && !site.brain.status().swarms[0].proven);
        site.event(Event::Proven {
            member: MIRROR,
            digest,
            fill,
        });
        assert!(site.brain.status().swarms[0].proven);
    }

    #[test]
    fn the_second_mirror_of_a_pool_does_not_replace_the_firsts_fill() {
        let mut site = Site::new(8, 1);
        site.join(peer(8), 8, Role::Mirror);
        site.want(peer(1), []);
        site.have(MIRROR, 0..1);
        site.fill = FillId(2);
        site.have(peer(8), 0..1);
        assert_eq!(site.brain.status().swarms[0].fill, Some(FillId(1)));
    }
}
