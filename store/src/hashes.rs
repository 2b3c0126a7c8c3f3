//! The list of a complete blob's piece hashes, and the authority's signature over it where there is one.
//!
//! The list is written in the same transaction that publishes a blob, and is deleted with it. The store checks no signature: its
//! caller has.

use std::sync::Arc;

use piecemeal_proto::{Digest, PieceMap};

use crate::{
    ListSignature, PieceHash, Store, StoreError,
    index::{Durability, blobs},
};

/// How a complete blob is cut, and what its pieces are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceHashes {
    pub map: PieceMap,
    /// One for each piece.
    pub hashes: Arc<[PieceHash]>,
    /// The authority's, over digest, size, piece size and the hashes.
    pub signature: Option<ListSignature>,
}

impl Store {
    /// The hashes of a blob's pieces, if it is here and complete. Does not count as a use.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn piece_hashes(&self, digest: &Digest) -> Result<Option<PieceHashes>, StoreError> {
        let digest = *digest;
        self.run(move |shared| {
            let row = shared.index.blob(&digest)?;
            Ok(row.map(|row| PieceHashes {
                map: row.map,
                hashes: row.piece_hashes,
                signature: row.signature,
            }))
        })
        .await
    }

    /// Keeps a signature that was checked over the hashes of a complete blob's pieces; says whether there is such a blob that is
    /// cut into pieces of that size. It goes with the blob.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn sign_piece_hashes(
        &self,
        digest: &Digest,
        piece_bytes: u64,
        signature: ListSignature,
    ) -> Result<bool, StoreError> {
        let digest = *digest;
        self.run(move |shared| {
            Ok(shared.write(Durability::Batched, |transaction| {
                blobs::sign(transaction, &digest, piece_bytes, &signature)
            })?)
        })
        .await
    }
}
