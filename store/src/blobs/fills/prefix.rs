//! Prefix of a fill: the digest of its pieces from the first on without a gap.
//!
//! Each piece is hashed once, in order, unless pieces are taken back: then hashing starts over.

use piecemeal_proto::{Algorithm, Digest, Hasher};

/// The pieces that are hashed into the blob's digest.
pub(super) struct Prefix {
    hasher: Hasher,
    next: u32,
}

impl Prefix {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        Self {
            hasher: algorithm.hasher(),
            next: 0,
        }
    }

    /// The first piece that the digest lacks.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// Hashes the bytes of the next piece.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.next += 1;
    }

    /// The digest of the pieces so far.
    pub(super) fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }
}
