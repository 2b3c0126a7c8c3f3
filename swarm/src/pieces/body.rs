//! Body of an answer: pieces in order, slice by slice through the limiter.
//!
//! Invariant: a slow or vanished receiver costs one piece of memory and no further reads. Bytes in a file are sent from there;
//! other bytes are read only once the receiver has taken those that were read before.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, stream};
use piecemeal_http::SendfileQueue;
use piecemeal_store::ReadBlobError;
use tokio::time::{Duration, timeout};
use tracing::debug;

use super::{content::Content, part::Part, uploads::Upload};
use crate::Limiter;

pub(super) struct PieceBody {
    pub(super) content: Content,
    /// Pieces still to be read.
    pub(super) pieces: Range<u32>,
    /// Longest wait for each piece that is not here.
    pub(super) patience: Option<Duration>,
    pub(super) limiter: Limiter,
    pub(super) served: Arc<dyn Fn(u64) + Send + Sync>,
    /// Bytes found and not yet sent.
    pub(super) ready: Part,
    /// The sendfile queue of the connection, where it has one.
    pub(super) sendfile: Option<SendfileQueue>,
    /// Offset in the blob at which reading goes on.
    pub(super) position: u64,
    #[expect(
        dead_code,
        reason = "the request's place among those that may be in flight, as long as it is"
    )]
    pub(super) upload: Upload,
}

/// Why the pieces cannot be sent, or not to their end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadPieceError {
    #[error("piece {piece} is not here")]
    Missing { piece: u32 },
    #[error(transparent)]
    Read(#[from] ReadBlobError),
}

impl PieceBody {
    /// Reads on, unless there is something to send already. Cancel safe.
    pub(super) async fn fill(&mut self) -> Result<(), ReadPieceError> {
        if !self.ready.is_empty() || self.pieces.is_empty() {
            return Ok(());
        }
        let piece = self.pieces.start;
        if let Some(patience) = self.patience {
            let late = |_| ReadPieceError::Missing { piece };
            timeout(patience, self.content.wait(piece)).await.map_err(late)??;
        }
        let part = self.content.read(piece, self.position, self.sendfile.as_ref()).await?;
        if part.is_empty() {
            return Err(ReadPieceError::Missing { piece });
        }
        self.position += part.len();
        if self.position == self.content.map().range(piece).end {
            self.pieces.start += 1;
        }
        self.ready = part;
        Ok(())
    }

    /// The slices. An error ends the connection short of the stated length.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Bytes, ReadPieceError>> {
        stream::try_unfold(self, |mut body| async move {
            let slice = body
                .next_slice()
                .await
                .inspect_err(|error| debug!("an answer ends early: {error}"))?;
            Ok(slice.map(|slice| (slice, body)))
        })
    }

    async fn next_slice(&mut self) -> Result<Option<Bytes>, ReadPieceError> {
        self.fill().await?;
        if self.ready.is_empty() {
            return Ok(None);
        }
        let slice = self.ready.split_to(self.limiter.chunk_bytes());
        let bytes = usize::try_from(slice.len()).expect("a slice is small");
        self.limiter.take(bytes).await;
        (self.served)(slice.len());
        Ok(Some(slice.frame(self.sendfile.as_ref())))
    }
}
