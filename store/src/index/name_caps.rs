//! Caps of the tables of names: which manifests, tags and sources go when there are too many.
//!
//! An owner with few rows loses none to one with many: see [`Shares`].

use rusqlite::Transaction;

use super::{
    shares::{Shares, kept_of, with_domain},
    sql::{from_sql, to_sql},
};
use crate::values::clock::Age;

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

/// Deletes the least recently used names beyond the caps, of those repositories, registries and domains that have the most.
pub(crate) fn cap(transaction: &Transaction<'_>, caps: &Caps) -> rusqlite::Result<()> {
    for (table, key) in [
        ("tags", "upstream, repository, tag"),
        ("sources", "digest, upstream, repository"),
    ] {
        let shares = Shares {
            table,
            key,
            time: "used_ms",
            owners: &["upstream, repository", "upstream", "domain"],
        };
        shares.cap(transaction, caps.names)?;
    }
    cap_manifests(transaction, caps.manifest_bytes)
}

/// The same by bytes. A manifest of several repositories stays as long as one of them keeps it. One that no repository has is read by
/// no caller.
fn cap_manifests(transaction: &Transaction<'_>, bytes_max: u64) -> rusqlite::Result<()> {
    let bytes: i64 = transaction
        .prepare_cached("SELECT coalesce(sum(length(bytes)), 0) FROM manifests")?
        .query_row([], |row| row.get(0))?;
    if from_sql(bytes) <= bytes_max {
        return Ok(());
    }
    transaction
        .prepare_cached(&format!(
            "WITH
                 had AS (
                     SELECT digest, upstream, repository, domain, length(bytes) AS size, manifests.used_ms AS used
                     FROM manifests JOIN ({}) AS sources USING (digest)),
                 by_repository AS (
                     SELECT *, sum(size) OVER (PARTITION BY upstream, repository ORDER BY used DESC, digest) AS place0 FROM had),
                 by_upstream AS (
                     SELECT *, sum(size) OVER (PARTITION BY upstream ORDER BY place0, used DESC, digest, repository) AS place1
                     FROM by_repository),
                 by_domain AS (
                     SELECT *, sum(size) OVER (PARTITION BY domain ORDER BY place1, used DESC, digest, upstream, repository) AS place
                     FROM by_upstream),
                 placed AS (SELECT digest, size, used, min(place) AS place FROM by_domain GROUP BY digest),
                 counted AS (SELECT digest, sum(size) OVER (ORDER BY place, used DESC, digest) AS total FROM placed)
             DELETE FROM manifests WHERE digest NOT IN (SELECT digest FROM counted WHERE total <= ?1)",
            with_domain("sources")
        ))?
        .execute([to_sql(kept_of(bytes_max))])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::Digest;
    use rusqlite::Connection;

    use super::*;
    use crate::{
        index::{
            manifests, schema, sources,
            tags::{self, TagRow},
        },
        values::repository::Repository,
    };

    const CAPS: Caps = Caps {
        names: 60,
        manifest_bytes: 60 * 64 + 63,
    };

    /// Puts a row of one repository into each table.
    fn put(transaction: &Transaction<'_>, upstream: &str, name: &str, number: u32, used: u64) {
        let at = Repository {
            upstream: upstream.to_owned(),
            name: name.to_owned(),
        };
        let digest = Digest::of(number.to_string().as_bytes());
        manifests::put(transaction, &digest, "", &[0; 64], Age(used)).unwrap();
        sources::put(transaction, &at, &digest, Age(used)).unwrap();
        let checked = Age(used);
        tags::put(transaction, &at, &number.to_string(), TagRow { digest, checked }).unwrap();
    }

    /// Rows of tags, sources and manifests of the repositories that are like this.
    fn counts(transaction: &Transaction<'_>, upstream: &str, repository: &str) -> [i64; 3] {
        [
            "count(*) FROM tags",
            "count(*) FROM sources",
            "count(*) FROM manifests JOIN sources USING (digest)",
        ]
        .map(|rows| {
            let select = format!("SELECT {rows} WHERE upstream LIKE ?1 AND repository LIKE ?2");
            let row = transaction.query_row(&select, (upstream, repository), |row| row.get(0));
            row.unwrap()
        })
    }

    /// After 500 younger rows of `evil`, by their number.
    fn flooded(evil: impl Fn(u32) -> (String, String)) -> [[i64; 3]; 2] {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::prepare(&mut connection).unwrap();
        let transaction = connection.transaction().unwrap();
        for number in 0..30 {
            put(&transaction, "a.io", "team/app", number, u64::from(number));
        }
        for number in 1000..1500 {
            let (upstream, name) = evil(number);
            put(&transaction, &upstream, &name, number, u64::from(number));
        }
        cap(&transaction, &CAPS).unwrap();
        [counts(&transaction, "a.io", "team/app"), counts(&transaction, "%", "%")]
    }

    #[test]
    fn repositories_that_one_registry_makes_up_take_no_name_of_another() {
        let flooded = flooded(|number| ("e.test".to_owned(), format!("r{number}")));
        assert_eq!(flooded, [[30; 3], [60; 3]]);
    }

    #[test]
    fn registries_that_one_domain_makes_up_take_no_name_of_another() {
        let flooded = flooded(|number| (format!("r{number}.evil.test:{number}"), "app".to_owned()));
        assert_eq!(flooded, [[30; 3], [60; 3]]);
    }

    #[test]
    fn one_repository_of_a_registry_takes_no_name_of_another() {
        let flooded = flooded(|_| ("a.io".to_owned(), "strangers/app".to_owned()));
        assert_eq!(flooded, [[30; 3], [60; 3]]);
    }

    #[test]
    fn where_there_is_room_for_all_each_keeps_its_own_and_the_oldest_of_the_largest_go_first() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::prepare(&mut connection).unwrap();
        let transaction = connection.transaction().unwrap();
        for number in 0..60 {
            put(&transaction, "a.io", "team/app", number, u64::from(number));
        }
        cap(&transaction, &CAPS).unwrap();
        assert_eq!(counts(&transaction, "a.io", "%"), [60; 3]);
        put(&transaction, "b.io", "app", 1000, 0);
        cap(&transaction, &CAPS).unwrap();
        let counts = ["a.io", "b.io"].map(|upstream| counts(&transaction, upstream, "%"));
        assert_eq!(counts, [[59; 3], [1; 3]]);
        let oldest: String = transaction
            .query_row(
                "SELECT tag FROM tags WHERE upstream = 'a.io' ORDER BY used_ms LIMIT 1",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(oldest, "1");
    }
}
