//! Rows of manifests, tags and sources: what is known by name.

use piecemeal_proto::{Digest, NodeId};
use ring::hmac;
use rusqlite::{OptionalExtension as _, Transaction};

use super::{Index, IndexError, digest_from_sql, from_sql, to_sql};
use crate::{Holder, Repository, Shown, clock::Age};

/// The most credentials of one node that have a right in one repository. A client of a registry with tokens shows a new one with
/// each pull.
pub(crate) const SERVED_MAX: u64 = 64;
/// The most credentials of one node that are known as refused by one upstream. With so many some may have been forgotten, and no
/// credential counts as new.
pub(crate) const REFUSED_MAX: u64 = 256;
/// What stands for the site's own credential, and for none. A keyed hash is longer.
const SITE: &[u8] = b"site";
const NOTHING: &[u8] = b"nothing";

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

/// When upstream last served a node from a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeRightRow {
    pub(crate) by_any: Option<Age>,
    pub(crate) by_this: Option<Age>,
    /// See [`crate::NodeRight::is_known`].
    pub(crate) is_known: bool,
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

    /// When upstream last served everybody.
    pub(crate) fn public_right(&self, at: &Repository) -> Result<Option<Age>, IndexError> {
        let connection = self.read();
        let row: Option<i64> = connection
            .prepare_cached("SELECT proven_ms FROM rights WHERE upstream = ?1 AND repository = ?2 AND holder = x''")?
            .query_row((&at.upstream, &at.name), |row| row.get(0))
            .optional()?;
        Ok(row.map(|proven_ms| Age(from_sql(proven_ms))))
    }

    /// What a node may have from the repository, by all of its credentials and by this one.
    pub(crate) fn node_right(
        &self,
        at: &Repository,
        node: NodeId,
        shown: Option<Shown>,
    ) -> Result<NodeRightRow, IndexError> {
        let credential = shown.map(|shown| self.shown_to_sql(shown)).unwrap_or_default();
        let (connection, holder) = (self.read(), &node.0[..]);
        let (youngest, own): (Option<i64>, Option<i64>) = connection
            .prepare_cached(
                "SELECT max(proven_ms), max(proven_ms) FILTER (WHERE credential = ?4) FROM rights
                 WHERE upstream = ?1 AND repository = ?2 AND holder = ?3",
            )?
            .query_row((&at.upstream, &at.name, holder, &credential), |row| row.try_into())?;
        let was_refused: bool = connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM refusals WHERE upstream = ?1 AND holder = ?2 AND credential = ?3)
                 OR ?4 <= (SELECT count(*) FROM refusals WHERE upstream = ?1 AND holder = ?2)",
            )?
            .query_row((&at.upstream, holder, &credential, to_sql(REFUSED_MAX)), |row| {
                row.get(0)
            })?;
        // Where all rights are taken, one that is missing may have made room for another credential's.
        let was_served: bool = connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM rights WHERE holder = ?2 AND credential = ?3 AND upstream = ?1)
                 AND ?5 > (SELECT count(*) FROM rights WHERE upstream = ?1 AND repository = ?4 AND holder = ?2)",
            )?
            .query_row(
                (&at.upstream, holder, &credential, &at.name, to_sql(SERVED_MAX)),
                |row| row.get(0),
            )?;
        let is_known = was_refused || was_served || own.is_some();
        let age = |proven_ms: Option<i64>| proven_ms.map(|proven_ms| Age(from_sql(proven_ms)));
        Ok(NodeRightRow {
            by_any: age(youngest),
            by_this: age(own).filter(|_| shown.is_some()),
            is_known: is_known && shown.is_some(),
        })
    }

    /// A holder as it is written down.
    pub(crate) fn holder_row(&self, holder: Holder) -> HolderRow {
        match holder {
            Holder::Anybody => HolderRow {
                node: Vec::new(),
                credential: Vec::new(),
            },
            Holder::Node(node, shown) => HolderRow {
                node: node.0.to_vec(),
                credential: self.shown_to_sql(shown),
            },
        }
    }

    /// Never the credential itself, nor what it could be guessed from without the store's key.
    fn shown_to_sql(&self, shown: Shown) -> Vec<u8> {
        match shown {
            Shown::Site => SITE.to_vec(),
            Shown::Nothing => NOTHING.to_vec(),
            Shown::Client(fingerprint) => hmac::sign(&self.credential_key, &fingerprint).as_ref().to_vec(),
        }
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

/// Upstream has served the holder.
pub(crate) fn put_right(
    transaction: &Transaction<'_>,
    at: &Repository,
    holder: &HolderRow,
    proven: Age,
) -> rusqlite::Result<()> {
    let (node, credential) = (&holder.node, &holder.credential);
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO rights (upstream, repository, holder, credential, proven_ms)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute((&at.upstream, &at.name, node, credential, to_sql(proven.0)))?;
    transaction
        .prepare_cached(
            "DELETE FROM rights WHERE upstream = ?1 AND repository = ?2 AND holder = ?3 AND credential IN
             (SELECT credential FROM rights WHERE upstream = ?1 AND repository = ?2 AND holder = ?3
              ORDER BY proven_ms DESC, credential LIMIT -1 OFFSET ?4)",
        )?
        .execute((&at.upstream, &at.name, node, to_sql(SERVED_MAX)))?;
    Ok(())
}

/// Upstream has refused the holder.
pub(crate) fn put_refusal(
    transaction: &Transaction<'_>,
    at: &Repository,
    holder: &HolderRow,
    refused: Age,
) -> rusqlite::Result<()> {
    let (node, credential) = (&holder.node, &holder.credential);
    transaction
        .prepare_cached(
            "DELETE FROM rights WHERE upstream = ?1 AND repository = ?2 AND holder = ?3 AND credential = ?4",
        )?
        .execute((&at.upstream, &at.name, node, credential))?;
    if node.is_empty() {
        return Ok(());
    }
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO refusals (upstream, holder, credential, refused_ms) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute((&at.upstream, node, credential, to_sql(refused.0)))?;
    transaction
        .prepare_cached(
            "DELETE FROM refusals WHERE upstream = ?1 AND holder = ?2 AND credential IN
             (SELECT credential FROM refusals WHERE upstream = ?1 AND holder = ?2
              ORDER BY refused_ms DESC, credential LIMIT -1 OFFSET ?3)",
        )?
        .execute((&at.upstream, node, to_sql(REFUSED_MAX)))?;
    Ok(())
}

/// Deletes the oldest rows of those holders that have the most, so that no node makes the rows of others go.
fn cap_shares(
    transaction: &Transaction<'_>,
    table: &str,
    key: &str,
    holder: &str,
    time: &str,
    rows_max: u64,
) -> rusqlite::Result<()> {
    let rows: i64 = transaction
        .prepare_cached(&format!("SELECT count(*) FROM {table}"))?
        .query_row([], |row| row.get(0))?;
    if from_sql(rows) <= rows_max {
        return Ok(());
    }
    transaction
        .prepare_cached(&format!(
            "DELETE FROM {table} WHERE ({key}) IN (
                 SELECT {key} FROM (
                     SELECT {key}, {time}, row_number() OVER (PARTITION BY {holder} ORDER BY {time} DESC) AS place FROM {table})
                 ORDER BY place, {time} DESC LIMIT -1 OFFSET ?1)"
        ))?
        .execute([to_sql(rows_max)])?;
    Ok(())
}

