//! Names: manifests, tags, and sources (which upstream answered for which digest).
//!
//! A source row says that the upstream itself answered for a digest under a repository; it is the only thing that makes a
//! manifest visible there. Content is stored once, however many repositories have it.

use std::time::Duration;

use bytes::Bytes;
use piecemeal_proto::{Digest, NodeId};

use crate::{
    Store, StoreError,
    index::{Durability, TagRow, names, rights},
    store::Shared,
};

/// The largest manifest that is kept. Registries cap them at 4 MiB; twice that is room for those that do not.
pub const MANIFEST_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// A repository of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    /// Such as `docker.io`.
    pub upstream: String,
    /// Such as `library/alpine`.
    pub name: String,
}

/// The holder of a right to pull from a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// Every client: upstream serves the repository without a credential.
    Public,
    /// An admitted node, by a credential that upstream took.
    Node(NodeId, Shown),
}

/// The credential that a node was served by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shown {
    /// A client's, by its SHA-256. The store keeps a keyed hash of it.
    Client([u8; 32]),
    /// The site's own.
    Site,
    /// None. A mirror does not tell its peer whether the repository is public or open to this node only.
    Nothing,
}

/// How long ago upstream last served a node from a repository; a restart adds an hour at the most.
///
/// A credential that upstream has answered is known, and has only the rights that it has earned itself, repository by
/// repository: a credential that was served in one repository has no right in another. Only a new one may use the rights that
/// its node has earned by others.
///
/// Tables are bounded, and what is forgotten gives no right: a node of which as many refused credentials are known at an upstream as
/// are kept has no new credentials there. A right that made room for other credentials' of the node falls back on the node's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeRight {
    /// By any of the node's credentials, or by one of which only the node was stored. A right that upstream has refused since
    /// does not count.
    pub by_any: Option<Duration>,
    /// By this very credential.
    pub by_this: Option<Duration>,
    /// Whether the credential is known: upstream has served it or refused it, in this repository or another, or may have done
    /// so and been forgotten.
    pub is_known: bool,
}

/// A manifest or index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub media_type: String,
    pub bytes: Bytes,
    pub digest: Digest,
}

