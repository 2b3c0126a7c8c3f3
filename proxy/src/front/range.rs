//! `Range` of a blob. Source: RFC 9110, section 14.
//!
//! The parts of an answer do not overlap, so that no request gets more bytes than the blob has.

use piecemeal_store::ReadRange;

/// The most ranges of one request: the reader of zstd:chunked layers asks for no more (containers/storage, `maxNumberMissingChunks`).
const RANGES_MAX: usize = 1024;
/// The largest closed range that is early, in bytes: a table of contents, or a file of a lazily read layer. Clients that fetch a whole blob by
/// parallel ranges ask for more at a time.
const EARLY_BYTES_MAX: u64 = 1024 * 1024;
/// The largest closed range that is early, as a part of the blob: so that no few of them make a small blob.
const EARLY_PARTS_MIN: u64 = 8;

/// The part that a `Range` header asks of a body of known size.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RequestedRange {
    /// No range, one of another unit, or too many: the whole body.
    Whole,
    /// 206: these bytes, never none.
    Part(ReadRange),
    /// 206 with several parts, in the order in which they were asked for; two at least.
    Parts(Vec<ReadRange>),
    /// 416: malformed, inverted, or beyond the end.
    Unsatisfiable,
}

/// Reads the value of `Range` for a body of `size` bytes.
pub(crate) fn asked(header: Option<&str>, size: u64) -> RequestedRange {
    let Some(set) = header.and_then(|value| value.trim().strip_prefix("bytes=")) else {
        return RequestedRange::Whole;
    };
    let specs = set.split(',').map(str::trim).filter(|spec| !spec.is_empty());
    if specs.clone().count() > RANGES_MAX {
        return RequestedRange::Whole;
    }
    let Some(ranges) = specs.map(|spec| part(spec, size)).collect::<Option<Vec<ReadRange>>>() else {
        return RequestedRange::Unsatisfiable;
    };
    let satisfiable = ranges.into_iter().filter(|range| !range.bytes.is_empty());
    let mut parts = without_overlap(satisfiable.collect(), size);
    match parts.len() {
        0 => RequestedRange::Unsatisfiable,
        1 => RequestedRange::Part(parts.remove(0)),
        _ => RequestedRange::Parts(parts),
    }
}

/// One range of the header; empty when it lies beyond the end. `None`: it is malformed or inverted.
fn part(spec: &str, size: u64) -> Option<ReadRange> {
    let (first, last) = spec.split_once('-')?;
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => {
            let bytes = first.min(size)..size.min(last.saturating_add(1));
            let len = bytes.end - bytes.start;
            let is_early = len <= EARLY_BYTES_MAX && len <= size / EARLY_PARTS_MIN;
            Some(ReadRange { bytes, is_early })
        }
        (Some(first), None) if last.is_empty() => Some((first.min(size)..size).into()),
        (None, Some(suffix)) if first.is_empty() => {
            let bytes = size.saturating_sub(suffix)..size;
            let is_early = bytes.start > 0;
            Some(ReadRange { bytes, is_early })
        }
        _ => None,
    }
}

