//! Blobs from upstream registries, by way of the store.
//!
//! A caller reads no byte before its right to the blob is proven.

use std::sync::Arc;

use async_trait::async_trait;
use piecemeal_proto::Digest;
use piecemeal_store::{Repository, Store};
use piecemeal_swarm::Limiter;

use super::observer::FillObserver;
use crate::{Access, BlobSizes, Blobs, Item, Joining, OpenBlob, Right, Transfer, Transfers, callers::Callers};
use piecemeal_upstream::{ANSWER_TIMEOUT, Caller, PullError, Upstream, Upstreams};

/// Blobs from upstream, by way of the store.
#[derive(Clone)]
pub struct UpstreamBlobs {
    pub store: Store,
    pub upstreams: Upstreams,
    pub access: Arc<dyn Access>,
    pub sizes: BlobSizes,
    pub transfers: Transfers,
    pub observer: Arc<dyn FillObserver>,
    pub limiter: Limiter,
}

/// Where a fill comes from, and with whose right.
#[derive(Clone, Copy)]
pub(super) struct FillSource<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) right: &'a Right,
    /// The callers with whose rights it may go on.
    pub(super) callers: Option<&'a Callers>,
}

#[async_trait]
impl Blobs for UpstreamBlobs {
    async fn open(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<OpenBlob, PullError> {
        if let Some(blob) = self.store.blob(digest).await? {
            self.access.require(caller, at, Item::Blob(digest)).await?;
            return Ok(OpenBlob::Complete(blob));
        }
        let (blobs, digest_of_fill) = (self.clone(), *digest);
        let fill = move |right, transfer: Arc<Transfer>| {
            let blobs = blobs.clone();
            async move {
                let arrived = blobs.clone().fill(right, digest_of_fill, Arc::clone(&transfer)).await?;
                transfer.record_sources(&blobs.store).await?;
                Ok(arrived)
            }
        };
        let prove = async || {
            self.upstreams
                .get(&at.upstream)?
                .head_blob(caller, at, digest)
                .await
                .map(drop)
        };
        let joining = Joining {
            caller,
            at,
            digest,
            blob_bytes: None,
            patience: ANSWER_TIMEOUT,
            access: &*self.access,
        };
        let opened = self.transfers.open(joining, fill, prove).await;
        if let Err(error) = &opened {
            self.access.refused(caller, at, error).await?;
        }
        let (transfer, opened) = opened?;
        let verdict = self
            .access
            .require(caller, at, opened.item(&transfer, at, digest))
            .await;
        transfer.judged(caller, at, &verdict);
        verdict?;
        Ok(opened.proven())
    }

    async fn stat(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<u64, PullError> {
        if let Some(known) = self.transfers.known_here(&self.store, at, digest).await? {
            self.access.require(caller, at, known.item(digest)).await?;
            return Ok(known.blob_bytes);
        }
        let stated = self.upstreams.get(&at.upstream)?.head_blob(caller, at, digest).await?;
        stated
            .or_else(|| self.sizes.get(at, digest))
            .ok_or_else(|| PullError::BadGateway(format!("{} does not state the size of {digest}", at.upstream)))
    }
}

impl UpstreamBlobs {
    pub(super) async fn received(&self, bytes: usize) {
        self.observer.received(bytes);
        self.limiter.take(bytes).await;
    }
}
