//! Names of a store: the rows of the index, a cache of them in memory, and last uses on their way to the index.
//!
//! Each change of a row is followed by the cache's, so that the cache never holds an older one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use piecemeal_proto::{Digest, MANIFEST_BYTES_MAX, NodeId};

use super::{
    name_cache::NameCache,
    name_uses::NameUses,
    values::{Manifest, Tag},
};
use crate::{
    index::{Durability, Index, ManifestRow, TagRow, manifests, name_caps, rights, sources, tags},
    values::{
        clock::Age,
        error::{IndexError, StoreError},
        repository::Repository,
        right::{Holder, NodeRight, Shown},
    },
};

/// Rows kept in each table of names: 30 MB of index at the most.
const NAMES_MAX: u64 = 100_000;
/// Rights kept: those of 10,000 nodes, each with five private repositories and eight credentials in each; 80 MB of index.
const RIGHTS_MAX: u64 = 10_000 * 5 * 8;
/// Refusals kept: those of 10,000 nodes with 40 credentials each; 50 MB of index.
const REFUSALS_MAX: u64 = 10_000 * 40;
/// The time for which a refusal is kept: longer than a site is without its uplink.
const REFUSED_LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Manifests kept, in bytes: thousands of images.
const MANIFESTS_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The most manifests that are read to find what one says of a digest: an index names it too, and says less.
const NAMING_MAX: usize = 8;

/// All names of a store.
pub(crate) struct NameStore {
    index: Arc<Index>,
    cache: Mutex<NameCache>,
    uses: Mutex<NameUses>,
}

impl NameStore {
    pub(crate) fn new(index: Arc<Index>) -> Self {
        Self {
            index,
            cache: Mutex::default(),
            uses: Mutex::default(),
        }
    }

