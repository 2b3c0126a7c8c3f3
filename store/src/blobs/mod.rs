//! Blobs: complete ones, and those that are being filled.
//!
//! From the bottom up: the ledger of what is here and its inventory; `fills`, the state of those that are being filled; files on disk;
//! eviction; the store of blobs; and on top the operations that change it: begin, unstored, publish, damage.

pub(crate) mod begin;
pub(crate) mod blob_files;
pub(crate) mod blob_store;
pub(crate) mod counters;
pub(crate) mod damage;
pub(crate) mod digest_lock;
pub(crate) mod entry;
pub(crate) mod evictor;
pub(crate) mod fills;
pub(crate) mod good_pieces;
pub(crate) mod inventory;
pub(crate) mod ledger;
pub(crate) mod publish;
pub(crate) mod random;
pub(crate) mod read;
mod space;
pub(crate) mod unstored;
mod unstored_places;
