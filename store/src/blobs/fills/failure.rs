//! Failure that ends a fill.
//!
//! The bytes that arrived are kept for a later resume unless they are known to be wrong.

/// Why a fill ended without its blob.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FillFailure {
    /// Its bytes are known to be bad. Nothing of it is kept.
    #[error("the download was revoked")]
    Revoked,
    /// Every piece was there, and the whole was not the blob. Nothing of it is kept.
    #[error("the download was complete and had another digest")]
    DigestMismatch,
    /// The bytes that arrived are kept for a later resume.
    #[error("upstream failed: {0}")]
    Upstream(String),
    /// The bytes that arrived are kept for a later resume.
    #[error("the disk failed: {0}")]
    Disk(String),
    /// The owner is going away, or no reader wants the blob any more. What arrived is kept for a later resume.
    #[error("the download was stopped")]
    Stopped,
}

impl FillFailure {
    /// Whether what arrived must not be used again.
    pub fn discards(&self) -> bool {
        matches!(self, Self::Revoked | Self::DigestMismatch)
    }
}
