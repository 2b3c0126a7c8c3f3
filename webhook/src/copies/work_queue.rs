//! Queue of the namespaces whose copies have to be reconciled. Pure: the clock is the caller's.
//!
//! A namespace is due once, however many of its Secrets change before it is taken.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;

/// Changes that come together are looked at once.
const SETTLE: Duration = Duration::from_millis(500);

/// Namespaces to reconcile, and when.
#[derive(Debug, Default)]
pub(super) struct WorkQueue {
    due: HashMap<String, Instant>,
    /// The moment of the earliest change that waits, by namespace.
    since: HashMap<String, Instant>,
    /// The namespaces where copies are, or should be.
    known: BTreeSet<String>,
}

impl WorkQueue {
    pub(super) fn add(&mut self, namespace: &str, at: Instant) {
        self.due.entry(namespace.to_owned()).or_insert(at);
    }

    fn changed(&mut self, namespace: &str, now: Instant) {
        self.since.entry(namespace.to_owned()).or_insert(now);
        self.add(namespace, now + SETTLE);
    }

    pub(super) fn take_due(&mut self, now: Instant) -> Option<String> {
        let namespace = self.due.iter().find(|(_, at)| **at <= now)?.0.clone();
        self.due.remove(&namespace);
        Some(namespace)
    }

    /// Makes every namespace with copies due.
    pub(super) fn add_known(&mut self, now: Instant) {
        for namespace in self.known.clone() {
            self.add(&namespace, now);
        }
    }

    /// Notes that `namespace` has been reconciled. `has_copies`: whether there is a copy, or should be.
    pub(super) fn done(&mut self, namespace: &str, has_copies: bool) {
        self.since.remove(namespace);
        if has_copies {
            self.known.insert(namespace.to_owned());
        } else {
            self.known.remove(namespace);
        }
    }

    /// Queues the namespace of a changed Secret if the Secret is a copy, or stands beside copies.
    pub(super) fn note(&mut self, namespace: &str, is_copy: bool, now: Instant) {
        if is_copy {
            self.known.insert(namespace.to_owned());
        }
        if is_copy || self.known.contains(namespace) {
            self.changed(namespace, now);
        }
    }

    /// The wait of the earliest change that is not reconciled yet.
    pub(super) fn lag(&self, now: Instant) -> Duration {
        let waits = self.since.values().map(|since| now.duration_since(*since));
        waits.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_that_come_together_are_looked_at_once() {
        let mut queue = WorkQueue::default();
        let now = Instant::now();
        queue.changed("a", now);
        queue.changed("a", now + SETTLE / 2);
        assert_eq!(queue.take_due(now + SETTLE / 2), None);
        assert_eq!(queue.take_due(now + SETTLE), Some("a".to_owned()));
        assert_eq!(queue.take_due(now + SETTLE), None);
        assert_eq!(queue.lag(now + 2 * SETTLE), 2 * SETTLE);
    }

    #[test]
    fn a_secret_counts_where_copies_are() {
        let (mut queue, now) = (WorkQueue::default(), Instant::now());
        queue.note("a", false, now);
        assert_eq!(queue.take_due(now + SETTLE), None, "it stands beside no copy");
        queue.note("a", true, now);
        assert_eq!(queue.take_due(now + SETTLE), Some("a".to_owned()));
        queue.done("a", true);
        queue.note("a", false, now);
        assert_eq!(queue.take_due(now + SETTLE), Some("a".to_owned()));
        queue.done("a", false);
        queue.add_known(now);
        assert_eq!(queue.take_due(now), None, "its last copy is gone");
    }
}
