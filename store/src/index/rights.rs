//! Rows of rights and refusals: which credential of which node an upstream has served or refused.
//!
//! A credential is never stored, only a keyed hash of it.

use piecemeal_proto::NodeId;
use ring::hmac;
use rusqlite::{OptionalExtension as _, Transaction};

use super::{
    connection::Index,
    shares::Shares,
    sql::{from_sql, to_sql},
};
use crate::values::{
    clock::Age,
    error::IndexError,
    repository::Repository,
    right::{Holder, Shown},
};

/// The most credentials of one node that have a right in one repository. A client of a registry with tokens shows a new one with
/// each pull.
pub(crate) const SERVED_MAX: u64 = 64;
/// The most credentials of one node that are known as refused by one upstream. With so many some may have been forgotten, and no
/// credential counts as new.
pub(crate) const REFUSED_MAX: u64 = 256;
/// The stored values of the site's own credential, and of none. A keyed hash is longer.
const SITE: &[u8] = b"site";
const NOTHING: &[u8] = b"nothing";

/// When upstream last served a node from a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeRightRow {
    pub(crate) by_any: Option<Age>,
    pub(crate) by_this: Option<Age>,
    /// See [`crate::NodeRight::is_known`].
    pub(crate) is_known: bool,
}

impl NodeRightRow {
    /// What two indexes say together.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            by_any: self.by_any.max(other.by_any),
            by_this: self.by_this.max(other.by_this),
            is_known: self.is_known || other.is_known,
        }
    }
}

impl Index {
    /// When upstream last served the repository without a credential.
    pub(crate) fn public_right(&self, at: &Repository) -> Result<Option<Age>, IndexError> {
        let connection = self.read();
        let row: Option<i64> = connection
            .prepare_cached("SELECT proven_ms FROM rights WHERE upstream = ?1 AND repository = ?2 AND holder = x''")?
            .query_row((&at.upstream, &at.name), |row| row.get(0))
            .optional()?;
        Ok(row.map(|proven_ms| Age(from_sql(proven_ms))))
    }

    /// Of each upstream the repositories that it served last without a credential, so many at the most, each with a manifest of it
    /// that is here.
    pub(crate) fn public_manifests(&self, max: usize) -> Result<Vec<(Repository, String)>, IndexError> {
        let connection = self.read();
        let mut statement = connection.prepare(
            "SELECT upstream, repository, digest FROM (
                 SELECT upstream, repository, digest,
                        row_number() OVER (PARTITION BY upstream ORDER BY proven_ms DESC) AS place
                 FROM (SELECT rights.upstream, rights.repository, rights.proven_ms, min(manifests.digest) AS digest
                       FROM rights JOIN sources USING (upstream, repository) JOIN manifests USING (digest)
                       WHERE holder = x'' GROUP BY rights.upstream, rights.repository))
             WHERE place <= ?1",
        )?;
        let rows = statement.query_map([to_sql(max as u64)], |row| {
            let (upstream, name) = (row.get(0)?, row.get(1)?);
            Ok((Repository { upstream, name }, row.get(2)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A node's rights to the repository, by all of its credentials and by this one.
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
        // In a full table, a missing right may have made room for another credential's.
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
            Holder::Public => HolderRow {
                node: Vec::new(),
                credential: Vec::new(),
            },
            Holder::Node(node, shown) => HolderRow {
                node: node.0.to_vec(),
                credential: self.shown_to_sql(shown),
            },
        }
    }

    /// A keyed hash: never the credential itself, nor a value from which it could be guessed without the store's key.
    fn shown_to_sql(&self, shown: Shown) -> Vec<u8> {
        match shown {
            Shown::Site => SITE.to_vec(),
            Shown::Nothing => NOTHING.to_vec(),
            Shown::Client(fingerprint) => hmac::sign(&self.credential_key, &fingerprint).as_ref().to_vec(),
        }
    }
}

/// A holder as it is written down.
pub(crate) struct HolderRow {
    /// A node's id; empty for the public.
    node: Vec<u8>,
    credential: Vec<u8>,
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

/// Deletes the rights of repositories that have no content here.
pub(crate) fn expire(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "DELETE FROM rights WHERE NOT EXISTS (
                 SELECT 1 FROM sources WHERE sources.upstream = rights.upstream AND sources.repository = rights.repository)",
        )?
        .execute([])?;
    Ok(())
}

/// Deletes refusals from `moment` or before.
pub(crate) fn expire_refusals(transaction: &Transaction<'_>, moment: Age) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM refusals WHERE refused_ms <= ?1")?
        .execute([to_sql(moment.0)])?;
    Ok(())
}

/// Deletes the oldest rows beyond so many in each table, of those holders that have the most.
pub(crate) fn cap(transaction: &Transaction<'_>, rights_max: u64, refusals_max: u64) -> rusqlite::Result<()> {
    let rights = Shares {
        table: "rights",
        key: "upstream, repository, holder, credential",
        time: "proven_ms",
        // Public rights are the domain's own.
        owners: &[
            "holder, upstream",
            "holder, domain",
            "holder, iif(holder = x'', domain, '')",
        ],
    };
    rights.cap(transaction, rights_max)?;
    let refusals = Shares {
        table: "refusals",
        key: "upstream, holder, credential",
        time: "refused_ms",
        owners: &["holder, upstream", "holder, domain", "holder"],
    };
    refusals.cap(transaction, refusals_max)
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
        // The quiet holder's rows are the oldest; each public right counts as a holder of its own.
        for table in ["rights", "refusals"] {
            fill(&connection, table, 1, 0..5);
            fill(&connection, table, 2, 100..200);
        }
        fill(&connection, "rights", 0, 50..60);
        let transaction = connection.transaction().unwrap();
        cap(&transaction, 25, 15).unwrap();
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
    #[test]
    fn public_repositories_of_one_registry_take_no_right_of_a_node_nor_of_another_registry() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::prepare(&mut connection).unwrap();
        let insert =
            "INSERT INTO rights (upstream, repository, holder, credential, proven_ms) VALUES (?1, ?2, ?3, ?3, ?4)";
        let put = |upstream: &str, repository: u32, holder: &[u8], proven: u32| {
            let row = (upstream, repository.to_string(), holder, proven);
            connection.execute(insert, row).unwrap();
        };
        for number in 0..10 {
            put("a.io", number, b"node", number);
            put("b.io", number, b"", number);
        }
        for number in 100..500 {
            put("evil.test", number, b"", number);
            put(&format!("{number}.evil.test"), number, b"", number);
            // The same by a workload on the node itself.
            put("evil.test", number, b"node", number);
        }
        let transaction = connection.transaction().unwrap();
        cap(&transaction, 60, 1).unwrap();
        let count = |upstream: &str| -> i64 {
            let select = "SELECT count(*) FROM rights WHERE upstream LIKE ?1";
            transaction.query_row(select, [upstream], |row| row.get(0)).unwrap()
        };
        assert_eq!([count("a.io"), count("b.io"), count("%evil.test")], [10, 10, 40]);
    }
}
