//! Source of a daemon's content: the registries, or the swarm with a mirror in front of them.
//!
//! A source answers each question with the caller's own right, and shares no answer between callers.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use piecemeal_proto::{Digest, Reference};
use piecemeal_store::{Holder, Repository};
use piecemeal_upstream::{Caller, FetchedManifest, ListAnswer, ManifestAnswer, PullError};

use crate::{Arrived, Right, Transfer};

/// The one seam between the proxy and what it stands in front of.
#[async_trait]
pub trait Source: Send + Sync {
    /// Carries out the download of a blob with this right.
    async fn open(&self, right: Right, digest: Digest, transfer: Arc<Transfer>) -> Result<Arrived, PullError>;

    /// The size of a blob in bytes, where it is stated; no error: the source has it.
    async fn stat(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<Option<u64>, PullError>;

    /// Whether the source's blob has these bytes from `start` on.
    async fn has_sample(
        &self,
        caller: &Caller,
        at: &Repository,
        digest: &Digest,
        start: u64,
        sample: &Bytes,
    ) -> Result<bool, PullError>;

    /// GETs a manifest, its digest verified.
    async fn manifest(
        &self,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError>;

    /// Asks what a manifest is: by HEAD where that counts, otherwise by GET.
    async fn head(&self, caller: &Caller, at: &Repository, reference: &Reference) -> Result<ManifestAnswer, PullError>;

    /// GETs a page of a list below the repository.
    async fn list(&self, caller: &Caller, at: &Repository, path: &str) -> Result<ListAnswer, PullError>;

    /// Whether a client that pings the upstream is to show a credential: refused, with the upstream's challenge, if so.
    async fn ping(&self, caller: &Caller, upstream: &str) -> Result<(), PullError>;

    /// Whether the source has recently served the caller from the repository.
    fn allows(&self, caller: &Caller, at: &Repository) -> bool;

    /// The holder under which the caller's right is kept for the time when the source is lost; `None`: it is not kept.
    fn holder(&self, caller: &Caller, at: &Repository) -> Option<Holder>;

    /// Whether the source is lost: asked by a probe that carries nothing of a caller.
    async fn is_lost(&self, at: &Repository) -> bool;

    /// Whether a mirror stands in front of upstream. It compares what it has itself. And since it may take a while, a caller is answered
    /// with the size that a manifest tells while its own transfer has not started; such a transfer must yield no byte before the source
    /// has given this caller its verdict.
    fn has_mirror_in_front(&self) -> bool;

    /// The error where neither the source nor a manifest tells the blob's size.
    fn states_no_size(&self, at: &Repository, digest: &Digest) -> PullError;
}
