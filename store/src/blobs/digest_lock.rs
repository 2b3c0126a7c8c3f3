//! Lock of a digest: a task holds it while it changes what the disk holds for the digest.
//!
//! Beginning, publishing, abandoning, removing and evicting one blob therefore never interleave, while different blobs do
//! not wait for each other. The guard is owned, so that it travels into the blocking task and outlives a caller that gave
//! up. Eviction only ever *tries* a lock: it holds one already, and waiting for a second one could deadlock.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use piecemeal_proto::Digest;
use tokio::sync::OwnedMutexGuard;

type Lock = Arc<tokio::sync::Mutex<()>>;

/// The locks that are held or waited for.
#[derive(Clone, Default)]
pub(crate) struct DigestLocks {
    locks: Arc<Mutex<HashMap<Digest, Lock>>>,
}

impl DigestLocks {
    /// Waits until no other task changes `digest`. Cancel safe.
    pub(crate) async fn enter(&self, digest: &Digest) -> DigestGuard {
        let leave = self.approach(digest);
        let held = Arc::clone(&leave.lock).lock_owned().await;
        DigestGuard { held, leave }
    }

    /// Enters unless the lock is held.
    pub(crate) fn try_enter(&self, digest: &Digest) -> Option<DigestGuard> {
        let leave = self.approach(digest);
        let held = Arc::clone(&leave.lock).try_lock_owned().ok()?;
        Some(DigestGuard { held, leave })
    }

    fn approach(&self, digest: &Digest) -> Leave {
        Leave {
            lock: Arc::clone(self.locks.lock().entry(*digest).or_default()),
            locks: self.clone(),
            digest: *digest,
        }
    }
}

/// A held lock. No other task changes this digest on disk while the guard lives.
pub(crate) struct DigestGuard {
    #[expect(dead_code, reason = "held for its drop, which must come before that of `leave`")]
    held: OwnedMutexGuard<()>,
    leave: Leave,
}

impl DigestGuard {
    pub(crate) fn digest(&self) -> &Digest {
        &self.leave.digest
    }
}

/// Takes the lock out of the table when the last one leaves it.
struct Leave {
    lock: Lock,
    locks: DigestLocks,
    digest: Digest,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mut locks = self.locks.locks.lock();
        // The table's reference and this one: new ones are only made under the lock that is held here.
        if Arc::strong_count(&self.lock) == 2 {
            locks.remove(&self.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_admits_one_and_vanishes_behind_the_last() {
        let locks = DigestLocks::default();
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let inside = locks.enter(&a).await;
        assert!(locks.try_enter(&a).is_none());
        let other = locks.try_enter(&b).unwrap();
        assert_eq!(other.digest(), &b);
        let waiting = tokio::spawn({
            let locks = locks.clone();
            async move { locks.enter(&a).await }
        });
        tokio::task::yield_now().await;
        drop(inside);
        drop(waiting.await.unwrap());
        drop(other);
        assert!(locks.locks.lock().is_empty());
    }
}
