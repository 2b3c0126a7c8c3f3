//! Piece map, which cuts a blob into pieces, and sets of pieces.
//!
//! Invariant: the pieces tile the blob, in order and without a gap; all have the same length but the last, which may be shorter.

use std::ops::Range;

use sha2::Digest as _;

/// Length of a piece's hash in bytes.
pub const PIECE_HASH_BYTES: usize = 32;
/// The SHA-256 of a piece.
pub type PieceHash = [u8; PIECE_HASH_BYTES];
/// The smallest piece: below it, requests cost more than the pipeline gains.
pub const PIECE_BYTES_MIN: u64 = 256 * 1024;
/// The largest piece: above it, filling the pipeline (lg N pieces) costs too much. Source: docs/ARCHITECTURE.md, "Pieces".
pub const PIECE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The most pieces one blob may have: 4 TiB at the largest piece size.
pub const PIECE_COUNT_MAX: u32 = 1 << 20;
/// Pieces aimed at for a blob whose size does not run into the clamps.
const PIECE_COUNT_GOAL: u64 = 1024;

/// The hash of a piece with these bytes.
pub fn piece_hash(bytes: &[u8]) -> PieceHash {
    sha2::Sha256::digest(bytes).into()
}

/// Divides a blob into pieces.
///
/// Yields `ceil(blob_bytes / piece_bytes)` pieces, indexed from 0; only the last may be shorter. A blob of 0 bytes has no piece.
/// The node that starts the swarm chooses the piece size once ([`PieceMap::for_blob`]), and states it to all others
/// ([`PieceMap::new`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PieceMap {
    blob_bytes: u64,
    piece_bytes: u64,
}

impl PieceMap {
    /// The map that Piecemeal chooses for a blob of `blob_bytes`: pieces of the power of two nearest above `blob_bytes / 1024`,
    /// from [`PIECE_BYTES_MIN`] to [`PIECE_BYTES_MAX`].
    ///
    /// # Errors
    /// [`PieceMapError::TooManyPieces`] above [`PIECE_COUNT_MAX`].
    pub fn for_blob(blob_bytes: u64) -> Result<Self, PieceMapError> {
        let goal = blob_bytes.div_ceil(PIECE_COUNT_GOAL).min(PIECE_BYTES_MAX);
        Self::new(
            blob_bytes,
            goal.next_power_of_two().clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX),
        )
    }

    /// A map as another node stated it: `piece_bytes` is any non-zero size.
    ///
    /// # Errors
    /// [`PieceMapError`] for a piece size of zero, and above [`PIECE_COUNT_MAX`] pieces.
    pub fn new(blob_bytes: u64, piece_bytes: u64) -> Result<Self, PieceMapError> {
        if piece_bytes == 0 {
            return Err(PieceMapError::EmptyPiece);
        }
        if blob_bytes.div_ceil(piece_bytes) > u64::from(PIECE_COUNT_MAX) {
            return Err(PieceMapError::TooManyPieces {
                blob_bytes,
                piece_bytes,
            });
        }
        Ok(Self {
            blob_bytes,
            piece_bytes,
        })
    }

    /// The blob's size in bytes.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    /// The size in bytes of every piece but the last.
    pub fn piece_bytes(&self) -> u64 {
        self.piece_bytes
    }

    /// The number of pieces.
    pub fn count(&self) -> u32 {
        u32::try_from(self.blob_bytes.div_ceil(self.piece_bytes)).expect("PieceMap::new bounds the count")
    }

    /// The bytes of piece `index`: empty when the blob has no such piece.
    pub fn range(&self, index: u32) -> Range<u64> {
        // Another node may have stated pieces far larger than the blob, and any index.
        let start = u64::from(index).saturating_mul(self.piece_bytes).min(self.blob_bytes);
        start..start.saturating_add(self.piece_bytes).min(self.blob_bytes)
    }

    /// The length of piece `index` in bytes.
    pub fn len(&self, index: u32) -> u64 {
        let range = self.range(index);
        range.end - range.start
    }

    /// Whether the blob has no piece at all.
    pub fn is_empty(&self) -> bool {
        self.blob_bytes == 0
    }

    /// The piece that holds byte `offset`, if the blob reaches that far.
    pub fn piece_at(&self, offset: u64) -> Option<u32> {
        (offset < self.blob_bytes)
            .then(|| u32::try_from(offset / self.piece_bytes).expect("PieceMap::new bounds the count"))
    }

    /// The blob's final piece by offset, withheld from clients until the blob's digest is proven.
    pub fn last(&self) -> Option<u32> {
        self.count().checked_sub(1)
    }
}

