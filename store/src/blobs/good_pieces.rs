//! Cache of pieces that were verified a moment ago.
//!
//! An entry counts only for the file as it was then.

use std::{num::NonZeroUsize, time::Duration};

use lru::LruCache;
use parking_lot::Mutex;
use piecemeal_proto::Digest;

use crate::disk::files::FileStamp;

/// The time for which a verification of a piece counts: it has just been read, and lies in memory.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// Pieces that are remembered as good: 64 GiB of the largest.
const GOOD_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();

/// Pieces that were recently found good.
pub(crate) struct GoodPieces(Mutex<LruCache<(Digest, u32), (FileStamp, Duration)>>);

impl Default for GoodPieces {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(GOOD_MAX)))
    }
}

impl GoodPieces {
    pub(crate) fn has(&self, digest: &Digest, piece: u32, stamp: FileStamp, now: Duration) -> bool {
        self.0
            .lock()
            .get(&(*digest, piece))
            .is_some_and(|&(then, at)| then == stamp && now.saturating_sub(at) < GOOD_FOR)
    }

    pub(crate) fn note(&self, digest: &Digest, piece: u32, stamp: FileStamp, now: Duration) {
        self.0.lock().put((*digest, piece), (stamp, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(size: u64) -> FileStamp {
        FileStamp {
            size,
            ..FileStamp::default()
        }
    }

    #[test]
    fn a_piece_counts_as_good_for_a_while_and_only_in_the_file_as_it_was() {
        let (good, digest) = (GoodPieces::default(), Digest::of(b"blob"));
        let now = Duration::from_secs(5);
        good.note(&digest, 3, stamp(1), now);
        assert!(good.has(&digest, 3, stamp(1), now));
        assert!(!good.has(&digest, 3, stamp(2), now), "it was written to");
        assert!(!good.has(&digest, 4, stamp(1), now));
        assert!(!good.has(&digest, 3, stamp(1), now + GOOD_FOR));
    }

    #[test]
    fn one_good_piece_too_many_takes_the_place_of_the_oldest() {
        let (good, digest) = (GoodPieces::default(), Digest::of(b"blob"));
        let count = u32::try_from(GOOD_MAX.get()).unwrap();
        for piece in 0..=count {
            good.note(&digest, piece, stamp(1), Duration::ZERO);
        }
        assert!(!good.has(&digest, 0, stamp(1), Duration::ZERO));
        assert!((1..=count).all(|piece| good.has(&digest, piece, stamp(1), Duration::ZERO)));
    }
}
