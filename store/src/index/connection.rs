//! Connection to the index: one for all, used on blocking threads only.
//!
//! A transaction that was committed with [`Durability::Synced`] survives a power cut, and so does every one before it.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::NodeId;
use ring::hmac;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior};

use super::{
    schema::{self, OpenIndexError},
    sql::{from_sql, to_sql},
};
use crate::values::{
    clock::{Age, AgeClock, Clock, Stamp},
    error::IndexError,
};

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
    clock: AgeClock,
    /// It was made now: what lies in the folder has no rows.
    pub(crate) is_new: bool,
    /// SQLite's write-ahead log.
    log: PathBuf,
    /// The key with which credentials are hashed before they are stored.
    pub(super) credential_key: hmac::Key,
}

impl Index {
    /// Opens or makes the index, brings its schema up to date, and goes on from its last stamp.
    pub(crate) fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, OpenIndexError> {
        let mut connection = Connection::open(path)?;
        let is_new = schema::prepare(&mut connection)?;
        schema::check(&connection)?;
        let key: Vec<u8> = connection.query_row("SELECT key FROM credential_key WHERE id = 1", [], |row| row.get(0))?;
        let last = identity(&connection)?.map(|(_, stamp)| stamp);
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Ok(Self {
            connection: Mutex::new(connection),
            clock: AgeClock::resume(clock, last),
            is_new,
            log: log.into(),
            credential_key: hmac::Key::new(hmac::HMAC_SHA256, &key),
        })
    }

    /// An empty index in memory, with the clock and the key of this one.
    pub(crate) fn beside(&self) -> Result<Self, IndexError> {
        let mut connection = Connection::open_in_memory()?;
        let prepared = schema::prepare(&mut connection);
        prepared.map_err(|error| match error {
            OpenIndexError::Sqlite(error) => IndexError::Sqlite(error),
            error => IndexError::Sync(io::Error::other(error)),
        })?;
        Ok(Self {
            connection: Mutex::new(connection),
            clock: self.clock.clone(),
            is_new: true,
            log: PathBuf::new(),
            credential_key: self.credential_key.clone(),
        })
    }

    /// Records the node's id.
    pub(crate) fn set_identity(&self, node_id: NodeId) -> Result<(), IndexError> {
        let stamp = self.clock.stamp();
        self.read().execute(
            "INSERT OR REPLACE INTO store (id, node_id, age_ms, wall_ms) VALUES (1, ?1, ?2, ?3)",
            (node_id.0, to_sql(stamp.age.0), to_sql(stamp.wall_ms)),
        )?;
        Ok(())
    }

    pub(crate) fn clock(&self) -> &AgeClock {
        &self.clock
    }

    /// Time since an arbitrary fixed moment.
    pub(crate) fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    /// The store's age.
    pub(crate) fn now(&self) -> Age {
        self.clock.now()
    }

    /// Runs one write transaction and stamps the store's age.
    pub(crate) fn write<T>(
        &self,
        durability: Durability,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        self.write_at(durability, self.clock.stamp(), work)
    }

    fn write_at<T>(
        &self,
        durability: Durability,
        stamp: Stamp,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, IndexError> {
        let result = transact(&mut self.connection.lock(), stamp, work)?;
        if durability == Durability::Synced {
            self.sync()?;
        }
        Ok(result)
    }

    /// Whether the connection is unused at this moment.
    pub(crate) fn is_idle(&self) -> bool {
        !self.connection.is_locked()
    }

    /// Has each write fail as on a disk that takes none.
    #[cfg(test)]
    pub(crate) fn set_read_only(&self, is_read_only: bool) {
        self.read().pragma_update(None, "query_only", is_read_only).unwrap();
    }

    /// Makes every transaction durable that was committed. They are in the log, or were synced when a checkpoint moved them.
    pub(crate) fn sync(&self) -> Result<(), IndexError> {
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

    pub(super) fn read(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock()
    }
}

/// The node's id and the last stamp; `None` in a store that is new.
fn identity(connection: &Connection) -> rusqlite::Result<Option<(NodeId, Stamp)>> {
    let row = connection
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::clock::SystemClock;

    fn index() -> (tempfile::TempDir, Index) {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("index.db"), Arc::new(SystemClock::new())).unwrap();
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
        index.write_at(Durability::Synced, stamp(0), |_| Ok(())).unwrap();
        // A log that cannot be opened cannot be synced.
        index.log = dir.path().join("index.db/log");
        index.write_at(Durability::Batched, stamp(0), |_| Ok(())).unwrap();
        let failed = index.write_at(Durability::Synced, stamp(0), |_| Ok(()));
        assert!(matches!(failed, Err(IndexError::Sync(_))), "{failed:?}");
    }

    #[test]
    fn every_transaction_stamps_the_age() {
        let (_dir, index) = index();
        assert_eq!(identity(&index.read()).unwrap(), None);
        index.set_identity(NodeId([3; 16])).unwrap();
        index.write_at(Durability::Batched, stamp(9), |_| Ok(())).unwrap();
        assert_eq!(identity(&index.read()).unwrap(), Some((NodeId([3; 16]), stamp(9))));
    }
}