/// Why a blob cannot be cut that way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PieceMapError {
    #[error("a piece cannot be empty")]
    EmptyPiece,
    #[error("a blob of {blob_bytes} bytes in pieces of {piece_bytes} has more than {PIECE_COUNT_MAX} pieces")]
    TooManyPieces { blob_bytes: u64, piece_bytes: u64 },
}

/// A set of pieces of one blob: a bitmap with its count kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PieceSet {
    words: Vec<u64>,
    capacity: u32,
    count: u32,
}

impl PieceSet {
    /// The empty set over pieces `0..capacity`.
    pub fn new(capacity: u32) -> Self {
        Self {
            words: vec![0; capacity.div_ceil(64) as usize],
            capacity,
            count: 0,
        }
    }

    /// All of `0..capacity`.
    pub fn full(capacity: u32) -> Self {
        let mut set = Self::new(capacity);
        for index in 0..capacity {
            set.insert(index);
        }
        set
    }

    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The number of pieces in the set.
    pub fn count(&self) -> u32 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether every piece is in the set. The set over no pieces is full.
    pub fn is_full(&self) -> bool {
        self.count == self.capacity
    }

    pub fn contains(&self, index: u32) -> bool {
        index < self.capacity && self.words[(index / 64) as usize] & (1 << (index % 64)) != 0
    }

    /// Adds `index`; says whether it was new. A piece beyond the capacity is never added.
    pub fn insert(&mut self, index: u32) -> bool {
        let new = index < self.capacity && !self.contains(index);
        if new {
            self.words[(index / 64) as usize] |= 1 << (index % 64);
            self.count += 1;
        }
        new
    }

    /// Takes `index` out; says whether it was there.
    pub fn remove(&mut self, index: u32) -> bool {
        let was = self.contains(index);
        if was {
            self.words[(index / 64) as usize] &= !(1 << (index % 64));
            self.count -= 1;
        }
        was
    }

    /// Whether any piece of `other` is in the set.
    pub fn has_any(&self, other: &Self) -> bool {
        self.words
            .iter()
            .zip(&other.words)
            .any(|(word, other)| word & other != 0)
    }

    /// Takes out all that `other`, a set over as many pieces, has; says how many were there. A word at a time.
    pub fn subtract(&mut self, other: &Self) -> u32 {
        let before = self.count;
        for (word, &gone) in self.words.iter_mut().zip(&other.words) {
            self.count -= (*word & gone).count_ones();
            *word &= !gone;
        }
        before - self.count
    }

    /// The pieces, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..)
            .zip(&self.words)
            .flat_map(|(word_index, &word)| Bits(word).map(move |bit| word_index * 64 + bit))
    }

    /// The pieces that are not in the set, ascending.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        (0..)
            .zip(&self.words)
            .flat_map(|(word_index, &word)| Bits(!word).map(move |bit| word_index * 64 + bit))
            .take_while(|&index| index < self.capacity)
    }

    /// The bitmap in 64-bit words, piece 0 in the lowest bit of the first: for set operations over whole words.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// `ceil(capacity / 8)` bytes, piece 0 in the lowest bit of the first.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(self.capacity.div_ceil(8) as usize);
        bytes
    }

    /// Reads [`PieceSet::to_bytes`] back; `None` when the length or a bit beyond `capacity` does not fit.
    pub fn from_bytes(capacity: u32, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != capacity.div_ceil(8) as usize {
            return None;
        }
        let mut set = Self::new(capacity);
        for (byte_index, byte) in (0..).zip(bytes) {
            for bit in Bits(u64::from(*byte)) {
                let index = byte_index * 8 + bit;
                if index >= capacity {
                    return None;
                }
                set.insert(index);
            }
        }
        Some(set)
    }
}

/// The set bits of a word, ascending.
struct Bits(u64);

