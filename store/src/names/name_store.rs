//! The store of names: what the index has, a cache of it in memory, and last uses on their way there.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use piecemeal_proto::Digest;

use super::{name_cache::NameCache, name_uses::NameUses, values::Tag};
use crate::{
    index::{Durability, Index, TagRow, names, rights},
    values::{clock::Age, error::IndexError, repository::Repository},
};

/// Rows kept in each table of names: some 30 MB of index at the very most.
const NAMES_MAX: u64 = 100_000;
/// The same for rights: of 10,000 nodes five private repositories each with eight credentials; 80 MB of index.
const RIGHTS_MAX: u64 = 10_000 * 5 * 8;
/// The same for refusals: of 10,000 nodes 40 credentials each; 50 MB of index.
const REFUSALS_MAX: u64 = 10_000 * 40;
/// How long a credential is known as refused: longer than a site is cut off.
const REFUSED_LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Manifests kept, in bytes: thousands of images.
const MANIFESTS_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// All names of a store.
pub(crate) struct NameStore {
    pub(crate) index: Arc<Index>,
    pub(crate) cache: Mutex<NameCache>,
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

    pub(crate) fn use_manifest(&self, at: &Repository, digest: &Digest) {
        let now = self.index.now();
        self.uses.lock().use_manifest(at, digest, now);
    }

    pub(crate) fn use_source(&self, at: &Repository, digest: &Digest) {
        let now = self.index.now();
        self.uses.lock().use_source(at, digest, now);
    }

    /// What a tag's row says now.
    pub(crate) fn use_tag(&self, at: &Repository, tag: &str, row: TagRow) -> Tag {
        let now = self.index.now();
        self.uses.lock().use_tag(at, tag, now);
        Tag {
            digest: row.digest,
            age: now.since(row.checked),
        }
    }

    /// Removes a source. A use of it that is on its way to the index goes too.
    pub(crate) fn forget_source(&self, at: &Repository, digest: &Digest) -> Result<(), IndexError> {
        self.uses.lock().forget_source(at, digest);
        self.index.write(Durability::Batched, |transaction| {
            names::delete_source(transaction, at, digest)
        })?;
        self.cache.lock().changed_source(at, digest);
        Ok(())
    }

    /// Removes what was last used at `unused_since` or before, and what is beyond the caps.
    pub(crate) fn expire(&self, unused_since: Option<Age>) -> Result<(), IndexError> {
        let refused = self.index.now().before(REFUSED_LIFE);
        self.index.write(Durability::Batched, |transaction| {
            if let Some(moment) = unused_since {
                names::expire(transaction, moment)?;
                rights::expire(transaction)?;
            }
            if let Some(moment) = refused {
                rights::expire_refusals(transaction, moment)?;
            }
            rights::cap(transaction, RIGHTS_MAX, REFUSALS_MAX)?;
            let caps = names::Caps {
                names: NAMES_MAX,
                manifest_bytes: MANIFESTS_BYTES_MAX,
            };
            names::cap(transaction, &caps)
        })?;
        self.cache.lock().changed();
        Ok(())
    }

    /// How many last uses the index does not have.
    pub(crate) fn uses(&self) -> usize {
        self.uses.lock().len()
    }

    pub(crate) fn take_uses(&self) -> NameUses {
        std::mem::take(&mut *self.uses.lock())
    }

    pub(crate) fn give_back_uses(&self, uses: NameUses) {
        self.uses.lock().give_back(uses);
    }
}
