//! Names of a store: its manifests, tags, sources and rights, as callers ask for them.

use std::time::Duration;

use bytes::Bytes;
use piecemeal_proto::{Digest, MANIFEST_BYTES_MAX, NodeId};

use super::store::Store;
use crate::{
    index::{Durability, TagRow, names, rights},
    names::values::{Manifest, Tag},
    values::{
        error::StoreError,
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
        let manifest_bytes = bytes.len() as u64;
        let bytes_max = MANIFEST_BYTES_MAX as u64;
        if manifest_bytes > bytes_max {
            let bytes = manifest_bytes;
            return Err(StoreError::ManifestTooLarge { bytes, bytes_max });
        }
        let (at, expected, media_type) = (at.clone(), *digest, media_type.to_owned());
        self.shared
            .run(move |shared| {
                let mut hasher = expected.algorithm().hasher();
                hasher.update(&bytes);
                let computed = hasher.finish();
                if computed != expected {
                    return Err(StoreError::DigestMismatch {
                        expected: Box::new(expected),
                        computed: Box::new(computed),
                    });
                }
                let (now, before) = (shared.index.now(), shared.names.cache.lock().epoch());
                shared.index.write(Durability::Batched, |transaction| {
                    names::put_manifest(transaction, &expected, &media_type, &bytes, now)?;
                    names::put_source(transaction, &at, &expected, now)
                })?;
                let mut known = shared.names.cache.lock();
                known.added_source(before, &at, &expected);
                known.changed_manifest(&expected);
                Ok(())
            })
            .await
    }

    /// The manifest, if the upstream answered for it under `at`. Counts as a use.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn manifest(&self, at: &Repository, digest: &Digest) -> Result<Option<Manifest>, StoreError> {
        let known = self.shared.names.cache.lock().manifest(at, digest);
        if known.is_some() {
            self.shared.names.use_manifest(at, digest);
            return Ok(known);
        }
        let (at, digest) = (at.clone(), *digest);
        self.shared
            .run(move |shared| {
                let read = shared.names.cache.lock().epoch();
                let Some(row) = shared.index.manifest(&at, &digest)? else {
                    return Ok(None);
                };
                shared.names.use_manifest(&at, &digest);
                shared.batch_if_due();
                let manifest = Manifest {
                    media_type: row.media_type,
                    bytes: row.bytes.into(),
                    digest,
                };
                shared.names.cache.lock().keep_manifest(read, &at, &manifest);
                Ok(Some(manifest))
            })
            .await
    }

    /// Records what the tag stands for, as upstream has just answered.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn put_tag(&self, at: &Repository, tag: &str, digest: &Digest) -> Result<(), StoreError> {
        let (at, tag, digest) = (at.clone(), tag.to_owned(), *digest);
        self.shared
            .run(move |shared| {
                let checked = shared.index.now();
                shared.index.write(Durability::Batched, |transaction| {
                    names::put_tag(transaction, &at, &tag, TagRow { digest, checked })
                })?;
                shared.names.cache.lock().changed_tag(&at, &tag);
                Ok(())
            })
            .await
    }

    /// What the tag stood for when upstream was last asked. Counts as a use.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn tag(&self, at: &Repository, tag: &str) -> Result<Option<Tag>, StoreError> {
        let known = self.shared.names.cache.lock().tag(at, tag);
        if let Some(row) = known {
            return Ok(Some(self.shared.names.use_tag(at, tag, row)));
        }
        let (at, tag) = (at.clone(), tag.to_owned());
        self.shared
            .run(move |shared| {
                let read = shared.names.cache.lock().epoch();
                let Some(row) = shared.index.tag(&at, &tag)? else {
                    return Ok(None);
                };
                let used = shared.names.use_tag(&at, &tag, row);
                shared.batch_if_due();
                shared.names.cache.lock().keep_tag(read, &at, &tag, row);
                Ok(Some(used))
            })
            .await
    }

    /// Forgets a tag that upstream no longer has.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn forget_tag(&self, at: &Repository, tag: &str) -> Result<(), StoreError> {
        let (at, tag) = (at.clone(), tag.to_owned());
        self.shared
            .run(move |shared| {
                shared.index.write(Durability::Batched, |transaction| {
                    names::delete_tag(transaction, &at, &tag)
                })?;
                shared.names.cache.lock().changed_tag(&at, &tag);
                Ok(())
            })
            .await
    }

    /// Notes that the upstream itself answered for this blob or manifest under `at`. Never call it for what a manifest
    /// merely lists.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn record_source(&self, at: &Repository, digest: &Digest) -> Result<(), StoreError> {
        let (at, digest) = (at.clone(), *digest);
        self.shared
            .run(move |shared| {
                let (now, before) = (shared.index.now(), shared.names.cache.lock().epoch());
                shared.index.write(Durability::Batched, |transaction| {
                    names::put_source(transaction, &at, &digest, now)
                })?;
                shared.names.cache.lock().added_source(before, &at, &digest);
                Ok(())
            })
            .await
    }

    /// Whether the upstream ever answered for this digest under `at`. Counts as a use of that knowledge.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn has_source(&self, at: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        let known = self.shared.names.cache.lock().has_source(at, digest);
        if known {
            self.shared.names.use_source(at, digest);
            return Ok(true);
        }
        let (at, digest) = (at.clone(), *digest);
        self.shared
            .run(move |shared| {
                let read = shared.names.cache.lock().epoch();
                let known = shared.index.has_source(&at, &digest)?;
                if known {
                    shared.names.use_source(&at, &digest);
                    shared.batch_if_due();
                    shared.names.cache.lock().keep_source(read, &at, &digest);
                }
                Ok(known)
            })
            .await
    }

    /// Removes what [`Store::record_source`] recorded: the upstream's answer was wrong.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn forget_source(&self, at: &Repository, digest: &Digest) -> Result<(), StoreError> {
        let (at, digest) = (at.clone(), *digest);
        self.shared
            .run(move |shared| {
                shared.names.forget_source(&at, &digest)?;
                Ok(())
            })
            .await
    }

    /// Whether any repository of the upstream is noted for this digest.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn has_upstream(&self, upstream: &str, digest: &Digest) -> Result<bool, StoreError> {
        let (upstream, digest) = (upstream.to_owned(), *digest);
        self.shared
            .run(move |shared| Ok(shared.index.has_upstream(&upstream, &digest)?))
            .await
    }

    /// Notes that upstream just served the holder from `at`.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn record_right(&self, at: &Repository, holder: Holder) -> Result<(), StoreError> {
        let at = at.clone();
        self.shared
            .run(move |shared| {
                let (proven, row) = (shared.index.now(), shared.index.holder_row(holder));
                shared.index.write(Durability::Batched, |transaction| {
                    rights::put_right(transaction, &at, &row, proven)
                })?;
                Ok(())
            })
            .await
    }

    /// Records that upstream has just refused the holder at `at`, which revokes the right of exactly this holder.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn record_refusal(&self, at: &Repository, holder: Holder) -> Result<(), StoreError> {
        let at = at.clone();
        self.shared
            .run(move |shared| {
                let (refused, row) = (shared.index.now(), shared.index.holder_row(holder));
                shared.index.write(Durability::Batched, |transaction| {
                    rights::put_refusal(transaction, &at, &row, refused)
                })?;
                Ok(())
            })
            .await
    }

    /// How long ago upstream last served the repository without a credential; a restart adds an hour at the most.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn public_right(&self, at: &Repository) -> Result<Option<Duration>, StoreError> {
        let at = at.clone();
        self.shared
            .run(move |shared| {
                let proven = shared.index.public_right(&at)?;
                Ok(proven.map(|proven| shared.index.now().since(proven)))
            })
            .await
    }

    /// What is known of a node that shows this credential, or none.
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
        self.shared
            .run(move |shared| {
                let row = shared.index.node_right(&at, node, shown)?;
                let now = shared.index.now();
                Ok(NodeRight {
                    by_any: row.by_any.map(|proven| now.since(proven)),
                    by_this: row.by_this.map(|proven| now.since(proven)),
                    is_known: row.is_known,
                })
            })
            .await
    }

    /// The tags of a repository that are known here, in their order.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn tags(&self, at: &Repository) -> Result<Vec<String>, StoreError> {
        let at = at.clone();
        self.shared.run(move |shared| Ok(shared.index.tags(&at)?)).await
    }
}
