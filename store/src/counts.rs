//! Counters of a store, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Store;

/// All counters at one moment. Counters of events start with the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Complete blobs.
    pub blobs: u64,
    pub blob_bytes: u64,
    /// Blobs that are not complete.
    pub partials: u64,
    /// The whole size of every blob that is not complete.
    pub reserved_bytes: u64,
    pub quota_bytes: Option<u64>,
    /// Free bytes on the disk; 0 when the disk does not say.
    pub free_bytes: u64,
    /// Complete blobs removed because they were unused for the TTL.
    pub expired_blobs: u64,
    /// Complete blobs removed to make room.
    pub evicted_blobs: u64,
    /// The size of all complete blobs removed, for any reason.
    pub freed_bytes: u64,
    pub damaged_blobs: u64,
    /// Bytes that were verified again and found good.
    pub verified_bytes: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) expired_blobs: Counter,
    pub(crate) evicted_blobs: Counter,
    pub(crate) freed_bytes: Counter,
    pub(crate) damaged_blobs: Counter,
    pub(crate) verified_bytes: Counter,
}

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Store {
    /// The counters now. Reads neither the index nor a file.
    pub fn counts(&self) -> Counts {
        let (shared, counters) = (&self.shared, &self.shared.counters);
        let free_bytes = shared.files.free_bytes(shared.layout.dir()).unwrap_or(0);
        let state = shared.state.lock();
        let (blobs, partials) = (state.ledger.blobs(), state.ledger.partials());
        Counts {
            blobs: blobs.count,
            blob_bytes: blobs.bytes,
            partials: partials.count,
            reserved_bytes: partials.bytes,
            quota_bytes: state.limits.quota_bytes,
            free_bytes,
            expired_blobs: counters.expired_blobs.get(),
            evicted_blobs: counters.evicted_blobs.get(),
            freed_bytes: counters.freed_bytes.get(),
            damaged_blobs: counters.damaged_blobs.get(),
            verified_bytes: counters.verified_bytes.get(),
        }
    }
}
