//! Tools that the stories share: a clock that is set by hand, content that follows from a seed, and a store on both.
#![allow(dead_code, reason = "each story uses its own part of it")]

pub(crate) mod disk;
pub(crate) mod killer;
pub(crate) mod known;
pub(crate) mod old;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use parking_lot::Mutex;
use piecemeal_proto::{Digest, PieceMap};
use piecemeal_store::{Blob, Clock, DiskFiles, Env, Files, Filling, Store, StoreConfig};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

pub(crate) const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);
/// The pieces of the stories: small, so that a small blob has many.
pub(crate) const PIECE_BYTES: u64 = 4096;

/// Stands still unless told otherwise.
pub(crate) struct FakeClock {
    now: Mutex<(Duration, SystemTime)>,
}

impl FakeClock {
    pub(crate) fn new() -> Arc<Self> {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Arc::new(Self {
            now: Mutex::new((Duration::from_secs(1), start)),
        })
    }

    pub(crate) fn advance(&self, span: Duration) {
        let mut now = self.now.lock();
        now.0 += span;
        now.1 += span;
    }

    /// The date jumps; no time passes.
    pub(crate) fn set_wall(&self, wall: SystemTime) {
        self.now.lock().1 = wall;
    }
}

impl Clock for FakeClock {
    fn monotonic(&self) -> Duration {
        self.now.lock().0
    }

    fn wall(&self) -> SystemTime {
        self.now.lock().1
    }
}

/// Limits that nothing runs into.
pub(crate) fn config(dir: &Path) -> StoreConfig {
    StoreConfig {
        dir: dir.join("store"),
        quota_bytes: None,
        free_bytes_min: 0,
        ttl: DAY,
    }
}

pub(crate) fn env(clock: &Arc<FakeClock>, files: Arc<dyn Files>) -> Env {
    Env {
        clock: Arc::clone(clock) as _,
        files,
        seed: 7,
    }
}

pub(crate) fn open(dir: &Path, clock: &Arc<FakeClock>) -> Store {
    Store::open(config(dir), env(clock, Arc::new(DiskFiles))).unwrap()
}

/// A blob that follows from its seed.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    pub(crate) map: PieceMap,
}

impl Content {
    pub(crate) fn new(seed: u64, blob_bytes: usize) -> Self {
        let mut bytes = vec![0; blob_bytes];
        StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        Self::of(bytes)
    }

    /// The same bytes with every version of every generator: for what is checked in.
    pub(crate) fn counted(seed: usize, blob_bytes: usize) -> Self {
        let byte = |at: usize| u8::try_from((at + at / 251 * (7 + seed) + 31 * seed) % 256).unwrap();
        Self::of((0..blob_bytes).map(byte).collect())
    }

    fn of(bytes: Vec<u8>) -> Self {
        Self {
            digest: Digest::of(&bytes),
            map: PieceMap::new(bytes.len() as u64, PIECE_BYTES).unwrap(),
            bytes: bytes.into(),
        }
    }

    /// Of so many pieces, the last one short.
    pub(crate) fn pieces(seed: u64, count: usize) -> Self {
        Self::new(seed, count * 4096 - 100)
    }

    pub(crate) fn piece(&self, index: u32) -> Bytes {
        let range = self.map.range(index);
        let at = |offset| usize::try_from(offset).unwrap();
        self.bytes.slice(at(range.start)..at(range.end))
    }

    pub(crate) async fn begin(&self, store: &Store) -> Filling {
        store.begin(&self.digest, self.map, None).await.unwrap()
    }

    pub(crate) async fn write(&self, filling: &Filling, index: u32) {
        filling.write_piece(index, self.piece(index), None).await.unwrap();
    }

    pub(crate) async fn publish(&self, store: &Store) -> Blob {
        let filling = self.begin(store).await;
        for index in 0..self.map.count() {
            self.write(&filling, index).await;
        }
        filling.publish(&[]).await.unwrap()
    }
}

/// The whole blob, by as many reads as it takes.
pub(crate) async fn read_all(blob: &Blob) -> Vec<u8> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < blob.map().blob_bytes() {
        let read = blob.read(bytes.len() as u64..blob.map().blob_bytes()).await.unwrap();
        bytes.extend_from_slice(&read);
    }
    bytes
}

/// The given range of a filling, as a client would read it.
pub(crate) async fn read_filling(filling: &Filling, range: std::ops::Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < range.end - range.start {
        let read = filling.read(range.start + bytes.len() as u64..range.end).await.unwrap();
        assert!(!read.is_empty());
        bytes.extend_from_slice(&read);
    }
    bytes
}
