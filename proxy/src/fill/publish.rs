//! The store's part of a fill: a place for its pieces, and the verdict on them at the end.
//!
//! Bytes that do not have the digest are revoked as a whole.

use std::time::Duration;

use piecemeal_proto::{Digest, FillId, PieceMap};
use piecemeal_store::{BeginFillError, FillFailure, Filling, Offer, PublishBlobError, Repository, Store};
use tracing::warn;

use super::{patience::PLACE_PATIENCE, registry_source::RegistrySource};
use crate::{Arrived, Transfer};
use piecemeal_upstream::PullError;

/// How long all pieces of a blob stay here that the disk has not taken: nodes take the window's 32 MiB from here in less.
const OVERFLOWED_STAYS: Duration = Duration::from_secs(15);

impl RegistrySource {
    pub(super) async fn reserve(&self, digest: &Digest, map: PieceMap) -> Result<Filling, PullError> {
        match self.store.begin(digest, map, None).await {
            Ok(filling) => Ok(filling),
            // Or the disk is full in fact, whatever it said before, or broken.
            Err(error @ (BeginFillError::NoSpace { .. } | BeginFillError::Io(_) | BeginFillError::Index(_))) => {
                warn!(blob.digest = %digest, %error, "{digest} is passed on without being kept: {error}");
                pass(&self.store, digest, map, None, Offer::Nothing).await
            }
            Err(error) => Err(PullError::Store(error.to_string())),
        }
    }

    /// Nodes were told of the pieces of a fill before the disk took no more of it: they are here for a while longer.
    pub(super) async fn stay(&self, filling: &Filling) {
        if filling.has_overflowed() && filling.prove_unstored().await.is_ok() {
            tokio::time::sleep(OVERFLOWED_STAYS).await;
        }
    }

    /// Verifies and publishes a blob that is all here, or has all passed; drops all of it when it proves to be another. One that the disk does
    /// not keep has passed.
    ///
    /// # Errors
    /// [`PullError::BadGateway`] for the wrong bytes, [`PullError::Store`].
    pub async fn publish(&self, at: &Repository, filling: &Filling, transfer: &Transfer) -> Result<Arrived, PullError> {
        let arrived = match filling.is_unstored() {
            true => filling.finish_unstored().await.map(|()| Arrived::Passed),
            false => {
                let sources = self.transfers.sources(transfer, filling);
                filling.publish(&sources).await.map(Arrived::Kept)
            }
        };
        match arrived {
            Ok(Arrived::Kept(blob)) => {
                self.observer.kept(&blob);
                self.observer.proven(filling.digest(), filling.fill());
                Ok(Arrived::Kept(blob))
            }
            Ok(Arrived::Passed) => Ok(Arrived::Passed),
            Err(PublishBlobError::DigestMismatch { expected, computed }) => {
                warn!(blob.digest = %expected, upstream = at.upstream, "{} sent bytes with digest {computed} for {expected}; all of them are dropped", at.upstream);
                self.observer.revoked(filling.digest(), filling.fill());
                filling.abandon(FillFailure::Revoked).await;
                Err(PullError::BadGateway(format!(
                    "{} sent other bytes for {expected}",
                    at.upstream
                )))
            }
            // The disk does not keep it. Its readers have the open file.
            Err(error @ (PublishBlobError::Io(_) | PublishBlobError::Index(_))) if filling.is_proven() => {
                warn!(blob.digest = %filling.digest(), %error, "{} is good and cannot be kept: {error}", filling.digest());
                Ok(Arrived::Passed)
            }
            Err(error) => Err(PullError::Store(error.to_string())),
        }
    }
}

/// Begins to pass a blob on that there is no room for, as soon as not too many others do.
///
/// # Errors
/// [`PullError::Unavailable`] when none of those ends soon; [`PullError::Store`].
pub async fn pass(
    store: &Store,
    digest: &Digest,
    map: PieceMap,
    fill: Option<FillId>,
    offer: Offer,
) -> Result<Filling, PullError> {
    let begun = tokio::time::timeout(PLACE_PATIENCE, store.begin_unstored(digest, map, fill, offer)).await;
    let begun = begun.map_err(|_| {
        PullError::Unavailable(
            "the blob does not fit into the cache, and too many blobs already pass through memory; try again"
                .to_owned(),
        )
    })?;
    begun.map_err(|error| match error {
        BeginFillError::Conflict { .. } => PullError::Unavailable(error.to_string()),
        error => PullError::Store(error.to_string()),
    })
}