impl Iterator for Bits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let bit = self.0.trailing_zeros();
        (bit < 64).then(|| {
            self.0 &= self.0 - 1;
            bit
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn piece_sizes_follow_the_blob_within_the_clamps() {
        let cases = [
            (0, 256 << 10),
            (1, 256 << 10),
            (64 * MIB, 256 << 10),
            (256 * MIB, 256 << 10),
            (256 * MIB + 1, 512 << 10),
            (1024 * MIB, MIB),
            (4096 * MIB, 4 * MIB),
            (100_000 * MIB, 4 * MIB),
        ];
        for (blob_bytes, piece_bytes) in cases {
            assert_eq!(
                PieceMap::for_blob(blob_bytes).unwrap().piece_bytes(),
                piece_bytes,
                "{blob_bytes}"
            );
        }
    }

    #[test]
    fn impossible_maps_are_refused() {
        assert_eq!(PieceMap::new(1, 0), Err(PieceMapError::EmptyPiece));
        assert!(matches!(
            PieceMap::new(u64::MAX, 4 * MIB),
            Err(PieceMapError::TooManyPieces { .. })
        ));
        assert!(matches!(
            PieceMap::for_blob(u64::MAX),
            Err(PieceMapError::TooManyPieces { .. })
        ));
    }

    #[test]
    fn no_stated_size_and_no_index_overflow() {
        let map = PieceMap::new(5, u64::MAX).unwrap();
        assert_eq!((map.range(0), map.range(1), map.range(u32::MAX)), (0..5, 5..5, 5..5));
        let map = PieceMap::new(u64::MAX, 1 << 45).unwrap();
        assert_eq!(map.len(map.last().unwrap()), (1 << 45) - 1);
    }

    #[test]
    fn a_blob_of_no_bytes_has_no_piece() {
        let map = PieceMap::for_blob(0).unwrap();
        assert_eq!((map.count(), map.last(), map.piece_at(0)), (0, None, None));
        assert!(PieceSet::new(0).is_full());
    }

    proptest! {
            #[test]
            fn subtracting_a_set_is_removing_each_of_its_pieces(
                held in btree_set(0..200_u32, 0..200),
                gone in btree_set(0..200_u32, 0..100),
            ) {
                let set = |pieces: &std::collections::BTreeSet<u32>| {
                    let mut set = PieceSet::new(200);
                    for &piece in pieces {
     set.insert(piece);
    }
                    set
                };
                let (mut subtracted, other) = (set(&held), set(&gone));
                prop_assert_eq!(subtracted.has_any(&other), !held.is_disjoint(&gone));
                let taken = subtracted.subtract(&other) as usize;
                prop_assert_eq!(taken, held.intersection(&gone).count());
                prop_assert_eq!(subtracted, set(&held.difference(&gone).copied().collect()));
            }

            #[test]
            fn pieces_tile_the_blob(blob_bytes in 0_u64..10_000, piece_bytes in 1_u64..600) {
                let map = PieceMap::new(blob_bytes, piece_bytes).unwrap();
                let mut end = 0;
                for index in 0..map.count() {
                    let range = map.range(index);
                    prop_assert_eq!(range.start, end);
                    prop_assert!(range.end > range.start);
                    prop_assert_eq!(map.piece_at(range.start), Some(index));
                    prop_assert_eq!(map.piece_at(range.end - 1), Some(index));
                    end = range.end;
                }
                prop_assert_eq!(end, blob_bytes);
                prop_assert_eq!(map.len(map.count()), 0);
            }

            #[test]
            fn a_piece_set_behaves_like_a_set(capacity in 0_u32..300, pieces in btree_set(0_u32..300, 0..100)) {
                let mut set = PieceSet::new(capacity);
                for &piece in &pieces {
                    prop_assert_eq!(set.insert(piece), piece < capacity);
                    prop_assert!(!set.insert(piece));
                }
                let kept: Vec<u32> = pieces.into_iter().filter(|&piece| piece < capacity).collect();
                prop_assert_eq!(set.iter().collect::<Vec<_>>(), kept.clone());
                prop_assert_eq!(set.missing().count() + kept.len(), capacity as usize);
                prop_assert_eq!(PieceSet::from_bytes(capacity, &set.to_bytes()), Some(set.clone()));
                for piece in kept {
                    prop_assert!(set.remove(piece));
                }
                prop_assert!(set.is_empty());
            }
        }

    #[test]
    fn a_bitmap_of_another_size_is_refused() {
        assert_eq!(PieceSet::from_bytes(9, &[0xff]), None);
        assert_eq!(PieceSet::from_bytes(9, &[0xff, 0b10]), None);
        assert_eq!(PieceSet::from_bytes(9, &[0xff, 0b1]), Some(PieceSet::full(9)));
    }
}
