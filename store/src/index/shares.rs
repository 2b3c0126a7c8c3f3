//! Shares of a full table: which rows go, so that no owner makes the rows of others go.
//!
//! Each owner keeps its newest rows, all of them as many, until the table is full: an owner with few rows loses none to one with
//! many. Owners are nested: repositories of a registry, registries of a domain, domains. An owner can make up names only within
//! what is its own.
//!
//! The remaining weakness: domains cost money, but are not bounded. Registries that have an address for a name count by a part of it,
//! the last two numbers or the first group.

use rusqlite::Transaction;

use super::sql::{from_sql, to_sql};

/// The rows that a table of more than `max` keeps: a little less than that, so that it is not sorted again for each new row.
pub(super) fn kept_of(max: u64) -> u64 {
    max - max / 64
}

/// The rows of `table` with the `domain` of their upstream: the last two labels of its host, or the only one. Names below a domain
/// cost its owner nothing.
pub(super) fn with_domain(table: &str) -> String {
    // `rtrim` with all letters of a host takes its last label.
    format!(
        "SELECT *, substr(host, 1 + length(rtrim(rtrim(rtrim(host, letters), '.'), letters))) AS domain FROM (
             SELECT *, replace(host, '.', '') AS letters FROM (
                 SELECT *, substr(upstream, 1, instr(upstream || ':', ':') - 1) AS host FROM {table}))"
    )
}

/// A table, and who shares it.
pub(super) struct Shares<'a> {
    pub(super) table: &'a str,
    /// The columns of its primary key.
    pub(super) key: &'a str,
    /// The column that says how old a row is.
    pub(super) time: &'a str,
    /// The columns by which its owners are told apart, the innermost owners first. `domain` is one.
    pub(super) owners: &'a [&'a str],
}

impl Shares<'_> {
    /// Deletes the oldest rows of those owners that have the most, where there are more than `rows_max`.
    pub(super) fn cap(&self, transaction: &Transaction<'_>, rows_max: u64) -> rusqlite::Result<()> {
        let Self { table, key, .. } = self;
        let rows: i64 = transaction
            .prepare_cached(&format!("SELECT count(*) FROM {table}"))?
            .query_row([], |row| row.get(0))?;
        if from_sql(rows) <= rows_max {
            return Ok(());
        }
        let mut order = format!("{} DESC, {key}", self.time);
        let mut placed = with_domain(table);
        for (level, owner) in self.owners.iter().enumerate() {
            placed = format!(
                "SELECT *, row_number() OVER (PARTITION BY {owner} ORDER BY {order}) AS place{level} FROM ({placed})"
            );
            order = format!("place{level}, {} DESC, {key}", self.time);
        }
        transaction
            .prepare_cached(&format!(
                "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM ({placed}) ORDER BY {order} LIMIT -1 OFFSET ?1)"
            ))?
            .execute([to_sql(kept_of(rows_max))])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    #[test]
    fn names_below_a_domain_are_one_owners() {
        let connection = Connection::open_in_memory().unwrap();
        for (upstream, expected) in [
            ("docker.io", "docker.io"),
            ("a.b.evil.test:5000", "evil.test"),
            ("evil.test", "evil.test"),
            ("localhost:5000", "localhost"),
            ("10.1.2.3:5000", "2.3"),
            ("[fd00::1]:5000", "[fd00"),
            ("..", ".."),
            ("", ""),
        ] {
            let select = format!("SELECT domain FROM ({})", with_domain("(SELECT ?1 AS upstream)"));
            let domain: String = connection.query_row(&select, [upstream], |row| row.get(0)).unwrap();
            assert_eq!(domain, expected, "{upstream}");
        }
    }
}
