//! Parameters of placement.

use super::{Time, holdings::HOLDINGS_ALL_MAX};

/// Parameters of placement. Every default is the product's. The counts that cost speed when they are wrong were chosen by
/// `tests/sim`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Uploads that a source runs at once. Source: 1, 2, 4, 8 slots cost 2, 4, 7, 13 % over the bound when the LAN is the limit.
    pub uploads_max: u32,
    /// Leases on a mirror at once: from the first to the last, as many as it serves no slower than peers do.
    pub mirror_uploads_min: u32,
    pub mirror_uploads_max: u32,
    /// Leases on a source beyond the running uploads, so that its link never idles for the scheduler.
    pub queued_max: u32,
    /// Leases per receiver and blob; what a client waits for may be one more. More than a source's queue: with 2, 3, 4 the last
    /// of 64 nodes needs 1.45, 1.10, 1.03 times the bound, since the queues of some sources run dry while others are full.
    pub leases_deep: u32,
    /// Leases per receiver over all blobs; likewise.
    pub leases_max: u32,
    /// A lease of several pieces has at most these bytes.
    pub lease_bytes_max: u64,
    /// A member with leases that says nothing for this long is not used.
    pub silent_after: Time,
    /// How long streams wait for a mirror's return before upstream is asked.
    pub mirror_grace: Time,
    /// How long a source that failed is left alone: doubling from the first to the last.
    pub backoff_first: Time,
    pub backoff_max: Time,
    /// So many distinct receivers in a row set a source aside for all.
    pub accusers: usize,
    /// Corrupt sources that are believed of one receiver and blob.
    pub accusations_max: u32,
    /// A receiver that got nothing for this long counts as one that holds nothing.
    pub aging: Time,
    /// A lease is a straggler after this many times the swarm's usual lease time.
    pub straggler_factor: u32,
    /// What a match could have missed is tried again this often.
    pub rematch_every: Time,
    /// A swarm asks for missing hashes at most this often.
    pub describe_every: Time,
    /// How long no mirror brings anything new of a blob, or none is there, before a peer's word for a piece's hash is used. Well
    /// below `mirror_grace`, above a mirror's restart and the time to a first byte from upstream.
    pub claim_patience: Time,
    /// Corrupt pieces of others by which a peer's word for their hash is given up.
    pub doubts_max: u32,
    /// A receiver that lands nothing for this long takes no place from others at its sources. One that has never landed a piece has
    /// `straggler_factor` usual lease times instead, where that is less.
    pub stalled_after: Time,
    /// One that lands nothing for this long, or four times its usual time, loses its leases.
    pub expires_after: Time,
    /// Leases in a row that a receiver may give up before it has to wait for the next.
    pub given_up_max: u32,
    /// Hungry receivers that a source looks at. Source: 8 to 24 do as well as all of them.
    pub receivers_sampled: usize,
    /// Sources that a receiver looks at.
    pub sources_sampled: usize,
    /// Pieces whose rarity is compared.
    pub pieces_sampled: u32,
    /// Blobs that one peer may want at once.
    pub wants_max: usize,
    /// Blobs in whose swarms one member may sit.
    pub blobs_max: usize,
    /// Blobs that no member wants of which one peer may say that it holds them: more than a node's store has. Those of a mirror are at
    /// most half of all.
    pub holdings_max: usize,
    /// The same for all members.
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
