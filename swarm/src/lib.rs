//! The parts that every member of a swarm has: the session with the scheduler, the piece port and its client, the rate limiter,
//! the clock.
//!
//! A member is a peer or the mirror. Invariant: nothing here asks which. The scheduler, and the download that a lease belongs
//! to, decide why a blob is fetched and from which source.

mod clock;
mod limiter;
mod pieces;
mod session;

pub use clock::AuthorityClock;
pub use limiter::{Limiter, TokenBucket, slice_bytes};
pub use pieces::{
    FetchPiecesError, FetchedPiece, PATIENT_STALL, PieceClient, PiecePort, PieceRequest, STALL, piece_router,
    serve_pieces,
};
pub use session::{Inventory, Session, SessionConfig, SessionEvent};
