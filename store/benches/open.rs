//! Guards the restart: a store of 100,000 blobs is open within two seconds.
//!
//! Opening looks at every file once. Prints the median of five, with the system's caches dropped where that is permitted
//! (root, on Linux) and with warm ones; asserts nothing. The folder lies where temporary files go: set `TMPDIR` to measure
//! another disk.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on ends")]

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use piecemeal_proto::Digest;
use piecemeal_store::{Env, Store, StoreConfig};
use rusqlite::Connection;

const BLOBS: u64 = 100_000;
const RUNS: usize = 5;
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

fn open(dir: &Path) -> Store {
    let config = StoreConfig {
        dir: dir.to_owned(),
        quota_bytes: None,
        free_bytes_min: 0,
        ttl: Duration::from_secs(86_400),
    };
    Store::open(config, Env::system()).unwrap()
}

/// Files and rows as publishing leaves them, without its waits for the disk.
fn fill(dir: &Path) {
    drop(open(dir));
    let mut index = Connection::open(dir.join("index.db")).unwrap();
    let transaction = index.transaction().unwrap();
    let mut insert = transaction
        .prepare(
            "INSERT INTO blobs (digest, blob_bytes, piece_bytes, fill, piece_hashes, used_ms)
             VALUES (?1, ?2, 262144, 1, ?3, 0)",
        )
        .unwrap();
    let mut dirs = BTreeSet::new();
    for number in 0..BLOBS {
        let bytes = format!("blob {number}");
        let digest = Digest::of(bytes.as_bytes());
        let Digest::Sha256(hash) = digest else {
            unreachable!("the canonical digest is sha256");
        };
        let hex = digest.hex();
        let below = dir.join("blobs/sha256").join(&hex[..2]);
        if dirs.insert(below.clone()) {
            fs::create_dir_all(&below).unwrap();
        }
        fs::write(below.join(hex), &bytes).unwrap();
        insert
            .execute((digest.to_string(), i64::try_from(bytes.len()).unwrap(), &hash[..]))
            .unwrap();
    }
    drop(insert);
    transaction.commit().unwrap();
    rustix::fs::sync();
}

/// `None` where it is not permitted. What is not synced stays.
fn drop_caches() -> Option<()> {
    fs::write(DROP_CACHES, "3").ok()
}

/// Seconds; the store is closed again.
fn measure(dir: &Path) -> f64 {
    let start = Instant::now();
    let store = open(dir);
    let took = start.elapsed();
    drop(store);
    took.as_secs_f64()
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    let cold: Option<Vec<f64>> = (0..RUNS).map(|_| drop_caches().map(|()| measure(dir.path()))).collect();
    match cold {
        Some(seconds) => println!("open, {BLOBS} blobs, cold: {:.2} s", median(seconds)),
        None => println!("open, {BLOBS} blobs, cold: not measured, {DROP_CACHES} cannot be written"),
    }
    measure(dir.path());
    let warm = (0..RUNS).map(|_| measure(dir.path())).collect();
    println!("open, {BLOBS} blobs, warm: {:.2} s", median(warm));
}
