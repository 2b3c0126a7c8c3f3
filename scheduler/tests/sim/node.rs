//! A modelled daemon: what is on its disk, what it is fetching.

use std::collections::BTreeMap;

use piecemeal_proto::{Digest, FillId, PieceMap, PieceSet};
use piecemeal_scheduler::swarm::{Lease, LeaseId, MemberId};

use crate::link::{Link, Nanos};

pub struct Node {
    pub mirror: bool,
    pub liar: bool,
    pub up: Link,
    pub down: Link,
    /// `None`: not connected.
    pub member: Option<MemberId>,
    pub running: bool,
    pub frozen: bool,
    /// Grows with every start: what was on its way to an earlier one is lost.
    pub life: u32,
    /// Messages arrive in order.
    pub said_until: Nanos,
    pub told_until: Nanos,
    pub blobs: Vec<Holding>,
    pub fetches: BTreeMap<LeaseId, Fetch>,
    pub finished_at: Option<Nanos>,
    /// Pieces that it sent.
    pub sent: u64,
}

/// One lease being worked off, a piece at a time.
pub struct Fetch {
    pub lease: Lease,
    pub blob: usize,
    pub next: u32,
    /// The source's node and life; `None` is upstream.
    pub source: Option<(usize, u32)>,
    /// The piece asked for will never come.
    pub lost: bool,
}

/// What a node has of a blob.
#[derive(Clone)]
pub struct Holding {
    pub wanted: bool,
    pub fill: FillId,
    pub have: PieceSet,
    pub content: Vec<u64>,
    pub stored_at: Vec<Nanos>,
    pub complete: bool,
    /// A client reads from the start: since when it waits in the first piece that is missing.
    pub prefix: u32,
    pub fed_at: Nanos,
}

impl Holding {
    pub fn new(map: PieceMap) -> Self {
        Self {
            wanted: false,
            fill: FillId(0),
            have: PieceSet::new(map.count()),
            content: vec![0; map.count() as usize],
            stored_at: vec![0; map.count() as usize],
            complete: false,
            prefix: 0,
            fed_at: 0,
        }
    }

    /// Drops everything, to begin again under `fill`.
    pub fn restart(&mut self, fill: FillId) {
        self.fill = fill;
        self.have = PieceSet::new(self.have.capacity());
        self.prefix = 0;
    }

    pub fn store(&mut self, piece: u32, content: u64, now: Nanos) {
        self.have.insert(piece);
        self.content[piece as usize] = content;
        self.stored_at[piece as usize] = now;
        while self.have.contains(self.prefix) {
            self.prefix += 1;
            self.fed_at = now;
        }
    }

    pub fn is_genuine(&self, blob: usize) -> bool {
        self.have.is_full()
            && (0..)
                .zip(&self.content)
                .all(|(piece, &content)| content == genuine(blob, piece))
    }
}

pub fn digest(blob: usize) -> Digest {
    Digest::of(&blob.to_le_bytes())
}

/// The blob's bytes, in one number a piece.
pub fn genuine(blob: usize, piece: u32) -> u64 {
    (blob as u64) << 32 | u64::from(piece) | 1 << 60
}

pub fn hash(content: u64) -> [u8; 32] {
    let mut hash = [7; 32];
    hash[..8].copy_from_slice(&content.to_le_bytes());
    hash
}
