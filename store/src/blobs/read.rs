//! Range of a read, and the errors of reading.
//!
//! A read returns no more than [`READ_BYTES_MAX`].

use std::{io, ops::Range};

use piecemeal_proto::Digest;

use super::fills::failure::FillFailure;

/// The most that one read returns, in bytes: enough to keep a disk busy, little enough to hold once per client.
pub const READ_BYTES_MAX: u64 = 1024 * 1024;

/// Bytes of a blob that a reader wants, and when it gets those of the blob's final piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRange {
    pub bytes: Range<u64>,
    /// The reader checks a small part for itself: it gets bytes of the final piece once that has landed. All others wait for the proof of the
    /// blob's digest.
    pub is_early: bool,
}

impl From<Range<u64>> for ReadRange {
    fn from(bytes: Range<u64>) -> Self {
        Self { bytes, is_early: false }
    }
}

/// Why bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadBlobError {
    /// The caller's mistake: the range runs backwards or over the end.
    #[error("the range {}..{} does not lie in a blob of {blob_bytes} bytes", range.start, range.end)]
    OutOfRange { range: Range<u64>, blob_bytes: u64 },
    /// The file is shorter than its blob. The blob was dropped; ask for it again from elsewhere.
    #[error("the file of {digest} is shorter than the blob")]
    Truncated { digest: Digest },
    /// A piece no longer matches its hash, or cannot be read. The blob was dropped; ask for it again.
    #[error("piece {piece} of {digest} is damaged on disk")]
    Damaged { digest: Digest, piece: u32 },
    /// There was no room to keep the blob, and the reader was too far behind the others: what it wants is gone.
    #[error("the blob is not cached here, and the requested bytes have already passed")]
    Passed,
    /// The fill ended without the blob; what was read before is still good.
    #[error("the fill was abandoned")]
    Abandoned(#[source] FillFailure),
    /// The local disk; ask elsewhere.
    #[error("failed to read from the store")]
    Io(#[from] io::Error),
}

/// Refuses a range outside the blob, and shortens a long one to what one read returns.
pub(crate) fn check_range(range: Range<u64>, blob_bytes: u64) -> Result<Range<u64>, ReadBlobError> {
    if range.start > range.end || range.end > blob_bytes {
        return Err(ReadBlobError::OutOfRange { range, blob_bytes });
    }
    let end = range.end.min(range.start.saturating_add(READ_BYTES_MAX));
    Ok(range.start..end)
}
