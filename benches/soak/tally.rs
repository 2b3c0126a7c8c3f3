//! Sums of the clients' results.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Notes kept of each kind; what matters is in the first few.
const NOTES_MAX: usize = 50;

/// Counted by all clients.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) pulls: AtomicU64,
    pub(crate) bytes: AtomicU64,
    /// Pulls that were given up half-way on purpose.
    pub(crate) left: AtomicU64,
    /// Whole pulls begun again, since a kill of the daemon that served them had cut them.
    pub(crate) retried: AtomicU64,
    /// Requests for the rest of something that had been cut, or for what had not been answered.
    pub(crate) resumed: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) wrong: AtomicU64,
    /// The longest that a client waited for its next byte, over all tries, in ms.
    fruitless_ms_max: AtomicU64,
    head_ms_max: AtomicU64,
    heads_late: AtomicU64,
    troubles: Mutex<BTreeMap<String, u64>>,
    notes: Mutex<Vec<String>>,
}

/// What clients such as containerd and the kubelet wait for without complaint.
const HEAD_TIME_MAX: Duration = Duration::from_secs(10);

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Tally {
    /// Something that a client got over by trying again.
    pub(crate) fn trouble(&self, what: String) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        *troubles.entry(what).or_default() += 1;
    }

    /// A pull that failed, or bytes that were wrong.
    pub(crate) fn note(&self, note: String) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < NOTES_MAX {
            notes.push(note);
        }
    }

    pub(crate) fn fruitless(&self, time: Duration) {
        self.fruitless_ms_max.fetch_max(millis(time), Ordering::Relaxed);
    }

    /// A status line came after this time.
    pub(crate) fn head(&self, time: Duration) {
        self.head_ms_max.fetch_max(millis(time), Ordering::Relaxed);
        if time > HEAD_TIME_MAX {
            add(&self.heads_late, 1);
        }
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn print(&self) {
        println!(
            "pulls {}, {} MiB; left half-way {}; begun again {}; requests tried again {}; failed {}; wrong {}",
            read(&self.pulls),
            read(&self.bytes) >> 20,
            read(&self.left),
            read(&self.retried),
            read(&self.resumed),
            read(&self.failed),
            read(&self.wrong)
        );
        println!(
            "longest wait for a next byte over all tries {:.1} s; longest for a status line {:.1} s; later than {} s: {}",
            read(&self.fruitless_ms_max) as f64 / 1e3,
            read(&self.head_ms_max) as f64 / 1e3,
            HEAD_TIME_MAX.as_secs(),
            read(&self.heads_late)
        );
        println!("what clients got over by trying again:");
        for (what, count) in &*self.troubles.lock().unwrap_or_else(PoisonError::into_inner) {
            println!("  {count:6} {what}");
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