/// Digits only: no sign, no space. A number too large for `u64` is beyond any end.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The ranges in their order, those that overlap as one, in the place of the first of them. Those that only touch stay apart: the reader of
/// zstd:chunked layers counts the parts.
fn without_overlap(ranges: Vec<ReadRange>, size: u64) -> Vec<ReadRange> {
    let mut by_start: Vec<(usize, ReadRange)> = ranges.into_iter().enumerate().collect();
    by_start.sort_by_key(|(_, range)| range.bytes.start);
    let mut parts: Vec<(usize, ReadRange)> = Vec::new();
    for (place, range) in by_start {
        match parts.last_mut() {
            Some((first, before)) if range.bytes.start < before.bytes.end => {
                *first = place.min(*first);
                before.bytes.end = range.bytes.end.max(before.bytes.end);
                before.is_early &= range.is_early && before.bytes != (0..size);
            }
            _ => parts.push((place, range)),
        }
    }
    parts.sort_by_key(|(place, _)| *place);
    parts.into_iter().map(|(_, range)| range).collect()
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    /// The bytes that are to be sent; none for the whole body.
    fn parts(header: &str, size: u64) -> Vec<Range<u64>> {
        match asked(Some(header), size) {
            RequestedRange::Whole => Vec::new(),
            RequestedRange::Part(range) => vec![range.bytes],
            RequestedRange::Parts(ranges) => ranges.into_iter().map(|range| range.bytes).collect(),
            RequestedRange::Unsatisfiable => panic!("{header} of {size}"),
        }
    }

    #[test]
    fn ranges_are_exact() {
        for (header, expected) in [
            ("bytes=0-", 0..100),
            ("bytes=0-0", 0..1),
            ("bytes=10-19", 10..20),
            ("bytes= 10-19 ", 10..20),
            ("bytes=10-19,", 10..20),
            ("bytes=90-", 90..100),
            ("bytes=90-5000", 90..100),
            ("bytes=-10", 90..100),
            ("bytes=-500", 0..100),
            ("bytes=0-18446744073709551615", 0..100),
            ("bytes=0-99999999999999999999999", 0..100),
        ] {
            assert_eq!(parts(header, 100), [expected], "{header}");
        }
        for header in [None, Some("pieces=0-1")] {
            assert_eq!(asked(header, 100), RequestedRange::Whole, "{header:?}");
        }
    }

    #[test]
    fn what_is_malformed_inverted_or_beyond_the_end_is_refused() {
        for header in [
            "bytes=-0",
            "bytes=100-",
            "bytes=50-0",
            "bytes=a-b",
            "bytes=-",
            "bytes=",
            "bytes=,",
            "bytes=+1-2",
            "bytes=0-1,5-4",
            "bytes=0-1,x",
            "bytes=100-,200-300,-0",
        ] {
            assert_eq!(asked(Some(header), 100), RequestedRange::Unsatisfiable, "{header}");
        }
        assert_eq!(asked(Some("bytes=0-"), 0), RequestedRange::Unsatisfiable);
    }

    #[test]
    fn several_ranges_come_in_their_order_and_those_beyond_the_end_not_at_all() {
        assert_eq!(parts("bytes=0-1, 5-6", 100), [0..2, 5..7]);
        assert_eq!(parts("bytes=90-,0-1,40-49", 100), [90..100, 0..2, 40..50]);
        assert_eq!(parts("bytes=0-3,4-7", 100), [0..4, 4..8], "a reader may count them");
        assert_eq!(parts("bytes=0-3,100-,200-300,-2", 100), [0..4, 98..100]);
        assert_eq!(parts("bytes=0-3,100-", 100), [0..4]);
    }

    #[test]
    fn ranges_that_overlap_are_sent_once() {
        assert_eq!(parts("bytes=5-9,5-9", 100), [5..10]);
        assert_eq!(parts("bytes=50-59,0-9,5-20,55-70", 100), [50..71, 0..21]);
        assert_eq!(parts("bytes=0-99,5-9,20-,-3", 100), [0..100]);
    }

    #[test]
    fn the_whole_answers_more_ranges_than_any_reader_asks_for() {
        let header = |count: usize| {
            let specs = (0..count).map(|spec| format!("{}-{}", spec * 10, spec * 10 + 4));
            format!("bytes={}", specs.collect::<Vec<_>>().join(","))
        };
        assert_eq!(parts(&header(RANGES_MAX), 1 << 20).len(), RANGES_MAX);
        assert_eq!(asked(Some(&header(RANGES_MAX + 1)), 1 << 20), RequestedRange::Whole);
    }

    #[test]
    fn a_suffix_and_a_small_closed_range_are_early_and_no_other() {
        const BLOB: u64 = 64 << 20;
        let is_early = |header: &str, size| match asked(Some(header), size) {
            RequestedRange::Part(range) => range.is_early,
            other => panic!("{header}: {other:?}"),
        };
        for header in [
            "bytes=-51",
            "bytes=-9000000",
            "bytes=0-1048575",
            "bytes=67108000-99999999",
        ] {
            assert!(is_early(header, BLOB), "{header}");
        }
        for header in [
            "bytes=0-",
            "bytes=67108863-",
            "bytes=0-1048576",
            "bytes=-67108864",
            "bytes=-99999999",
        ] {
            assert!(!is_early(header, BLOB), "{header}");
        }
        assert!(is_early("bytes=8-15", 64) && !is_early("bytes=8-16", 64));
        assert!(!is_early("bytes=0-9,5-", BLOB), "an open one is among them");
        assert!(
            is_early("bytes=0-9,5-20", BLOB) && !is_early("bytes=0-7,-60", 64),
            "that is the whole"
        );
    }
}
