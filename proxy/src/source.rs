//! The traits between the registry front and its content sources. A mirror and a peer differ only behind these.

use std::sync::Arc;

use async_trait::async_trait;
use piecemeal_proto::Digest;
use piecemeal_store::Repository;

use crate::{Manifests, OpenBlob};
use piecemeal_upstream::{Caller, PullError};

/// Where a blob's bytes come from.
#[async_trait]
pub trait Blobs: Send + Sync {
    /// Opens a blob, starting its transfer when it is not here. Answers within [`piecemeal_upstream::ANSWER_TIMEOUT`] or so; the bytes may come later.
    async fn open(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<OpenBlob, PullError>;

    /// The blob's size in bytes; nothing is downloaded for it.
    async fn stat(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<u64, PullError>;
}

/// What a right is asked for.
#[derive(Clone, Copy)]
pub enum Item<'a> {
    Manifest(&'a Digest),
    Blob(&'a Digest),
    /// A blob on its way from this upstream, which has answered for it under this very repository.
    Answered(&'a Digest),
}

impl Item<'_> {
    pub fn digest(&self) -> &Digest {
        match self {
            Self::Manifest(digest) | Self::Blob(digest) | Self::Answered(digest) => digest,
        }
    }
}

/// What the front serves from.
#[derive(Clone)]
pub struct Content {
    pub blobs: Arc<dyn Blobs>,
    pub tags: Manifests,
}
