//! Rows of partials: blobs that are not complete, their pieces and partial pieces.
//!
//! They are hints: a piece counts only when the file has bytes with its hash.

use piecemeal_proto::{Digest, FillId, PieceHash, PieceMap};
use rusqlite::{Connection, OptionalExtension as _, Transaction};

use super::{
    connection::Index,
    sql::{ListedRow, fill_from_sql, fill_to_sql, list, map_from_sql, to_sql},
};
use crate::values::{clock::Age, error::IndexError};

/// A partial, with the pieces that it may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartialRow {
    pub(crate) id: i64,
    pub(crate) map: PieceMap,
    pub(crate) fill: FillId,
    /// Ascending, each below the map's count.
    pub(crate) pieces: Vec<(u32, PieceHash)>,
    /// Each shorter than its piece, which is not among `pieces` unless the process died between two writes.
    pub(crate) partial_pieces: Vec<PartialPieceRow>,
}

/// The first `bytes` of a piece, and their hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartialPieceRow {
    pub(crate) piece: u32,
    pub(crate) bytes: u64,
    pub(crate) hash: PieceHash,
}

/// A change of a partial piece.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartialPieceChange {
    pub(crate) piece: u32,
    /// The part of it that is here now. `None`: nothing, or the whole piece.
    pub(crate) now: Option<PartialPieceRow>,
}

/// Changes of a partial since it was last stored.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Those that landed.
    pub(crate) pieces: Vec<(u32, PieceHash)>,
    pub(crate) partial_pieces: Vec<PartialPieceChange>,
}

