//! One `Range` of a blob. Source: RFC 9110, section 14.

use std::ops::Range;

/// The part that a `Range` header asks of a body of known size.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum RequestedRange {
    /// No range, one of another unit, or several: the whole body. Several would be a multipart answer, which no client needs
    /// and which those that ask for several understand the lack of.
    Whole,
    /// 206: these bytes, never none.
    Part(Range<u64>),
    /// 416: malformed, inverted, or beyond the end.
    Unsatisfiable,
}

/// Reads the value of `Range` for a body of `size` bytes.
pub(crate) fn asked(header: Option<&str>, size: u64) -> RequestedRange {
    let Some(spec) = header.and_then(|value| value.trim().strip_prefix("bytes=")) else {
        return RequestedRange::Whole;
    };
    if spec.contains(',') {
        return RequestedRange::Whole;
    }
    match spec
        .trim()
        .split_once('-')
        .and_then(|(first, last)| part(first, last, size))
    {
        Some(range) if range.start < range.end => RequestedRange::Part(range),
        _ => RequestedRange::Unsatisfiable,
    }
}

fn part(first: &str, last: &str, size: u64) -> Option<Range<u64>> {
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Some(first..size.min(last.saturating_add(1))),
        (Some(first), None) if last.is_empty() => Some(first..size),
        (None, Some(suffix)) if first.is_empty() => Some(size.saturating_sub(suffix)..size),
        _ => None,
    }
}

/// Digits only: no sign, no space. A number too large for `u64` is beyond any end.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_exact() {
        let cases = [
            (None, RequestedRange::Whole),
            (Some("bytes=0-"), RequestedRange::Part(0..100)),
            (Some("bytes=0-0"), RequestedRange::Part(0..1)),
            (Some("bytes=10-19"), RequestedRange::Part(10..20)),
            (Some("bytes=90-"), RequestedRange::Part(90..100)),
            (Some("bytes=90-5000"), RequestedRange::Part(90..100)),
            (Some("bytes=-10"), RequestedRange::Part(90..100)),
            (Some("bytes=-500"), RequestedRange::Part(0..100)),
            (Some("bytes=0-18446744073709551615"), RequestedRange::Part(0..100)),
            (Some("bytes=0-99999999999999999999999"), RequestedRange::Part(0..100)),
            (Some("bytes=-0"), RequestedRange::Unsatisfiable),
            (Some("bytes=100-"), RequestedRange::Unsatisfiable),
            (Some("bytes=50-0"), RequestedRange::Unsatisfiable),
            (Some("bytes=a-b"), RequestedRange::Unsatisfiable),
            (Some("bytes=-"), RequestedRange::Unsatisfiable),
            (Some("bytes="), RequestedRange::Unsatisfiable),
            (Some("bytes=+1-2"), RequestedRange::Unsatisfiable),
            (Some("bytes=0-1,3-4"), RequestedRange::Whole),
            (Some("pieces=0-1"), RequestedRange::Whole),
        ];
        for (header, expected) in cases {
            assert_eq!(asked(header, 100), expected, "{header:?}");
        }
        assert_eq!(asked(Some("bytes=0-"), 0), RequestedRange::Unsatisfiable);
    }
}
