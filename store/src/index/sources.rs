//! Rows of sources: under which repositories an upstream has answered for a digest.
//!
//! A blob or a manifest may have many.

use piecemeal_proto::Digest;
use rusqlite::{OptionalExtension as _, Transaction};

use super::{connection::Index, sql::to_sql};
use crate::values::{clock::Age, error::IndexError, repository::Repository};

impl Index {
    pub(crate) fn has_source(&self, at: &Repository, digest: &Digest) -> Result<bool, IndexError> {
        let connection = self.read();
        let row = connection
            .prepare_cached("SELECT 1 FROM sources WHERE digest = ?1 AND upstream = ?2 AND repository = ?3")?
            .query_row((digest.to_string(), &at.upstream, &at.name), |_| Ok(()))
            .optional()?;
        Ok(row.is_some())
    }

    pub(crate) fn has_upstream(&self, upstream: &str, digest: &Digest) -> Result<bool, IndexError> {
        let connection = self.read();
        let row = connection
            .prepare_cached("SELECT 1 FROM sources WHERE digest = ?1 AND upstream = ?2 LIMIT 1")?
            .query_row((digest.to_string(), upstream), |_| Ok(()))
            .optional()?;
        Ok(row.is_some())
    }
}

pub(crate) fn put(transaction: &Transaction<'_>, at: &Repository, digest: &Digest, used: Age) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO sources (digest, upstream, repository, used_ms) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute((digest.to_string(), &at.upstream, &at.name, to_sql(used.0)))?;
    Ok(())
}

pub(crate) fn delete(transaction: &Transaction<'_>, at: &Repository, digest: &Digest) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM sources WHERE digest = ?1 AND upstream = ?2 AND repository = ?3")?
        .execute((digest.to_string(), &at.upstream, &at.name))?;
    Ok(())
}

pub(crate) fn touch(
    transaction: &Transaction<'_>,
    at: &Repository,
    digest: &Digest,
    used: Age,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE sources SET used_ms = ?4 WHERE digest = ?1 AND upstream = ?2 AND repository = ?3")?
        .execute((digest.to_string(), &at.upstream, &at.name, to_sql(used.0)))?;
    Ok(())
}

/// Deletes what is recorded of a digest, in whatever repository.
pub(crate) fn delete_all(transaction: &Transaction<'_>, digest: &Digest) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM sources WHERE digest = ?1")?
        .execute([digest.to_string()])?;
    Ok(())
}
