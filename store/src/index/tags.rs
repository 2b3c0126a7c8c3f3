//! Rows of tags: what each stood for when upstream was last asked.
//!
//! A row that makes no sense is no tag.

use piecemeal_proto::Digest;
use rusqlite::{OptionalExtension as _, Transaction};

use super::{
    connection::Index,
    sql::{digest_from_sql, from_sql, to_sql},
};
use crate::values::{clock::Age, error::IndexError, repository::Repository};

/// The digest that a tag stood for when upstream was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TagRow {
    pub(crate) digest: Digest,
    pub(crate) checked: Age,
}

impl Index {
    /// `None` also for a row that makes no sense.
    pub(crate) fn tag(&self, at: &Repository, tag: &str) -> Result<Option<TagRow>, IndexError> {
        let connection = self.read();
        let row: Option<(String, i64)> = connection
            .prepare_cached("SELECT digest, checked_ms FROM tags WHERE upstream = ?1 AND repository = ?2 AND tag = ?3")?
            .query_row((&at.upstream, &at.name, tag), |row| row.try_into())
            .optional()?;
        Ok(row.and_then(|(digest, checked_ms)| {
            Some(TagRow {
                digest: digest_from_sql(&digest)?,
                checked: Age(from_sql(checked_ms)),
            })
        }))
    }

    /// In the order of their bytes.
    pub(crate) fn tags(&self, at: &Repository) -> Result<Vec<String>, IndexError> {
        let connection = self.read();
        let mut statement =
            connection.prepare_cached("SELECT tag FROM tags WHERE upstream = ?1 AND repository = ?2 ORDER BY tag")?;
        let rows = statement.query_map((&at.upstream, &at.name), |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

pub(crate) fn put(transaction: &Transaction<'_>, at: &Repository, tag: &str, row: TagRow) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO tags (upstream, repository, tag, digest, checked_ms, used_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
        )?
        .execute((
            &at.upstream,
            &at.name,
            tag,
            row.digest.to_string(),
            to_sql(row.checked.0),
        ))?;
    Ok(())
}

pub(crate) fn delete(transaction: &Transaction<'_>, at: &Repository, tag: &str) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM tags WHERE upstream = ?1 AND repository = ?2 AND tag = ?3")?
        .execute((&at.upstream, &at.name, tag))?;
    Ok(())
}

pub(crate) fn touch(transaction: &Transaction<'_>, at: &Repository, tag: &str, used: Age) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE tags SET used_ms = ?4 WHERE upstream = ?1 AND repository = ?2 AND tag = ?3")?
        .execute((&at.upstream, &at.name, tag, to_sql(used.0)))?;
    Ok(())
}
