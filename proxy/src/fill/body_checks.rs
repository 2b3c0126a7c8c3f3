//! Checks of a body against the segment that it is to bring. Pure.
//!
//! A body that is skipped, cut short or too long never moves a byte to another place of the blob.

/// The size that an answer states, if that is another than the blob's.
pub(super) fn other_size(stated: Option<u64>, blob_bytes: u64) -> Option<u64> {
    stated.filter(|stated| *stated != blob_bytes)
}

/// The bytes at the beginning of a body that are here already; `None` when the body begins too late.
pub(super) fn skipped(wanted_from: u64, body_from: u64) -> Option<u64> {
    wanted_from.checked_sub(body_from)
}

/// Whether a body goes on behind the blob's end. `surplus`: its bytes, as far as they have come, behind the segment's end. `reached`: the
/// offset to which it was received.
pub(super) fn is_too_long(surplus: usize, reached: u64, blob_bytes: u64) -> bool {
    surplus > 0 && reached == blob_bytes
}

/// Progress of a body through its segment: the piece that it was in, and what the store had of that piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached {
    /// The offset of the piece in the blob.
    pub(super) piece_start: u64,
    /// In bytes.
    pub(super) kept: usize,
}

/// Whether a body has brought something new, and not too slowly.
pub(super) fn has_progressed(from: Reached, to: Reached, is_too_slow: bool) -> bool {
    let came = to.piece_start > from.piece_start || to.kept > from.kept;
    came && !is_too_slow
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_state_no_size_and_no_other_than_the_blob_s() {
        assert_eq!((other_size(None, 10), other_size(Some(10), 10)), (None, None));
        assert_eq!((other_size(Some(9), 10), other_size(Some(0), 10)), (Some(9), Some(0)));
    }

    #[test]
    fn a_body_may_begin_before_what_is_missing_and_not_after() {
        assert_eq!(skipped(100, 100), Some(0));
        assert_eq!(skipped(100, 0), Some(100));
        assert_eq!(skipped(100, 101), None);
    }

    #[test]
    fn a_body_may_go_on_behind_its_segment_and_not_behind_the_blob() {
        assert!(!is_too_long(5, 50, 100));
        assert!(!is_too_long(0, 100, 100));
        assert!(is_too_long(1, 100, 100));
    }

    #[test]
    fn a_body_has_progressed_by_a_piece_or_a_part_of_one_unless_it_drips() {
        let at = |piece_start, kept| Reached { piece_start, kept };
        assert!(!has_progressed(at(4, 2), at(4, 2), false));
        assert!(has_progressed(at(4, 2), at(4, 3), false));
        assert!(has_progressed(at(4, 2), at(8, 0), false), "the next piece has begun");
        assert!(!has_progressed(at(4, 2), at(8, 0), true));
    }
}
