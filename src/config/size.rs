//! Sizes in bytes as people write them: `5M` is 5,000,000, `5Mi` is 5,242,880.
//!
//! Invariant: a size that does not fit into 64 bits is an error, never another size.

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseSizeError {
    #[error("not a size: a whole number with K, M, G or T (thousands) or Ki, Mi, Gi or Ti (1024s), such as 5M or 4Gi")]
    Malformed,
    #[error("the size is larger than any disk")]
    TooLarge,
}

/// Reads a size; units are case-sensitive, as in Kubernetes, except that `k` is `K` and a final `B` is ignored.
///
/// # Errors
/// A text of any other form, or more than `u64` holds.
pub(crate) fn parse_size(text: &str) -> Result<u64, ParseSizeError> {
    let text = text.trim();
    let digits_end = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    if digits.is_empty() {
        return Err(ParseSizeError::Malformed);
    }
    let unit = unit.trim_start();
    let unit_bytes: u64 = match unit.strip_suffix('B').unwrap_or(unit) {
        "" => 1,
        "k" | "K" => 1000,
        "M" => 1000_u64.pow(2),
        "G" => 1000_u64.pow(3),
        "T" => 1000_u64.pow(4),
        "Ki" => 1024,
        "Mi" => 1024_u64.pow(2),
        "Gi" => 1024_u64.pow(3),
        "Ti" => 1024_u64.pow(4),
        _ => return Err(ParseSizeError::Malformed),
    };
    let count: u64 = digits.parse().map_err(|_| ParseSizeError::TooLarge)?;
    count.checked_mul(unit_bytes).ok_or(ParseSizeError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_letters_are_decimal_and_i_makes_them_binary() {
        let cases = [
            ("0", 0),
            ("512", 512),
            ("5M", 5_000_000),
            ("5MB", 5_000_000),
            ("5 M", 5_000_000),
            ("1k", 1000),
            ("20G", 20_000_000_000),
            ("1T", 1_000_000_000_000),
            ("1Ki", 1024),
            ("4Gi", 4 << 30),
            ("4GiB", 4 << 30),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "M", "-1", "5m", "1.5G", "5X", "5Mb", "0x10", "5M M", "5iM", "five"] {
            assert_eq!(parse_size(text), Err(ParseSizeError::Malformed), "{text}");
        }
        for text in ["18446744073709551616", "18446745T"] {
            assert_eq!(parse_size(text), Err(ParseSizeError::TooLarge), "{text}");
        }
    }
}
