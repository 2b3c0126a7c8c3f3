//! Lower-case hexadecimal, the only form that digests and ids use.
//!
//! Invariant: text of another length, with an upper-case digit or any other character is no value.

use data_encoding::HEXLOWER;

/// Two digits a byte.
pub(crate) fn encode(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

/// The `N` bytes that `text` spells, or `None` when it has another length or any other character (upper case included).
pub(crate) fn decode_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // The decoder panics on a buffer of another length.
    if text.len() != N * 2 {
        return None;
    }
    HEXLOWER.decode_mut(text.as_bytes(), &mut bytes).ok()?;
    Some(bytes)
}
