//!
//! State of a session, which its handles share with its task.
//!
//! Invariant: `up` is true only while the scheduler has welcomed this daemon and is not silent.

use parking_lot::Mutex;
use tokio::sync::watch;

use super::queue::ReportQueue;

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) queue: ReportQueue,
    pub(super) up: watch::Sender<bool>,
    /// Why the last connection ended; `None` once a later one was welcomed.
    ended: Mutex<Option<String>>,
    /// The features that the scheduler has stated.
    features: Mutex<Vec<String>>,
}

impl Shared {
    pub(super) fn note_end(&self, why: Option<String>) {
        *self.ended.lock() = why;
    }

    pub(super) fn note_features(&self, features: Vec<String>) {
        *self.features.lock() = features;
    }

    /// Why the last connection ended.
    pub(super) fn problem(&self) -> String {
        match &*self.ended.lock() {
            Some(why) => format!("not connected: {why}"),
            None => "not connected".to_owned(),
        }
    }

    pub(super) fn has_feature(&self, feature: &str) -> bool {
        let features = self.features.lock();
        features.iter().any(|stated| stated == feature)
    }
}
