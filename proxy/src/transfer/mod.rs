//! Downloads of blobs under way: one transfer per digest and upstream, whatever the number of its callers.
//!
//! Of several upstreams that send one digest at once the first leads: it fills the kept blob. The others follow it while they
//! have the same bytes (`fill/follow`). Until a blob is proven, one upstream's answer or silence never delays another's
//! callers.
//!
//! A transfer is detached from every reader: it ends when the blob is complete or cannot be fetched, never because a client left.
//! It is `Starting`, then `Open`, then either `Complete` or `Failed`; a later request begins another. Only one that follows another goes back
//! to `Starting`, when that other has failed.
//!
//! It goes on with the right of one of its callers after the other (`callers`): a refusal ends one caller's part only. What
//! happens to the blob once it comes (wrong bytes, a lost connection) is the blob's own, and cools it down for all.

mod cool_down;
mod one;
mod open_blob;
mod read_pieces;
mod table;

pub use one::{Arrived, Progress, Transfer};
pub use open_blob::OpenBlob;
pub use read_pieces::ReadPieces;
pub(crate) use table::Joining;
pub use table::Transfers;
