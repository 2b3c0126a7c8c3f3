//! One connection of a fill: it asks for a segment, and cuts what comes into pieces.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use piecemeal_proto::PieceHash;
use piecemeal_store::Filling;
use tokio::sync::Notify;
use tracing::debug;

use super::registry_source::RegistrySource;
use crate::Right;
use piecemeal_upstream::{BlobAnswer, PullError, Served, Upstream, innermost};

/// How much of a piece a cut or a crash may cost.
const TAIL_BYTES: usize = 64 * 1024;
/// The same in time, for an upstream faster than 100 Mbit/s: a write for each 64 KiB would slow it down.
const TAIL_INTERVAL: Duration = Duration::from_millis(5);

/// The minimum flow of a connection, in bytes: one that brings less would hold its place for ever. Each of a hundred connections
/// at once on a link of 1 Mbit/s brings more.
const FLOW_BYTES_MIN: usize = 32 * 1024;
const FLOW_WINDOW: Duration = Duration::from_secs(60);

/// Counts the connections of a fill that will have ended by the time an answer to a new request could be here.
#[derive(Default)]
pub(super) struct Ending {
    count: AtomicUsize,
    changed: Notify,
}

impl Ending {
    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Until one more is about to end.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

/// Where a fill's bytes come from and go to. Shared by its connections.
#[derive(Clone)]
pub(super) struct SegmentContext<'a> {
    pub(super) ending: Arc<Ending>,
    pub(super) blobs: &'a RegistrySource,
    pub(super) upstream: &'a Upstream,
    pub(super) right: Arc<Right>,
    pub(super) filling: &'a Filling,
    /// Bytes of bodies so far.
    pub(super) received: Arc<AtomicU64>,
    /// Upstream has answered this right.
    pub(super) served: Arc<AtomicBool>,
}

/// A segment on its context: missing pieces in a row.
pub(super) struct Segment {
    pub(super) bytes: Range<u64>,
    /// What an earlier try has received of the first piece.
    head: Bytes,
}

impl Segment {
    pub(super) async fn new(filling: &Filling, bytes: Range<u64>) -> Self {
        let head = match filling.map().piece_at(bytes.start) {
            Some(first) => filling.partial_piece(first).await.unwrap_or_default(),
            None => Bytes::new(),
        };
        Self { bytes, head }
    }

    /// The offset of the first byte that is not here.
    pub(super) fn wanted_from(&self) -> u64 {
        self.bytes.start + self.head.len() as u64
    }

    /// Asks upstream for it: by Range, unless it is the whole blob.
    pub(super) async fn request(&self, context: &SegmentContext<'_>) -> Result<BlobAnswer, PullError> {
        let blob_bytes = context.filling.map().blob_bytes();
        let from = self.wanted_from();
        let end = (self.bytes.end < blob_bytes).then_some(self.bytes.end);
        let served = if context.served.load(Ordering::Relaxed) {
            Served::Before
        } else {
            Served::NotYet
        };
        let answer = context
            .upstream
            .blob(
                &context.right.caller,
                &context.right.at,
                context.filling.digest(),
                from,
                end,
                served,
            )
            .await?;
        context.served.store(true, Ordering::Relaxed);
        match answer.blob_bytes {
            Some(stated) if stated != blob_bytes => Err(PullError::BadGateway(format!(
                "{} states {stated} bytes for {}, but its manifest or an earlier answer said {blob_bytes}",
                context.right.at.upstream,
                context.filling.digest()
            ))),
            _ => Ok(answer),
        }
    }

    /// Cuts a body, which is expected to cover the segment or to begin before, into its pieces. What has come of a piece
    /// when the body breaks off is kept for the next try. Says also whether anything came that was not here before.
    pub(super) async fn receive(&self, context: &SegmentContext<'_>, body: Body) -> (Result<(), PullError>, bool) {
        let mut piece = GrowingPiece::new(context.filling, self);
        let result = self.cut(context, body, &mut piece).await;
        if result.is_err() {
            piece.keep().await;
        }
        let came = piece.start > self.bytes.start || piece.kept > self.head.len();
        let drips = matches!(result, Err(Cut::Drips(_)));
        (result.map_err(Cut::into_error), came && !drips)
    }

