//! What people do with a daemon's content by hand: look at it, take it out, look whether it is whole, fetch it ahead.
//!
//! All of it goes through the store and the same traits that clients are served by, so that it keeps what they keep: nothing that
//! is in use goes, and nothing comes that the source would not serve. Who may ask is for the admin port to know.

mod handle;
mod lines;
mod messages;
mod name;
mod verify;
mod view;
mod warm;

pub use handle::{Cache, CacheParts};
pub use lines::CacheLines;
pub use messages::{
    BlobState, CacheError, CacheItem, CacheList, CachedBlob, CachedImage, CachedManifest, Removed, VerifyEvent,
    VerifyRequest, WarmEvent, WarmRequest,
};
