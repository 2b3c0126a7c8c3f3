//! Fields of a report, checked: digests, fills, cuts, windows and outcomes.
//!
//! Invariant: a field that cannot be used is an error that names it.

use std::ops::Range;

use piecemeal_proto::{Digest, FillId, PIECE_HASH_BYTES, PieceMap, wire};

use crate::brain::Outcome;

/// Why a report has no effect. The session goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadReportError {
    #[error("a report's {field} cannot be used")]
    Malformed { field: &'static str },
    #[error("only a mirror may report this")]
    MirrorsOnly,
    /// The daemon is told.
    #[error("the want of {digest} is refused: {reason}")]
    Want { digest: Digest, reason: String },
}

impl ReadReportError {
    /// For `refused_total{reason}`.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed",
            Self::MirrorsOnly => "mirrors_only",
            Self::Want { .. } => "want",
        }
    }
}

pub(crate) fn digest(text: &str) -> Result<Digest, ReadReportError> {
    text.parse().map_err(|_| malformed("digest"))
}

pub(crate) fn map(blob_bytes: u64, piece_bytes: u64) -> Result<PieceMap, ReadReportError> {
    PieceMap::new(blob_bytes, piece_bytes)
        .ok()
        .filter(|map| map.piece_bytes() >= PIECE_BYTES_FLOOR)
        .ok_or(malformed("piece size"))
}

pub(crate) fn fill(id: u64) -> Result<FillId, ReadReportError> {
    if id == 0 {
        Err(malformed("fill"))
    } else {
        Ok(FillId(id))
    }
}

impl From<&wire::LeaseEnded> for Outcome {
    fn from(ended: &wire::LeaseEnded) -> Self {
        let piece = ended.piece;
        match ended.outcome() {
            wire::Outcome::Done => Self::Done,
            wire::Outcome::Unreachable => Self::Unreachable,
            wire::Outcome::Stalled => Self::Stalled,
            wire::Outcome::Corrupt => Self::Corrupt { piece },
            wire::Outcome::Missing => Self::Missing { piece },
            wire::Outcome::Refused => Self::Refused,
            // Also an outcome of a later release: the lease is over, and no source is to blame for a reason that this release does
            // not know.
            wire::Outcome::Cancelled | wire::Outcome::Unspecified => Self::Cancelled,
        }
    }
}

/// The pieces that a daemon has room for; `None`: all.
pub(crate) fn window(want: &wire::Want, map: PieceMap) -> Option<Range<u32>> {
    let end = want.window_first.saturating_add(want.window_count).min(map.count());
    (want.window_count > 0).then(|| want.window_first.min(end)..end)
}

pub(crate) fn malformed(field: &'static str) -> ReadReportError {
    ReadReportError::Malformed { field }
}

/// Least size of a piece. Pieces smaller than twice their hash serve no purpose, and the hashes of a lease of them would not
/// fit into a message.
pub(crate) const PIECE_BYTES_FLOOR: u64 = 2 * PIECE_HASH_BYTES as u64;