/// What a tag stood for when upstream was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    pub digest: Digest,
    /// The time since upstream was asked; a restart adds an hour at the most.
    pub age: Duration,
}

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
        if manifest_bytes > MANIFEST_BYTES_MAX {
            return Err(StoreError::ManifestTooLarge {
                bytes: manifest_bytes,
                bytes_max: MANIFEST_BYTES_MAX,
            });
        }
        let (at, expected, media_type) = (at.clone(), *digest, media_type.to_owned());
        self.run(move |shared| {
            let mut hasher = expected.algorithm().hasher();
            hasher.update(&bytes);
            let computed = hasher.finish();
            if computed != expected {
                return Err(StoreError::DigestMismatch {
                    expected: Box::new(expected),
                    computed: Box::new(computed),
                });
            }
            let (now, before) = (shared.now(), shared.known.lock().epoch());
            shared.write(Durability::Batched, |transaction| {
                names::put_manifest(transaction, &expected, &media_type, &bytes, now)?;
                names::put_source(transaction, &at, &expected, now)
            })?;
            let mut known = shared.known.lock();
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
        let known = self.shared.known.lock().manifest(at, digest);
        if known.is_some() {
            self.shared.touch_manifest(at, digest);
            return Ok(known);
        }
        let (at, digest) = (at.clone(), *digest);
        self.run(move |shared| {
            let read = shared.known.lock().epoch();
            let Some(row) = shared.index.manifest(&at, &digest)? else {
                return Ok(None);
            };
            shared.touch_manifest(&at, &digest);
            shared.batch_if_due();
            let manifest = Manifest {
                media_type: row.media_type,
                bytes: row.bytes.into(),
                digest,
            };
            shared.known.lock().keep_manifest(read, &at, &manifest);
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
        self.run(move |shared| {
            let checked = shared.now();
            shared.write(Durability::Batched, |transaction| {
                names::put_tag(transaction, &at, &tag, TagRow { digest, checked })
            })?;
            shared.known.lock().changed_tag(&at, &tag);
            Ok(())
        })
        .await
    }

    /// What the tag stood for when upstream was last asked. Counts as a use.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn tag(&self, at: &Repository, tag: &str) -> Result<Option<Tag>, StoreError> {
        let known = self.shared.known.lock().tag(at, tag);
        if let Some(row) = known {
            return Ok(Some(self.shared.use_tag(at, tag, row)));
        }
        let (at, tag) = (at.clone(), tag.to_owned());
        self.run(move |shared| {
            let read = shared.known.lock().epoch();
            let Some(row) = shared.index.tag(&at, &tag)? else {
                return Ok(None);
            };
            let used = shared.use_tag(&at, &tag, row);
            shared.batch_if_due();
            shared.known.lock().keep_tag(read, &at, &tag, row);
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
        self.run(move |shared| {
            shared.write(Durability::Batched, |transaction| {
                names::delete_tag(transaction, &at, &tag)
            })?;
            shared.known.lock().changed_tag(&at, &tag);
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
        self.run(move |shared| {
            let (now, before) = (shared.now(), shared.known.lock().epoch());
            shared.write(Durability::Batched, |transaction| {
                names::put_source(transaction, &at, &digest, now)
            })?;
            shared.known.lock().added_source(before, &at, &digest);
            Ok(())
        })
        .await
    }

    /// Whether the upstream ever answered for this digest under `at`. Counts as a use of that knowledge.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn has_source(&self, at: &Repository, digest: &Digest) -> Result<bool, StoreError> {
        let known = self.shared.known.lock().has_source(at, digest);
        if known {
            self.shared.touch_source(at, digest);
            return Ok(true);
        }
        let (at, digest) = (at.clone(), *digest);
        self.run(move |shared| {
            let read = shared.known.lock().epoch();
            let known = shared.index.has_source(&at, &digest)?;
            if known {
                shared.touch_source(&at, &digest);
                shared.batch_if_due();
                shared.known.lock().keep_source(read, &at, &digest);
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
        self.run(move |shared| {
            shared.state.lock().touched.sources.remove(&(digest, at.clone()));
            shared.write(Durability::Batched, |transaction| {
                names::delete_source(transaction, &at, &digest)
            })?;
            shared.known.lock().changed_source(&at, &digest);
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
        self.run(move |shared| Ok(shared.index.has_upstream(&upstream, &digest)?))
            .await
    }

    /// Notes that upstream just served the holder from `at`.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn record_right(&self, at: &Repository, holder: Holder) -> Result<(), StoreError> {
        let at = at.clone();
        self.run(move |shared| {
            let (proven, row) = (shared.now(), shared.index.holder_row(holder));
            shared.write(Durability::Batched, |transaction| {
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
        self.run(move |shared| {
            let (refused, row) = (shared.now(), shared.index.holder_row(holder));
            shared.write(Durability::Batched, |transaction| {
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
        self.run(move |shared| {
            let proven = shared.index.public_right(&at)?;
            Ok(proven.map(|proven| shared.now().since(proven)))
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
        self.run(move |shared| {
            let row = shared.index.node_right(&at, node, shown)?;
            let now = shared.now();
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
        self.run(move |shared| Ok(shared.index.tags(&at)?)).await
    }
}

impl Shared {
    fn touch_manifest(&self, at: &Repository, digest: &Digest) {
        let now = self.now();
        let mut state = self.state.lock();
        state.touched.manifests.insert(*digest, now);
        state.touched.sources.insert((*digest, at.clone()), now);
    }

    fn touch_source(&self, at: &Repository, digest: &Digest) {
        let now = self.now();
        self.state.lock().touched.sources.insert((*digest, at.clone()), now);
    }

    /// What a tag's row says now.
    fn use_tag(&self, at: &Repository, tag: &str, row: TagRow) -> Tag {
        let now = self.now();
        let key = (at.clone(), tag.to_owned());
        self.state.lock().touched.tags.insert(key, now);
        Tag {
            digest: row.digest,
            age: now.since(row.checked),
        }
    }
}
