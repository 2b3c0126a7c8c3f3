//! Source of blobs: a mirror and a peer each have their own.

use std::sync::Arc;

use async_trait::async_trait;
use piecemeal_proto::Digest;
use piecemeal_store::Repository;
use piecemeal_upstream::{Caller, PullError};

use crate::{Arrived, Right, Transfer};

/// The source of blobs: the registries, or the swarm with a mirror in front of them.
#[async_trait]
pub trait Source: Send + Sync {
    /// Carries out the download of a blob with this right.
    async fn transfer(&self, right: Right, digest: Digest, transfer: Arc<Transfer>) -> Result<Arrived, PullError>;

    /// Asks for the blob with the caller's own right: the size in bytes, where it is stated.
    async fn head_blob(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<Option<u64>, PullError>;

    /// Whether a caller is answered with the size that a manifest tells while its own transfer has not started. Such a transfer
    /// must yield no byte before the source has given this caller its verdict.
    fn answers_early(&self) -> bool;

    /// The error where neither the source nor a manifest tells the blob's size.
    fn states_no_size(&self, at: &Repository, digest: &Digest) -> PullError;
}