    /// Keeps a manifest that has its digest, and its source.
    pub(crate) fn put_manifest(
        &self,
        at: &Repository,
        expected: Digest,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<(), StoreError> {
        check_manifest(expected, bytes)?;
        let (now, before) = (self.index.now(), self.cache.lock().epoch());
        self.index.write(Durability::Batched, |transaction| {
            manifests::put(transaction, &expected, media_type, bytes, now)?;
            sources::put(transaction, at, &expected, now)
        })?;
        let mut cache = self.cache.lock();
        cache.added_source(before, at, &expected);
        cache.changed_manifest(&expected);
        Ok(())
    }

    /// The manifest, if it is cached.
    pub(crate) fn cached_manifest(&self, at: &Repository, digest: &Digest) -> Option<Manifest> {
        let manifest = self.cache.lock().manifest(at, digest)?;
        self.use_manifest(at, digest);
        Some(manifest)
    }

    /// The manifest, from the index.
    pub(crate) fn manifest(&self, at: &Repository, digest: Digest) -> Result<Option<Manifest>, IndexError> {
        let read = self.cache.lock().epoch();
        let Some(row) = self.index.manifest(at, &digest)? else {
            return Ok(None);
        };
        self.use_manifest(at, &digest);
        let manifest = Manifest {
            media_type: row.media_type,
            bytes: row.bytes.into(),
            digest,
        };
        self.cache.lock().keep_manifest(read, at, &manifest);
        Ok(Some(manifest))
    }

    /// Manifests of the repository whose text has the digest in it. No use of them.
    pub(crate) fn manifests_that_name(&self, at: &Repository, named: &Digest) -> Result<Vec<Manifest>, IndexError> {
        let rows = self.index.manifests_that_name(at, named, NAMING_MAX)?;
        let manifest = |(digest, row): (String, ManifestRow)| {
            Some(Manifest {
                digest: digest.parse().ok()?,
                media_type: row.media_type,
                bytes: row.bytes.into(),
            })
        };
        Ok(rows.into_iter().filter_map(manifest).collect())
    }

    pub(crate) fn put_tag(&self, at: &Repository, tag: &str, digest: Digest) -> Result<(), IndexError> {
        let checked = self.index.now();
        self.index.write(Durability::Batched, |transaction| {
            tags::put(transaction, at, tag, TagRow { digest, checked })
        })?;
        self.cache.lock().changed_tag(at, tag);
        Ok(())
    }

    /// The tag, if it is cached.
    pub(crate) fn cached_tag(&self, at: &Repository, tag: &str) -> Option<Tag> {
        let row = self.cache.lock().tag(at, tag)?;
        Some(self.use_tag(at, tag, row))
    }

    /// The tag, from the index.
    pub(crate) fn tag(&self, at: &Repository, tag: &str) -> Result<Option<Tag>, IndexError> {
        let read = self.cache.lock().epoch();
        let Some(row) = self.index.tag(at, tag)? else {
            return Ok(None);
        };
        self.cache.lock().keep_tag(read, at, tag, row);
        Ok(Some(self.use_tag(at, tag, row)))
    }

    pub(crate) fn forget_tag(&self, at: &Repository, tag: &str) -> Result<(), IndexError> {
        self.index
            .write(Durability::Batched, |transaction| tags::delete(transaction, at, tag))?;
        self.cache.lock().changed_tag(at, tag);
        Ok(())
    }

    /// Tags in their order.
    pub(crate) fn tags(&self, at: &Repository) -> Result<Vec<String>, IndexError> {
        self.index.tags(at)
    }

    pub(crate) fn put_source(&self, at: &Repository, digest: &Digest) -> Result<(), IndexError> {
        let (now, before) = (self.index.now(), self.cache.lock().epoch());
        self.index.write(Durability::Batched, |transaction| {
            sources::put(transaction, at, digest, now)
        })?;
        self.cache.lock().added_source(before, at, digest);
        Ok(())
    }

    /// Whether the source is cached.
    pub(crate) fn has_cached_source(&self, at: &Repository, digest: &Digest) -> bool {
        let is_known = self.cache.lock().has_source(at, digest);
        if is_known {
            self.use_source(at, digest);
        }
        is_known
    }

    /// Whether the index has the source.
    pub(crate) fn has_source(&self, at: &Repository, digest: &Digest) -> Result<bool, IndexError> {
        let read = self.cache.lock().epoch();
        let is_known = self.index.has_source(at, digest)?;
        if is_known {
            self.use_source(at, digest);
            self.cache.lock().keep_source(read, at, digest);
        }
        Ok(is_known)
    }

    /// Whether any repository of the upstream is a source of the digest.
    pub(crate) fn has_upstream(&self, upstream: &str, digest: &Digest) -> Result<bool, IndexError> {
        self.index.has_upstream(upstream, digest)
    }

    pub(crate) fn put_right(&self, at: &Repository, holder: Holder) -> Result<(), IndexError> {
        let (proven, row) = (self.index.now(), self.index.holder_row(holder));
        self.index.write(Durability::Batched, |transaction| {
            rights::put_right(transaction, at, &row, proven)
        })
    }

    pub(crate) fn put_refusal(&self, at: &Repository, holder: Holder) -> Result<(), IndexError> {
        let (refused, row) = (self.index.now(), self.index.holder_row(holder));
        self.index.write(Durability::Batched, |transaction| {
            rights::put_refusal(transaction, at, &row, refused)
        })
    }

    pub(crate) fn public_right(&self, at: &Repository) -> Result<Option<Duration>, IndexError> {
        let proven = self.index.public_right(at)?;
        Ok(proven.map(|proven| self.index.now().since(proven)))
    }

    pub(crate) fn public_manifests(&self, max: usize) -> Result<Vec<(Repository, Digest)>, IndexError> {
        let rows = self.index.public_manifests(max)?;
        let known = |(at, digest): (Repository, String)| Some((at, digest.parse().ok()?));
        Ok(rows.into_iter().filter_map(known).collect())
    }

    pub(crate) fn node_right(
        &self,
        at: &Repository,
        node: NodeId,
        shown: Option<Shown>,
    ) -> Result<NodeRight, IndexError> {
        let row = self.index.node_right(at, node, shown)?;
        let now = self.index.now();
        Ok(NodeRight {
            by_any: row.by_any.map(|proven| now.since(proven)),
            by_this: row.by_this.map(|proven| now.since(proven)),
            is_known: row.is_known,
        })
    }

    /// Names have changed in the index.
    pub(crate) fn changed(&self) {
        self.cache.lock().changed();
    }

    /// Removes what was last used at `unused_since` or before, and what is beyond the caps.
    pub(crate) fn expire(&self, unused_since: Option<Age>) -> Result<(), IndexError> {
        let refused = self.index.now().before(REFUSED_LIFE);
        self.index.write(Durability::Batched, |transaction| {
            if let Some(moment) = unused_since {
                name_caps::expire(transaction, moment)?;
                rights::expire(transaction)?;
            }
            if let Some(moment) = refused {
                rights::expire_refusals(transaction, moment)?;
            }
            rights::cap(transaction, RIGHTS_MAX, REFUSALS_MAX)?;
            let caps = name_caps::Caps {
                names: NAMES_MAX,
                manifest_bytes: MANIFESTS_BYTES_MAX,
            };
            name_caps::cap(transaction, &caps)
        })?;
        self.cache.lock().changed();
        Ok(())
    }

    /// The number of last uses that the index does not have.
    pub(crate) fn uses(&self) -> usize {
        self.uses.lock().len()
    }

    pub(crate) fn take_uses(&self) -> NameUses {
        std::mem::take(&mut *self.uses.lock())
    }

    pub(crate) fn give_back_uses(&self, uses: NameUses) {
        self.uses.lock().give_back(uses);
    }

    fn use_manifest(&self, at: &Repository, digest: &Digest) {
        let now = self.index.now();
        self.uses.lock().use_manifest(at, digest, now);
    }

    fn use_source(&self, at: &Repository, digest: &Digest) {
        let now = self.index.now();
        self.uses.lock().use_source(at, digest, now);
    }

    /// The tag as its row has it. Counts as a use.
    fn use_tag(&self, at: &Repository, tag: &str, row: TagRow) -> Tag {
        let now = self.index.now();
        self.uses.lock().use_tag(at, tag, now);
        Tag {
            digest: row.digest,
            age: now.since(row.checked),
        }
    }
}

fn check_manifest(expected: Digest, bytes: &Bytes) -> Result<(), StoreError> {
    if bytes.len() > MANIFEST_BYTES_MAX {
        return Err(StoreError::ManifestTooLarge {
            bytes: bytes.len() as u64,
            bytes_max: MANIFEST_BYTES_MAX as u64,
        });
    }
    if expected.matches_manifest(bytes) {
        return Ok(());
    }
    let mut hasher = expected.algorithm().hasher();
    hasher.update(bytes);
    let computed = hasher.finish();
    Err(StoreError::DigestMismatch {
        expected: Box::new(expected),
        computed: Box::new(computed),
    })
}
