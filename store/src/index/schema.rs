//! The index's schema and its versions.
//!
//! `user_version` counts the migrations that a file has seen. A file from the future is refused and left as it is: an older
//! binary must not guess at rows that it does not know.

use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

/// Marks an SQLite file as Piecemeal's: "PMst".
const APPLICATION_ID: i64 = 0x504d_7374;
/// The log is carried over into the database when it has this many pages of 4 KiB.
const WAL_PAGES_MAX: u32 = 16 * 1024;
/// The log is cut back to this after a checkpoint; one manifest may have blown it up to 8 MiB.
const WAL_BYTES_MAX: i64 = 16 * 1024 * 1024;
/// The longest wait of a statement for a lock. The daemon is the only writer; an administrator with the sqlite3 shell may read.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// In order; never edited once released.
const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/0001_initial.sql"),
    include_str!("../../migrations/0002_verified.sql"),
    include_str!("../../migrations/0003_rights_and_signatures.sql"),
];

/// Why the index could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenIndexError {
    #[error("its schema is version {found}, and this binary knows versions up to {known}")]
    Newer { found: i64, known: i64 },
    #[error("it is an SQLite file of another program")]
    Foreign,
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// Says whether the file was empty before.
pub(super) fn prepare(connection: &mut Connection) -> Result<bool, OpenIndexError> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    let known = i64::try_from(MIGRATIONS.len()).expect("a handful of migrations");
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if is_foreign(connection)? {
        return Err(OpenIndexError::Foreign);
    }
    if found > known {
        return Err(OpenIndexError::Newer { found, known });
    }
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // A checkpoint waits for the disk, and progress waits for the checkpoint: it should be rare.
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES_MAX)?;
    connection.query_row(&format!("PRAGMA journal_size_limit = {WAL_BYTES_MAX}"), [], |_| Ok(()))?;
    for (version, migration) in (1_i64..).zip(MIGRATIONS) {
        if version > found {
            migrate(connection, version, migration)?;
        }
    }
    Ok(found == 0)
}

/// Reads every page once: damage that shows later would fail requests until a person comes.
pub(super) fn check(connection: &Connection) -> rusqlite::Result<()> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    match found.as_str() {
        "ok" => Ok(()),
        _ => Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
            Some(found),
        )),
    }
}

/// Whether the file holds tables of another program. An empty file is Piecemeal's: a crash interrupted its creation.
fn is_foreign(connection: &Connection) -> rusqlite::Result<bool> {
    let id: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(id != APPLICATION_ID && tables > 0)
}

fn migrate(connection: &mut Connection, version: i64, migration: &str) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    transaction.execute_batch(migration)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", version)?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(connection: &Connection) -> i64 {
        connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .unwrap()
    }

    #[test]
    fn a_new_file_gets_every_migration_and_a_known_one_none() {
        let mut connection = Connection::open_in_memory().unwrap();
        prepare(&mut connection).unwrap();
        assert_eq!(version(&connection), i64::try_from(MIGRATIONS.len()).unwrap());
        prepare(&mut connection).unwrap();
    }

    #[test]
    fn a_newer_schema_is_refused_and_left_alone() {
        let mut connection = Connection::open_in_memory().unwrap();
        prepare(&mut connection).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(
            prepare(&mut connection),
            Err(OpenIndexError::Newer { found: 99, known: 3 })
        ));
        assert_eq!(version(&connection), 99);
    }

    #[test]
    fn the_database_of_something_else_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE theirs (a)").unwrap();
        assert!(matches!(prepare(&mut connection), Err(OpenIndexError::Foreign)));
    }
}
