//! Content on disk: blobs, the pieces of blobs that are still being filled, and what is known by name.
//!
//! # What it promises
//! - A [`Blob`] is complete and was proven against its digest; while a handle lives, nothing evicts it.
//! - A [`Filling`] shows clients only bytes of verified pieces, and the blob's final piece only once the whole blob is
//!   proven; a reader of a small part, which checks it, gets that piece once it has landed. Every reader waits for its own piece and for
//!   nothing else.
//! - Space for a whole blob is reserved before its first byte is written. Eviction makes room by last use.
//! - After a crash the disk holds what the rows say: files without a row are removed, rows without a file are dropped, and
//!   a partial is offered again only in the pieces, and in the beginnings of a few more, whose bytes still have their hash.
//! - A file that is missing or damaged is a miss that heals itself; disk content never panics.
//!
//! # What it leaves to others
//! Access control: a digest is no permission. [`Store::has_source`] says only that an upstream answered for a blob.
//! There is no thread and no timer in here either: pieces and last uses are written in batches by the operation that finds
//! the last batch 5 ms old, and the owner calls [`Store::sweep`] every minute or so.
//!
//! # Folder
//! ```text
//! lock                      one process per folder
//! node.key                  who this node is; 0600, never written over
//! index.db                  SQLite: rows of everything below, manifests, tags, sources
//! blobs/<alg>/<2 hex>/<hex> complete and verified
//! partial/<alg>-<hex>       being filled, as long as the blob from the start (sparse)
//! ```
//!
//! # Locks
//! In this order, each optional: a digest's lock, the reservation lock, the right to save pieces, the index, the live fills, the
//! ledger, a fill's own state.
//! The locks after the index are never held across disk work.
//!
//! # Files
//! From the bottom up: `values` (errors, clock, rows of no digest), `disk` (files, paths), `index` (SQLite), `blobs` and `names`, which
//! meet only there, `open` (claiming a folder, recovery), `shared` (what all handles share), `catalog`, and `facade` on top.

mod blobs;
mod catalog;
mod disk;
mod facade;
mod index;
mod names;
mod open;
mod shared;
mod values;

pub use blobs::{
    begin::BeginFillError,
    evictor::Swept,
    fills::failure::FillFailure,
    publish::PublishBlobError,
    read::{READ_BYTES_MAX, ReadBlobError, ReadRange},
    unstored::Offer,
};
pub use catalog::{Catalog, KnownBlob, KnownManifest, KnownTag, Presence, Removal, RemoveContentError};
pub use disk::{
    disk_files::DiskFiles,
    extent::Extent,
    files::{FileEntry, FileStamp, Files, OpenFile},
};
pub use facade::{
    blob::Blob,
    checked_blob::CheckedBlob,
    filling::{handle::Filling, writing::WritePieceError},
    store::Store,
    store_blobs::Verified,
};
pub use names::values::{Manifest, Tag};
pub use open::{
    config::{Env, StoreConfig},
    error::OpenStoreError,
    node_key::NodeKeyError,
};
pub use piecemeal_proto::PieceHash;
pub use values::{
    clock::{Clock, SystemClock},
    counts::{Counts, Usage},
    error::{IndexError, StoreError},
    piece_hashes::{ListSignature, PieceHashes},
    repository::Repository,
    right::{Holder, NodeRight, Shown},
};
