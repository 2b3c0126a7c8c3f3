//! The index: what the store knows beside the bytes, in SQLite.
//!
//! One connection behind a mutex, used on blocking threads only. Every write transaction also stamps the store's age, so
//! that no row is ever younger than the age that a restart continues from. The index holds hints and facts: a blob's row is
//! a fact (its file was synced first), a partial's pieces are hints. Rows that make no sense are skipped, never a panic.
//!
//! Durability is chosen per transaction. [`Durability::Batched`] may lose the last seconds in a power cut, in order and as
//! a whole; the next [`Durability::Synced`] one makes everything before it durable too. Waiting for the disk happens beside
//! the connection: progress and readers must not wait for the sync of another transaction.

pub(crate) mod blobs;
pub(crate) mod catalog;
pub(crate) mod names;
pub(crate) mod partials;
pub(crate) mod rights;
mod schema;
mod shares;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::{Digest, FillId, NodeId, PieceMap};
use ring::hmac;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior};

pub(crate) use blobs::BlobRow;
pub use blobs::ListSignature;
pub(crate) use names::TagRow;
pub(crate) use partials::{PartialRow, Progress, TailChange, TailRow};
pub(crate) use schema::OpenIndexError;

use crate::clock::{Age, Stamp};

/// The index could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("the store's index failed")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the store's index could not be synced")]
    Sync(#[source] io::Error),
}

/// Digest, size in bytes and last use; or the key of a row that makes no sense, to be deleted.
pub(crate) type ListedRow = Result<(Digest, u64, Age), String>;

/// When a transaction becomes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// With the next synced one, or whenever the system writes it.
    Batched,
    /// Before the call returns.
    Synced,
}

/// The open index.
pub(crate) struct Index {
    connection: Mutex<Connection>,
    /// SQLite's write-ahead log.
    log: PathBuf,
    /// The key with which credentials are hashed before they are stored.
    credential_key: hmac::Key,
}

impl Index {
    /// Opens or makes the index, and brings its schema up to date.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenIndexError> {
        let mut connection = Connection::open(path)?;
        schema::prepare(&mut connection)?;
        let key: Vec<u8> = connection.query_row("SELECT key FROM credential_key WHERE id = 1", [], |row| row.get(0))?;
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Ok(Self {
            connection: Mutex::new(connection),
            log: log.into(),
            credential_key: hmac::Key::new(hmac::HMAC_SHA256, &key),
        })
    }

    /// The node's id and the last stamp; `None` in a store that is new.
    pub(crate) fn identity(&self) -> Result<Option<(NodeId, Stamp)>, IndexError> {
        let row = self
            .read()
            .query_row("SELECT node_id, age_ms, wall_ms FROM store WHERE id = 1", [], |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()?;
        Ok(row.and_then(|(id, age_ms, wall_ms)| {
            let stamp = Stamp {
                age: Age(from_sql(age_ms)),
                wall_ms: from_sql(wall_ms),
            };
            Some((NodeId::from_slice(&id)?, stamp))
        }))
    }

    /// Writes the node's id down, once.
    pub(crate) fn set_identity(&self, node_id: NodeId, stamp: Stamp) -> Result<(), IndexError> {
        self.read().execute(
            "INSERT OR REPLACE INTO store (id, node_id, age_ms, wall_ms) VALUES (1, ?1, ?2, ?3)",
            (node_id.0, to_sql(stamp.age.0), to_sql(stamp.wall_ms)),
        )?;
        Ok(())
    }

    /// Runs one write transaction and stamps the store's age.
    pub(crate) fn write<T>(
        &self,
        durability: Durability,
        stamp: Stamp,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        let result = transact(&mut self.connection.lock(), stamp, work)?;
        if durability == Durability::Synced {
            self.sync_log()?;
        }
        Ok(result)
    }

    /// Whether the connection is unused at this moment.
    pub(crate) fn is_idle(&self) -> bool {
        !self.connection.is_locked()
    }

    /// What was committed is in the log, or was synced when a checkpoint moved it.
    fn sync_log(&self) -> Result<(), IndexError> {
        match File::open(&self.log).and_then(|log| log.sync_data()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(IndexError::Sync(error)),
            _ => Ok(()),
        }
    }

    /// Moves the log into the database file.
    pub(crate) fn checkpoint(&self) -> Result<(), IndexError> {
        self.read()
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        Ok(())
    }

    fn read(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock()
    }
}

fn transact<T>(
    connection: &mut Connection,
    stamp: Stamp,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = work(&transaction)?;
    transaction
        .prepare_cached("UPDATE store SET age_ms = ?1, wall_ms = ?2 WHERE id = 1")?
        .execute((to_sql(stamp.age.0), to_sql(stamp.wall_ms)))?;
    transaction.commit()?;
    Ok(value)
}

