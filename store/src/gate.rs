//! A lock per digest, its gate: a task holds it while it changes what the disk holds for the digest.
//!
//! Beginning, publishing, abandoning, removing and evicting one blob therefore never interleave, while different blobs do
//! not wait for each other. The guard is owned, so that it travels into the blocking task and outlives a caller that gave
//! up. Eviction only ever *tries* a gate: it holds one already, and waiting for a second one could deadlock.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use piecemeal_proto::Digest;
use tokio::sync::OwnedMutexGuard;

type Gate = Arc<tokio::sync::Mutex<()>>;

/// The gates that are held or waited for.
#[derive(Clone, Default)]
pub(crate) struct Gates {
    gates: Arc<Mutex<HashMap<Digest, Gate>>>,
}

impl Gates {
    /// Waits until no other task changes `digest`. Cancel safe.
    pub(crate) async fn enter(&self, digest: &Digest) -> GateGuard {
        let leave = self.approach(digest);
        let held = Arc::clone(&leave.gate).lock_owned().await;
        GateGuard { held, leave }
    }

    /// Enters unless the gate is held.
    pub(crate) fn try_enter(&self, digest: &Digest) -> Option<GateGuard> {
        let leave = self.approach(digest);
        let held = Arc::clone(&leave.gate).try_lock_owned().ok()?;
        Some(GateGuard { held, leave })
    }

    fn approach(&self, digest: &Digest) -> Leave {
        Leave {
            gate: Arc::clone(self.gates.lock().entry(*digest).or_default()),
            gates: self.clone(),
            digest: *digest,
        }
    }
}

/// A held gate. No other task changes this digest on disk while the guard lives.
pub(crate) struct GateGuard {
    #[expect(dead_code, reason = "held for its drop, which must come before that of `leave`")]
    held: OwnedMutexGuard<()>,
    leave: Leave,
}

impl GateGuard {
    pub(crate) fn digest(&self) -> &Digest {
        &self.leave.digest
    }
}

/// Takes the gate out of the table when the last one leaves it.
struct Leave {
    gate: Gate,
    gates: Gates,
    digest: Digest,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mut gates = self.gates.gates.lock();
        // The table's reference and this one: new ones are only made under the lock that is held here.
        if Arc::strong_count(&self.gate) == 2 {
            gates.remove(&self.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gate_admits_one_and_vanishes_behind_the_last() {
        let gates = Gates::default();
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let inside = gates.enter(&a).await;
        assert!(gates.try_enter(&a).is_none());
        let other = gates.try_enter(&b).unwrap();
        assert_eq!(other.digest(), &b);
        let waiting = tokio::spawn({
            let gates = gates.clone();
            async move { gates.enter(&a).await }
        });
        tokio::task::yield_now().await;
        drop(inside);
        drop(waiting.await.unwrap());
        drop(other);
        assert!(gates.gates.lock().is_empty());
    }
}
