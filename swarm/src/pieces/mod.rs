//! Exchange of pieces: the piece port of peers and mirror, and its client.
//!
//! HTTP/1.1 with keep-alive: `GET /piece/v1/{digest}/{fill}/{first}-{last}`, with a ticket. Neither side verifies pieces:
//! the sender's store has, and the receiver's store will.

mod body;
mod client;
mod content;
mod listen;
mod part;
mod pool;
mod server;
mod uploads;

pub use client::{FetchPiecesError, FetchedPiece, PATIENT_STALL, PieceClient, PieceRequest, STALL};
pub use listen::serve_pieces;
pub use server::{PiecePort, piece_router};

use http::HeaderName;
use piecemeal_proto::{Digest, PieceHash};

/// The fill that brought the pieces, in 16 hexadecimal digits.
const FILL: HeaderName = HeaderName::from_static("piecemeal-fill");
/// The pieces' hashes in hexadecimal, separated by commas, when all were known and there are not too many.
const HASHES: HeaderName = HeaderName::from_static("piecemeal-hashes");
/// How long the sender's pieces are: a complete blob may have been cut otherwise than the receiver's fill.
const PIECE_BYTES: HeaderName = HeaderName::from_static("piecemeal-piece-bytes");
/// The scheme of `Authorization`.
const SCHEME: &str = "Piecemeal";
/// The most hashes in a header: 4 KiB of it.
const HASHES_MAX: u32 = 64;

fn write_hashes(hashes: &[PieceHash]) -> String {
    let texts: Vec<String> = hashes.iter().map(|hash| Digest::Sha256(*hash).hex()).collect();
    texts.join(",")
}

/// `None` when one of them is malformed, or there are not `count`.
fn read_hashes(text: &str, count: u32) -> Option<Vec<PieceHash>> {
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
