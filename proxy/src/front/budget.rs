//! Memory budget of all streams that are read into buffers: those over TLS, and those that do not come from a file of the system.
//!
//! A stream that finds the budget spent goes on in small steps, so that a client that does not read what it asked for never
//! blocks another stream. The total is at most the budget and one small buffer for each stream.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;

/// Bytes of one read when there is plenty.
const READ_BYTES: usize = 256 * 1024;
/// Bytes of one read in any case.
const READ_BYTES_MIN: usize = 16 * 1024;
/// The whole of it: enough for a gigabit over a hundred milliseconds.
const BUDGET_BYTES: usize = 16 * 1024 * 1024;

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Budget(Arc<AtomicUsize>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(BUDGET_BYTES)))
    }
}

impl Budget {
    /// Room for the next read of a stream.
    pub(super) fn take(&self) -> Room {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(READ_BYTES)
        });
        Room {
            budget: self.clone(),
            taken: taken.map_or(0, |_| READ_BYTES),
        }
    }
}

/// Room in the budget, for as long as it lives.
pub(super) struct Room {
    budget: Budget,
    taken: usize,
}

impl Room {
    /// The most bytes that may be read.
    pub(super) fn bytes(&self) -> u64 {
        self.taken.max(READ_BYTES_MIN) as u64
    }

    /// The bytes that were read, with their room, which is given back when the last of them has been sent.
    pub(super) fn hold(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Held { bytes, _room: self })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.taken, Ordering::Relaxed);
    }
}

struct Held {
    bytes: Bytes,
    _room: Room,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_returned_with_the_last_byte_and_no_reader_ever_waits() {
        let budget = Budget::default();
        let held: Vec<Bytes> = (0..BUDGET_BYTES / READ_BYTES)
            .map(|_| {
                let room = budget.take();
                assert_eq!(room.bytes(), READ_BYTES as u64);
                room.hold(Bytes::from_static(b"some bytes"))
            })
            .collect();
        let small = budget.take();
        assert_eq!(small.bytes(), READ_BYTES_MIN as u64);
        drop(small);
        let rest: Vec<Bytes> = held.iter().map(|bytes| bytes.slice(4..)).collect();
        drop(held);
        assert_eq!(budget.take().bytes(), READ_BYTES_MIN as u64);
        assert_eq!(rest[0], " bytes");
        drop(rest);
        assert_eq!(budget.take().bytes(), READ_BYTES as u64);
    }
}
