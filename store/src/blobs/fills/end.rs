//! End of a fill: what became of its blob.
//!
//! A fill that was published, finished or failed stays so; one that was lost can still fail.

use super::failure::FillFailure;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Published,
    /// Proven, and not kept. Its readers go on within the window.
    FinishedUnstored,
    /// The disk would not take the finished blob. Its readers go on from the open file; the fill can only be abandoned.
    Lost,
    Failed(FillFailure),
}
