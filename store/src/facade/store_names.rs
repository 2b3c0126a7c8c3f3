//! Names of a store: its manifests, tags, sources and rights, as callers ask for them.
//!
//! A name that is cached costs neither the index nor a thread.

use std::time::Duration;

use bytes::Bytes;
use piecemeal_proto::{Digest, NodeId};

use super::store::Store;
use crate::{
    names::{
        name_store::NameStore,
        values::{Manifest, Tag},
    },
    shared::Shared,
    values::{
        error::{IndexError, StoreError},
        repository::Repository,
        right::{Holder, NodeRight, Shown},
    },
};

impl Store {
    /// Keeps a manifest that the upstream answered with under `at`.
    ///
    /// # Errors
    /// [`StoreError::DigestMismatch`], [`StoreError::ManifestTooLarge`], [`StoreError::Index`].
    pub async fn put_manifest(
        &self,
        at: &Repository,
        digest: &Digest,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(), StoreError> {
        let (at, expected, media_type) = (at.clone(), *digest, media_type.to_owned());
        self.shared
            .run(move |shared| shared.names.put_manifest(&at, expected, &media_type, &bytes))
            .await
    }

    /// The manifest, if the upstream answered for it under `at`. Counts as a use.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn manifest(&self, at: &Repository, digest: &Digest) -> Result<Option<Manifest>, StoreError> {
        let cached = self.shared.names.cached_manifest(at, digest);
        if cached.is_some() {
            return Ok(cached);
        }
        let (at, digest) = (at.clone(), *digest);
        self.ask_index(move |names| names.manifest(&at, digest)).await
    }

    /// Manifests under `at` that name the digest, as far as they are here: a few of those that were used last. It reads every manifest
    /// of the repository, and is for what no quicker way tells.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn manifests_that_name(&self, at: &Repository, digest: &Digest) -> Result<Vec<Manifest>, StoreError> {
        let (at, digest) = (at.clone(), *digest);
        self.names(move |names| names.manifests_that_name(&at, &digest)).await
    }

    /// Records what the tag stands for, as upstream has just answered.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn put_tag(&self, at: &Repository, tag: &str, digest: &Digest) -> Result<(), StoreError> {
        let (at, tag, digest) = (at.clone(), tag.to_owned(), *digest);
        self.names(move |names| names.put_tag(&at, &tag, digest)).await
    }

    /// The digest that the tag stood for when upstream was last asked. Counts as a use.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn tag(&self, at: &Repository, tag: &str) -> Result<Option<Tag>, StoreError> {
        let cached = self.shared.names.cached_tag(at, tag);
        if cached.is_some() {
            return Ok(cached);
        }
        let (at, tag) = (at.clone(), tag.to_owned());
        self.ask_index(move |names| names.tag(&at, &tag)).await
    }

    /// Forgets a tag that upstream no longer has.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn forget_tag(&self, at: &Repository, tag: &str) -> Result<(), StoreError> {
        let (at, tag) = (at.clone(), tag.to_owned());
        self.names(move |names| names.forget_tag(&at, &tag)).await
    }

    /// Notes that the upstream itself answered for this blob or manifest under `at`. Never call it for what a manifest
    /// merely lists.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn record_source(&self, at: &Repository, digest: &Digest) -> Result<(), StoreError> {
        let (at, digest) = (at.clone(), *digest);
        self.names(move |names| names.put_source(&at, &digest)).await
    }

    /// Whether the upstream ever answered for this digest under `at`. Counts as a use of that knowledge.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn has_source(&self, at: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        if self.shared.names.has_cached_source(at, digest) {
            return Ok(true);
        }
        let (at, digest) = (at.clone(), *digest);
        self.ask_index(move |names| names.has_source(&at, &digest)).await
    }

    /// Whether any repository of the upstream is noted for this digest.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn has_upstream(&self, upstream: &str, digest: &Digest) -> Result<bool, StoreError> {
        let (upstream, digest) = (upstream.to_owned(), *digest);
        self.names(move |names| names.has_upstream(&upstream, &digest)).await
    }

    /// Notes that upstream just served the holder from `at`.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn record_right(&self, at: &Repository, holder: Holder) -> Result<(), StoreError> {
        let at = at.clone();
        self.names(move |names| names.put_right(&at, holder)).await
    }

    /// Records that upstream has just refused the holder at `at`, which revokes the right of exactly this holder.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn record_refusal(&self, at: &Repository, holder: Holder) -> Result<(), StoreError> {
        let at = at.clone();
        self.names(move |names| names.put_refusal(&at, holder)).await
    }

    /// The time since upstream last served the repository without a credential; a restart adds an hour at the most.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn public_right(&self, at: &Repository) -> Result<Option<Duration>, StoreError> {
        let at = at.clone();
        self.names(move |names| names.public_right(&at)).await
    }

    /// Of each upstream at most `max` repositories that it has served without a credential, each with a manifest of it that is here:
    /// the ones that it served last.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn public_manifests(&self, max: usize) -> Result<Vec<(Repository, Digest)>, StoreError> {
        self.names(move |names| names.public_manifests(max)).await
    }

    /// The right of a node that shows this credential, or none.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn node_right(
        &self,
        at: &Repository,
        node: NodeId,
        shown: Option<Shown>,
    ) -> Result<NodeRight, StoreError> {
        let at = at.clone();
        self.names(move |names| names.node_right(&at, node, shown)).await
    }

    /// The tags of a repository that are known here, in their order.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn tags(&self, at: &Repository) -> Result<Vec<String>, StoreError> {
        let at = at.clone();
        self.names(move |names| names.tags(&at)).await
    }

    /// Runs work on names on a blocking thread.
    async fn names<T: Send + 'static>(
        &self,
        work: impl FnOnce(&NameStore) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.shared.run(move |shared| Ok(work(&shared.names)?)).await
    }

    /// The same for a use of a name, which a batch has to bring to the index.
    async fn ask_index<T: Send + 'static>(
        &self,
        work: impl FnOnce(&NameStore) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let ask = move |shared: &Shared| {
            let answer = work(&shared.names)?;
            shared.batch_if_due();
            Ok(answer)
        };
        self.shared.run(ask).await
    }
}
