//! Settings of a store, and its surroundings: clock, disk and seed.
//!
//! Tests replace all three.

use std::{
    hash::{BuildHasher as _, RandomState},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use crate::{
    disk::{disk_files::DiskFiles, files::Files},
    values::clock::{Clock, SystemClock},
};

/// Configuration of a store. All but the folder can be changed later by [`crate::Store::set_limits`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// The folder; made when it does not exist.
    pub dir: PathBuf,
    /// The most that blobs may take, whether complete or reserved, in bytes.
    pub quota_bytes: Option<u64>,
    /// The bytes that are left free on the disk.
    pub free_bytes_min: u64,
    /// The time for which content is kept since its last use.
    pub ttl: Duration,
}

/// Environment of a store: the clock, the file system and the seed that it is given.
#[derive(Clone)]
pub struct Env {
    pub clock: Arc<dyn Clock>,
    pub files: Arc<dyn Files>,
    /// Starts the generator behind fill ids and [`crate::Store::random_u64`].
    pub seed: u64,
}

impl Env {
    /// The real clock, the real disk and an unpredictable seed.
    pub fn system() -> Self {
        Self {
            clock: Arc::new(SystemClock::new()),
            files: Arc::new(DiskFiles),
            // The standard library keys its hash tables from the operating system's randomness.
            seed: RandomState::new().hash_one("piecemeal-store"),
        }
    }
}
