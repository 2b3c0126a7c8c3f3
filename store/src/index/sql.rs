//! Values as SQLite keeps them.
//!
//! A value that makes no sense is `None`, never a panic.

use piecemeal_proto::{Digest, FillId, PieceMap};
use rusqlite::Connection;

use crate::values::clock::Age;

/// SQLite's integers are signed; sizes and ages never come near the end of them.
pub(super) fn to_sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn from_sql(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A fill id is any 64 bits.
pub(super) fn fill_to_sql(fill: FillId) -> i64 {
    fill.0.cast_signed()
}

pub(super) fn fill_from_sql(value: i64) -> FillId {
    FillId(value.cast_unsigned())
}

/// `None` for a text that is no digest: the row was damaged.
pub(super) fn digest_from_sql(text: &str) -> Option<Digest> {
    text.parse().ok()
}

pub(super) fn map_from_sql(blob_bytes: i64, piece_bytes: i64) -> Option<PieceMap> {
    PieceMap::new(u64::try_from(blob_bytes).ok()?, u64::try_from(piece_bytes).ok()?).ok()
}

/// Digest, size in bytes and last use; or the key of a row that makes no sense, to be deleted.
pub(crate) type ListedRow = Result<(Digest, u64, Age), String>;

/// Every row of a table of blobs or partials.
pub(super) fn list(connection: &Connection, table: &str) -> rusqlite::Result<Vec<ListedRow>> {
    let mut statement = connection.prepare(&format!("SELECT digest, blob_bytes, used_ms FROM {table}"))?;
    let rows = statement.query_map([], |row| {
        let (text, blob_bytes, used_ms): (String, i64, i64) = row.try_into()?;
        Ok(match (digest_from_sql(&text), u64::try_from(blob_bytes)) {
            (Some(digest), Ok(blob_bytes)) => Ok((digest, blob_bytes, Age(from_sql(used_ms)))),
            _ => Err(text),
        })
    })?;
    rows.collect()
}
