//! Segment of a blob on one connection: its request, and its body, which is cut into pieces.
//!
//! The machine decides what is asked for, [`Flow`] whether a body comes fast enough, [`Checkpoint`] what is kept of a piece, and
//! `body_checks` whether a body fits. An error of the body or of the store ends it.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use piecemeal_proto::PieceHash;
use piecemeal_store::Filling;
use tokio::sync::mpsc;
use tracing::debug;

use super::{
    body_checks::{Reached, has_progressed, is_too_long, skipped},
    checkpoint::Checkpoint,
    fault::Fault,
    flow::{FLOW_BYTES_MIN, FLOW_WINDOW, Flow, Flowing},
    machine::Ended,
    registry_source::RegistrySource,
    turn::{Turn, Waited},
};
use crate::Right;
use piecemeal_upstream::{BlobAnswer, PullError, Served, Upstream, innermost};

/// Where a fill's bytes come from and go to. Shared by its connections.
#[derive(Clone)]
pub(super) struct SegmentContext<'a> {
    pub(super) blobs: &'a RegistrySource,
    pub(super) upstream: &'a Upstream,
    pub(super) right: Arc<Right>,
    pub(super) filling: &'a Filling,
    /// Where connections tell that their end is in sight.
    pub(super) ends: mpsc::Sender<u64>,
    /// Whether its bodies may be read.
    pub(super) turn: Turn,
}

/// The end of a segment, an offset in the blob. It moves while the body comes, when another connection takes the rest or gives it back.
#[derive(Clone)]
pub(super) struct SegmentEnd(Arc<AtomicU64>);

impl SegmentEnd {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn move_to(&self, end: u64) {
        self.0.store(end, Ordering::Relaxed);
    }
}

/// Missing pieces in a row, on one connection.
pub(super) struct Segment {
    /// The number of the connection.
    pub(super) connection: u64,
    pub(super) start: u64,
    pub(super) end: SegmentEnd,
    /// What an earlier try has received of the first piece.
    head: Bytes,
}

impl Segment {
    pub(super) async fn new(filling: &Filling, connection: u64, bytes: Range<u64>) -> Self {
        let head = match filling.map().piece_at(bytes.start) {
            Some(first) => filling.partial_piece(first).await.unwrap_or_default(),
            None => Bytes::new(),
        };
        Self {
            connection,
            start: bytes.start,
            end: SegmentEnd(Arc::new(AtomicU64::new(bytes.end))),
            head,
        }
    }

    /// The offset of the first byte that is not here.
    pub(super) fn wanted_from(&self) -> u64 {
        self.start + self.head.len() as u64
    }

    /// Asks upstream for it: by Range, unless it is the whole blob.
    pub(super) async fn request(&self, context: &SegmentContext<'_>, served: Served) -> Result<BlobAnswer, PullError> {
        let (Right { at, caller }, filling) = (&*context.right, context.filling);
        let end = Some(self.end.get()).filter(|end| *end < filling.map().blob_bytes());
        let digest = filling.digest();
        context
            .upstream
            .blob(caller, at, digest, self.wanted_from(), end, served)
            .await
    }

    /// Cuts a body, which is expected to cover the segment or to begin before, into its pieces. What has come of a piece
    /// when the body breaks off is kept for the next try.
    pub(super) async fn receive(&self, context: &SegmentContext<'_>, body: Body) -> (Ended, Result<(), PullError>) {
        let mut piece = GrowingPiece::new(context.filling, self);
        let result = self.cut(context, body, &mut piece).await;
        if result.is_err() {
            piece.keep().await;
        }
        let begun = Reached {
            piece_start: self.start,
            kept: self.head.len(),
        };
        let result = match result {
            // Upstream does not keep a body open that is not read: what is missing is asked for again.
            Err(Cut::Other(PullError::Unavailable(why))) if piece.waited.is_long() => {
                debug!(blob.digest = %context.filling.digest(), why, "a body that waited for its turn has ended");
                return (Ended::CLOSED, Ok(()));
            }
            result => result,
        };
        let progressed = has_progressed(begun, piece.reached(), matches!(result, Err(Cut::TooSlow(_))));
        let result = result.map_err(Cut::into_error);
        let ended = Ended {
            progressed,
            fault: result.as_ref().err().map(Fault::from),
        };
        (ended, result)
    }

