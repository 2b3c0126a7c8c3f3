//! The list of a complete blob's piece hashes, and the authority's signature over it where there is one.
//!
//! The list is written in the same transaction that publishes a blob, and is deleted with it. The store checks no signature: its
//! caller has.

use std::sync::Arc;

use piecemeal_proto::{PieceHash, PieceMap};

/// An Ed25519 signature over a list of piece hashes.
pub type ListSignature = [u8; 64];

/// The piece map of a complete blob, and the hashes of its pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceHashes {
    pub map: PieceMap,
    /// One for each piece.
    pub hashes: Arc<[PieceHash]>,
    /// The authority's, over digest, size, piece size and the hashes.
    pub signature: Option<ListSignature>,
}
