//! Blob that a client can be answered with while its bytes still come.
//!
//! No byte is read before the right is proven, and a reader goes on from one fill to another only where both have the pieces that it has read.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use piecemeal_proto::Digest;
use piecemeal_store::{Blob, Extent, FillFailure, Filling, ReadBlobError, Repository};

use super::{
    one::{Progress, Transfer},
    read_pieces::ReadPieces,
};
use crate::{Item, callers::Right};

/// Why a reader ends that has read of a fill what another fill does not have.
const OTHER_BYTES: &str = "the blob now comes from another download, which has other bytes; resume";

/// A blob that a client can be answered with: its size is known, its bytes are here or come.
pub enum OpenBlob {
    Complete(Blob),
    /// `transfer`: whose reader it is. When that goes on with another fill, so does the reader, unless it has read other pieces.
    Filling {
        filling: Filling,
        transfer: Option<Arc<Transfer>>,
        read: ReadPieces,
    },
    /// `unproven`: no byte is read before the source has answered this very right.
    Starting {
        blob_bytes: u64,
        transfer: Arc<Transfer>,
        unproven: Option<Right>,
        read: ReadPieces,
    },
}

impl OpenBlob {
    /// The caller's right is proven: it may read whatever comes.
    #[must_use]
    pub fn proven(self) -> Self {
        match self {
            Self::Starting {
                blob_bytes,
                transfer,
                read,
                ..
            } => Self::Starting {
                blob_bytes,
                transfer,
                unproven: None,
                read,
            },
            opened => opened,
        }
    }

    /// The item that a caller's right is checked for before it reads. `transfer`: that of the blob.
    pub fn item<'a>(&self, transfer: &Transfer, at: &Repository, digest: &'a Digest) -> Item<'a> {
        match self {
            Self::Filling { .. } | Self::Starting { .. } if transfer.has_answered(at) => Item::Answered(digest),
            _ => Item::Blob(digest),
        }
    }

    /// In bytes.
    pub fn blob_bytes(&self) -> u64 {
        match self {
            Self::Complete(blob) => blob.map().blob_bytes(),
            Self::Filling { filling, .. } => filling.map().blob_bytes(),
            Self::Starting { blob_bytes, .. } => *blob_bytes,
        }
    }

    /// Waits until there is a byte at `offset`.
    ///
    /// # Errors
    /// The reason why the transfer ended.
    pub async fn ready(&mut self, offset: u64) -> Result<(), ReadBlobError> {
        loop {
            let Started::Filling(filling, transfer) = self.started().await? else {
                return Ok(());
            };
            let readable = filling.wait_readable(offset);
            let Some(transfer) = transfer else {
                return readable.await;
            };
            tokio::select! {
                biased;
                readable = readable => match readable {
                    Ok(()) => return self.require_same(),
                    Err(_) if transfer.goes_on_after(filling).await => {}
                    Err(error) => return Err(error),
                },
                () = transfer.leaves(filling) => {}
            }
            self.start_over()?;
        }
    }

    /// The transfer goes on with another fill.
    fn start_over(&mut self) -> Result<(), ReadBlobError> {
        *self = match self {
            Self::Filling {
                filling,
                transfer: Some(transfer),
                read,
            } => Self::Starting {
                blob_bytes: filling.map().blob_bytes(),
                transfer: Arc::clone(transfer),
                unproven: None,
                read: std::mem::take(read),
            },
            _ => return Err(given_up(OTHER_BYTES)),
        };
        Ok(())
    }

    /// Ends a reader that has read other pieces than those of the fill that it goes on with.
    fn require_same(&mut self) -> Result<(), ReadBlobError> {
        let Self::Filling { filling, read, .. } = self else {
            return Ok(());
        };
        match read.goes_on(filling.map(), filling.fill(), |piece| filling.hash(piece)) {
            true => Ok(()),
            false => Err(given_up(OTHER_BYTES)),
        }
    }

    /// Reads at least one byte from the start of `range`, waiting for it when it is still on its way.
    ///
    /// # Errors
    /// The reason why the transfer ended, or damage on disk.
    pub async fn read(&mut self, range: Range<u64>) -> Result<Bytes, ReadBlobError> {
        let start = range.start;
        let bytes = match self.wait_for_first(&range).await? {
            Started::Complete(blob) => blob.read(range).await,
            Started::Filling(filling, _) => filling.read(range).await,
        }?;
        self.note(start..start + bytes.len() as u64);
        Ok(bytes)
    }

    /// As [`OpenBlob::read`], but says where the bytes lie. `None` where they can only be read.
    ///
    /// # Errors
    /// As [`OpenBlob::read`].
    pub async fn extent(&mut self, range: Range<u64>) -> Result<Option<Extent>, ReadBlobError> {
        let start = range.start;
        let extent = match self.wait_for_first(&range).await? {
            Started::Complete(blob) => blob.extent(range),
            Started::Filling(filling, _) => filling.extent(range).await,
        }?;
        if let Some(extent) = &extent {
            self.note(start..start + extent.len());
        }
        Ok(extent)
    }

    /// Waits for the first byte of `range`.
    async fn wait_for_first(&mut self, range: &Range<u64>) -> Result<Started<'_>, ReadBlobError> {
        if !range.is_empty() {
            self.ready(range.start).await?;
        }
        self.started().await
    }

    /// The reader has read these bytes.
    fn note(&mut self, bytes: Range<u64>) {
        if let Self::Filling { filling, read, .. } = self {
            read.note(filling.map(), filling.fill(), &bytes, |piece| filling.hash(piece));
        }
    }

    async fn started(&mut self) -> Result<Started<'_>, ReadBlobError> {
        if let Self::Starting {
            blob_bytes,
            transfer,
            unproven,
            read,
        } = self
        {
            let stated = *blob_bytes;
            let progress = match unproven {
                Some(right) => transfer.started_for(right).await,
                None => transfer.started().await,
            };
            *self = match progress {
                Progress::Open(filling) => Self::Filling {
                    filling,
                    transfer: Some(Arc::clone(transfer)),
                    read: std::mem::take(read),
                },
                Progress::Complete(blob) => complete(blob, read)?,
                Progress::Failed(error) => return Err(given_up(&error.to_string())),
                Progress::Starting { .. } => return Err(given_up("it has not started")),
            };
            if self.blob_bytes() != stated {
                return Err(given_up("the source states another size than the manifest"));
            }
        }
        match self {
            Self::Complete(blob) => Ok(Started::Complete(blob)),
            Self::Filling { filling, transfer, .. } => Ok(Started::Filling(filling, transfer.as_deref())),
            Self::Starting { .. } => Err(given_up("it has not started")),
        }
    }
}

/// A blob whose bytes are here or come.
enum Started<'a> {
    Complete(&'a Blob),
    Filling(&'a Filling, Option<&'a Transfer>),
}

/// A blob that is whole, for a reader that has read this of a fill.
fn complete(blob: Blob, read: &mut ReadPieces) -> Result<OpenBlob, ReadBlobError> {
    let hashes = blob.piece_hashes();
    match read.goes_on(blob.map(), blob.fill(), |piece| hashes.get(piece as usize).copied()) {
        true => Ok(OpenBlob::Complete(blob)),
        false => Err(given_up(OTHER_BYTES)),
    }
}

fn given_up(why: &str) -> ReadBlobError {
    ReadBlobError::Abandoned(FillFailure::Upstream(why.to_owned()))
}