impl Index {
    /// `None` also for a row that makes no sense; pieces that make none are left out.
    pub(crate) fn partial(&self, digest: &Digest) -> Result<Option<PartialRow>, IndexError> {
        let connection = self.read();
        let row = connection
            .prepare_cached("SELECT id, blob_bytes, piece_bytes, fill FROM partials WHERE digest = ?1")?
            .query_row([digest.to_string()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        let Some((id, blob_bytes, piece_bytes, fill)) = row else {
            return Ok(None);
        };
        let Some(map) = map_from_sql(blob_bytes, piece_bytes) else {
            return Ok(None);
        };
        let mut statement =
            connection.prepare_cached("SELECT piece, hash FROM partial_pieces WHERE partial = ?1 ORDER BY piece")?;
        let rows = statement.query_map([id], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        let mut pieces = Vec::new();
        for row in rows {
            let (piece, hash): (i64, _) = row?;
            if let (Ok(piece), Ok(hash)) = (u32::try_from(piece), hash.try_into())
                && piece < map.count()
            {
                pieces.push((piece, hash));
            }
        }
        Ok(Some(PartialRow {
            id,
            map,
            fill: fill_from_sql(fill),
            pieces,
            partial_pieces: read_partial_pieces(&connection, id, map)?,
        }))
    }

    /// Digest, size and last use of every partial; damaged rows as text, to be dropped.
    pub(crate) fn partials(&self) -> Result<Vec<ListedRow>, IndexError> {
        Ok(list(&self.read(), "partials")?)
    }
}

/// Rows that make no sense are left out.
fn read_partial_pieces(connection: &Connection, id: i64, map: PieceMap) -> rusqlite::Result<Vec<PartialPieceRow>> {
    let mut statement = connection.prepare_cached("SELECT piece, bytes, hash FROM partial_tails WHERE partial = ?1")?;
    let rows = statement.query_map([id], |row| <(i64, i64, Vec<u8>)>::try_from(row))?;
    let mut partial_pieces = Vec::new();
    for row in rows {
        let (piece, bytes, hash) = row?;
        if let (Ok(piece), Ok(bytes), Ok(hash)) = (u32::try_from(piece), u64::try_from(bytes), hash.try_into())
            && piece < map.count()
            && bytes < map.len(piece)
        {
            partial_pieces.push(PartialPieceRow { piece, bytes, hash });
        }
    }
    Ok(partial_pieces)
}

/// The hash that stands for a piece of which only the blob's own digest can say whether it is good. An older release drops such a piece.
const UNKNOWN: PieceHash = [0; 32];

impl PartialRow {
    /// Whether the file may be the whole blob, and nothing is known of its pieces: see [`insert_unproven`].
    pub(crate) fn is_unproven(&self) -> bool {
        self.pieces == [(0, UNKNOWN)]
    }
}

/// Adds a partial for a file of which nothing is known but its name and its length.
pub(crate) fn insert_unproven(
    transaction: &Transaction<'_>,
    digest: &Digest,
    map: PieceMap,
    used: Age,
) -> rusqlite::Result<()> {
    let id = insert(transaction, digest, map, FillId(0), used)?;
    let progress = Progress {
        pieces: vec![(0, UNKNOWN)],
        partial_pieces: Vec::new(),
    };
    save(transaction, id, &progress, used)
}

/// Adds a partial without pieces, in place of an older one; returns its id.
pub(crate) fn insert(
    transaction: &Transaction<'_>,
    digest: &Digest,
    map: PieceMap,
    fill: FillId,
    used: Age,
) -> rusqlite::Result<i64> {
    delete(transaction, &digest.to_string())?;
    transaction
        .prepare_cached(
            "INSERT INTO partials (digest, blob_bytes, piece_bytes, fill, used_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute((
            digest.to_string(),
            to_sql(map.blob_bytes()),
            to_sql(map.piece_bytes()),
            fill_to_sql(fill),
            to_sql(used.0),
        ))?;
    Ok(transaction.last_insert_rowid())
}

/// Adds pieces to a partial and changes its partial pieces, unless that partial is gone by now.
pub(crate) fn save(transaction: &Transaction<'_>, id: i64, progress: &Progress, used: Age) -> rusqlite::Result<()> {
    let known = transaction
        .prepare_cached("UPDATE partials SET used_ms = ?2 WHERE id = ?1")?
        .execute((id, to_sql(used.0)))?;
    if known == 0 {
        return Ok(());
    }
    let mut statement = transaction
        .prepare_cached("INSERT OR REPLACE INTO partial_pieces (partial, piece, hash) VALUES (?1, ?2, ?3)")?;
    for (piece, hash) in &progress.pieces {
        statement.execute((id, i64::from(*piece), hash))?;
    }
    for change in &progress.partial_pieces {
        set_partial_piece(transaction, id, change)?;
    }
    Ok(())
}

fn set_partial_piece(transaction: &Transaction<'_>, id: i64, change: &PartialPieceChange) -> rusqlite::Result<()> {
    let piece = i64::from(change.piece);
    match &change.now {
        Some(row) => transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO partial_tails (partial, piece, bytes, hash) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((id, piece, to_sql(row.bytes), row.hash))?,
        None => transaction
            .prepare_cached("DELETE FROM partial_tails WHERE partial = ?1 AND piece = ?2")?
            .execute((id, piece))?,
    };
    Ok(())
}

/// Deletes pieces that turned out not to be on the disk.
pub(crate) fn drop_pieces(transaction: &Transaction<'_>, id: i64, pieces: &[u32]) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached("DELETE FROM partial_pieces WHERE partial = ?1 AND piece = ?2")?;
    for piece in pieces {
        statement.execute((id, i64::from(*piece)))?;
    }
    Ok(())
}

/// `digest` is a text, so that a damaged row can be deleted too.
pub(crate) fn delete(transaction: &Transaction<'_>, digest: &str) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM partials WHERE digest = ?1")?
        .execute([digest])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        index::{
            blobs::{self, BlobRow},
            connection::Durability,
        },
        values::clock::SystemClock,
    };

    #[test]
    fn damaged_rows_are_misses() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("index.db"), Arc::new(SystemClock::new())).unwrap();
        let (digest, map) = (Digest::of(b""), PieceMap::new(9, 4).unwrap());
        let hashes = [[1; 32]; 3];
        let row = BlobRow {
            map,
            fill: FillId(u64::MAX),
            piece_hashes: hashes.into(),
            signature: Some([2; 64]),
        };
        let partial_piece = PartialPieceRow {
            piece: 1,
            bytes: 3,
            hash: hashes[0],
        };
        let id = index
            .write(Durability::Batched, |transaction| {
                blobs::insert(transaction, &digest, &row, Age(4))?;
                let id = insert(transaction, &digest, map, FillId(u64::MAX), Age(4))?;
                let pieces = vec![(2, hashes[0]), (7, hashes[0])];
                let progress = Progress {
                    pieces,
                    partial_pieces: vec![PartialPieceChange {
                        piece: 1,
                        now: Some(partial_piece),
                    }],
                };
                save(transaction, id, &progress, Age(5))?;
                save(transaction, id + 1, &progress, Age(5))?;
                Ok(id)
            })
            .unwrap();
        assert_eq!(index.blob(&digest).unwrap(), Some(row.clone()));
        index.read().execute("UPDATE blobs SET signature = x'00'", []).unwrap();
        let unsigned = BlobRow { signature: None, ..row };
        assert_eq!(index.blob(&digest).unwrap(), Some(unsigned), "half a signature is none");
        let partial = index.partial(&digest).unwrap().unwrap();
        assert_eq!((partial.id, partial.fill), (id, FillId(u64::MAX)));
        assert_eq!(partial.pieces, [(2, hashes[0])], "no piece beyond the map");
        assert_eq!(partial.partial_pieces, [partial_piece]);
        index.read().execute("UPDATE partial_tails SET bytes = 4", []).unwrap();
        let partial = index.partial(&digest).unwrap().unwrap();
        assert_eq!(partial.partial_pieces, [], "a whole piece is no partial one");
        for damage in [
            "UPDATE blobs SET piece_hashes = x'00'",
            "UPDATE blobs SET blob_bytes = -1",
            "UPDATE partials SET piece_bytes = 0",
            "UPDATE partial_pieces SET hash = x'00'",
        ] {
            index.read().execute(damage, []).unwrap();
        }
        assert_eq!(index.blob(&digest).unwrap(), None);
        assert_eq!(index.partial(&digest).unwrap(), None);
        assert_eq!(index.blobs().unwrap(), [Err(digest.to_string())]);
    }
}
