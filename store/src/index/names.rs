//! Rows of manifests, tags and sources: what is known by name.

use piecemeal_proto::Digest;
use rusqlite::{OptionalExtension as _, Transaction};

use super::{Index, IndexError, digest_from_sql, from_sql, to_sql};
use crate::{Repository, clock::Age};

/// A manifest as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ManifestRow {
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

/// What a tag stood for when upstream was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TagRow {
    pub(crate) digest: Digest,
    pub(crate) checked: Age,
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

    /// In the order of their bytes.
    pub(crate) fn tags(&self, at: &Repository) -> Result<Vec<String>, IndexError> {
        let connection = self.read();
        let mut statement =
            connection.prepare_cached("SELECT tag FROM tags WHERE upstream = ?1 AND repository = ?2 ORDER BY tag")?;
        let rows = statement.query_map((&at.upstream, &at.name), |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub(crate) fn manifest_count(&self) -> Result<u64, IndexError> {
        let count = self
            .read()
            .query_row("SELECT count(*) FROM manifests", [], |row| row.get(0))?;
        Ok(from_sql(count))
    }
}

pub(crate) fn put_manifest(
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

pub(crate) fn put_source(
    transaction: &Transaction<'_>,
    at: &Repository,
    digest: &Digest,
    used: Age,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO sources (digest, upstream, repository, used_ms) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute((digest.to_string(), &at.upstream, &at.name, to_sql(used.0)))?;
    Ok(())
}

pub(crate) fn delete_source(transaction: &Transaction<'_>, at: &Repository, digest: &Digest) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM sources WHERE digest = ?1 AND upstream = ?2 AND repository = ?3")?
        .execute((digest.to_string(), &at.upstream, &at.name))?;
    Ok(())
}

pub(crate) fn put_tag(transaction: &Transaction<'_>, at: &Repository, tag: &str, row: TagRow) -> rusqlite::Result<()> {
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

pub(crate) fn delete_tag(transaction: &Transaction<'_>, at: &Repository, tag: &str) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM tags WHERE upstream = ?1 AND repository = ?2 AND tag = ?3")?
        .execute((&at.upstream, &at.name, tag))?;
    Ok(())
}

pub(crate) fn touch_manifest(transaction: &Transaction<'_>, digest: &Digest, used: Age) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE manifests SET used_ms = ?2 WHERE digest = ?1")?
        .execute((digest.to_string(), to_sql(used.0)))?;
    Ok(())
}

pub(crate) fn touch_source(
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

pub(crate) fn touch_tag(transaction: &Transaction<'_>, at: &Repository, tag: &str, used: Age) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE tags SET used_ms = ?4 WHERE upstream = ?1 AND repository = ?2 AND tag = ?3")?
        .execute((&at.upstream, &at.name, tag, to_sql(used.0)))?;
    Ok(())
}

/// Deletes what was last used at `moment` or before.
pub(crate) fn expire(transaction: &Transaction<'_>, moment: Age) -> rusqlite::Result<()> {
    for table in ["manifests", "tags", "sources"] {
        transaction
            .prepare_cached(&format!("DELETE FROM {table} WHERE used_ms <= ?1"))?
            .execute([to_sql(moment.0)])?;
    }
    Ok(())
}

/// The most rows of each table, and bytes of manifests.
pub(crate) struct Caps {
    pub(crate) names: u64,
    pub(crate) manifest_bytes: u64,
}

/// Deletes the least recently used names beyond the caps.
pub(crate) fn cap(transaction: &Transaction<'_>, caps: &Caps) -> rusqlite::Result<()> {
    for (table, key, time, rows_max) in [
        ("tags", "upstream, repository, tag", "used_ms", caps.names),
        ("sources", "digest, upstream, repository", "used_ms", caps.names),
    ] {
        transaction
            .prepare_cached(&format!(
                "DELETE FROM {table} WHERE ({key}) IN
                 (SELECT {key} FROM {table} ORDER BY {time} DESC LIMIT -1 OFFSET ?1)"
            ))?
            .execute([to_sql(rows_max)])?;
    }
    transaction
        .prepare_cached(
            "DELETE FROM manifests WHERE digest IN (
                 SELECT digest FROM (
                     SELECT digest, sum(length(bytes)) OVER (ORDER BY used_ms DESC, digest) AS newer_bytes FROM manifests
                 ) WHERE newer_bytes > ?1)",
        )?
        .execute([to_sql(caps.manifest_bytes)])?;
    Ok(())
}
