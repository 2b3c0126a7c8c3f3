//! Fuzz targets: properties that hold for any input, and a test of the kept corpus.

use std::ops::Range;

use crate::front::{RequestedRange, asked};

/// What a single range means.
enum Expected {
    Whole,
    Part(Range<u64>),
    Unsatisfiable,
}

/// A `Range` header, after the body's size in 8 bytes, means what RFC 9110 says, and never bytes that are not there.
pub fn range(input: &[u8]) {
    let Some((size, header)) = input.split_first_chunk() else {
        return;
    };
    let size = u64::from_le_bytes(*size);
    let Ok(header) = std::str::from_utf8(header) else {
        return;
    };
    let read = asked(Some(header), size);
    // A list has its own properties.
    if !header.contains(',') {
        let (is_whole, is_refused) = (read == RequestedRange::Whole, read == RequestedRange::Unsatisfiable);
        match expected(header.trim(), size) {
            Expected::Whole => assert!(is_whole, "{header:?} of {size}"),
            Expected::Unsatisfiable => assert!(is_refused, "{header:?} of {size}"),
            Expected::Part(range) => assert!(
                matches!(&read, RequestedRange::Part(read) if read.bytes == range),
                "{header:?} of {size}: {read:?}"
            ),
        }
    }
    let ranges = match read {
        RequestedRange::Part(range) => vec![range],
        RequestedRange::Parts(ranges) => ranges,
        RequestedRange::Whole | RequestedRange::Unsatisfiable => return,
    };
    let mut ranges: Vec<Range<u64>> = ranges.into_iter().map(|range| range.bytes).collect();
    for range in &ranges {
        assert!(
            range.start < range.end && range.end <= size,
            "{header:?} of {size}: {range:?}"
        );
        let (last, length) = (range.end - 1, size - range.start);
        let exactly = format!("bytes={}-{last}", range.start);
        assert_eq!(bytes(asked(Some(&exactly), size)), Some(range.clone()));
        if range.end == size {
            let suffix = format!("bytes=-{length}");
            assert_eq!(bytes(asked(Some(&suffix), size)), Some(range.clone()));
        }
    }
    ranges.sort_by_key(|range| range.start);
    let is_apart = |pair: &[Range<u64>]| pair[0].end <= pair[1].start;
    assert!(ranges.windows(2).all(is_apart), "{header:?} of {size}: {ranges:?}");
}

/// The bytes of one part.
fn bytes(read: RequestedRange) -> Option<Range<u64>> {
    match read {
        RequestedRange::Part(range) => Some(range.bytes),
        _ => None,
    }
}

/// In numbers of any length.
fn expected(header: &str, size: u64) -> Expected {
    let Some(spec) = header.strip_prefix("bytes=") else {
        return Expected::Whole;
    };
    let Some((first, last)) = spec.trim().split_once('-') else {
        return Expected::Unsatisfiable;
    };
    if !(first.to_owned() + last).chars().all(|digit| digit.is_ascii_digit()) {
        return Expected::Unsatisfiable;
    }
    // Beyond 10^30 all numbers are alike: no body is as long.
    let number = |text: &str| -> Option<u128> {
        let digits = text.trim_start_matches('0');
        let number = if digits.len() > 30 {
            Ok(10_u128.pow(30))
        } else {
            format!("0{digits}").parse()
        };
        (!text.is_empty()).then(|| number.expect("thirty digits fit"))
    };
    // An order that shows at any length is one even where the numbers are beyond any body.
    let inverted = {
        let [first, last] = [first, last].map(|text| text.trim_start_matches('0'));
        (first.len(), first) > (last.len(), last)
    };
    let size_wide = u128::from(size);
    let (start, end) = match (number(first), number(last)) {
        (Some(_), Some(_)) if inverted => return Expected::Unsatisfiable,
        (Some(first), Some(last)) => (first, size_wide.min(last + 1)),
        (Some(first), None) => (first, size_wide),
        (None, Some(suffix)) => (size_wide.saturating_sub(suffix), size_wide),
        (None, None) => return Expected::Unsatisfiable,
    };
    match (u64::try_from(start), u64::try_from(end)) {
        (Ok(start), Ok(end)) if start < end => Expected::Part(start..end),
        _ => Expected::Unsatisfiable,
    }
}

#[cfg(test)]
#[path = "../../fuzz/kept.rs"]
mod kept;

#[cfg(test)]
mod tests {
    use super::kept::kept;

    #[test]
    fn whatever_the_fuzzer_has_kept_holds() {
        kept("range").iter().for_each(|input| super::range(input));
    }
}
