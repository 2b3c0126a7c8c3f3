//! Cause of a session's end: its label in the metrics, and the status that the daemon receives.
//!
//! Invariant: the status tells a daemon to reconnect if that helps.

use tokio::time::Duration;
use tonic::Status;

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    /// The daemon ended it, or its connection broke.
    Left,
    Silent,
    /// The daemon does not read its orders.
    Behind,
    Replaced,
    /// The node was shut out, or the `join.key` that admitted it is not valid any more.
    Revoked,
    /// The clock that tickets are judged by was set; the daemon learns the new time when it reconnects.
    ClockSet,
    /// The daemon exceeds a bound of the protocol.
    Excessive,
    /// All sessions are taken, and its address has more than its share of them.
    Crowded,
    Stopping,
}

impl SessionEnd {
    /// For `sessions_ended_total{cause}`.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Silent => "silent",
            Self::Behind => "behind",
            Self::Replaced => "replaced",
            Self::Revoked => "revoked",
            Self::ClockSet => "clock_set",
            Self::Excessive => "excessive",
            Self::Crowded => "crowded",
            Self::Stopping => "stopping",
        }
    }

    /// The status that the daemon receives, if it still listens.
    pub(crate) fn status(self) -> Option<Status> {
        match self {
            Self::Left => None,
            Self::Silent => Some(Status::deadline_exceeded(format!(
                "no message arrived for {} s",
                SILENCE_MAX.as_secs()
            ))),
            Self::Behind => Some(Status::resource_exhausted("orders were not read in time; reconnect")),
            Self::Replaced => Some(Status::aborted("this node has connected again")),
            Self::Revoked => Some(Status::permission_denied(
                "this node is no longer admitted; reconnect to receive the reason",
            )),
            Self::ClockSet => Some(Status::aborted(
                "the scheduler's clock was set; reconnect to receive its time",
            )),
            Self::Excessive => Some(Status::invalid_argument(format!(
                "a message has more than {REPORTS_MAX} reports"
            ))),
            Self::Crowded => Some(Status::resource_exhausted(
                "all sessions are taken, and this address has more than its share of them",
            )),
            Self::Stopping => Some(Status::unavailable(
                "the scheduler is stopping or restarting; reconnect",
            )),
        }
    }
}

/// Silence after which a session ends: ten heartbeats. Placement stops to use a silent member much earlier.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Most reports of one message: more than a daemon has in a batch, fewer than a message of empty reports could hold.
pub(crate) const REPORTS_MAX: usize = 4096;
