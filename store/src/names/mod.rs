//! Names: manifests, tags, and sources (which upstream answered for which digest).
//!
//! A source row says that the upstream itself answered for a digest under a repository; it is the only thing that makes a
//! manifest visible there. Content is stored once, however many repositories have it.

pub(crate) mod name_cache;
pub(crate) mod name_store;
pub(crate) mod name_uses;
mod overflow;
pub(crate) mod values;
