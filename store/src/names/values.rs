//! Manifests and tags, as the store hands them out.
//!
//! The bytes of a manifest have its digest.

use std::time::Duration;

use bytes::Bytes;
use piecemeal_proto::Digest;

/// A manifest or index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub media_type: String,
    pub bytes: Bytes,
    pub digest: Digest,
}

/// The digest that a tag stood for when upstream was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    pub digest: Digest,
    /// The time since upstream was asked; a restart adds an hour at the most.
    pub age: Duration,
}
