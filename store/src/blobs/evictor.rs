//! Evictor: makes room, and removes what was unused for the TTL.
//!
//! Pinned blobs and live fills are never evicted. A file is removed before its row: a crash in between leaves a row without
//! a file, which recovery drops, and never bytes that are not accounted for.

use std::{collections::HashSet, io, sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::Digest;
use tokio::sync::broadcast;
use tracing::{debug, warn};

use super::{
    blob_files::BlobFiles,
    counters::{Counter, Counters},
    digest_lock::{DigestGuard, DigestLocks},
    entry::{Entry, EntryKind},
    fills::live_fills::LiveFills,
    inventory::Inventory,
    space::Space,
};
use crate::{
    index::{Durability, Index, blobs, partials},
    values::{clock::Age, error::IndexError},
};

/// A slow listener loses the oldest evictions beyond these, and is told so; it then reads the inventory again.
const EVICTIONS_MAX: usize = 1024;

/// Makes room, and removes what goes.
pub(crate) struct Evictor {
    index: Arc<Index>,
    files: Arc<BlobFiles>,
    inventory: Arc<Inventory>,
    live: Arc<LiveFills>,
    locks: DigestLocks,
    /// Held while space is looked for, so that two fills never count on the same bytes.
    reserving: Mutex<()>,
    limits: Mutex<Limits>,
    evictions: broadcast::Sender<Digest>,
    pub(crate) counters: Counters,
}

/// Limits of a store: the space that it may take, and the time for which it keeps content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) quota_bytes: Option<u64>,
    pub(crate) free_bytes_min: u64,
    pub(crate) ttl: Duration,
}

/// Result of a sweep: the blobs and bytes that it removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// The complete blobs that were removed.
    pub blobs: Vec<Digest>,
    /// Bytes no longer counted, those of stale partials included.
    pub bytes: u64,
}

/// Why there is no room.
#[derive(Debug)]
pub(crate) enum RoomError {
    /// Evicting everything that may go would not make room.
    NoSpace {
        quota_bytes: Option<u64>,
        free_bytes: u64,
    },
    Io(io::Error),
}

impl Swept {
    /// An entry was removed.
    pub(crate) fn note(&mut self, digest: &Digest, entry: &Entry) {
        self.bytes += entry.bytes;
        if entry.kind == EntryKind::Blob {
            self.blobs.push(*digest);
        }
    }
}

impl Evictor {
    pub(crate) fn new(
        index: Arc<Index>,
        files: Arc<BlobFiles>,
        inventory: Arc<Inventory>,
        live: Arc<LiveFills>,
        locks: DigestLocks,
        limits: Limits,
    ) -> Self {
        Self {
            index,
            files,
            inventory,
            live,
            locks,
            reserving: Mutex::default(),
            limits: Mutex::new(limits),
            evictions: broadcast::Sender::new(EVICTIONS_MAX),
            counters: Counters::default(),
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        *self.limits.lock()
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        *self.limits.lock() = limits;
    }

    /// The complete blobs that leave.
    pub(crate) fn evictions(&self) -> broadcast::Receiver<Digest> {
        self.evictions.subscribe()
    }

    /// Tells the listeners that a complete blob has left.
    pub(crate) fn tell(&self, digest: &Digest) {
        // A send without receivers is no error.
        let _ = self.evictions.send(*digest);
    }

    /// Keeps others from looking for space.
    pub(crate) fn reserve(&self) -> MutexGuard<'_, ()> {
        self.reserving.lock()
    }

    /// Removes what was last used at `moment` or before.
    pub(crate) fn expire(&self, moment: Age, swept: &mut Swept) {
        let unused: Vec<Digest> = self.inventory.ledger().unused_since(moment).collect();
        for digest in unused {
            // Skipped if it was used again in the meantime, or if another task works on it.
            if let Some(lock) = self.locks.try_enter(&digest)
                && self.inventory.ledger().start_leaving(&digest)
            {
                self.evict(&lock, &self.counters.expired_blobs, swept);
            }
        }
    }