    async fn cut(&self, context: &SegmentContext<'_>, mut body: Body, piece: &mut GrowingPiece<'_>) -> Result<(), Cut> {
        let skip = skipped(self.wanted_from(), body.offset());
        let mut skip = skip.ok_or_else(|| PullError::BadGateway("a range that begins too late".to_owned()))?;
        let mut flow = Flow::new(piece.now(), body.offset());
        while piece.start < self.end.get() {
            context.turn.come(&mut piece.waited).await;
            let Some(mut chunk) = body.chunk().await? else {
                return Err(PullError::Unavailable(format!("{} broke off", context.right.at.upstream)).into());
            };
            let concurrency = context.upstream.concurrency();
            let (now, end, latency) = (piece.now(), self.end.get(), concurrency.latency());
            match flow.received(now, chunk.len() as u64, end, latency) {
                Flowing::On => {}
                // A task that has not looked for so long has no use for it.
                Flowing::EndInSight => drop(context.ends.try_send(self.connection)),
                Flowing::TooSlow => return Err(Cut::TooSlow(context.right.at.upstream.clone())),
            }
            concurrency.received(chunk.len());
            context.blobs.received(chunk.len()).await;
            let skipped = usize::try_from(skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
            drop(chunk.split_to(skipped));
            skip -= skipped as u64;
            while !chunk.is_empty() && piece.start < self.end.get() {
                if let Some((index, hash)) = piece.grow(&mut chunk).await? {
                    context.blobs.observer.landed(piece.filling, index, hash);
                }
            }
            piece.keep_if_due().await;
            context.upstream.note_surplus(skipped + chunk.len());
            if is_too_long(chunk.len(), piece.start, context.filling.map().blob_bytes()) {
                return Err(PullError::BadGateway(format!(
                    "{} sent more bytes than it stated",
                    context.right.at.upstream
                ))
                .into());
            }
        }
        Ok(())
    }
}

/// Why a body ended early.
enum Cut {
    /// The body comes so slowly that it counts as stopped. Holds the upstream's name.
    TooSlow(String),
    Other(PullError),
}

impl Cut {
    fn into_error(self) -> PullError {
        match self {
            Self::TooSlow(upstream) => PullError::Unavailable(format!(
                "{upstream} sends less than {FLOW_BYTES_MIN} bytes in {} s",
                FLOW_WINDOW.as_secs()
            )),
            Self::Other(error) => error,
        }
    }
}

impl From<PullError> for Cut {
    fn from(error: PullError) -> Self {
        Self::Other(error)
    }
}

/// The piece that is being received, with what the store has of it.
struct GrowingPiece<'a> {
    filling: &'a Filling,
    start: u64,
    bytes: BytesMut,
    checkpoint: Checkpoint,
    /// The start of the body's time, which stands still while the body waits for its turn.
    begun: Instant,
    waited: Waited,
}

impl<'a> GrowingPiece<'a> {
    fn new(filling: &'a Filling, segment: &Segment) -> Self {
        let bytes = BytesMut::from(segment.head.as_ref());
        Self {
            filling,
            start: segment.start,
            checkpoint: Checkpoint::new(Duration::ZERO, bytes.len()),
            bytes,
            begun: Instant::now(),
            waited: Waited::default(),
        }
    }

    fn now(&self) -> Duration {
        self.begun.elapsed().saturating_sub(self.waited.time())
    }

    fn reached(&self) -> Reached {
        Reached {
            piece_start: self.start,
            kept: self.checkpoint.kept,
        }
    }

    fn index(&self) -> u32 {
        self.filling
            .map()
            .piece_at(self.start)
            .expect("the piece lies within the blob")
    }

    /// Takes from `chunk` what the piece lacks. Once that is nothing the piece is written, and the next one begins.
    async fn grow(&mut self, chunk: &mut Bytes) -> Result<Option<(u32, PieceHash)>, PullError> {
        let index = self.index();
        let piece_len = usize::try_from(self.filling.map().len(index)).expect("a piece fits in memory");
        self.bytes
            .extend_from_slice(&chunk.split_to(chunk.len().min(piece_len - self.bytes.len())));
        if self.bytes.len() < piece_len {
            return Ok(None);
        }
        let whole = self.bytes.split().freeze();
        self.checkpoint.begin();
        let hash = self
            .filling
            .write_piece(index, whole, None)
            .await
            .map_err(|error| PullError::Store(error.to_string()))?;
        self.start += piece_len as u64;
        Ok(Some((index, hash)))
    }

    async fn keep_if_due(&mut self) {
        if self.checkpoint.is_due(self.now(), self.bytes.len()) {
            self.keep().await;
        }
    }

    /// Writes what has come since the last checkpoint. A failure only means that more is asked for again: the download goes on.
    async fn keep(&mut self) {
        let fresh = Bytes::copy_from_slice(&self.bytes[self.checkpoint.kept..]);
        if fresh.is_empty() {
            return;
        }
        let (index, offset) = (self.index(), self.checkpoint.kept as u64);
        if let Err(error) = self.filling.write_partial_piece(index, offset, fresh).await {
            debug!(blob.digest = %self.filling.digest(), %error, "failed to keep the beginning of piece {index}: {error}");
        }
        self.checkpoint.keep(self.now(), self.bytes.len());
    }
}

/// A body on its way, or whole.
pub(super) enum Body {
    Answer(BlobAnswer),
    Whole(Bytes),
}

impl Body {
    pub(super) fn offset(&self) -> u64 {
        match self {
            Self::Answer(answer) => answer.offset,
            Self::Whole(_) => 0,
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, PullError> {
        match self {
            Self::Answer(answer) => answer
                .body
                .chunk()
                .await
                .map_err(|error| PullError::Unavailable(format!("upstream broke off: {}", innermost(&error)))),
            Self::Whole(bytes) => Ok(Some(std::mem::take(bytes)).filter(|bytes| !bytes.is_empty())),
        }
    }
}
