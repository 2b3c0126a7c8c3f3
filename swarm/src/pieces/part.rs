//!
//! Part of a piece on its way out: bytes that were read, or their place in a file.
//!
//! Invariant: splitting neither copies nor reads bytes.

use bytes::Bytes;
use piecemeal_http::SendfileQueue;
use piecemeal_store::Extent;

pub(super) enum Part {
    Bytes(Bytes),
    Extent(Extent),
}

impl Part {
    /// Length in bytes.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Extent(extent) => extent.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the first `bytes_max` bytes off, or all when it has no more.
    #[must_use]
    pub(super) fn split_to(&mut self, bytes_max: usize) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.split_to(bytes.len().min(bytes_max))),
            Self::Extent(extent) => Self::Extent(extent.split_to(extent.len().min(bytes_max as u64))),
        }
    }

    /// The frame that a body yields for it: its bytes, or a stand-in for its place in the file.
    pub(super) fn frame(self, sendfile: Option<&SendfileQueue>) -> Bytes {
        match (self, sendfile) {
            (Self::Bytes(bytes), _) => bytes,
            (Self::Extent(mut extent), Some(sendfile)) => {
                sendfile.stand_in(extent.len(), move |socket, bytes_max| extent.send_to(socket, bytes_max))
            }
            (Self::Extent(_), None) => unreachable!("without a sendfile queue every part is read"),
        }
    }
}
