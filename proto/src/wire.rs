//! The messages of `piecemeal.proto`, and what reads their fields into Piecemeal's own types.

use crate::{NodeId, PIECE_HASH_BYTES, PieceHash};

pub use generated::*;

mod generated {
    #![allow(
        clippy::allow_attributes_without_reason,
        clippy::missing_errors_doc,
        clippy::use_self,
        unnameable_types,
        unreachable_pub,
        reason = "generated; documented in piecemeal.proto"
    )]
    tonic::include_proto!("piecemeal.v1");
}

/// The only version of the protocol so far.
pub const VERSION: u32 = 1;
/// How long a side stays silent at most, and how long messages are gathered into a batch.
pub const HEARTBEAT: std::time::Duration = std::time::Duration::from_millis(500);
pub const BATCH_DELAY: std::time::Duration = std::time::Duration::from_millis(5);
/// The most bytes of one message: an inventory chunk, or the hashes of a whole blob's pieces in a few.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most digests in one chunk of an inventory.
pub const INVENTORY_CHUNK_MAX: usize = 4096;
/// The most pieces that one `Have` tells of.
pub const HAVE_PIECES_MAX: usize = 16 * 1024;

impl Hello {
    /// What [`Hello::proof`] is made over: the scheduler's nonce and who the daemon says it is.
    pub fn claim(&self, nonce: &[u8]) -> Vec<u8> {
        let role = self.role.to_be_bytes();
        let incarnation = self.incarnation.to_be_bytes();
        [b"piecemeal hello v1\0", nonce, &role, &incarnation, &self.node].concat()
    }
}

/// One after the other; empty when any is unknown.
pub fn join_hashes(hashes: &[Option<PieceHash>]) -> Vec<u8> {
    let known: Option<Vec<PieceHash>> = hashes.iter().copied().collect();
    known.unwrap_or_default().concat()
}

/// `count` hashes, each known or none; `None` when the length fits neither.
pub fn split_hashes(bytes: &[u8], count: u32) -> Option<Vec<Option<PieceHash>>> {
    let count = usize::try_from(count).ok()?;
    if bytes.is_empty() {
        return Some(vec![None; count]);
    }
    (bytes.len() == count.checked_mul(PIECE_HASH_BYTES)?).then(|| {
        bytes
            .chunks_exact(PIECE_HASH_BYTES)
            .map(|hash| hash.try_into().ok())
            .collect()
    })
}

impl Source {
    /// The node that the source is, when it is a peer or the mirror.
    pub fn node_id(&self) -> Option<NodeId> {
        NodeId::from_slice(&self.node)
    }
}
