//! The traits between the registry front and its content sources. A mirror and a peer differ only behind these.

use std::sync::Arc;

use async_trait::async_trait;
use piecemeal_proto::{Digest, Reference};
use piecemeal_store::Repository;

use crate::{List, ListQuery, OpenBlob};
use piecemeal_upstream::{Caller, FetchedManifest, PullError};

/// Where a blob's bytes come from.
#[async_trait]
pub trait Blobs: Send + Sync {
    /// Opens a blob, starting its transfer when it is not here. Answers within [`piecemeal_upstream::ANSWER_TIMEOUT`] or so; the bytes may come later.
    async fn open(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<OpenBlob, PullError>;

    /// The blob's size in bytes; nothing is downloaded for it.
    async fn stat(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<u64, PullError>;
}

/// How a name is resolved.
#[async_trait]
pub trait Tags: Send + Sync {
    /// The manifest that `reference` names now.
    async fn manifest(
        &self,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError>;

    /// A list of what the repository has: its tags, or what refers to a manifest.
    async fn list(&self, caller: &Caller, at: &Repository, query: &ListQuery) -> Result<List, PullError>;
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

/// Whether this caller may pull content that is here already. For other content the fetch itself proves the right.
#[async_trait]
pub trait Access: Send + Sync {
    /// # Errors
    /// The source's own verdict, or why there is none.
    async fn require(&self, caller: &Caller, at: &Repository, item: Item<'_>) -> Result<(), PullError>;

    /// The source has just refused another request of the caller: its recorded right to the repository ends.
    async fn refused(&self, caller: &Caller, at: &Repository, error: &PullError) -> Result<(), PullError>;

    /// Whether it is known already, without asking the source, that the caller may pull from the repository.
    fn allows(&self, caller: &Caller, at: &Repository) -> bool;
}

/// What the front serves from.
#[derive(Clone)]
pub struct Content {
    pub blobs: Arc<dyn Blobs>,
    pub tags: Arc<dyn Tags>,
}
