//! Errors of a pull, by what a client does about them.
//!
//! Invariant: a verdict of the source stands, and only another failure may be answered with older content.

use std::time::Duration;

use piecemeal_proto::ParseReferenceError;
use piecemeal_store::StoreError;

/// Why content cannot be served. Cloned to every client that waits for the same answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PullError {
    /// The request itself is malformed. 400, or 404 where the specification wants it.
    #[error("{0}")]
    Malformed(#[from] ParseReferenceError),
    /// A number was expected in the query. 400.
    #[error("{0:?} is not a number of tags")]
    Number(String),
    /// The upstream is not configured: the client goes there itself. 404.
    #[error("no upstream named {0} is configured here")]
    UnknownUpstream(String),
    /// Upstream says that it does not exist. 404.
    #[error("{0}")]
    Unknown(String),
    /// Upstream refuses this caller: 401 or 403, with its challenges.
    #[error("{upstream} answered {status}")]
    Denied {
        upstream: String,
        status: u16,
        challenges: Vec<String>,
    },
    /// Upstream refuses this very request with another 4xx: for the size of its credential or of its path, say. That status.
    #[error("{upstream} answered {status} for {path}")]
    Rejected {
        upstream: String,
        status: u16,
        path: String,
    },
    /// The caller's credential may not be sent on from here. 403.
    #[error("{0}")]
    Withheld(String),
    /// The request has come back to where it started. 421.
    #[error("{0}")]
    Loop(String),
    /// Upstream asks to come back later. 429.
    #[error("{upstream} answered 429, too many requests")]
    TooManyRequests {
        upstream: String,
        retry_after: Option<String>,
    },
    /// The source answered something that cannot be right. 502.
    #[error("{0}")]
    BadGateway(String),
    /// Upstream leads to a place where upstreams may not lead. 502.
    /// `target`: with the reason and the setting.
    #[error("{upstream} leads to {target}")]
    Misled { upstream: String, target: String },
    /// The source answers that it cannot now, or does not answer this request. 503.
    #[error("{0}")]
    Unavailable(String),
    /// The source has not answered yet, and the request is still under way: there is no error so far. 503.
    #[error("{0}")]
    Pending(String),
    /// The source is lost: it does not answer a probe of this daemon either. 503.
    #[error("{0}")]
    Unreachable(String),
    /// This node's disk. 500; the client goes elsewhere.
    #[error("the content store failed: {0}")]
    Store(String),
}

impl PullError {
    /// Whether the source's own word stands (it does not exist, it is not allowed), so that nothing older may be served instead.
    pub fn is_verdict(&self) -> bool {
        matches!(
            self,
            Self::Malformed(_)
                | Self::Number(_)
                | Self::UnknownUpstream(_)
                | Self::Unknown(_)
                | Self::Denied { .. }
                | Self::Rejected { .. }
                | Self::Withheld(_)
                | Self::Loop(_)
        )
    }

    /// Whether it concerns the caller and its right alone: another caller may get another answer. A 404 does as well: registries
    /// use it to hide what a caller may not see.
    pub fn is_refusal(&self) -> bool {
        self.is_verdict() || matches!(self, Self::TooManyRequests { .. })
    }

    /// Whether the source is not there at all, so that another may be asked for the same.
    pub fn is_source_lost(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}

impl From<StoreError> for PullError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

/// The longest wait of a client for a status line when nothing moves: containerd before 2.3 has no limit of its own.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest time of a source to its status line, through redirects' and tokens' round trips one by one.
pub const SOURCE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait of a client for a manifest while the source makes progress.
pub const MANIFEST_TIMEOUT: Duration = Duration::from_secs(10);
