//! Content on disk: blobs, the pieces of blobs that are still being filled, and what is known by name.
//!
//! # What it promises
//! - A [`Blob`] is complete and was proven against its digest; while a handle lives, nothing evicts it.
//! - A [`Filling`] shows clients only bytes of verified pieces, and the blob's final piece only once the whole blob is
//!   proven. Every reader waits for its own piece and for nothing else.
//! - Space for a whole blob is reserved before its first byte is written. Eviction makes room by last use.
//! - After a crash the disk holds what the rows say: files without a row are removed, rows without a file are dropped, and
//!   a partial is offered again only in the pieces, and in the tails of a few more, whose bytes still have their hash.
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
//! In this order, each optional: a digest's gate (`gate`), the reservation lock, the index, the state, a filling's own
//! state. The state's lock is never held across disk work.

mod batch;
mod begin;
mod blobs;
mod blocking;
mod catalog;
mod checked;
mod clock;
mod counts;
mod evict;
mod extent;
mod files;
mod fill;
mod gate;
mod handle;
mod hashes;
mod index;
mod known;
mod layout;
mod names;
mod node_key;
mod open;
mod passing;
mod pieces;
mod private;
mod publish;
mod quota;
mod recover;
mod scrub;
mod store;
mod tail;

pub use begin::BeginFillError;
pub use blobs::{Blob, READ_BYTES_MAX, ReadBlobError};
pub use catalog::{Catalog, KnownBlob, KnownManifest, KnownTag, Presence, Removal, RemoveContentError};
pub use checked::CheckedBlob;
pub use clock::{Clock, SystemClock};
pub use counts::Counts;
pub use evict::Swept;
pub use extent::Extent;
pub use files::{DiskFiles, FileEntry, FileStamp, Files, OpenFile};
pub use fill::FillFailure;
pub use hashes::PieceHashes;
pub use index::{IndexError, ListSignature};
pub use names::{Holder, MANIFEST_BYTES_MAX, Manifest, NodeRight, Repository, Shown, Tag};
pub use node_key::NodeKeyError;
pub use open::{Env, OpenStoreError, StoreConfig};
pub use passing::Offer;
pub use pieces::{Filling, WritePieceError};
pub use publish::PublishBlobError;
pub use scrub::Verified;
pub use store::{Store, StoreError, Usage};

/// The SHA-256 of one piece, whatever algorithm the blob's digest uses.
pub type PieceHash = [u8; 32];
