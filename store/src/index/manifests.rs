//! Rows of manifests.
//!
//! A manifest is read only under a repository that is one of its sources.

use piecemeal_proto::Digest;
use rusqlite::{OptionalExtension as _, Transaction};

use super::{
    connection::Index,
    sql::{from_sql, to_sql},
};
use crate::values::{clock::Age, error::IndexError, repository::Repository};

/// The most manifests of a repository that are searched.
const SEARCHED_MAX: u64 = 1024;

/// A manifest as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ManifestRow {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

impl Index {
    /// The manifest, if that repository was recorded for it.
    pub(crate) fn manifest(&self, at: &Repository, digest: &Digest) -> Result<Option<ManifestRow>, IndexError> {
        let connection = self.read();
        let row = connection
            .prepare_cached(
                "SELECT media_type, bytes FROM manifests JOIN sources USING (digest)
                 WHERE digest = ?1 AND upstream = ?2 AND repository = ?3",
            )?
            .query_row((digest.to_string(), &at.upstream, &at.name), |row| {
                Ok(ManifestRow {
                    media_type: row.get(0)?,
                    bytes: row.get(1)?,
                })
            })
            .optional()?;
        Ok(row)
    }

    /// Manifests of the repository whose text has the digest in it, at the most so many, of those that were used last.
    pub(crate) fn manifests_that_name(
        &self,
        at: &Repository,
        named: &Digest,
        max: usize,
    ) -> Result<Vec<(String, ManifestRow)>, IndexError> {
        let connection = self.read();
        let mut statement = connection.prepare_cached(
            "SELECT digest, media_type, bytes FROM (
                 SELECT digest, media_type, bytes FROM sources JOIN manifests USING (digest)
                 WHERE upstream = ?1 AND repository = ?2 ORDER BY manifests.used_ms DESC LIMIT ?4)
             WHERE instr(bytes, CAST(?3 AS BLOB)) > 0 LIMIT ?5",
        )?;
        let (searched, max) = (to_sql(SEARCHED_MAX), to_sql(max as u64));
        let rows = statement.query_map((&at.upstream, &at.name, named.to_string(), searched, max), |row| {
            let (media_type, bytes) = (row.get(1)?, row.get(2)?);
            Ok((row.get(0)?, ManifestRow { media_type, bytes }))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub(crate) fn manifest_count(&self) -> Result<u64, IndexError> {
        let count = self
            .read()
            .query_row("SELECT count(*) FROM manifests", [], |row| row.get(0))?;
        Ok(from_sql(count))
    }
}

pub(crate) fn put(
    transaction: &Transaction<'_>,
    digest: &Digest,
    media_type: &str,
    bytes: &[u8],
    used: Age,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO manifests (digest, media_type, bytes, used_ms) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute((digest.to_string(), media_type, bytes, to_sql(used.0)))?;
    Ok(())
}

pub(crate) fn touch(transaction: &Transaction<'_>, digest: &Digest, used: Age) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE manifests SET used_ms = ?2 WHERE digest = ?1")?
        .execute((digest.to_string(), to_sql(used.0)))?;
    Ok(())
}

/// Deletes a manifest that no repository is recorded for any more.
pub(crate) fn delete_orphan(transaction: &Transaction<'_>, manifest: &Digest) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "DELETE FROM manifests WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM sources WHERE digest = ?1)",
        )?
        .execute([manifest.to_string()])?;
    Ok(())
}
