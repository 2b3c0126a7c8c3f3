//! Record of the times at which daemons were ended, so that a client can attribute its errors.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long after a daemon's end an error is attributed to it: leases, grace periods and retries are over by then.
const EFFECT_MAX: Duration = Duration::from_secs(15);

/// Every end so far, each entered just before it comes.
#[derive(Default)]
pub(crate) struct Ended(Mutex<Vec<End>>);

struct End {
    daemon: &'static str,
    how: &'static str,
    at: Instant,
}

impl Ended {
    pub(crate) fn enter(&self, daemon: &'static str, how: &'static str) {
        let at = Instant::now();
        self.list().push(End { daemon, how, at });
    }

    /// How often this daemon was.
    pub(crate) fn count(&self, daemon: &str) -> usize {
        self.list().iter().filter(|end| end.daemon == daemon).count()
    }

    /// The likely cause of an error with this daemon: its own recent end, or else another daemon's.
    pub(crate) fn cause(&self, daemon: &str) -> String {
        let list = self.list();
        let lately = || list.iter().rev().filter(|end| end.at.elapsed() < EFFECT_MAX);
        let own = lately().find(|end| end.daemon == daemon);
        own.or_else(|| lately().next()).map_or_else(
            || "unprovoked".to_owned(),
            |end| format!("{} was {}", end.daemon, end.how),
        )
    }

    fn list(&self) -> MutexGuard<'_, Vec<End>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
