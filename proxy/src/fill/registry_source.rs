//! Source of content that the registries themselves are. Blobs come by way of the store.
//!
//! `Content` decides who may read them (`content.rs`).

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use piecemeal_proto::{Digest, Reference};
use piecemeal_store::{Holder, Repository, Shown, Store};
use piecemeal_swarm::Limiter;

use super::observer::FillObserver;
use crate::{Arrived, BlobSizes, Right, Source, Transfer, Transfers, callers::Callers};
use piecemeal_upstream::{Caller, FetchedManifest, ListAnswer, ManifestAnswer, PullError, Upstream, Upstreams, Who};

/// The registries, each asked by its own client.
#[derive(Clone)]
pub struct RegistrySource {
    pub store: Store,
    pub upstreams: Upstreams,
    /// Whether a repository is known to be served without a credential.
    pub is_public: Arc<dyn Fn(&Repository) -> bool + Send + Sync>,
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
impl Source for RegistrySource {
    async fn open(&self, right: Right, digest: Digest, transfer: Arc<Transfer>) -> Result<Arrived, PullError> {
        self.clone().fill(right, digest, transfer).await
    }

    async fn stat(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<Option<u64>, PullError> {
        self.upstreams.get(&at.upstream)?.head_blob(caller, at, digest).await
    }

    async fn has_sample(
        &self,
        caller: &Caller,
        at: &Repository,
        digest: &Digest,
        start: u64,
        sample: &Bytes,
    ) -> Result<bool, PullError> {
        let upstream = self.upstreams.get(&at.upstream)?;
        upstream.has_sample(caller, at, digest, start, sample).await
    }

    async fn manifest(
        &self,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError> {
        self.upstreams.get(&at.upstream)?.manifest(caller, at, reference).await
    }

    async fn head(&self, caller: &Caller, at: &Repository, reference: &Reference) -> Result<ManifestAnswer, PullError> {
        let upstream = self.upstreams.get(&at.upstream)?;
        upstream.head_manifest(caller, at, reference).await
    }

    async fn list(&self, caller: &Caller, at: &Repository, path: &str) -> Result<ListAnswer, PullError> {
        self.upstreams.get(&at.upstream)?.list(caller, at, path).await
    }

    async fn ping(&self, caller: &Caller, upstream: &str) -> Result<(), PullError> {
        self.upstreams.get(upstream)?.ping(caller).await
    }

    fn allows(&self, caller: &Caller, at: &Repository) -> bool {
        self.upstreams.allows(caller, at)
    }

    fn holder(&self, caller: &Caller, at: &Repository) -> Option<Holder> {
        match self.upstreams.get(&at.upstream).ok()?.who(caller) {
            Who::Public => Some(Holder::Public),
            Who::Holder(fingerprint) => Some(Holder::Node(caller.node?, Shown::Client(fingerprint))),
            Who::Site => Some(Holder::Node(caller.node?, Shown::Site)),
        }
    }

    async fn is_lost(&self, at: &Repository) -> bool {
        self.upstreams.is_lost(at).await
    }

    fn has_mirror_in_front(&self) -> bool {
        false
    }

    fn states_no_size(&self, at: &Repository, digest: &Digest) -> PullError {
        PullError::BadGateway(format!("{} does not state the size of {digest}", at.upstream))
    }
}

impl RegistrySource {
    pub(super) async fn received(&self, bytes: usize) {
        self.observer.received(bytes);
        self.limiter.take(bytes).await;
    }
}
