//! Blobs: complete ones, and those that are being filled.
//!
//! From the bottom up: values and pure parts (ledger, window, partial pieces), the fill, what is here and what is live
//! (inventory, live fills), files on disk, eviction, the store of blobs; and on top the operations that change it: begin,
//! unstored, publish, damage.

pub(crate) mod begin;
pub(crate) mod blob_files;
pub(crate) mod blob_store;
pub(crate) mod counters;
pub(crate) mod damage;
pub(crate) mod digest_lock;
pub(crate) mod evictor;
pub(crate) mod fill;
pub(crate) mod fill_failure;
pub(crate) mod good_pieces;
pub(crate) mod inventory;
pub(crate) mod ledger;
pub(crate) mod live_fills;
mod memory_file;
pub(crate) mod partial_piece;
pub(crate) mod publish;
pub(crate) mod random;
pub(crate) mod read;
pub(crate) mod unstored;
mod unstored_places;
mod window;
