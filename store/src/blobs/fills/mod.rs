//! Fills: blobs whose pieces are arriving. Nothing here waits or touches the index.
//!
//! From the bottom up: what is pure (the window, the pieces that are here, claims, waits), the file in memory, partial pieces, and the
//! fill; on top how it is proven, how its pieces pass through a window, and the fills that are live.

mod claims;
pub(crate) mod end;
pub(crate) mod failure;
pub(crate) mod fill;
pub(crate) mod fill_file;
pub(crate) mod live_fills;
mod memory_file;
pub(crate) mod partial_piece;
mod partial_pieces;
mod passage;
mod pieces;
mod prefix;
mod proof;
mod waits;
mod window;
