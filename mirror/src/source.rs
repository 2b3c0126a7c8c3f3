//! The traits between the registry front and its content sources. A mirror and a peer differ only behind these.

use std::sync::Arc;

use async_trait::async_trait;
use piecemeal_proto::{Digest, Reference};
use piecemeal_store::{Filling, Repository};

use crate::{Caller, FetchedManifest, List, ListQuery, OpenBlob, PullError};

/// Where a blob's bytes come from.
#[async_trait]
pub trait Blobs: Send + Sync {
    /// Opens a blob, starting its transfer when it is not here. Answers within [`crate::ANSWER_TIMEOUT`] or so; the bytes may come later.
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
    /// A blob that is on its way.
    Filling(&'a Filling),
}

impl Item<'_> {
    pub fn digest(&self) -> &Digest {
        match self {
            Self::Manifest(digest) | Self::Blob(digest) => digest,
            Self::Filling(filling) => filling.digest(),
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
