//! Scrubbing: verifying complete blobs, so that a flipped byte is found before, or when, the blob is read.
//!
//! Verification does not count as use, and never prolongs a blob's life.

use std::{sync::Arc, time::Duration};

use piecemeal_proto::Digest;
use tracing::warn;

use crate::{
    Store, StoreError,
    blocking::blocking,
    fill::read_range,
    index::{Durability, blobs},
};

/// Result of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// Every piece has its hash.
    Good,
    /// A piece does not have its hash, or the file was missing. The blob was dropped: the next pull fetches it again.
    Damaged,
    /// The blob is not here, or left in the meantime.
    Gone,
}

impl Store {
    /// Hashes every piece of a complete blob again. `pace` is awaited before each, with its bytes. Cancel safe.
    ///
    /// # Errors
    /// As [`Store::blob`]. A piece that cannot be read counts as damaged.
    pub async fn verify<P: Future<Output = ()>>(
        &self,
        digest: &Digest,
        pace: impl Fn(u64) -> P,
    ) -> Result<Verified, StoreError> {
        let Some(pin) = self.shared.pin_unused(digest) else {
            return Ok(Verified::Gone);
        };
        let generation = pin.generation();
        let Some(blob) = self.run(move |shared| shared.open_blob(pin)).await? else {
            self.drop_damaged(*digest, generation).await?;
            return Ok(Verified::Damaged);
        };
        let (map, hashes) = (blob.map(), blob.piece_hashes());
        for (piece, expected) in (0..map.count()).zip(hashes.iter().copied()) {
            pace(map.len(piece)).await;
            let file = Arc::clone(blob.file());
            let is_good = blocking(move || {
                let read = read_range(file.as_ref(), map.range(piece));
                read.inspect_err(|error| warn!(%error, "a piece cannot be read: {error}"))
                    .is_ok_and(|bytes| Digest::Sha256(expected).matches(&bytes))
            })
            .await?;
            if is_good {
                self.shared.counters.verified_bytes.add(map.len(piece));
            } else {
                self.drop_damaged(*digest, generation).await?;
                return Ok(Verified::Damaged);
            }
        }
        let digest = *digest;
        self.run(move |shared| {
            let now = shared.now();
            shared.write(Durability::Batched, |transaction| {
                blobs::verified(transaction, &digest, now)
            })?;
            Ok::<_, StoreError>(Verified::Good)
        })
        .await
    }

    /// At most `count` complete blobs whose last verification is older than `age`, the oldest first.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn unverified(&self, age: Duration, count: u32) -> Result<Vec<Digest>, StoreError> {
        self.run(move |shared| {
            let Some(moment) = shared.now().before(age) else {
                return Ok(Vec::new());
            };
            let digests = shared.index.unverified_since(moment, count)?;
            let state = shared.state.lock();
            Ok(digests
                .into_iter()
                .filter(|digest| state.ledger.get(digest).is_some())
                .collect())
        })
        .await
    }
}
