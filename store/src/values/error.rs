//! Errors that any operation of the store may end with.
//!
//! None of them makes other content worse.

use std::io;

use piecemeal_proto::Digest;

/// The index could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("the store's index failed")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the store's index could not be synced")]
    Sync(#[source] io::Error),
}

impl IndexError {
    /// Whether the file is no index any more, so that no later try succeeds: its pages are damaged, or its tables are gone.
    pub(crate) fn is_spoilt(&self) -> bool {
        match self {
            Self::Sqlite(error) => is_spoilt(error),
            Self::Sync(_) => false,
        }
    }
}

/// As [`IndexError::is_spoilt`].
pub(crate) fn is_spoilt(error: &rusqlite::Error) -> bool {
    use rusqlite::{Error, ErrorCode, ffi::SQLITE_IOERR_SHORT_READ};
    match error {
        Error::SqliteFailure(failure, _) => {
            matches!(
                failure.code,
                // A table that is missing, in a file that says it has the schema, is an "unknown" error.
                ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt | ErrorCode::Unknown
            ) || failure.extended_code == SQLITE_IOERR_SHORT_READ
        }
        Error::SqlInputError { .. } | Error::QueryReturnedNoRows => true,
        _ => false,
    }
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The bytes are not what the digest says; nothing was stored.
    #[error("digest mismatch: expected {expected}, computed {computed}")]
    DigestMismatch {
        expected: Box<Digest>,
        computed: Box<Digest>,
    },
    /// Nothing was stored.
    #[error("a manifest of {bytes} bytes is larger than {bytes_max}")]
    ManifestTooLarge { bytes: u64, bytes_max: u64 },
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The local disk; everything else is still good.
    #[error("the store's disk failed")]
    Io(#[from] io::Error),
}