/// SQLite's integers are signed; sizes and ages never come near the end of them.
fn to_sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn from_sql(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A fill id is any 64 bits.
fn fill_to_sql(fill: FillId) -> i64 {
    fill.0.cast_signed()
}

fn fill_from_sql(value: i64) -> FillId {
    FillId(value.cast_unsigned())
}

/// `None` for a text that is no digest: the row was damaged.
fn digest_from_sql(text: &str) -> Option<Digest> {
    text.parse().ok()
}

fn map_from_sql(blob_bytes: i64, piece_bytes: i64) -> Option<PieceMap> {
    PieceMap::new(u64::try_from(blob_bytes).ok()?, u64::try_from(piece_bytes).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> (tempfile::TempDir, Index) {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("index.db")).unwrap();
        (dir, index)
    }

    fn stamp(age_ms: u64) -> Stamp {
        Stamp {
            age: Age(age_ms),
            wall_ms: 5,
        }
    }

    #[test]
    fn a_synced_transaction_syncs_the_log_and_a_batched_one_does_not() {
        let (dir, mut index) = index();
        assert!(index.log.exists(), "where SQLite keeps it");
        index.write(Durability::Synced, stamp(0), |_| Ok(())).unwrap();
        // A log that cannot be opened cannot be synced.
        index.log = dir.path().join("index.db/log");
        index.write(Durability::Batched, stamp(0), |_| Ok(())).unwrap();
        let failed = index.write(Durability::Synced, stamp(0), |_| Ok(()));
        assert!(matches!(failed, Err(IndexError::Sync(_))), "{failed:?}");
    }

    #[test]
    fn every_transaction_stamps_the_age() {
        let (_dir, index) = index();
        assert_eq!(index.identity().unwrap(), None);
        index.set_identity(NodeId([3; 16]), stamp(1)).unwrap();
        index.write(Durability::Batched, stamp(9), |_| Ok(())).unwrap();
        assert_eq!(index.identity().unwrap(), Some((NodeId([3; 16]), stamp(9))));
    }

    #[test]
    fn damaged_rows_are_misses() {
        let (_dir, index) = index();
        let (digest, map) = (Digest::of(b""), PieceMap::new(9, 4).unwrap());
        let hashes = [[1; 32]; 3];
        let row = BlobRow {
            map,
            fill: FillId(u64::MAX),
            piece_hashes: hashes.into(),
            signature: Some([2; 64]),
        };
        let tail = TailRow {
            piece: 1,
            bytes: 3,
            hash: hashes[0],
        };
        let id = index
            .write(Durability::Batched, stamp(0), |transaction| {
                blobs::insert(transaction, &digest, &row, Age(4))?;
                let id = partials::insert(transaction, &digest, map, FillId(u64::MAX), Age(4))?;
                let pieces = vec![(2, hashes[0]), (7, hashes[0])];
                let progress = Progress {
                    pieces,
                    tails: vec![TailChange {
                        piece: 1,
                        now: Some(tail),
                    }],
                };
                partials::save(transaction, id, &progress, Age(5))?;
                partials::save(transaction, id + 1, &progress, Age(5))?;
                Ok(id)
            })
            .unwrap();
        assert_eq!(index.blob(&digest).unwrap(), Some(row.clone()));
        index.read().execute("UPDATE blobs SET signature = x'00'", []).unwrap();
        let unsigned = BlobRow { signature: None, ..row };
        assert_eq!(index.blob(&digest).unwrap(), Some(unsigned), "half a signature is none");
        let partial = index.partial(&digest).unwrap().unwrap();
        assert_eq!((partial.id, partial.fill), (id, FillId(u64::MAX)));
        assert_eq!(partial.pieces, [(2, hashes[0])], "no piece beyond the map");
        assert_eq!(partial.tails, [tail]);
        index.read().execute("UPDATE partial_tails SET bytes = 4", []).unwrap();
        let partial = index.partial(&digest).unwrap().unwrap();
        assert_eq!(partial.tails, [], "a whole piece is no tail");
        for damage in [
            "UPDATE blobs SET piece_hashes = x'00'",
            "UPDATE blobs SET blob_bytes = -1",
            "UPDATE partials SET piece_bytes = 0",
            "UPDATE partial_pieces SET hash = x'00'",
        ] {
            index.read().execute(damage, []).unwrap();
        }
        assert_eq!(index.blob(&digest).unwrap(), None);
        assert_eq!(index.partial(&digest).unwrap(), None);
        assert_eq!(index.blobs().unwrap(), [Err(digest.to_string())]);
    }
}
