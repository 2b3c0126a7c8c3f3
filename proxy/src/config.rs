//! What every daemon with a store is told of it.

use std::{path::PathBuf, time::Duration};

/// A content store's place and bounds.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// In settings it may be empty; the process then puts a temporary folder here before it starts the daemon.
    pub dir: PathBuf,
    /// How long content is kept since its last use.
    pub ttl: Duration,
    /// The most bytes of blobs; `None`: as many as the disk has above `free_bytes_min`.
    pub quota_bytes: Option<u64>,
    /// The bytes that are left free on the disk.
    pub free_bytes_min: u64,
    /// The rate of scrubbing, in bytes a second; `None`: only suspects are verified.
    pub scrub_rate: Option<u64>,
}