    async fn cut(&self, context: &SegmentContext<'_>, mut body: Body, piece: &mut GrowingPiece<'_>) -> Result<(), Cut> {
        let skip = self.wanted_from().checked_sub(body.offset());
        let mut skip = skip.ok_or_else(|| PullError::BadGateway("a range that begins too late".to_owned()))?;
        let mut end = EndInSight::new(context, self.bytes.end - body.offset());
        let mut flow = Flow::new();
        while piece.start < self.bytes.end {
            let Some(mut chunk) = body.chunk().await? else {
                return Err(PullError::Unavailable(format!("{} broke off", context.right.at.upstream)).into());
            };
            if !flow.goes_on(chunk.len()) {
                return Err(Cut::Drips(context.right.at.upstream.clone()));
            }
            context.upstream.lanes().received(chunk.len());
            context.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            end.received(chunk.len());
            context.blobs.received(chunk.len()).await;
            let skipped = usize::try_from(skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
            drop(chunk.split_to(skipped));
            skip -= skipped as u64;
            while !chunk.is_empty() && piece.start < self.bytes.end {
                if let Some((index, hash)) = piece.grow(&mut chunk).await? {
                    context.blobs.observer.landed(piece.filling, index, hash);
                }
            }
            piece.keep_if_due().await;
            if !chunk.is_empty() && self.bytes.end == context.filling.map().blob_bytes() {
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
    Drips(String),
    Other(PullError),
}

impl Cut {
    fn into_error(self) -> PullError {
        match self {
            Self::Drips(upstream) => PullError::Unavailable(format!(
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

/// Whether a body still comes at a pace that will ever end.
struct Flow {
    since: Instant,
    bytes: usize,
}

impl Flow {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            bytes: 0,
        }
    }

    fn goes_on(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        if self.since.elapsed() < FLOW_WINDOW {
            return true;
        }
        let enough = self.bytes >= FLOW_BYTES_MIN;
        *self = Self::new();
        enough
    }
}

/// Tells when a segment has less to come than arrives in one round trip: the next one is asked for then, since a connection
/// that waits for an answer carries nothing.
struct EndInSight<'a> {
    context: &'a SegmentContext<'a>,
    begun: Instant,
    received: u64,
    missing: u64,
    told: bool,
}

impl<'a> EndInSight<'a> {
    fn new(context: &'a SegmentContext<'a>, missing: u64) -> Self {
        Self {
            context,
            begun: Instant::now(),
            received: 0,
            missing,
            told: false,
        }
    }

    fn received(&mut self, bytes: usize) {
        self.received += bytes as u64;
        self.missing = self.missing.saturating_sub(bytes as u64);
        if self.told {
            return;
        }
        let (took, latency) = (self.begun.elapsed(), self.context.upstream.lanes().latency());
        // Before that the first packets, which come together, would say anything.
        if took < latency {
            return;
        }
        let in_a_round_trip = u128::from(self.received) * latency.as_micros() * 3 / 2 / took.as_micros().max(1);
        if u128::from(self.missing) <= in_a_round_trip {
            self.told = true;
            self.context.ending.count.fetch_add(1, Ordering::Relaxed);
            self.context.ending.changed.notify_one();
        }
    }
}

impl Drop for EndInSight<'_> {
    fn drop(&mut self) {
        if self.told {
            self.context.ending.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The piece that is being received, with what the store has of it as its tail.
struct GrowingPiece<'a> {
    filling: &'a Filling,
    start: u64,
    bytes: BytesMut,
    kept: usize,
    kept_at: Instant,
}

impl<'a> GrowingPiece<'a> {
    fn new(filling: &'a Filling, segment: &Segment) -> Self {
        let bytes = BytesMut::from(segment.head.as_ref());
        Self {
            filling,
            start: segment.bytes.start,
            kept: bytes.len(),
            bytes,
            kept_at: Instant::now(),
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
        self.kept = 0;
        let hash = self
            .filling
            .write_piece(index, whole, None)
            .await
            .map_err(|error| PullError::Store(error.to_string()))?;
        self.start += piece_len as u64;
        Ok(Some((index, hash)))
    }

    async fn keep_if_due(&mut self) {
        if self.bytes.len() >= self.kept + TAIL_BYTES && self.kept_at.elapsed() >= TAIL_INTERVAL {
            self.keep().await;
        }
    }

    /// Adds to the tail what has come since. A failure only means that more is asked for again: the download goes on.
    async fn keep(&mut self) {
        let fresh = Bytes::copy_from_slice(&self.bytes[self.kept..]);
        if fresh.is_empty() {
            return;
        }
        let (index, offset) = (self.index(), self.kept as u64);
        if let Err(error) = self.filling.write_partial_piece(index, offset, fresh).await {
            debug!(blob.digest = %self.filling.digest(), %error, "failed to keep the beginning of piece {index}: {error}");
        }
        self.kept = self.bytes.len();
        self.kept_at = Instant::now();
    }
}

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
