//! Random numbers of a store.
//!
//! They follow from the seed that the store was opened with.

use parking_lot::Mutex;
use piecemeal_proto::FillId;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// The store's generator.
pub(crate) struct Random(Mutex<StdRng>);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }

    pub(crate) fn number(&self) -> u64 {
        self.0.lock().next_u64()
    }

    /// A new fill id. Never 0.
    pub(crate) fn fill_id(&self) -> FillId {
        loop {
            if let id @ 1.. = self.number() {
                return FillId(id);
            }
        }
    }
}
