//! End of a connection to the scheduler: why it ended, and whether to try again soon.
//!
//! Invariant: only [`EndConnectionError::Lost`] is worth another try at once.

use piecemeal_tls::RefuseServerError;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndConnectionError {
    /// The scheduler refuses this daemon: to try again soon will not help.
    #[error("{0}")]
    Refused(String),
    /// The server that answers is not this site's scheduler: to try again soon will not help either.
    #[error(transparent)]
    Untrusted(#[from] RefuseServerError),
    /// The connection failed or broke: try again.
    #[error("{0}")]
    Lost(String),
    /// The receiver of this session's events is gone.
    #[error("this session has ended here")]
    Unheeded,
}
