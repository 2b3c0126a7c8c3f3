//! A simulated daemon: the content of its disk, its downloads and their fetches.

use std::{collections::BTreeMap, sync::Arc};

use piecemeal_peer::download::Opening;
use piecemeal_proto::{AuthorityKey, Digest, FillId, PieceMap, PieceSet, SignedPieceHashes};
use piecemeal_scheduler::brain::MemberId;

use crate::{
    download::Running,
    fetch::Fetch,
    link::{Link, Nanos},
    plan::Plan,
};

pub(crate) struct Node {
    pub(crate) mirror: bool,
    pub(crate) liar: bool,
    /// Holds bytes of its own, says that they are the blob's, and states their hashes.
    pub(crate) forger: bool,
    /// Wants blobs and does nothing with its leases.
    pub(crate) idle: bool,
    pub(crate) up: Link,
    pub(crate) down: Link,
    /// `None`: not connected.
    pub(crate) member: Option<MemberId>,
    pub(crate) running: bool,
    pub(crate) frozen: bool,
    /// Grows with every start: what was on its way to an earlier one is lost.
    pub(crate) life: u32,
    /// Messages arrive in order.
    pub(crate) said_until: Nanos,
    pub(crate) told_until: Nanos,
    pub(crate) blobs: Vec<Holding>,
    /// Fetches under way, by serial number.
    pub(crate) fetches: BTreeMap<u64, Fetch>,
    /// Since when it has found that the mirror does not answer.
    pub(crate) mirror_lost_since: Option<Nanos>,
    pub(crate) finished_at: Option<Nanos>,
    pub(crate) connected_at: Nanos,
    /// Downloads that came to their end with another digest.
    pub(crate) failed: u32,
    /// Pieces that it sent.
    pub(crate) sent: u64,
}

/// What a node has of a blob.
pub(crate) struct Holding {
    pub(crate) wanted: bool,
    /// An honest peer's, while it runs.
    pub(crate) download: Option<Running>,
    /// An honest peer's, until its download begins.
    pub(crate) opening: Option<Opening>,
    pub(crate) fill: FillId,
    pub(crate) have: PieceSet,
    pub(crate) content: Vec<u64>,
    pub(crate) stored_at: Vec<Nanos>,
    pub(crate) complete: bool,
    /// The authority's word for all pieces, kept beside a complete blob.
    pub(crate) list: Option<Arc<SignedPieceHashes>>,
    /// A client reads from the start: since when it waits in the first piece that is missing.
    pub(crate) prefix: u32,
    pub(crate) fed_at: Nanos,
}

impl Holding {
    pub(crate) fn new(map: PieceMap) -> Self {
        Self {
            wanted: false,
            download: None,
            opening: None,
            fill: FillId(0),
            have: PieceSet::new(map.count()),
            content: vec![0; map.count() as usize],
            stored_at: vec![0; map.count() as usize],
            complete: false,
            list: None,
            prefix: 0,
            fed_at: 0,
        }
    }

    /// Drops everything, to begin again under `fill`.
    pub(crate) fn restart(&mut self, fill: FillId) {
        self.fill = fill;
        self.have = PieceSet::new(self.have.capacity());
        self.prefix = 0;
    }

    pub(crate) fn store(&mut self, piece: u32, content: u64, now: Nanos) {
        self.have.insert(piece);
        self.content[piece as usize] = content;
        self.stored_at[piece as usize] = now;
        while self.have.contains(self.prefix) {
            self.prefix += 1;
            self.fed_at = now;
        }
    }

    /// Takes a piece back.
    pub(crate) fn drop_piece(&mut self, piece: u32) {
        self.have.remove(piece);
        self.prefix = self.prefix.min(piece);
    }

    pub(crate) fn is_genuine(&self, blob: usize) -> bool {
        self.have.is_full()
            && (0..)
                .zip(&self.content)
                .all(|(piece, &content)| content == genuine(blob, piece))
    }
}

pub(crate) fn may_use_upstream(plan: &Plan, node: usize) -> bool {
    !node.is_multiple_of(3) || plan.peers < 3
}

pub(crate) fn digest(blob: usize) -> Digest {
    Digest::of(&blob.to_le_bytes())
}

/// The blob's bytes, in one number a piece.
pub(crate) fn genuine(blob: usize, piece: u32) -> u64 {
    (blob as u64) << 32 | u64::from(piece) | 1 << 60
}

/// A forger's bytes in place of the blob's.
pub(crate) fn forged(blob: usize, piece: u32) -> u64 {
    genuine(blob, piece) ^ 1 << 40
}

/// What a mirror signs once it has proven a blob.
pub(crate) fn signed_list(blob: usize, map: PieceMap) -> Arc<SignedPieceHashes> {
    let hashes = (0..map.count()).map(|piece| hash(genuine(blob, piece))).collect();
    let key = AuthorityKey::from_seed([1; 32]);
    Arc::new(SignedPieceHashes::sign(&key, digest(blob), map, hashes).expect("a small blob"))
}

pub(crate) fn hash(content: u64) -> [u8; 32] {
    let mut hash = [7; 32];
    hash[..8].copy_from_slice(&content.to_le_bytes());
    hash
}