    /// Evicts until `new_bytes` more may be counted and `unwritten_bytes` more be written. Evicts nothing when evicting
    /// everything would not suffice.
    pub(crate) fn make_room(
        &self,
        _reserving: &MutexGuard<'_, ()>,
        new_bytes: u64,
        unwritten_bytes: u64,
        swept: &mut Swept,
    ) -> Result<(), RoomError> {
        let mut stuck = HashSet::new();
        let mut free_bytes = self.files.free_bytes().map_err(RoomError::Io)?;
        let limits = self.limits();
        if unwritten_bytes.saturating_add(limits.free_bytes_min) > free_bytes {
            self.files.drop_spoilt_index();
        }
        loop {
            // A file system may count freed space late; what was freed here counts at once, or a whole cache would go.
            free_bytes = self.files.free_bytes().map_err(RoomError::Io)?.max(free_bytes);
            let Some(victims) = self.choose_victims(new_bytes, unwritten_bytes, free_bytes, &stuck) else {
                let quota_bytes = self.limits().quota_bytes;
                return Err(RoomError::NoSpace {
                    quota_bytes,
                    free_bytes,
                });
            };
            if victims.is_empty() {
                return Ok(());
            }
            for lock in victims {
                match self.evict(&lock, &self.counters.evicted_blobs, swept) {
                    Some(freed_bytes) => free_bytes = free_bytes.saturating_add(freed_bytes),
                    None => _ = stuck.insert(*lock.digest()),
                }
            }
        }
    }

    /// Locks the entries that have to go and marks them as leaving; there are none when there is room. `None` when evicting all that
    /// may go would not make room. Those that are `stuck` may not.
    fn choose_victims(
        &self,
        new_bytes: u64,
        unwritten_bytes: u64,
        free_bytes: u64,
        stuck: &HashSet<Digest>,
    ) -> Option<Vec<DigestGuard>> {
        let (limits, promised_bytes) = (self.limits(), self.live.unwritten_bytes());
        let mut ledger = self.inventory.ledger();
        let space = Space {
            quota_bytes: limits.quota_bytes,
            used_bytes: ledger.bytes(),
            free_bytes_min: limits.free_bytes_min,
            free_bytes,
            promised_bytes,
        };
        let shortage_bytes = space.shortage_bytes(new_bytes, unwritten_bytes);
        let victims = ledger.victims(shortage_bytes, |digest| {
            let may_go = !stuck.contains(digest);
            may_go.then(|| self.locks.try_enter(digest)).flatten()
        })?;
        for lock in &victims {
            ledger.start_leaving(lock.digest());
        }
        Some(victims)
    }

    /// Removes an entry that is marked as leaving; returns what that freed at least, or `None` when it had to stay. `count` counts the
    /// complete blobs.
    fn evict(&self, lock: &DigestGuard, count: &Counter, swept: &mut Swept) -> Option<u64> {
        let digest = lock.digest();
        let removed = match self.discard(lock) {
            Ok(removed) => removed,
            Err(error) => {
                self.inventory.ledger().stop_leaving(digest);
                warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to evict {digest}");
                return None;
            }
        };
        debug!(blob.digest = %digest, "evicted {digest}");
        let Some(entry) = removed else {
            return Some(0);
        };
        swept.note(digest, &entry);
        match entry.kind {
            EntryKind::Blob => {
                count.add(1);
                Some(entry.bytes)
            }
            // A partial is sparse: what it freed is known only to the disk.
            EntryKind::Partial => Some(0),
        }
    }

    /// Removes everything of the digest: files, rows, entry. Returns the entry, if there was one. On an error, it stays.
    pub(crate) fn discard(&self, lock: &DigestGuard) -> io::Result<Option<Entry>> {
        let digest = lock.digest();
        // A blob's own removal is one step: done or not. What is no blob may lie under either name, if publishing failed.
        let kind = self.inventory.ledger().kind(digest);
        if kind != Some(EntryKind::Blob) {
            self.files.remove_partial(digest)?;
        }
        self.files.remove_blob(digest)?;
        if let Err(error) = self.delete_rows(digest) {
            // A row without a file is dropped when its blob is next asked for, and by recovery.
            warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to delete the row of {digest}");
        }
        self.live.forget_stored(digest);
        let entry = self.inventory.ledger().remove(digest);
        if let Some(entry) = entry
            && entry.kind == EntryKind::Blob
        {
            self.counters.freed_bytes.add(entry.bytes);
            self.tell(digest);
        }
        Ok(entry)
    }

    /// Deletes the digest's rows of blob and partial.
    pub(crate) fn delete_rows(&self, digest: &Digest) -> Result<(), IndexError> {
        let key = digest.to_string();
        self.index.write(Durability::Batched, |transaction| {
            blobs::delete(transaction, &key)?;
            partials::delete(transaction, &key)
        })
    }
}
