//!
//! Status of the brain: its members and swarms, for people to read.
//!
//! Invariant: a status changes nothing.

use piecemeal_proto::{Digest, FillId, NodeId};

use super::{Brain, MemberId, Role};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// In the order of their ids.
    pub members: Vec<MemberStatus>,
    /// In the order of pool and digest; without those that no member wants.
    pub swarms: Vec<SwarmStatus>,
    /// Blobs that a member holds and none wants.
    pub idle_swarms: usize,
    pub leases: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    pub member: MemberId,
    pub node: NodeId,
    pub role: Role,
    pub pool: String,
    pub zone: String,
    pub silent: bool,
    /// Leases to it.
    pub fetching: usize,
    /// Leases that name it as the source.
    pub serving: usize,
    /// Blobs that it wants or holds something of.
    pub blobs: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwarmStatus {
    pub pool: String,
    pub digest: Digest,
    pub fill: Option<FillId>,
    /// A mirror has proven the blob's digest over the fill.
    pub proven: bool,
    pub blob_bytes: u64,
    pub piece_bytes: u64,
    pub pieces: u32,
    /// Pieces whose hash is known.
    pub hashed: u32,
    /// Peers that want the blob.
    pub wanting: u32,
    /// Members that hold all of it.
    pub complete: u32,
    /// Members that hold some of it.
    pub partial: u32,
    /// Pieces held by the peers that want the blob, summed: all of them are done at `wanting × pieces`.
    pub pieces_held: u64,
    pub leases: usize,
}

impl Brain {
    /// All members and swarms: O(members of swarms). For the admin port.
    pub fn status(&self) -> Status {
        let members = self.ids.values().map(|&slot| {
            let member = &self.members[slot];
            MemberStatus {
                member: member.id,
                node: member.info.node,
                role: member.info.role,
                pool: member.info.pool.clone(),
                zone: member.info.zone.clone(),
                silent: member.silent,
                fetching: member.fetching.len(),
                serving: member.serving.len(),
                blobs: member.swarms.len() + self.holdings.claims_of(slot),
            }
        });
        let live = self.digests.values().filter(|&&slot| self.swarms[slot].is_live());
        let swarms: Vec<SwarmStatus> = live.map(|&slot| self.swarm_status(slot)).collect();
        Status {
            members: members.collect(),
            idle_swarms: self.digests.len() - swarms.len() + self.holdings.blobs(),
            swarms,
            leases: self.leases.len(),
        }
    }

    fn swarm_status(&self, slot: u32) -> SwarmStatus {
        let swarm = &self.swarms[slot];
        let members = || swarm.members.iter().map(|(_, member)| member);
        let count = |of: usize| u32::try_from(of).expect("members are u32");
        SwarmStatus {
            pool: self.pools[swarm.pool].name.clone(),
            digest: swarm.digest,
            fill: swarm.fill.as_ref().map(|fill| fill.id),
            proven: swarm.fill.as_ref().is_some_and(|fill| fill.proven),
            blob_bytes: swarm.fill.as_ref().map_or(0, |fill| fill.map.blob_bytes()),
            piece_bytes: swarm.fill.as_ref().map_or(0, |fill| fill.map.piece_bytes()),
            pieces: swarm.fill.as_ref().map_or(0, |fill| fill.map.count()),
            hashed: swarm.fill.as_ref().map_or(0, |fill| fill.hashed.count()),
            wanting: swarm.wanting,
            complete: count(members().filter(|member| member.complete).count()),
            partial: count(
                members()
                    .filter(|member| !member.complete && !member.have.is_empty())
                    .count(),
            ),
            pieces_held: members()
                .filter(|member| member.wants)
                .map(|member| u64::from(member.have.count()))
                .sum(),
            leases: members().map(|member| member.leases as usize).sum(),
        }
    }
}
