//! Blobs from upstream registries, by way of the store.
//!
//! `Content` decides who may read them (`content.rs`).

use std::sync::Arc;

use async_trait::async_trait;
use piecemeal_proto::Digest;
use piecemeal_store::{Repository, Store};
use piecemeal_swarm::Limiter;

use super::observer::FillObserver;
use crate::{Arrived, BlobSizes, Right, Rights, Source, Transfer, Transfers, callers::Callers};
use piecemeal_upstream::{Caller, PullError, Upstream, Upstreams};

/// Blobs from upstream, by way of the store.
#[derive(Clone)]
pub struct UpstreamBlobs {
    pub store: Store,
    pub upstreams: Upstreams,
    pub access: Arc<Rights>,
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
impl Source for UpstreamBlobs {
    async fn transfer(&self, right: Right, digest: Digest, transfer: Arc<Transfer>) -> Result<Arrived, PullError> {
        self.clone().fill(right, digest, transfer).await
    }

    async fn head_blob(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<Option<u64>, PullError> {
        self.upstreams.get(&at.upstream)?.head_blob(caller, at, digest).await
    }

    fn answers_early(&self) -> bool {
        false
    }

    fn states_no_size(&self, at: &Repository, digest: &Digest) -> PullError {
        PullError::BadGateway(format!("{} does not state the size of {digest}", at.upstream))
    }
}

impl UpstreamBlobs {
    pub(super) async fn received(&self, bytes: usize) {
        self.observer.received(bytes);
        self.limiter.take(bytes).await;
    }
}
