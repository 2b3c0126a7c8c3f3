//! Unstored fills: the blob is not kept, since there is no room for it. Pieces come into memory, wait there for their readers
//! within a window, and go.
//!
//! The places for such fills are few; one is taken before the fill begins, and is given back with its last handle.

use std::sync::Arc;

use piecemeal_proto::{Digest, FillId, PieceMap};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    begin::{BeginFillError, join, resume_without_room},
    blob_store::BlobStore,
    digest_lock::DigestGuard,
    fills::{fill::Fill, live_fills::FillHandle},
};

/// Whether others may find an unstored fill by its digest, and take its pieces from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    Pieces,
    Nothing,
}

/// Joins the fill of the blob that is open, or begins an unstored one, with what an earlier fill has left on the disk.
pub(crate) fn begin(
    blobs: &BlobStore,
    lock: &DigestGuard,
    place: OwnedSemaphorePermit,
    (map, id): (PieceMap, Option<FillId>),
    offer: Offer,
) -> Result<Arc<FillHandle>, BeginFillError> {
    let digest = lock.digest();
    if let Some(handle) = join(blobs, digest, map, id)? {
        return Ok(handle);
    }
    if let Some(handle) = resume_without_room(blobs, lock, map, id)? {
        handle.overflow(&blobs.live, place);
        return Ok(handle);
    }
    let id = id.unwrap_or_else(|| blobs.random.fill_id());
    let handle = attach(blobs, Fill::unstored(*digest, map, id), place);
    if offer == Offer::Pieces {
        blobs.live.insert(&handle);
    }
    Ok(handle)
}

/// Begins an unstored fill that other callers cannot find.
pub(crate) fn begin_apart(
    blobs: &BlobStore,
    digest: &Digest,
    map: PieceMap,
    place: OwnedSemaphorePermit,
) -> Arc<FillHandle> {
    attach(blobs, Fill::unstored(*digest, map, blobs.random.fill_id()), place)
}

/// Makes the first handle of an unstored fill.
fn attach(blobs: &BlobStore, fill: Fill, place: OwnedSemaphorePermit) -> Arc<FillHandle> {
    Arc::new(FillHandle::unstored(Arc::new(fill), Arc::clone(&blobs.live), place))
}
