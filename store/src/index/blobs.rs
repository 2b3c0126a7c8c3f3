//! Rows of complete blobs.
//!
//! A row stands for a file that was synced.

use std::sync::Arc;

use piecemeal_proto::{Digest, FillId, PieceHash, PieceMap};
use rusqlite::{OptionalExtension as _, Transaction};

use super::{
    connection::Index,
    sql::{ListedRow, digest_from_sql, fill_from_sql, fill_to_sql, list, map_from_sql, to_sql},
};
use crate::values::{clock::Age, error::IndexError, piece_hashes::ListSignature};

/// A complete blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobRow {
    pub(crate) map: PieceMap,
    pub(crate) fill: FillId,
    /// One for each piece.
    pub(crate) piece_hashes: Arc<[PieceHash]>,
    /// The authority's, over the list of them.
    pub(crate) signature: Option<ListSignature>,
}

impl Index {
    /// `None` also for a row that makes no sense.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Option<BlobRow>, IndexError> {
        let connection = self.read();
        let mut statement = connection.prepare_cached(
            "SELECT blob_bytes, piece_bytes, fill, piece_hashes, signature FROM blobs WHERE digest = ?1",
        )?;
        let row = statement
            .query_row([digest.to_string()], |row| {
                let (hashes, signature): (Vec<u8>, Option<Vec<u8>>) = (row.get(3)?, row.get(4)?);
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, hashes, signature))
            })
            .optional()?;
        Ok(row.and_then(|(blob_bytes, piece_bytes, fill, hashes, signature)| {
            let map = map_from_sql(blob_bytes, piece_bytes)?;
            let (piece_hashes, rest) = hashes.as_chunks::<32>();
            (rest.is_empty() && piece_hashes.len() == map.count() as usize).then(|| BlobRow {
                map,
                fill: fill_from_sql(fill),
                piece_hashes: piece_hashes.into(),
                signature: signature.and_then(|bytes| bytes.try_into().ok()),
            })
        }))
    }

    /// At most `count` blobs that were last verified at `moment` or before, the oldest first.
    pub(crate) fn unverified_since(&self, moment: Age, count: u32) -> Result<Vec<Digest>, IndexError> {
        let connection = self.read();
        let mut statement = connection
            .prepare_cached("SELECT digest FROM blobs WHERE verified_ms <= ?1 ORDER BY verified_ms LIMIT ?2")?;
        let rows = statement.query_map((to_sql(moment.0), count), |row| row.get::<_, String>(0))?;
        let digests = rows.filter_map(|text| text.map(|text| digest_from_sql(&text)).transpose());
        Ok(digests.collect::<rusqlite::Result<_>>()?)
    }

    /// Digest, size and last use of every blob; rows without a readable digest or size are given as text, to be dropped.
    pub(crate) fn blobs(&self) -> Result<Vec<ListedRow>, IndexError> {
        Ok(list(&self.read(), "blobs")?)
    }
}

pub(crate) fn insert(transaction: &Transaction<'_>, digest: &Digest, row: &BlobRow, used: Age) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT OR REPLACE INTO blobs (digest, blob_bytes, piece_bytes, fill, piece_hashes, signature, used_ms, verified_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)",
        )?
        .execute((
            digest.to_string(),
            to_sql(row.map.blob_bytes()),
            to_sql(row.map.piece_bytes()),
            fill_to_sql(row.fill),
            row.piece_hashes.as_flattened(),
            row.signature,
            to_sql(used.0),
        ))?;
    Ok(())
}

/// Keeps a signature over the blob's piece hashes, if they are of pieces of that size; says whether they are.
pub(crate) fn sign(
    transaction: &Transaction<'_>,
    digest: &Digest,
    piece_bytes: u64,
    signature: &ListSignature,
) -> rusqlite::Result<bool> {
    let changed = transaction
        .prepare_cached("UPDATE blobs SET signature = ?3 WHERE digest = ?1 AND piece_bytes = ?2")?
        .execute((digest.to_string(), to_sql(piece_bytes), signature))?;
    Ok(changed > 0)
}

pub(crate) fn touch(transaction: &Transaction<'_>, digest: &Digest, used: Age) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE blobs SET used_ms = ?2 WHERE digest = ?1")?
        .execute((digest.to_string(), to_sql(used.0)))?;
    Ok(())
}

pub(crate) fn verified(transaction: &Transaction<'_>, digest: &Digest, now: Age) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE blobs SET verified_ms = ?2 WHERE digest = ?1")?
        .execute((digest.to_string(), to_sql(now.0)))?;
    Ok(())
}

/// `digest` is a text, so that a damaged row can be deleted too.
pub(crate) fn delete(transaction: &Transaction<'_>, digest: &str) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("DELETE FROM blobs WHERE digest = ?1")?
        .execute([digest])?;
    Ok(())
}
