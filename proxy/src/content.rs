//! Content of a daemon: what the front serves from.
//!
//! [`Content::open`] has the one order of checks: no caller reads a blob before its right is proven.

use std::sync::Arc;

use piecemeal_proto::Digest;
use piecemeal_store::{Repository, Store};
use piecemeal_upstream::{ANSWER_TIMEOUT, Caller, PullError};

use crate::{BlobSizes, Item, Joining, Manifests, OpenBlob, Rights, Source, Transfer, Transfers};

/// The blobs and manifests of a daemon, for callers that may have them. Cheap to clone.
#[derive(Clone)]
pub struct Content {
    pub store: Store,
    pub source: Arc<dyn Source>,
    pub access: Arc<Rights>,
    pub sizes: BlobSizes,
    pub transfers: Transfers,
    pub manifests: Manifests,
}

impl Content {
    /// Opens a blob, starting its transfer when it is not here. Answers within [`ANSWER_TIMEOUT`] or so; the bytes may come later.
    ///
    /// # Errors
    /// The source's error for this caller, or the reason why the transfer failed.
    pub async fn open(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<OpenBlob, PullError> {
        if let Some(blob) = self.store.blob(digest).await? {
            self.access.require(caller, at, Item::Blob(digest)).await?;
            return Ok(OpenBlob::Complete(blob));
        }
        let opened = self.join(caller, at, digest).await;
        if let Err(error) = &opened {
            self.access.refused(caller, at, error).await?;
        }
        let (transfer, opened) = opened?;
        let is_unjudged = matches!(opened, OpenBlob::Starting { .. }) && transfer.is_of(caller, at);
        if self.source.has_mirror_in_front() && is_unjudged {
            return Ok(opened);
        }
        let item = opened.item(&transfer, at, digest);
        let verdict = self.access.require(caller, at, item).await;
        transfer.judged(caller, at, &verdict);
        verdict?;
        Ok(opened.proven())
    }

    async fn join(
        &self,
        caller: &Caller,
        at: &Repository,
        digest: &Digest,
    ) -> Result<(Arc<Transfer>, OpenBlob), PullError> {
        let (source, store, digest_of_run) = (Arc::clone(&self.source), self.store.clone(), *digest);
        let run = move |right, transfer: Arc<Transfer>| {
            let (source, store) = (Arc::clone(&source), store.clone());
            async move {
                let arrived = source.open(right, digest_of_run, Arc::clone(&transfer)).await?;
                transfer.record_sources(&store).await?;
                Ok(arrived)
            }
        };
        let prove = async || self.source.stat(caller, at, digest).await.map(drop);
        // From the store's manifests too: what a client is answered early with does not change by a restart.
        let told = match self.source.has_mirror_in_front() {
            true => self.sizes.find(&self.store, at, digest).await?,
            false => None,
        };
        let joining = Joining {
            caller,
            at,
            digest,
            blob_bytes: told,
            patience: ANSWER_TIMEOUT,
            allows: &|caller| self.access.allows(caller, at),
        };
        self.transfers.open(joining, run, prove).await
    }

    /// The blob's size in bytes; nothing is downloaded for it.
    ///
    /// # Errors
    /// The source's error for this caller.
    pub async fn stat(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<u64, PullError> {
        if let Some(known) = self.transfers.known_here(&self.store, at, digest).await? {
            self.access.require(caller, at, known.item(digest)).await?;
            return Ok(known.blob_bytes);
        }
        let stated = self.source.stat(caller, at, digest).await?;
        let told = self.sizes.find(&self.store, at, digest).await?;
        told.or(stated).ok_or_else(|| self.source.states_no_size(at, digest))
    }
}