/// A holder as it is written down.
pub(crate) struct HolderRow {
    /// A node's id; nothing for anybody.
    node: Vec<u8>,
    credential: Vec<u8>,
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

/// Deletes refusals from `moment` or before.
pub(crate) fn expire_refusals(transaction: &Transaction<'_>, moment: Age) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM refusals WHERE refused_ms <= ?1")?
        .execute([to_sql(moment.0)])?;
    Ok(())
}

/// Deletes what was last used at `moment` or before.
pub(crate) fn expire(transaction: &Transaction<'_>, moment: Age) -> rusqlite::Result<()> {
    for table in ["manifests", "tags", "sources"] {
        transaction
            .prepare_cached(&format!("DELETE FROM {table} WHERE used_ms <= ?1"))?
            .execute([to_sql(moment.0)])?;
    }
    // A right is kept as long as there is anything to have by it.
    transaction
        .prepare_cached(
            "DELETE FROM rights WHERE NOT EXISTS (
                 SELECT 1 FROM sources WHERE sources.upstream = rights.upstream AND sources.repository = rights.repository)",
        )?
        .execute([])?;
    Ok(())
}

/// The most rows of each table, and bytes of manifests.
pub(crate) struct Caps {
    pub(crate) names: u64,
    pub(crate) rights: u64,
    pub(crate) refusals: u64,
    pub(crate) manifest_bytes: u64,
}

