//! Store: opened, limited, counted, swept, listed and closed.
//!
//! One process has a folder at a time, until its last handle is gone.

use std::{sync::Arc, time::Duration};

use piecemeal_proto::{Digest, NodeId, NodeKey, PieceMap};
use tokio::sync::broadcast;

use crate::{
    blobs::{
        entry::EntryKind,
        evictor::{Limits, Swept},
    },
    catalog::{self, Catalog, Presence, Removal, RemoveContentError},
    disk::blocking::blocking,
    index::Durability,
    open::{
        config::{Env, StoreConfig},
        error::OpenStoreError,
    },
    shared::Shared,
    values::{
        counts::{Counts, Usage},
        error::StoreError,
    },
};

/// A folder of blobs. Cheap to clone; the folder stays locked until the last clone and the last handle are gone.
#[derive(Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

impl Store {
    /// Opens the store in `config.dir`, makes it when there is none, and brings disk and rows together after a crash.
    /// Blocks: opening a store looks at each of its files.
    ///
    /// # Errors
    /// [`OpenStoreError`], each with the path and what to do.
    pub fn open(config: StoreConfig, env: Env) -> Result<Self, OpenStoreError> {
        Ok(Self {
            shared: Arc::new(Shared::open(config, env)?),
        })
    }

    /// This node's id: its key's.
    pub fn node_id(&self) -> NodeId {
        self.shared.node_key.id()
    }

    /// The key that this node proves its id with: made with the store, kept beside its content.
    pub fn node_key(&self) -> Arc<NodeKey> {
        Arc::clone(&self.shared.node_key)
    }

    /// The next number of the seeded generator.
    pub fn random_u64(&self) -> u64 {
        self.shared.blobs.random.number()
    }

    /// Changes the limits from now on. A smaller quota takes hold at the next [`Store::sweep`] or fill; a TTL applies to
    /// everything that is there already.
    pub fn set_limits(&self, quota_bytes: Option<u64>, free_bytes_min: u64, ttl: Duration) {
        self.shared.blobs.evictor.set_limits(Limits {
            quota_bytes,
            free_bytes_min,
            ttl,
        });
    }

    /// The complete blobs that have left the store, for whatever reason. A listener that falls behind is told how many it
    /// missed, and should read [`Store::complete_digests`] again.
    pub fn evictions(&self) -> broadcast::Receiver<Digest> {
        self.shared.blobs.evictor.evictions()
    }

    /// Every complete blob, ascending.
    pub fn complete_digests(&self) -> Vec<Digest> {
        self.shared.blobs.inventory.ledger().digests(EntryKind::Blob)
    }

    /// Every blob that is not complete, ascending.
    pub fn partials(&self) -> Vec<Digest> {
        self.shared.blobs.inventory.ledger().digests(EntryKind::Partial)
    }

    /// The piece map of a blob that is not complete, so that a download of it can go on where it stopped.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn partial_map(&self, digest: &Digest) -> Result<Option<PieceMap>, StoreError> {
        let digest = *digest;
        self.shared
            .run(move |shared| Ok(shared.index.partial(&digest)?.map(|row| row.map)))
            .await
    }

    /// Why the index was lost when the store was opened, if it was. A new one is in its place, and the blobs that are here count once they are
    /// asked for.
    pub fn index_lost(&self) -> Option<&str> {
        self.shared.index_lost()
    }

    /// Why new blobs cannot be kept, if they cannot. A blob larger than the quota does not count.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble()
    }

    /// The figures of the store now.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn usage(&self) -> Result<Usage, StoreError> {
        self.shared
            .run(|shared| {
                let manifests = shared.index.manifest_count()?;
                let (blobs, partials) = shared.blobs.inventory.sums();
                Ok(Usage {
                    blobs: blobs.count,
                    blob_bytes: blobs.bytes,
                    partials: partials.count,
                    reserved_bytes: partials.bytes,
                    manifests,
                })
            })
            .await
    }

    /// The counters now. Reads neither the index nor a file.
    pub fn counts(&self) -> Counts {
        let blobs = &self.shared.blobs;
        let counters = &blobs.evictor.counters;
        let free_bytes = blobs.files.free_bytes().unwrap_or(0);
        let quota_bytes = blobs.evictor.limits().quota_bytes;
        let (blobs, partials) = blobs.inventory.sums();
        Counts {
            blobs: blobs.count,
            blob_bytes: blobs.bytes,
            partials: partials.count,
            reserved_bytes: partials.bytes,
            quota_bytes,
            free_bytes,
            expired_blobs: counters.expired_blobs.get(),
            evicted_blobs: counters.evicted_blobs.get(),
            freed_bytes: counters.freed_bytes.get(),
            damaged_blobs: counters.damaged_blobs.get(),
            verified_bytes: counters.verified_bytes.get(),
            indexes_lost: u64::from(self.shared.index_lost().is_some()),
        }
    }

    /// Writes pending changes to the index. A failure is logged, and the changes stay pending.
    pub async fn flush(&self) {
        let shared = Arc::clone(&self.shared);
        let _ = blocking(move || shared.write_batch(Durability::Synced)).await;
    }

    /// Writes pending changes to the index and tidies it. The folder stays locked until the last handle is gone.
    pub async fn close(&self) {
        let shared = Arc::clone(&self.shared);
        let _ = blocking(move || shared.close()).await;
    }

    /// Removes what was not used for the TTL, and then what is over the quota or under the free-space floor, the least recently
    /// used first. Writes pending changes to the index. Call it every minute or so.
    ///
    /// # Errors
    /// [`StoreError::Index`] and [`StoreError::Io`]; a file that cannot be removed is logged and stays.
    pub async fn sweep(&self) -> Result<Swept, StoreError> {
        self.shared.run(Shared::sweep).await
    }

    /// Everything in the store.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn catalog(&self) -> Result<Catalog, StoreError> {
        self.shared
            .run(|shared| {
                // Recent last uses and landed pieces are otherwise in memory only.
                shared.write_batch(Durability::Batched);
                Ok(catalog::read(shared)?)
            })
            .await
    }

    /// The part of a blob that is here. Asks neither the index nor the disk.
    pub fn presence(&self, digest: &Digest) -> Presence {
        let ledger = self.shared.blobs.inventory.ledger();
        match ledger.get(digest) {
            Some(entry) if entry.kind == EntryKind::Blob => Presence::Complete {
                blob_bytes: entry.bytes,
            },
            Some(entry) => Presence::Partial {
                blob_bytes: entry.bytes,
            },
            None => Presence::Absent,
        }
    }

    /// Removes all of `removal`, or nothing when any of its blobs is in use.
    ///
    /// # Errors
    /// [`RemoveContentError`]. When a file cannot be removed, some of it may be gone.
    pub async fn take_out(&self, removal: Removal) -> Result<Swept, RemoveContentError> {
        self.shared.run(move |shared| catalog::take_out(shared, &removal)).await
    }
}
