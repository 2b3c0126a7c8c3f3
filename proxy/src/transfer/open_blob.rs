//! Blob that a client can be answered with while its bytes still come.
//!
//! No byte is read before the right is proven, and none of two fills is mixed: a reader that has read of one ends with it.

use bytes::Bytes;
use piecemeal_proto::Digest;
use piecemeal_store::{Blob, Extent, FillFailure, Filling, ReadBlobError, ReadRange, Repository};

use super::{
    one::{Progress, Transfer},
    reader::Reader,
};
use crate::{Item, callers::Right};

/// A blob that a client can be answered with: its size is known, its bytes are here or come.
pub enum OpenBlob {
    Complete(Blob),
    /// `transfer`: whose reader it is. When that goes on with another fill, so does a reader that has read nothing; the bytes of
    /// another end short.
    Filling {
        filling: Filling,
        transfer: Option<Reader>,
        has_read: bool,
    },
    /// `unproven`: no byte is read before the source has answered this very right.
    Starting {
        blob_bytes: u64,
        transfer: Reader,
        unproven: Option<Right>,
    },
}

impl OpenBlob {
    /// The caller's right is proven: it may read whatever comes.
    #[must_use]
    pub fn proven(self) -> Self {
        match self {
            Self::Starting {
                blob_bytes, transfer, ..
            } => Self::Starting {
                blob_bytes,
                transfer,
                unproven: None,
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

    /// Waits until the first byte of `range`, which is not empty, can be read.
    ///
    /// # Errors
    /// The reason why the transfer ended.
    pub async fn ready(&mut self, range: impl Into<ReadRange>) -> Result<(), ReadBlobError> {
        let range = range.into();
        loop {
            let Started::Filling(filling, transfer) = self.started().await? else {
                return Ok(());
            };
            let readable = filling.wait_readable(range.clone());
            let Some(transfer) = transfer else {
                return readable.await;
            };
            tokio::select! {
                biased;
                readable = readable => match readable {
                    Err(_) if transfer.goes_on_after(filling).await => {}
                    readable => return readable,
                },
                () = transfer.leaves(filling) => {}
            }
            self.start_over()?;
        }
    }

    /// The transfer goes on with another fill. A reader that has read of the one before has read what may be wrong.
    fn start_over(&mut self) -> Result<(), ReadBlobError> {
        *self = match self {
            Self::Filling {
                filling,
                transfer: Some(transfer),
                has_read: false,
            } => Self::Starting {
                blob_bytes: filling.map().blob_bytes(),
                transfer: transfer.clone(),
                unproven: None,
            },
            _ => return Err(given_up("the blob now comes from another download; resume")),
        };
        Ok(())
    }

    /// Reads at least one byte from the start of `range`, waiting for it when it is still on its way.
    ///
    /// # Errors
    /// The reason why the transfer ended, or damage on disk.
    pub async fn read(&mut self, range: impl Into<ReadRange>) -> Result<Bytes, ReadBlobError> {
        let range = range.into();
        match self.wait_for_first(&range).await? {
            Started::Complete(blob) => blob.read(range.bytes).await,
            Started::Filling(filling, _) => filling.read(range).await,
        }
    }

    /// As [`OpenBlob::read`], but says where the bytes lie. `None` where they can only be read.
    ///
    /// # Errors
    /// As [`OpenBlob::read`].
    pub async fn extent(&mut self, range: impl Into<ReadRange>) -> Result<Option<Extent>, ReadBlobError> {
        let range = range.into();
        match self.wait_for_first(&range).await? {
            Started::Complete(blob) => blob.extent(range.bytes),
            Started::Filling(filling, _) => filling.extent(range).await,
        }
    }

    /// Waits for the first byte of `range`.
    async fn wait_for_first(&mut self, range: &ReadRange) -> Result<Started<'_>, ReadBlobError> {
        if !range.bytes.is_empty() {
            self.ready(range.clone()).await?;
        }
        if let Self::Filling { has_read, .. } = self {
            *has_read = true;
        }
        self.started().await
    }

    async fn started(&mut self) -> Result<Started<'_>, ReadBlobError> {
        if let Self::Starting {
            blob_bytes,
            transfer,
            unproven,
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
                    transfer: Some(transfer.clone()),
                    has_read: false,
                },
                Progress::Complete(blob) => Self::Complete(blob),
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

fn given_up(why: &str) -> ReadBlobError {
    ReadBlobError::Abandoned(FillFailure::Upstream(why.to_owned()))
}
