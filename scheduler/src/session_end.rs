//! Cause of a session's end: its label in the metrics, and the status that the daemon receives.
//!
//! A daemon that can do better after it reconnects is told so.

use tokio::time::Duration;
use tonic::Status;

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    /// The daemon, or its connection.
    Left,
    Silent,
    /// It does not read.
    Behind,
    Replaced,
    /// The node was shut out, or the `join.key` that admitted it was.
    Revoked,
    /// The clock that tickets are judged by was set; the daemon learns the new time when it reconnects.
    ClockSet,
    /// It breaks the protocol's bounds.
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

    /// What the daemon is told, if it still listens.
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

/// Ten heartbeats. Placement does not use a member that is silent for far less; this is when it is forgotten.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(5);
/// The most reports of one message: more than a daemon has to say in a batch, fewer than a message of empty ones could hold.
pub(crate) const REPORTS_MAX: usize = 4096;
