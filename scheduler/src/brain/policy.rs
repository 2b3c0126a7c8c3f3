//! Parameters of placement.

use super::{Time, holdings::HOLDINGS_ALL_MAX};

/// Parameters of placement. Every default is the product's. `tests/sim` chose the counts that cost speed when they are wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Uploads that a source runs at once. Source: 1, 2, 4, 8 slots cost 2, 4, 7, 13 % over the bound when the LAN is the limit.
    pub uploads_max: u32,
    /// Bounds of the leases on a mirror at once. Between them it gets as many as it serves no slower than peers do.
    pub mirror_uploads_min: u32,
    pub mirror_uploads_max: u32,
    /// Leases on a source beyond the running uploads, so that its link never idles for the scheduler.
    pub queued_max: u32,
    /// Leases per receiver and blob; one more for a piece that a client waits for. More than a source's queue: with 2, 3, 4 the
    /// last of 64 nodes needs 1.45, 1.10, 1.03 times the bound, since the queues of some sources run dry while others are full.
    pub leases_deep: u32,
    /// Leases per receiver over all blobs; one more for a piece that a client waits for.
    pub leases_max: u32,
    /// Most bytes of a lease of several pieces.
    pub lease_bytes_max: u64,
    /// Silence after which a member with leases is not used.
    pub silent_after: Time,
    /// Time that streams wait for a mirror's return before upstream is asked.
    pub mirror_grace: Time,
    /// Shortest and longest back-off of a failed source; it doubles in between.
    pub backoff_first: Time,
    pub backoff_max: Time,
    /// Distinct receivers in a row after whose complaints no receiver uses a source for a while.
    pub accusers: usize,
    /// Reports of corrupt sources that are believed of one receiver and blob.
    pub accusations_max: u32,
    /// Time without a lease after which a receiver counts as one that holds nothing.
    pub aging: Time,
    /// A lease is a straggler after this many times the swarm's lease time.
    pub straggler_factor: u32,
    /// Interval of a busy swarm's tick, which tries again what samples have missed.
    pub rematch_every: Time,
    /// Shortest interval between a swarm's requests for missing hashes.
    pub describe_every: Time,
    /// Time without a mirror, or without anything new from one, before a peer's claim for a piece's hash is used. Well below
    /// `mirror_grace`, above a mirror's restart and the time to a first byte from upstream.
    pub claim_patience: Time,
    /// Corrupt pieces of other sources after which a peer's claim for their hash is discarded.
    pub doubts_max: u32,
    /// Time without a landed piece after which a receiver's leases take no place at its sources. A receiver that has never
    /// landed a piece has `straggler_factor` lease times instead, where that is less.
    pub stalled_after: Time,
    /// Time without a landed piece after which a receiver's leases expire; at least four times its own lease time.
    pub expires_after: Time,
    /// Leases in a row that a receiver may give up before it has to wait for the next.
    pub given_up_max: u32,
    /// Receivers that a source looks at. Source: 8 to 24 do as well as all of them.
    pub receivers_sampled: usize,
    /// Sources that a receiver looks at.
    pub sources_sampled: usize,
    /// Pieces whose rarity is compared.
    pub pieces_sampled: u32,
    /// Blobs that one peer may want at once.
    pub wants_max: usize,
    /// Swarms that one member may be in.
    pub blobs_max: usize,
    /// Unwanted blobs that one peer may claim to hold: more than a node's store has. A mirror may claim half of
    /// `holdings_all_max`.
    pub holdings_max: usize,
    /// Claims to unwanted blobs of all members.
    pub holdings_all_max: usize,
    /// Pieces of all blobs that one peer may want at once.
    pub pieces_max: u64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            uploads_max: 2,
            mirror_uploads_min: 5,
            mirror_uploads_max: 128,
            queued_max: 1,
            leases_deep: 4,
            leases_max: 8,
            lease_bytes_max: 1 << 20,
            silent_after: Time::from_secs(1),
            mirror_grace: Time::from_secs(30),
            backoff_first: Time::from_secs(1),
            backoff_max: Time::from_secs(30),
            accusers: 3,
            accusations_max: 4,
            aging: Time::from_secs(4),
            straggler_factor: 3,
            rematch_every: Time::from_millis(50),
            describe_every: Time::from_secs(1),
            claim_patience: Time::from_secs(5),
            doubts_max: 2,
            stalled_after: Time::from_secs(1),
            expires_after: Time::from_secs(5),
            given_up_max: 8,
            receivers_sampled: 12,
            sources_sampled: 8,
            pieces_sampled: 32,
            wants_max: 1024,
            blobs_max: 1 << 16,
            holdings_max: 1 << 16,
            holdings_all_max: HOLDINGS_ALL_MAX,
            pieces_max: 1 << 21,
        }
    }
}
