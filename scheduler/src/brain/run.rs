//! Run of contiguous pieces: the unit of a lease.
//!
//! Invariant: a run has at least one piece.

use std::ops::Range;

use super::fill::Fill;

/// Pieces `first..first + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u32,
    pub(super) count: u32,
}

impl Run {
    pub(super) fn pieces(self) -> Range<u32> {
        self.first..self.first + self.count
    }

    pub(super) fn contains(self, piece: u32) -> bool {
        self.pieces().contains(&piece)
    }
}

/// The first piece of a bitmap word.
pub(super) fn first_piece(word: usize) -> u32 {
    u32::try_from(word * 64).expect("a PieceMap bounds the count")
}

/// Bitmap words that one search covers: all of a blob of 64 GiB. The next search of a larger blob starts elsewhere.
pub(super) const WORDS_MAX: usize = 256;

/// The first run of pieces, at most `bytes_max`, that no peer has or is being sent.
pub(super) fn scarce_run(fill: &Fill, bytes_max: u64) -> Option<Run> {
    let words = fill.hashed.words().len();
    let word = (fill.rarity.scarce_from()..words).find(|&word| fill.rarity.scarce_word(word) != 0)?;
    let first = first_piece(word) + fill.rarity.scarce_word(word).trailing_zeros();
    let run_max = u32::try_from(bytes_max / fill.map.piece_bytes()).unwrap_or(u32::MAX);
    let more = (first + 1..first.saturating_add(run_max)).take_while(|&piece| fill.rarity.is_scarce(piece));
    Some(Run {
        first,
        count: 1 + u32::try_from(more.count()).ok()?,
    })
}
