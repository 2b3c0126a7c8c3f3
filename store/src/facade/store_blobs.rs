//! Blobs of a store: how callers get, begin, verify and remove one.
//!
//! Verification does not count as use, and never prolongs a blob's life.

use std::{io, sync::Arc, time::Duration};

use piecemeal_proto::{Digest, FillId, PieceHash, PieceMap, piece_hash};
use tracing::warn;

use super::{blob::Blob, filling::handle::Filling, store::Store};
use crate::{
    blobs::{
        begin::{BeginFillError, begin, join},
        unstored::{self, Offer},
    },
    disk::{blocking::blocking, files::read_range},
    index::{Durability, blobs},
    values::{
        error::StoreError,
        piece_hashes::{ListSignature, PieceHashes},
    },
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
    /// The blob, if it is here, complete and proven. Counts as a use.
    ///
    /// # Errors
    /// [`StoreError::Index`] and [`StoreError::Io`]; a missing or damaged file is `None`.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let Some(pin) = self.shared.blobs.inventory.pin_blob(digest) else {
            return Ok(None);
        };
        let generation = pin.generation();
        let opened = self
            .shared
            .run(|shared| {
                let blob = shared.blobs.open_blob(pin);
                shared.batch_if_due();
                blob
            })
            .await?;
        if opened.is_none() {
            self.shared.drop_damaged(*digest, generation).await?;
        }
        Ok(opened.map(|open| Blob::new(&self.shared, open)))
    }

    /// Removes a complete blob, such as a damaged one, or a partial without a live fill. Returns whether there was one.
    /// Handles that are open go on reading. A live fill is not touched: abandon it.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the file cannot be removed.
    pub async fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        let lock = self.shared.blobs.locks.enter(digest).await;
        self.shared
            .run(move |shared| {
                if shared.blobs.live.is_held(lock.digest()) {
                    return Ok(false);
                }
                Ok(shared.blobs.evictor.discard(&lock)?.is_some())
            })
            .await
    }

    /// Hashes one piece of a complete blob again, for a peer that got wrong bytes. A damaged blob is dropped, so that it is
    /// fetched again. Returns whether it was damaged.
    ///
    /// # Errors
    /// As [`Store::blob`].
    pub async fn recheck(&self, digest: &Digest, piece: u32) -> Result<bool, StoreError> {
        let Some(blob) = self.blob(digest).await? else {
            return Ok(false);
        };
        let Some(&expected) = blob.piece_hashes().get(piece as usize) else {
            return Ok(false);
        };
        let (file, range) = (Arc::clone(blob.file()), blob.map().range(piece));
        let is_whole = self
            .shared
            .run(move |_| {
                let bytes = read_range(file.as_ref(), range)?;
                Ok::<_, StoreError>(piece_hash(&bytes) == expected)
            })
            .await?;
        if !is_whole {
            self.shared.drop_damaged(*digest, blob.generation()).await?;
        }
        Ok(!is_whole)
    }

    /// The hashes of a blob's pieces, if it is here and complete. Does not count as a use.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn piece_hashes(&self, digest: &Digest) -> Result<Option<PieceHashes>, StoreError> {
        let digest = *digest;
        self.shared
            .run(move |shared| {
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
        self.shared
            .run(move |shared| {
                Ok(shared.index.write(Durability::Batched, |transaction| {
                    blobs::sign(transaction, &digest, piece_bytes, &signature)
                })?)
            })
            .await
    }

    /// Hashes every piece of a complete blob again. `pace` is awaited before each, with its bytes. Cancel safe.
    ///
    /// # Errors
    /// As [`Store::blob`]. A piece that cannot be read counts as damaged.
    pub async fn verify<P: Future<Output = ()>>(
        &self,
        digest: &Digest,
        pace: impl Fn(u64) -> P,
    ) -> Result<Verified, StoreError> {
        let Some(pin) = self.shared.blobs.inventory.pin_unused(digest) else {
            return Ok(Verified::Gone);
        };
        let generation = pin.generation();
        let Some(open) = self.shared.run(move |shared| shared.blobs.open_blob(pin)).await? else {
            self.shared.drop_damaged(*digest, generation).await?;
            return Ok(Verified::Damaged);
        };
        let blob = Blob::new(&self.shared, open);
        let (map, hashes) = (blob.map(), blob.piece_hashes());
        for (piece, expected) in (0..map.count()).zip(hashes.iter().copied()) {
            pace(map.len(piece)).await;
            if !is_good(&blob, piece, expected).await? {
                self.shared.drop_damaged(*digest, generation).await?;
                return Ok(Verified::Damaged);
            }
            self.shared.blobs.evictor.counters.verified_bytes.add(map.len(piece));
        }
        let digest = *digest;
        self.shared
            .run(move |shared| {
                let now = shared.index.now();
                shared.index.write(Durability::Batched, |transaction| {
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
        self.shared
            .run(move |shared| {
                let Some(moment) = shared.index.now().before(age) else {
                    return Ok(Vec::new());
                };
                let digests = shared.index.unverified_since(moment, count)?;
                let ledger = shared.blobs.inventory.ledger();
                Ok(digests
                    .into_iter()
                    .filter(|digest| ledger.get(digest).is_some())
                    .collect())
            })
            .await
    }

    /// The fill of this blob that is open right now.
    pub fn filling(&self, digest: &Digest) -> Option<Filling> {
        let handle = self.shared.blobs.live.open(digest)?;
        Some(Filling::new(&self.shared, handle))
    }

    /// Begins to fill a blob, cut as `map` says. Joins the fill that is under way; else resumes what is on disk in the
    /// pieces whose bytes still have their hash; else starts with nothing.
    ///
    /// With `fill` given, only a fill of that id is joined or resumed, and what is on disk of another one is discarded.
    /// Without, a resumed fill keeps its id, and a new one draws one at random. Cancel safe.
    ///
    /// # Errors
    /// [`BeginFillError`].
    pub async fn begin(&self, digest: &Digest, map: PieceMap, fill: Option<FillId>) -> Result<Filling, BeginFillError> {
        if let Some(handle) = join(&self.shared.blobs, digest, map, fill)? {
            return Ok(Filling::new(&self.shared, handle));
        }
        let lock = self.shared.blobs.locks.enter(digest).await;
        let handle = self
            .shared
            .run(move |shared| begin(&shared.blobs, &lock, map, fill))
            .await?;
        Ok(Filling::new(&self.shared, handle))
    }

    /// Begins an unstored fill, for a blob that there is no room for: see [`BeginFillError::NoSpace`]. Joins the live one, if
    /// that is offered too. It ends with [`Filling::finish_unstored`], and is gone with its last handle.
    ///
    /// Waits for its turn while there are four of them. The wait has no limit of its own: a fill goes with its last reader, and a
    /// client that is refused would load the WAN. Cancel safe.
    ///
    /// # Errors
    /// [`BeginFillError`], except `NoSpace`.
    pub async fn begin_unstored(
        &self,
        digest: &Digest,
        map: PieceMap,
        fill: Option<FillId>,
        offer: Offer,
    ) -> Result<Filling, BeginFillError> {
        // A caller that joins a live fill takes no place.
        if let Some(handle) = join(&self.shared.blobs, digest, map, fill)? {
            return Ok(Filling::new(&self.shared, handle));
        }
        let place = self.shared.blobs.places.unstored().await;
        let lock = self.shared.blobs.locks.enter(digest).await;
        let handle = self
            .shared
            .run(move |shared| unstored::begin(&shared.blobs, &lock, place, (map, fill), offer))
            .await?;
        Ok(Filling::new(&self.shared, handle))
    }

    /// Begins an unstored fill beside any other fill of the blob: for a source that disagrees with the source of that one, as long
    /// as neither is proven. It joins no other fill, cannot be found, and does not touch theirs.
    ///
    /// Waits for its turn while there are eight of them. Cancel safe.
    pub async fn begin_apart(&self, digest: &Digest, map: PieceMap) -> Filling {
        let place = self.shared.blobs.places.apart().await;
        let handle = unstored::begin_apart(&self.shared.blobs, digest, map, place);
        Filling::new(&self.shared, handle)
    }
}

/// Whether a piece of the blob can be read and has its hash.
async fn is_good(blob: &Blob, piece: u32, expected: PieceHash) -> io::Result<bool> {
    let (file, range) = (Arc::clone(blob.file()), blob.map().range(piece));
    blocking(move || {
        let read = read_range(file.as_ref(), range);
        read.inspect_err(|error| warn!(%error, "a piece cannot be read: {error}"))
            .is_ok_and(|bytes| piece_hash(&bytes) == expected)
    })
    .await
}
