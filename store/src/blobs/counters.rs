//! Counters of what happens to blobs, for metrics.
//!
//! They start at zero with the process and only grow.

use std::sync::atomic::{AtomicU64, Ordering};

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

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
