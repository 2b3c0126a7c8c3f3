//! Values as SQLite keeps them. A value that makes no sense is `None`, never a panic.

use piecemeal_proto::{Digest, FillId, PieceMap};

/// SQLite's integers are signed; sizes and ages never come near the end of them.
pub(super) fn to_sql(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn from_sql(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A fill id is any 64 bits.
pub(super) fn fill_to_sql(fill: FillId) -> i64 {
    fill.0.cast_signed()
}

pub(super) fn fill_from_sql(value: i64) -> FillId {
    FillId(value.cast_unsigned())
}

/// `None` for a text that is no digest: the row was damaged.
pub(super) fn digest_from_sql(text: &str) -> Option<Digest> {
    text.parse().ok()
}

pub(super) fn map_from_sql(blob_bytes: i64, piece_bytes: i64) -> Option<PieceMap> {
    PieceMap::new(u64::try_from(blob_bytes).ok()?, u64::try_from(piece_bytes).ok()?).ok()
}
