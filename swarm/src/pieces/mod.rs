//! Exchange of pieces: the piece port of peers and mirror, and its client.
//!
//! HTTP/1.1 with keep-alive: `GET /piece/v1/{digest}/{fill}/{first}-{last}`, with a ticket. Invariant: neither side verifies
//! pieces here. The sender's store has verified them, and the receiver's store will.

mod body;
mod client;
mod content;
mod headers;
mod listen;
mod part;
mod pool;
mod server;
mod uploads;

pub use client::{FetchPiecesError, FetchedPiece, PATIENT_STALL, PieceClient, PieceRequest, STALL};
pub use listen::serve_pieces;
pub use server::{PiecePort, piece_router};
