//! Figures of a store at one moment.
//!
//! A partial counts with the size of its whole blob.

/// Figures of a store: its blobs, those that are not complete, and its manifests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Complete blobs.
    pub blobs: u64,
    pub blob_bytes: u64,
    /// Blobs that are not complete, whether being filled or waiting to be resumed.
    pub partials: u64,
    /// The whole size of every blob that is not complete.
    pub reserved_bytes: u64,
    pub manifests: u64,
}

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
    /// 1 when the index was lost at the start, and a new one was begun.
    pub indexes_lost: u64,
}
