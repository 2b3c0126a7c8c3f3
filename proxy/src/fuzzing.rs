//! Fuzz targets: properties that hold for any input, and a test of the kept corpus.

use crate::front::{RequestedRange, asked};

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
    assert_eq!(read, expected(header.trim(), size), "{header:?} of {size}");
    if let RequestedRange::Part(range) = read {
        assert!(
            range.start < range.end && range.end <= size,
            "{header:?} of {size}: {range:?}"
        );
        let (last, length) = (range.end - 1, size - range.start);
        let exactly = format!("bytes={}-{last}", range.start);
        assert_eq!(asked(Some(&exactly), size), RequestedRange::Part(range.clone()));
        if range.end == size {
            assert_eq!(
                asked(Some(&format!("bytes=-{length}")), size),
                RequestedRange::Part(range)
            );
        }
    }
}

/// In numbers of any length.
fn expected(header: &str, size: u64) -> RequestedRange {
    let Some(spec) = header.strip_prefix("bytes=") else {
        return RequestedRange::Whole;
    };
    if spec.contains(',') {
        return RequestedRange::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else {
        return RequestedRange::Unsatisfiable;
    };
    if !(first.to_owned() + last).chars().all(|digit| digit.is_ascii_digit()) {
        return RequestedRange::Unsatisfiable;
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
        (Some(_), Some(_)) if inverted => return RequestedRange::Unsatisfiable,
        (Some(first), Some(last)) => (first, size_wide.min(last + 1)),
        (Some(first), None) => (first, size_wide),
        (None, Some(suffix)) => (size_wide.saturating_sub(suffix), size_wide),
        (None, None) => return RequestedRange::Unsatisfiable,
    };
    match (u64::try_from(start), u64::try_from(end)) {
        (Ok(start), Ok(end)) if start < end => RequestedRange::Part(start..end),
        _ => RequestedRange::Unsatisfiable,
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
