//! Catalogue of the whole store for administrators, and removal of parts of it.
//!
//! Listing does not count as use. A blob that is being read or filled is never removed.

use std::{collections::HashMap, time::Duration};

use piecemeal_proto::{Digest, Manifest};
use tracing::warn;

use crate::{
    blobs::{digest_lock::DigestGuard, entry::EntryKind, evictor::Swept},
    index::{Durability, manifests, sources, tags},
    shared::Shared,
    values::{
        clock::Age,
        error::{IndexError, StoreError},
        repository::Repository,
    },
};

/// Everything in the store, at one moment. Times are ages.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    pub manifests: Vec<KnownManifest>,
    pub tags: Vec<KnownTag>,
    pub blobs: Vec<KnownBlob>,
    /// Blobs and manifests with each repository under which its upstream answered for them.
    pub sources: Vec<(Digest, Repository)>,
}

/// A manifest, and what it refers to.
#[derive(Clone, Debug)]
pub struct KnownManifest {
    pub digest: Digest,
    pub media_type: String,
    pub manifest_bytes: u64,
    pub content: Manifest,
    pub used: Duration,
}

/// A tag, with the digest that it stood for when upstream was last asked.
#[derive(Clone, Debug)]
pub struct KnownTag {
    pub at: Repository,
    pub tag: String,
    pub digest: Digest,
    pub checked: Duration,
    pub used: Duration,
}

/// A blob, or the part of it that is here.
#[derive(Clone, Debug)]
pub struct KnownBlob {
    pub digest: Digest,
    pub blob_bytes: u64,
    /// All of them when it is complete.
    pub here_bytes: u64,
    pub is_complete: bool,
    pub used: Duration,
    /// `None`: never since it came, or it is not complete.
    pub verified: Option<Duration>,
}

/// The part of a blob that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// All of it.
    Complete {
        blob_bytes: u64,
    },
    /// Some of it, or its space alone.
    Partial {
        blob_bytes: u64,
    },
    Absent,
}

/// Tags, manifests and blobs to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    pub tags: Vec<(Repository, String)>,
    /// Manifests to remove from a repository; one that no other repository has is deleted.
    pub manifests: Vec<(Repository, Digest)>,
    /// Blobs that stay in the store, and are removed from a repository.
    pub shared: Vec<(Repository, Digest)>,
    pub blobs: Vec<Digest>,
}

/// Why nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveContentError {
    /// These have readers or live fills; try again when those have ended.
    #[error("in use")]
    InUse(Vec<Digest>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<std::io::Error> for RemoveContentError {
    fn from(error: std::io::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<IndexError> for RemoveContentError {
    fn from(error: IndexError) -> Self {
        Self::Store(error.into())
    }
}

pub(crate) fn read(shared: &Shared) -> Result<Catalog, IndexError> {
    let (now, index) = (shared.index.now(), &shared.index);
    let mut manifests = Vec::new();
    index.each_manifest(|row| {
        manifests.push(KnownManifest {
            digest: row.digest,
            content: Manifest::read(&row.media_type, &row.bytes),
            media_type: row.media_type,
            manifest_bytes: row.bytes.len() as u64,
            used: now.since(row.used),
        });
    })?;
    let tags = index.all_tags()?.into_iter().map(|row| KnownTag {
        at: row.at,
        tag: row.tag,
        digest: row.digest,
        checked: now.since(row.checked),
        used: now.since(row.used),
    });
    Ok(Catalog {
        manifests,
        tags: tags.collect(),
        blobs: read_blobs(shared, now)?,
        sources: index.all_sources()?,
    })
}

fn read_blobs(shared: &Shared, now: Age) -> Result<Vec<KnownBlob>, IndexError> {
    let verified: HashMap<Digest, Age> = shared.index.all_verified()?.into_iter().collect();
    let landed: HashMap<Digest, u64> = shared.index.all_partial_bytes()?.into_iter().collect();
    let entries = shared.blobs.inventory.ledger().all();
    let blobs = entries.into_iter().map(|(digest, entry)| {
        let is_complete = entry.kind == EntryKind::Blob;
        let landed = landed.get(&digest).copied().unwrap_or(0);
        let verified = verified.get(&digest).filter(|at| is_complete && at.0 > 0);
        KnownBlob {
            digest,
            blob_bytes: entry.bytes,
            here_bytes: if is_complete { entry.bytes } else { landed },
            is_complete,
            used: now.since(entry.used),
            verified: verified.map(|at| now.since(*at)),
        }
    });
    Ok(blobs.collect())
}

pub(crate) fn take_out(shared: &Shared, removal: &Removal) -> Result<Swept, RemoveContentError> {
    let (mut leaving, mut in_use) = (Vec::new(), Vec::new());
    for digest in &removal.blobs {
        // Waiting for a lock while holding others could deadlock; a held lock means that the blob is in use.
        let Some(lock) = shared.blobs.locks.try_enter(digest) else {
            in_use.push(*digest);
            continue;
        };
        let mut ledger = shared.blobs.inventory.ledger();
        if ledger.kind(digest).is_none() {
            continue;
        }
        if ledger.start_leaving(digest) {
            leaving.push(lock);
        } else {
            in_use.push(*digest);
        }
    }
    let stay = |lock: &DigestGuard| shared.blobs.inventory.ledger().stop_leaving(lock.digest());
    if !in_use.is_empty() {
        leaving.iter().for_each(stay);
        return Err(RemoveContentError::InUse(in_use));
    }
    if let Err(error) = forget(shared, removal) {
        leaving.iter().for_each(stay);
        return Err(error.into());
    }
    let (mut swept, mut failed) = (Swept::default(), None);
    for lock in &leaving {
        match shared.blobs.evictor.discard(lock) {
            Ok(removed) => removed.iter().for_each(|entry| swept.note(lock.digest(), entry)),
            Err(error) => {
                stay(lock);
                warn!(blob.digest = %lock.digest(), %error, "{} cannot be removed: {error}", lock.digest());
                failed = Some(error);
            }
        }
    }
    failed.map_or(Ok(swept), |error| Err(error.into()))
}

fn forget(shared: &Shared, removal: &Removal) -> Result<(), IndexError> {
    let written = shared.index.write(Durability::Synced, |transaction| {
        for (at, tag) in &removal.tags {
            tags::delete(transaction, at, tag)?;
        }
        for (at, digest) in removal.manifests.iter().chain(&removal.shared) {
            sources::delete(transaction, at, digest)?;
        }
        for (_, manifest) in &removal.manifests {
            manifests::delete_orphan(transaction, manifest)?;
        }
        for blob in &removal.blobs {
            sources::delete_all(transaction, blob)?;
        }
        Ok(())
    });
    // Also after an error: the rows may be gone all the same.
    shared.names.changed();
    written
}
