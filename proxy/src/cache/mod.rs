//! Cache administration: listing, removing, verifying and prefetching a daemon's content.
//!
//! All of it goes through the store and the same content that serves clients, so that the same invariants hold: content in use is
//! never removed, and content that the source would not serve is never fetched. The admin port decides who may ask.

mod handle;
mod lines;
mod messages;
mod name;
mod parts;
mod prefetch;
mod verify;
mod view;

pub use handle::Cache;
pub use lines::CacheLines;
pub use messages::{
    BlobState, CacheError, CacheItem, CacheList, CachedBlob, CachedImage, CachedManifest, Removed, VerifyEvent,
    VerifyRequest, WarmEvent, WarmRequest,
};
pub(crate) use parts::CacheParts;
