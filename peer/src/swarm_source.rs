//! Source of a peer's content: blobs from the swarm, everything else from the mirror in front of upstream.
//!
//! The mirror itself compares the bytes of a sample with what it has.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use piecemeal_proto::{Digest, Reference};
use piecemeal_proxy::{Arrived, Right, Source, Transfer};
use piecemeal_store::{Holder, Repository, Shown};
use piecemeal_upstream::{Caller, FetchedManifest, ListAnswer, ManifestAnswer, PullError, Upstream};

use crate::{download::Parts, mirror_first::MirrorFirst};

/// The swarm with a mirror in front of upstream.
pub(crate) struct SwarmSource {
    pub(crate) parts: Parts,
    pub(crate) registries: Arc<MirrorFirst>,
}

#[async_trait]
impl Source for SwarmSource {
    async fn open(&self, right: Right, digest: Digest, transfer: Arc<Transfer>) -> Result<Arrived, PullError> {
        self.parts.clone().transfer(right, digest, transfer).await
    }

    async fn stat(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<Option<u64>, PullError> {
        let ask = async |registry: Arc<Upstream>| registry.head_blob(caller, at, digest).await;
        self.registries.ask(at, ask).await
    }

    async fn has_sample(
        &self,
        caller: &Caller,
        at: &Repository,
        digest: &Digest,
        start: u64,
        sample: &Bytes,
    ) -> Result<bool, PullError> {
        let ask = async |registry: Arc<Upstream>| registry.has_sample(caller, at, digest, start, sample).await;
        self.registries.ask(at, ask).await
    }

    async fn manifest(
        &self,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError> {
        let ask = async |registry: Arc<Upstream>| registry.manifest(caller, at, reference).await;
        self.registries.ask(at, ask).await
    }

    async fn head(&self, caller: &Caller, at: &Repository, reference: &Reference) -> Result<ManifestAnswer, PullError> {
        let ask = async |registry: Arc<Upstream>| registry.head_manifest(caller, at, reference).await;
        self.registries.ask(at, ask).await
    }

    async fn list(&self, caller: &Caller, at: &Repository, path: &str) -> Result<ListAnswer, PullError> {
        let ask = async |registry: Arc<Upstream>| registry.list(caller, at, path).await;
        self.registries.ask(at, ask).await
    }

    async fn ping(&self, caller: &Caller, upstream: &str) -> Result<(), PullError> {
        self.registries.ping(caller, upstream).await
    }

    fn allows(&self, caller: &Caller, at: &Repository) -> bool {
        self.registries.allows(caller, at)
    }

    /// Without a credential, the mirror may have served this node alone: the right is kept for the node, not for the public.
    fn holder(&self, caller: &Caller, _at: &Repository) -> Option<Holder> {
        match &caller.credential {
            None if self.registries.mirror.is_none() => Some(Holder::Public),
            None => Some(Holder::Node(caller.node?, Shown::Nothing)),
            Some(credential) => Some(Holder::Node(caller.node?, credential.shown())),
        }
    }

    async fn is_lost(&self, at: &Repository) -> bool {
        self.registries.is_lost(at).await
    }

    fn has_mirror_in_front(&self) -> bool {
        true
    }

    fn states_no_size(&self, _at: &Repository, digest: &Digest) -> PullError {
        PullError::BadGateway(format!("neither the mirror nor a peer states the size of {digest}"))
    }
}
