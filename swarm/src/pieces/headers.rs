//! Headers of a piece request and its answer.
//!
//! Invariant: a header that cannot be read counts as absent.

use http::HeaderName;
use piecemeal_proto::{Digest, PieceHash};

/// The fill that brought the pieces, in 16 hexadecimal digits.
pub(super) const FILL: HeaderName = HeaderName::from_static("piecemeal-fill");
/// The hashes of the pieces in hexadecimal, separated by commas, if all are known and they are at most [`HASHES_MAX`].
pub(super) const HASHES: HeaderName = HeaderName::from_static("piecemeal-hashes");
/// Length of the sender's pieces, in bytes: a complete blob may have been cut otherwise than the receiver's fill.
pub(super) const PIECE_BYTES: HeaderName = HeaderName::from_static("piecemeal-piece-bytes");
/// The scheme of `Authorization`.
pub(super) const SCHEME: &str = "Piecemeal";
/// Most hashes in a header: 4 KiB of it.
pub(super) const HASHES_MAX: u32 = 64;

pub(super) fn write_hashes(hashes: &[PieceHash]) -> String {
    let texts: Vec<String> = hashes.iter().map(|hash| Digest::Sha256(*hash).hex()).collect();
    texts.join(",")
}

/// `None` when one of them is malformed, or there are not `count`.
pub(super) fn read_hashes(text: &str, count: u32) -> Option<Vec<PieceHash>> {
    let hashes: Option<Vec<PieceHash>> = text
        .split(',')
        .map(|hex| match format!("sha256:{hex}").parse() {
            Ok(Digest::Sha256(hash)) => Some(hash),
            _ => None,
        })
        .collect();
    hashes.filter(|hashes| u32::try_from(hashes.len()) == Ok(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_survive_their_header() {
        let hashes = [[1; 32], [0xfe; 32]];
        let text = write_hashes(&hashes);
        assert_eq!(read_hashes(&text, 2).unwrap(), hashes);
        assert_eq!(read_hashes(&text, 3), None);
        assert_eq!(read_hashes(&text[1..], 2), None);
        assert_eq!(read_hashes("", 0), None);
    }
}
