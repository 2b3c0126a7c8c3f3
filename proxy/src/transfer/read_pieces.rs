//! Pieces that a reader has read of a blob, so that it may go on with another fill of the same blob.
//!
//! A reader goes on only where the other fill has the same pieces: a body is never made of two blobs. Pure.

use std::ops::Range;

use piecemeal_proto::{FillId, PieceHash, PieceMap, piece_hash};

/// The pieces of one reader, which reads a range of a blob in order.
#[derive(Clone, Debug, Default)]
pub struct ReadPieces(Option<Read>);

#[derive(Clone, Debug)]
struct Read {
    map: PieceMap,
    /// The fill that they are known to be of.
    fill: FillId,
    pieces: Range<u32>,
    /// The hash of their hashes, one after the other. `None`: the hash of one was unknown when it was read.
    chain: Option<PieceHash>,
}

impl ReadPieces {
    /// The reader has read these bytes, which follow what it has read before. `hash`: the hashes of the fill's pieces.
    pub(super) fn note(
        &mut self,
        map: PieceMap,
        fill: FillId,
        bytes: &Range<u64>,
        hash: impl Fn(u32) -> Option<PieceHash>,
    ) {
        let last = bytes.end.checked_sub(1).and_then(|last| map.piece_at(last));
        let Some((first, last)) = map.piece_at(bytes.start).zip(last) else {
            return;
        };
        let read = self.0.get_or_insert_with(|| Read {
            map,
            fill,
            pieces: first..first,
            chain: Some(PieceHash::default()),
        });
        let fresh = read.pieces.end..last + 1;
        read.chain = chained(read.chain, fresh.clone(), hash);
        read.pieces.end = read.pieces.end.max(fresh.end);
    }

    /// Whether the reader may go on with this fill: it is the one of before, or has the same pieces.
    pub(super) fn goes_on(&mut self, map: PieceMap, fill: FillId, hash: impl Fn(u32) -> Option<PieceHash>) -> bool {
        let Some(read) = self.0.as_mut().filter(|read| read.fill != fill) else {
            return true;
        };
        let there = chained(Some(PieceHash::default()), read.pieces.clone(), hash);
        let is_same = read.map == map && there.is_some() && there == read.chain;
        if is_same {
            read.fill = fill;
        }
        is_same
    }
}

fn chained(
    chain: Option<PieceHash>,
    mut pieces: Range<u32>,
    hash: impl Fn(u32) -> Option<PieceHash>,
) -> Option<PieceHash> {
    pieces.try_fold(chain?, |chain, piece| Some(piece_hash(&[chain, hash(piece)?].concat())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u64 = 256 * 1024;

    fn map() -> PieceMap {
        PieceMap::for_blob(4 * PIECE).unwrap()
    }

    fn id(fill: u8) -> FillId {
        FillId(u64::from(fill))
    }

    /// A fill whose pieces have these hashes; 0: the piece is not here.
    fn fill(pieces: [u8; 4]) -> impl Fn(u32) -> Option<PieceHash> {
        move |piece| match pieces[piece as usize] {
            0 => None,
            hash => Some([hash; 32]),
        }
    }

    /// A reader that has read this range of a fill, a few bytes at a time.
    fn reader(bytes: Range<u64>, pieces: [u8; 4]) -> ReadPieces {
        let mut read = ReadPieces::default();
        for start in bytes.clone().step_by(100_000) {
            let end = bytes.end.min(start + 100_000);
            read.note(map(), id(1), &(start..end), fill(pieces));
        }
        read
    }

    #[test]
    fn a_reader_that_has_read_nothing_goes_on_with_any_fill() {
        assert!(ReadPieces::default().goes_on(map(), id(2), fill([0; 4])));
        assert!(reader(5..5, [1, 2, 3, 4]).goes_on(map(), id(2), fill([0; 4])));
    }

    #[test]
    fn a_reader_goes_on_where_the_pieces_that_it_has_read_are_the_same() {
        let cases = [
            (0..PIECE, [1, 0, 0, 0], true),
            (0..PIECE + 1, [1, 0, 0, 0], false),
            (0..PIECE + 1, [1, 2, 9, 9], true),
            (0..PIECE + 1, [2, 1, 9, 9], false),
            (0..PIECE + 1, [1, 9, 3, 4], false),
            (PIECE..2 * PIECE, [9, 2, 9, 9], true),
            (3 * PIECE + 7..4 * PIECE, [0, 0, 0, 4], true),
            (0..4 * PIECE, [1, 2, 3, 4], true),
        ];
        for (bytes, there, goes_on) in cases {
            let mut read = reader(bytes.clone(), [1, 2, 3, 4]);
            assert_eq!(read.goes_on(map(), id(2), fill(there)), goes_on, "{bytes:?} {there:?}");
        }
    }

    #[test]
    fn a_reader_stays_with_its_own_fill_without_a_comparison_and_goes_on_from_one_fill_to_the_next() {
        let mut read = reader(0..PIECE, [1, 2, 3, 4]);
        assert!(read.goes_on(map(), id(1), fill([0; 4])), "its own");
        assert!(read.goes_on(map(), id(2), fill([1, 9, 0, 0])));
        read.note(map(), id(2), &(PIECE..2 * PIECE), fill([1, 9, 0, 0]));
        assert!(
            !read.clone().goes_on(map(), id(3), fill([1, 2, 3, 4])),
            "it has read of the second"
        );
        assert!(read.goes_on(map(), id(3), fill([1, 9, 3, 4])));
    }

    #[test]
    fn a_piece_that_was_gone_when_it_was_read_and_a_blob_that_is_cut_otherwise_end_the_reader() {
        let mut read = reader(0..PIECE + 1, [1, 0, 0, 0]);
        assert!(!read.goes_on(map(), id(2), fill([1, 2, 3, 4])));
        let mut read = reader(0..PIECE, [1, 2, 3, 4]);
        let other = PieceMap::for_blob(3 * PIECE).unwrap();
        assert!(!read.goes_on(other, id(2), fill([1, 2, 3, 4])));
    }
}
