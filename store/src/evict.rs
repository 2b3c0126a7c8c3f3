//! Eviction: making room, and removing what was unused for the TTL.
//!
//! Pinned blobs and live fills are never evicted. A file is removed before its row: a crash in between leaves a row without
//! a file, which recovery drops, and never bytes that are not accounted for.

use std::{collections::HashSet, io, time::Duration};

use parking_lot::MutexGuard;
use piecemeal_proto::Digest;
use tracing::{debug, warn};

use crate::{
    Store, StoreError,
    files::remove_if_there,
    gate::GateGuard,
    index::{Durability, blobs, names, partials, rights},
    quota::{Kind, Space},
    store::Shared,
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

/// What a sweep removed.
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

impl Store {
    /// Removes what was not used for the TTL, and then what is over the quota or under the free-space floor, the least recently
    /// used first. Writes pending changes to the index. Call it every minute or so.
    ///
    /// # Errors
    /// [`StoreError::Index`] and [`StoreError::Io`]; a file that cannot be removed is logged and stays.
    pub async fn sweep(&self) -> Result<Swept, StoreError> {
        self.run(|shared| {
            // Set again if the trouble lasts.
            shared.state.lock().trouble = None;
            shared.write_batch(Durability::Synced);
            let mut swept = Swept::default();
            shared.sweep_unused(&mut swept)?;
            let reserving = shared.reserving.lock();
            match shared.make_room(&reserving, 0, 0, &mut swept) {
                // All that may go is gone; what is left is in use.
                Ok(()) | Err(RoomError::NoSpace { .. }) => Ok(swept),
                Err(RoomError::Io(error)) => Err(error.into()),
            }
        })
        .await
    }
}

impl Shared {
    fn sweep_unused(&self, swept: &mut Swept) -> Result<(), StoreError> {
        let ttl = self.state.lock().limits.ttl;
        let moment = self.now().before(ttl);
        if let Some(moment) = moment {
            let unused: Vec<Digest> = self.state.lock().ledger.unused_since(moment).collect();
            for digest in unused {
                // Skipped if it was used again in the meantime, or if another task works on it.
                if let Some(gate) = self.gates.try_enter(&digest)
                    && self.state.lock().ledger.start_leaving(&digest)
                {
                    let blobs_before = swept.blobs.len();
                    self.evict(&gate, swept);
                    self.counters
                        .expired_blobs
                        .add((swept.blobs.len() - blobs_before) as u64);
                }
            }
        }
        let refused = self.now().before(REFUSED_LIFE);
        self.write(Durability::Batched, |transaction| {
            if let Some(moment) = moment {
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
        self.known.lock().changed();
        Ok(())
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
        let mut free_bytes = 0;
        loop {
            // A file system may count freed space late; what was freed here counts at once, or a whole cache would go.
            free_bytes = self
                .files
                .free_bytes(self.layout.dir())
                .map_err(RoomError::Io)?
                .max(free_bytes);
            let victims = {
                let mut state = self.state.lock();
                let space = Space {
                    quota_bytes: state.limits.quota_bytes,
                    used_bytes: state.ledger.bytes(),
                    free_bytes_min: state.limits.free_bytes_min,
                    free_bytes,
                    promised_bytes: state.live.values().map(|live| live.fill.unwritten_bytes()).sum(),
                };
                let shortage_bytes = space.shortage_bytes(new_bytes, unwritten_bytes);
                if shortage_bytes == 0 {
                    return Ok(());
                }
                let enter = |digest: &Digest| {
                    let free = !stuck.contains(digest);
                    free.then(|| self.gates.try_enter(digest)).flatten()
                };
                let victims = state.ledger.victims(shortage_bytes, enter);
                for gate in victims.iter().flatten() {
                    state.ledger.start_leaving(gate.digest());
                }
                victims
            };
            let Some(victims) = victims else {
                let quota_bytes = self.state.lock().limits.quota_bytes;
                return Err(RoomError::NoSpace {
                    quota_bytes,
                    free_bytes,
                });
            };
            for gate in victims {
                let blobs_before = swept.blobs.len();
                let evicted = self.evict(&gate, swept);
                self.counters
                    .evicted_blobs
                    .add((swept.blobs.len() - blobs_before) as u64);
                match evicted {
                    Some(freed_bytes) => free_bytes = free_bytes.saturating_add(freed_bytes),
                    None => _ = stuck.insert(*gate.digest()),
                }
            }
        }
    }

    /// Removes an entry that is marked as leaving; returns what that freed at least, or `None` when it had to stay.
    fn evict(&self, gate: &GateGuard, swept: &mut Swept) -> Option<u64> {
        let digest = gate.digest();
        let before_bytes = swept.bytes;
        let blobs_before = swept.blobs.len();
        match self.discard(gate, swept) {
            Ok(_) => {
                debug!(blob.digest = %digest, "evicted {digest}");
                // A partial is sparse: what it freed is known only to the disk.
                let was_blob = swept.blobs.len() > blobs_before;
                Some(if was_blob { swept.bytes - before_bytes } else { 0 })
            }
            Err(error) => {
                self.state.lock().ledger.stop_leaving(digest);
                warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to evict {digest}");
                None
            }
        }
    }

    /// Removes everything of the digest: files, rows, entry. Returns whether there was anything. On an error, the entry
    /// stays.
    pub(crate) fn discard(&self, gate: &GateGuard, swept: &mut Swept) -> io::Result<bool> {
        let digest = gate.digest();
        // A blob's own removal is one step: done or not. What is no blob may lie under either name, if publishing failed.
        let kind = self.state.lock().ledger.kind(digest);
        if kind != Some(Kind::Blob) {
            remove_if_there(self.files.as_ref(), &self.layout.partial(digest))?;
        }
        remove_if_there(self.files.as_ref(), &self.layout.blob(digest))?;
        let key = digest.to_string();
        let deleted = self.write(Durability::Batched, |transaction| {
            blobs::delete(transaction, &key)?;
            partials::delete(transaction, &key)
        });
        if let Err(error) = deleted {
            // A row without a file is dropped when its blob is next asked for, and by recovery.
            warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to delete the row of {digest}");
        }
        let mut state = self.state.lock();
        // A passing fill is independent of what is on the disk.
        let is_passing = state.live.get(digest).is_some_and(|live| live.fill.is_passing());
        let live = (!is_passing).then(|| state.live.remove(digest)).flatten();
        let entry = state.ledger.remove(digest);
        drop(state);
        // Dropped after the lock is released, since its drop may take locks.
        drop(live);
        if let Some(entry) = entry {
            swept.bytes += entry.bytes;
            if entry.kind == Kind::Blob {
                self.counters.freed_bytes.add(entry.bytes);
                swept.blobs.push(*digest);
                // A send without receivers is no error.
                let _ = self.evictions.send(*digest);
            }
        }
        Ok(entry.is_some())
    }

    /// Whether a filling of this digest has a handle.
    pub(crate) fn is_held(&self, digest: &Digest) -> bool {
        self.state
            .lock()
            .live
            .get(digest)
            .is_some_and(|live| live.handle.strong_count() > 0)
    }
}
