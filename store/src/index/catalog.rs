//! Catalogue of the index: all rows of a table at once.
//!
//! Rows that make no sense are left out.

use piecemeal_proto::Digest;
use rusqlite::Connection;

use super::{
    connection::Index,
    sql::{digest_from_sql, from_sql, map_from_sql},
};
use crate::values::{clock::Age, error::IndexError, repository::Repository};

/// The most manifests read in one go; the connection is blocked for others in the meantime.
const MANIFESTS_AT_ONCE: u32 = 64;

/// A manifest's row.
pub(crate) struct ListedManifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) used: Age,
}

/// Digest, media type, bytes and last use.
type ManifestColumns = (String, String, Vec<u8>, i64);

/// A tag's row.
pub(crate) struct ListedTag {
    pub(crate) at: Repository,
    pub(crate) tag: String,
    pub(crate) digest: Digest,
    pub(crate) checked: Age,
    pub(crate) used: Age,
}

impl Index {
    /// Gives every manifest to `each`.
    pub(crate) fn each_manifest(&self, mut each: impl FnMut(ListedManifest)) -> Result<(), IndexError> {
        let mut last = String::new();
        loop {
            let rows = self.manifests_after(&last)?;
            let Some(row) = rows.last() else {
                return Ok(());
            };
            last.clone_from(&row.0);
            for (digest, media_type, bytes, used_ms) in rows {
                if let Some(digest) = digest_from_sql(&digest) {
                    each(ListedManifest {
                        digest,
                        media_type,
                        bytes,
                        used: Age(from_sql(used_ms)),
                    });
                }
            }
        }
    }

    fn manifests_after(&self, last: &str) -> Result<Vec<ManifestColumns>, IndexError> {
        let connection = self.read();
        let mut statement = connection.prepare_cached(
            "SELECT digest, media_type, bytes, used_ms FROM manifests WHERE digest > ?1 ORDER BY digest LIMIT ?2",
        )?;
        let rows = statement.query_map((last, MANIFESTS_AT_ONCE), |row| row.try_into())?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    pub(crate) fn all_tags(&self) -> Result<Vec<ListedTag>, IndexError> {
        rows(
            &self.read(),
            "SELECT upstream, repository, tag, digest, checked_ms, used_ms FROM tags",
            |row| {
                let (upstream, name, tag, digest, checked_ms, used_ms): (_, _, _, String, _, _) = row.try_into()?;
                Ok(digest_from_sql(&digest).map(|digest| ListedTag {
                    at: Repository { upstream, name },
                    tag,
                    digest,
                    checked: Age(from_sql(checked_ms)),
                    used: Age(from_sql(used_ms)),
                }))
            },
        )
    }

    pub(crate) fn all_sources(&self) -> Result<Vec<(Digest, Repository)>, IndexError> {
        rows(
            &self.read(),
            "SELECT digest, upstream, repository FROM sources",
            |row| {
                let (digest, upstream, name): (String, _, _) = row.try_into()?;
                Ok(digest_from_sql(&digest).map(|digest| (digest, Repository { upstream, name })))
            },
        )
    }

    /// When each complete blob was last found to be good.
    pub(crate) fn all_verified(&self) -> Result<Vec<(Digest, Age)>, IndexError> {
        rows(&self.read(), "SELECT digest, verified_ms FROM blobs", |row| {
            let (digest, verified_ms): (String, _) = row.try_into()?;
            Ok(digest_from_sql(&digest).map(|digest| (digest, Age(from_sql(verified_ms)))))
        })
    }

    /// The bytes that are written down of each blob that is not complete.
    pub(crate) fn all_partial_bytes(&self) -> Result<Vec<(Digest, u64)>, IndexError> {
        rows(
            &self.read(),
            "SELECT digest, blob_bytes, piece_bytes, (SELECT count(*) FROM partial_pieces WHERE partial = id) FROM partials",
            |row| {
                let (digest, blob_bytes, piece_bytes, pieces): (String, _, _, _) = row.try_into()?;
                Ok(digest_from_sql(&digest)
                    .zip(map_from_sql(blob_bytes, piece_bytes))
                    .map(|(digest, map)| {
                        let bytes = from_sql(pieces).saturating_mul(map.piece_bytes());
                        (digest, bytes.min(map.blob_bytes()))
                    }))
            },
        )
    }
}

fn rows<T>(
    connection: &Connection,
    query: &str,
    read: impl Fn(&rusqlite::Row<'_>) -> rusqlite::Result<Option<T>>,
) -> Result<Vec<T>, IndexError> {
    let mut statement = connection.prepare(query)?;
    let rows = statement.query_map([], |row| read(row))?;
    Ok(rows.filter_map(Result::transpose).collect::<rusqlite::Result<_>>()?)
}
