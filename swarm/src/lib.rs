//! What every member of a swarm does: the stream to the scheduler, the piece port and its client, the rate limiter.
//!
//! A member is a peer or the mirror; nothing in here asks which. What a blob is wanted for, and from whom, is decided
//! elsewhere: by the scheduler, and by the download that a lease belongs to.

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