/// Deletes the least recently used names beyond the caps.
pub(crate) fn cap(transaction: &Transaction<'_>, caps: &Caps) -> rusqlite::Result<()> {
    // What everybody may have is a holder of its own in each repository.
    let (right, refusal) = (
        "upstream, repository, holder, credential",
        "upstream, holder, credential",
    );
    let right_holder = "holder, iif(holder = x'', upstream || '/' || repository, '')";
    cap_shares(transaction, "rights", right, right_holder, "proven_ms", caps.rights)?;
    cap_shares(transaction, "refusals", refusal, "holder", "refused_ms", caps.refusals)?;
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

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::index::schema;

    const HOLDERS: [&[u8]; 3] = [b"", b"quiet", b"loud"];

    /// Rows of one of [`HOLDERS`], from a time on.
    fn fill(connection: &Connection, table: &str, holder: usize, rows: std::ops::Range<u32>) {
        let (columns, values) = match table {
            "rights" => (
                "upstream, repository, holder, credential, proven_ms",
                "'a.io', 'r' || ?2, ?1, iif(?1 = x'', x'', 'c' || ?2), ?2",
            ),
            _ => ("upstream, holder, credential, refused_ms", "'a.io', ?1, 'c' || ?2, ?2"),
        };
        let values = values.replace("'c' || ?2", "CAST('c' || ?2 AS BLOB)");
        let insert = format!("INSERT INTO {table} ({columns}) VALUES ({values})");
        for row in rows {
            connection.execute(&insert, (HOLDERS[holder], row)).unwrap();
        }
    }

    #[test]
    fn where_a_table_is_full_those_with_the_most_rows_lose_their_oldest() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::prepare(&mut connection).unwrap();
        // The quiet one's are the oldest; what everybody may have counts one by one.
        for table in ["rights", "refusals"] {
            fill(&connection, table, 1, 0..5);
            fill(&connection, table, 2, 100..200);
        }
        fill(&connection, "rights", 0, 50..60);
        let caps = Caps {
            names: 10,
            rights: 25,
            refusals: 15,
            manifest_bytes: 0,
        };
        let transaction = connection.transaction().unwrap();
        cap(&transaction, &caps).unwrap();
        transaction.commit().unwrap();
        for (table, time, counts) in [
            ("rights", "proven_ms", [10, 5, 10]),
            ("refusals", "refused_ms", [0, 5, 10]),
        ] {
            for (holder, expected) in HOLDERS.into_iter().zip(counts) {
                let (count, oldest): (i64, Option<i64>) = connection
                    .query_row(
                        &format!("SELECT count(*), min({time}) FROM {table} WHERE holder = ?1"),
                        [holder],
                        |row| row.try_into(),
                    )
                    .unwrap();
                assert_eq!(count, expected, "{table} {holder:?}");
                if holder == HOLDERS[2] {
                    assert_eq!(oldest, Some(190), "{table}");
                }
            }
        }
    }
}
