//! Attendance of a transfer: whether a client is connected that waits for its blob, at this daemon or at a node that has opened it here.
//!
//! What is not known counts as attended: only a scheduler that tells of the nodes' clients makes a node's download unattended.

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;
use piecemeal_proto::Digest;

/// How long a blob that a node has opened counts as attended until the scheduler has told of the node's clients.
const TELLING_WAIT: Duration = Duration::from_secs(5);
/// How long a blob counts as attended after its last client has left: one that fetches it in parts may be about to ask for the next.
const LINGER: Duration = Duration::from_millis(300);
/// The most blobs of which it is remembered what the scheduler has told; the oldest is forgotten first.
const TOLD_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("it is not zero");

/// The clients of one transfer's blob.
#[derive(Default)]
pub(super) struct Attendance {
    /// The clients of this daemon.
    readers: AtomicUsize,
    /// When the last of them left.
    left: Mutex<Option<Instant>>,
    opened: Mutex<Option<Opened>>,
}

/// A node has opened the blob.
#[derive(Clone, Copy)]
struct Opened {
    /// When a node last did.
    at: Instant,
    /// The scheduler tells of the nodes' clients.
    is_told: bool,
}

/// What the scheduler has told of the clients of nodes.
pub(super) struct ToldClients(LruCache<Digest, Told>);

/// Whether a client is connected at any node that wants a blob, and when that was told.
#[derive(Clone, Copy)]
pub(super) struct Told {
    at: Instant,
    connected: bool,
}

impl Default for ToldClients {
    fn default() -> Self {
        Self(LruCache::new(TOLD_MAX))
    }
}

impl ToldClients {
    pub(super) fn note(&mut self, digest: Digest, connected: bool, at: Instant) {
        self.0.put(digest, Told { at, connected });
    }

    pub(super) fn of(&self, digest: &Digest) -> Option<Told> {
        self.0.peek(digest).copied()
    }
}

impl Attendance {
    pub(super) fn begin(&self) {
        self.readers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self, now: Instant) {
        if self.readers.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.left.lock() = Some(now);
        }
    }

    /// A node has opened the blob. `is_told`: the scheduler tells of the nodes' clients.
    pub(super) fn note_opened(&self, at: Instant, is_told: bool) {
        *self.opened.lock() = Some(Opened { at, is_told });
    }

    /// `told`: what the scheduler has told of the blob.
    pub(super) fn is_attended(&self, told: Option<Told>, now: Instant) -> bool {
        let has_just_left = |left: Instant| now.saturating_duration_since(left) < LINGER;
        let has_reader = self.readers.load(Ordering::Relaxed) > 0 || self.left.lock().is_some_and(has_just_left);
        if has_reader || told.is_some_and(|told| told.connected) {
            return true;
        }
        match (*self.opened.lock(), told) {
            (None, _) => false,
            (Some(opened), Some(told)) if told.at >= opened.at => false,
            (Some(opened), _) => !opened.is_told || now.saturating_duration_since(opened.at) < TELLING_WAIT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_attended_while_one_of_its_readers_is_there() {
        let (attendance, now) = (Attendance::default(), Instant::now());
        attendance.begin();
        attendance.begin();
        attendance.end(now);
        assert!(attendance.is_attended(None, now + LINGER));
        attendance.end(now);
        assert!(attendance.is_attended(None, now), "it may be back at once");
        assert!(!attendance.is_attended(None, now + LINGER));
    }

    #[test]
    fn what_a_node_has_opened_is_attended_until_the_scheduler_tells_otherwise() {
        let (attendance, now) = (Attendance::default(), Instant::now());
        let told = |connected, at| Some(Told { at, connected });
        attendance.note_opened(now, true);
        assert!(attendance.is_attended(None, now), "the word is on its way");
        let much_later = now + TELLING_WAIT * 100;
        assert!(attendance.is_attended(told(true, now), much_later));
        assert!(!attendance.is_attended(told(false, now), now));
        attendance.note_opened(much_later, true);
        assert!(
            attendance.is_attended(told(false, now), much_later),
            "it was told before another node has opened the blob"
        );
        assert!(!attendance.is_attended(told(false, now), much_later + TELLING_WAIT));
    }

    #[test]
    fn without_a_scheduler_that_tells_of_clients_a_nodes_download_is_attended() {
        let (attendance, now) = (Attendance::default(), Instant::now());
        attendance.note_opened(now, false);
        assert!(attendance.is_attended(None, now + TELLING_WAIT * 100));
        let silent = Attendance::default();
        silent.note_opened(now, true);
        assert!(!silent.is_attended(None, now + TELLING_WAIT), "no node wants it");
    }

    #[test]
    fn what_was_told_of_the_blob_that_was_told_of_longest_ago_is_forgotten_first() {
        let (mut clients, now) = (ToldClients::default(), Instant::now());
        let digest = |number: usize| Digest::of(&number.to_le_bytes());
        (0..=TOLD_MAX.get()).for_each(|number| clients.note(digest(number), true, now));
        assert!(clients.of(&digest(0)).is_none() && clients.of(&digest(1)).is_some());
    }
}
