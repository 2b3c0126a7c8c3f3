//! Item that a right is checked for.
//!
//! Invariant: every item has one digest.

use piecemeal_proto::Digest;

/// The item that a right is checked for.
#[derive(Clone, Copy)]
pub enum Item<'a> {
    Manifest(&'a Digest),
    Blob(&'a Digest),
    /// A blob on its way from this upstream, which has answered for it under this very repository.
    Answered(&'a Digest),
}

impl Item<'_> {
    pub fn digest(&self) -> &Digest {
        match self {
            Self::Manifest(digest) | Self::Blob(digest) | Self::Answered(digest) => digest,
        }
    }
}
