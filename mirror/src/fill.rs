//! The fill: one download of a blob from upstream into the store, whatever the number of its readers.
//!
//! It resumes by Range after every cut and across restarts, in mid-piece if need be, gives up only when upstream has sent nothing new
//! for [`FILL_PATIENCE`], and keeps what it has for the next try. A body that does not have the digest is revoked as a whole.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use piecemeal_proto::{Digest, FillId, PieceHash, PieceMap, PieceSet};
use piecemeal_store::{BeginFillError, Blob, FillFailure, Filling, PublishBlobError, Repository, Store};
use piecemeal_swarm::Limiter;
use tracing::{debug, info, warn};

use crate::{
    ANSWER_TIMEOUT, Access, BlobAnswer, BlobSizes, Blobs, Caller, OpenBlob, PullError, Transfer, Transfers, Upstream,
    Upstreams, upstream::innermost,
};

/// How long upstream may send nothing new before a fill is given up.
const FILL_PATIENCE: Duration = Duration::from_secs(30);
const RETRY_DELAY: Duration = Duration::from_millis(200);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(3);
/// How much of a piece a cut or a crash may cost.
const TAIL_BYTES: usize = 64 * 1024;
/// An upstream that is faster than 100 Mbit/s loses so much time instead: a write for each 64 KiB would slow it down.
const TAIL_INTERVAL: Duration = Duration::from_millis(5);
/// The largest blob whose size nobody states that is taken: it has to be held in memory until its end shows the size.
const UNSIZED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What is told of a fill as it goes. All methods return at once.
pub trait FillObserver: Send + Sync {
    /// The fill has begun, or gone on with the pieces that it has.
    fn opened(&self, filling: &Filling);
    /// A piece has landed.
    fn landed(&self, filling: &Filling, piece: u32, hash: PieceHash);
    /// The blob's digest is proven; the blob is published.
    fn proven(&self, digest: &Digest, fill: FillId);
    /// None of the fill's pieces may be kept.
    fn revoked(&self, digest: &Digest, fill: FillId);
    /// `bytes` of a body have come from upstream.
    fn received(&self, bytes: usize);
}

/// Blobs from upstream, by way of the store.
#[derive(Clone)]
pub struct UpstreamBlobs {
    pub store: Store,
    pub upstreams: Upstreams,
    pub access: Arc<dyn Access>,
    pub sizes: BlobSizes,
    pub transfers: Transfers,
    pub observer: Arc<dyn FillObserver>,
    pub limiter: Limiter,
}

#[async_trait]
impl Blobs for UpstreamBlobs {
    async fn open(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<OpenBlob, PullError> {
        if let Some(blob) = self.store.blob(digest).await? {
            self.access.require(caller, at, digest).await?;
            return Ok(OpenBlob::Complete(blob));
        }
        let fill = |transfer| self.clone().fill(at.clone(), *digest, transfer);
        let (_, opened) = self.transfers.open(at, digest, None, ANSWER_TIMEOUT, fill).await?;
        self.access.require(caller, at, digest).await?;
        Ok(opened)
    }

    async fn stat(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<u64, PullError> {
        if let Some(blob_bytes) = self.transfers.blob_bytes_here(&self.store, digest).await? {
            self.access.require(caller, at, digest).await?;
            return Ok(blob_bytes);
        }
        let stated = self.upstreams.get(&at.upstream)?.head_blob(at, digest).await?;
        self.store.record_source(at, digest).await?;
        stated
            .or_else(|| self.sizes.get(at, digest))
            .ok_or_else(|| PullError::BadGateway(format!("{} does not state the size of {digest}", at.upstream)))
    }
}

impl UpstreamBlobs {
    /// Carries out a transfer: the whole blob, from where an earlier try has left it.
    ///
    /// # Errors
    /// [`PullError`]; what has landed is kept, unless it proved to be bad.
    pub async fn fill(self, at: Repository, digest: Digest, transfer: Arc<Transfer>) -> Result<Blob, PullError> {
        let upstream = Arc::clone(self.upstreams.get(&at.upstream)?);
        let started = Instant::now();
        let (filling, answer) = match self.store.partial_map(&digest).await? {
            Some(map) => self.resume(&upstream, &at, &digest, map).await?,
            None => self.begin(&upstream, &at, &digest).await?,
        };
        self.store.record_source(&at, &digest).await?;
        self.observer.opened(&filling);
        transfer.open(filling.clone());
        self.pour(&upstream, &at, &filling, answer).await?;
        let blob = self.publish(&at, &filling).await?;
        let bytes = blob.map().blob_bytes();
        info!(blob.digest = %digest, blob.bytes = bytes, upstream = at.upstream, repository = at.name, seconds = started.elapsed().as_secs_f64(), "filled {digest} from {}", at.upstream);
        Ok(blob)
    }

    async fn begin(
        &self,
        upstream: &Upstream,
        at: &Repository,
        digest: &Digest,
    ) -> Result<(Filling, Option<Body>), PullError> {
        let answer = upstream.blob(at, digest, 0, None).await?;
        let hint = self.sizes.get(at, digest);
        if let (Some(stated), Some(hint)) = (answer.blob_bytes, hint)
            && stated != hint
        {
            return Err(PullError::BadGateway(format!(
                "{} states {stated} bytes for {digest}, but its manifest says {hint}",
                at.upstream
            )));
        }
        let (blob_bytes, body) = match answer.blob_bytes.or(hint) {
            Some(blob_bytes) => (blob_bytes, Body::Answer(answer)),
            None => {
                let whole = self.read_unsized(at, digest, answer).await?;
                (whole.len() as u64, Body::Whole(whole))
            }
        };
        let map = PieceMap::for_blob(blob_bytes).map_err(|error| PullError::BadGateway(error.to_string()))?;
        Ok((self.reserve(digest, map).await?, Some(body)))
    }

    /// A body without a length, whose size no manifest told: its end shows the size.
    async fn read_unsized(&self, at: &Repository, digest: &Digest, mut answer: BlobAnswer) -> Result<Bytes, PullError> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = answer
            .body
            .chunk()
            .await
            .map_err(|error| PullError::Unavailable(innermost(&error)))?
        {
            self.received(chunk.len()).await;
            if whole.len() + chunk.len() > UNSIZED_BYTES_MAX {
                return Err(PullError::BadGateway(format!(
                    "{} does not state the size of {digest}",
                    at.upstream
                )));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    /// Goes on where an earlier try has stopped. Upstream is asked before anybody is served, as in a first try.
    async fn resume(
        &self,
        upstream: &Upstream,
        at: &Repository,
        digest: &Digest,
        map: PieceMap,
    ) -> Result<(Filling, Option<Body>), PullError> {
        let filling = self.reserve(digest, map).await?;
        let run = Run::next(&filling).await;
        let from = run.as_ref().map_or(map.blob_bytes(), Run::wanted_from);
        info!(blob.digest = %digest, blob.bytes = map.blob_bytes(), pieces = filling.have().count(), "the fill of {digest} goes on at byte {from}");
        let body = match run {
            Some(run) => Some(Body::Answer(self.request(upstream, at, &filling, &run).await?)),
            None => {
                upstream.head_blob(at, digest).await?;
                None
            }
        };
        Ok((filling, body))
    }

    async fn reserve(&self, digest: &Digest, map: PieceMap) -> Result<Filling, PullError> {
        match self.store.begin(digest, map, None).await {
            Ok(filling) => Ok(filling),
            Err(error @ BeginFillError::NoSpace { .. }) => Err(PullError::Unavailable(error.to_string())),
            Err(error) => Err(PullError::Store(error.to_string())),
        }
    }

    async fn request(
        &self,
        upstream: &Upstream,
        at: &Repository,
        filling: &Filling,
        run: &Run,
    ) -> Result<BlobAnswer, PullError> {
        let blob_bytes = filling.map().blob_bytes();
        let end = (run.bytes.end < blob_bytes).then_some(run.bytes.end);
        let answer = upstream.blob(at, filling.digest(), run.wanted_from(), end).await?;
        match answer.blob_bytes {
            Some(stated) if stated != blob_bytes => Err(PullError::BadGateway(format!(
                "{} now states {stated} bytes for {}, before {blob_bytes}",
                at.upstream,
                filling.digest()
            ))),
            _ => Ok(answer),
        }
    }

    /// Fetches what is missing of a blob, for a swarm that has lost its mirror.
    ///
    /// # Errors
    /// As [`UpstreamBlobs::fill`].
    pub async fn complete(&self, at: &Repository, filling: &Filling) -> Result<(), PullError> {
        let upstream = Arc::clone(self.upstreams.get(&at.upstream)?);
        self.pour(&upstream, at, filling, None).await
    }

    /// Fetches one run of pieces, as the scheduler has leased it.
    ///
    /// # Errors
    /// As [`UpstreamBlobs::fill`].
    pub async fn fetch_run(&self, at: &Repository, filling: &Filling, run: &Range<u64>) -> Result<(), PullError> {
        let upstream = Arc::clone(self.upstreams.get(&at.upstream)?);
        let run = Run::new(filling, run.clone()).await;
        let answer = self.request(&upstream, at, filling, &run).await?;
        self.drain(Body::Answer(answer), filling, &run).await
    }

    /// Fetches until nothing is missing.
    async fn pour(
        &self,
        upstream: &Upstream,
        at: &Repository,
        filling: &Filling,
        first: Option<Body>,
    ) -> Result<(), PullError> {
        let mut body = first;
        let mut last_progress = Instant::now();
        let mut wanted_from = None;
        let mut delay = RETRY_DELAY;
        while let Some(run) = Run::next(filling).await {
            // Only what was not here before is progress: an upstream without ranges sends the same beginning again and again.
            if wanted_from.replace(run.wanted_from()) != Some(run.wanted_from()) {
                last_progress = Instant::now();
                delay = RETRY_DELAY;
            }
            let had = filling.have().count();
            let result = match body.take() {
                Some(body) => self.drain(body, filling, &run).await,
                None => match self.request(upstream, at, filling, &run).await {
                    Ok(answer) => self.drain(Body::Answer(answer), filling, &run).await,
                    Err(error) => Err(error),
                },
            };
            if result.is_ok() && filling.have().count() > had {
                continue;
            }
            let error = result
                .err()
                .unwrap_or_else(|| PullError::BadGateway(format!("{} sent fewer bytes than it stated", at.upstream)));
            let hopeless = error.is_verdict() || matches!(error, PullError::Store(_));
            if hopeless || last_progress.elapsed() + delay > FILL_PATIENCE {
                warn!(blob.digest = %filling.digest(), upstream = at.upstream, %error, "the fill of {} stops: {error}", filling.digest());
                return Err(error);
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(RETRY_DELAY_MAX);
        }
        Ok(())
    }

    /// Cuts a body into the pieces of `run`, which it is expected to cover, or to begin before. What has come of a piece when
    /// the body breaks off is kept for the next try.
    async fn drain(&self, body: Body, filling: &Filling, run: &Run) -> Result<(), PullError> {
        let mut piece = GrowingPiece::new(filling, run);
        let result = self.receive(body, &mut piece, run).await;
        if result.is_err() {
            piece.keep().await;
        }
        result
    }

    async fn receive(&self, mut body: Body, piece: &mut GrowingPiece<'_>, run: &Run) -> Result<(), PullError> {
        let skip = run.wanted_from().checked_sub(body.offset());
        let mut skip = skip.ok_or_else(|| PullError::BadGateway("a range that begins too late".to_owned()))?;
        while piece.start < run.bytes.end {
            let Some(mut chunk) = body.chunk().await? else {
                return Err(PullError::Unavailable("upstream broke off".to_owned()));
            };
            self.received(chunk.len()).await;
            let skipped = usize::try_from(skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
            drop(chunk.split_to(skipped));
            skip -= skipped as u64;
            while !chunk.is_empty() && piece.start < run.bytes.end {
                if let Some((index, hash)) = piece.grow(&mut chunk).await? {
                    self.observer.landed(piece.filling, index, hash);
                }
            }
            piece.keep_if_due().await;
            if !chunk.is_empty() && run.bytes.end == piece.filling.map().blob_bytes() {
                return Err(PullError::BadGateway(
                    "upstream sent more bytes than it stated".to_owned(),
                ));
            }
        }
        Ok(())
    }

    async fn received(&self, bytes: usize) {
        self.observer.received(bytes);
        self.limiter.take(bytes).await;
    }

    /// Verifies and publishes a blob that is all here; drops all of it when it proves to be another.
    ///
    /// # Errors
    /// [`PullError::BadGateway`] for the wrong bytes, [`PullError::Store`].
    pub async fn publish(&self, at: &Repository, filling: &Filling) -> Result<Blob, PullError> {
        match filling.publish().await {
            Ok(blob) => {
                self.observer.proven(filling.digest(), filling.fill());
                Ok(blob)
            }
            Err(PublishBlobError::DigestMismatch { expected, computed }) => {
                warn!(blob.digest = %expected, upstream = at.upstream, "{} sent bytes with digest {computed} for {expected}; all of them are dropped", at.upstream);
                self.observer.revoked(filling.digest(), filling.fill());
                filling.abandon(FillFailure::Revoked).await;
                Err(PullError::BadGateway(format!(
                    "{} sent other bytes for {expected}",
                    at.upstream
                )))
            }
            Err(error) => Err(PullError::Store(error.to_string())),
        }
    }
}

/// Missing pieces in a row, to be asked for in one request.
struct Run {
    bytes: Range<u64>,
    /// What an earlier try has received of the first piece.
    head: Bytes,
}

impl Run {
    async fn new(filling: &Filling, bytes: Range<u64>) -> Self {
        let first = filling.map().piece_at(bytes.start);
        let tail = filling.tail().await.filter(|(piece, _)| Some(*piece) == first);
        Self {
            bytes,
            head: tail.map_or_else(Bytes::new, |(_, head)| head),
        }
    }

    /// `None` when nothing is missing.
    async fn next(filling: &Filling) -> Option<Self> {
        let bytes = missing_run(&filling.have(), filling.map())?;
        Some(Self::new(filling, bytes).await)
    }

    /// The first byte that is not here.
    fn wanted_from(&self) -> u64 {
        self.bytes.start + self.head.len() as u64
    }
}

/// The bytes of the first run of missing pieces.
fn missing_run(have: &PieceSet, map: PieceMap) -> Option<Range<u64>> {
    let first = have.missing().next()?;
    let end = (first..map.count())
        .find(|&index| have.contains(index))
        .unwrap_or(map.count());
    Some(map.range(first).start..map.range(end - 1).end)
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
    fn new(filling: &'a Filling, run: &Run) -> Self {
        let bytes = BytesMut::from(run.head.as_ref());
        Self {
            filling,
            start: run.bytes.start,
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
        if let Err(error) = self.filling.write_tail(index, offset, fresh).await {
            debug!(blob.digest = %self.filling.digest(), %error, "failed to keep the beginning of piece {index}: {error}");
        }
        self.kept = self.bytes.len();
        self.kept_at = Instant::now();
    }
}

enum Body {
    Answer(BlobAnswer),
    Whole(Bytes),
}

impl Body {
    fn offset(&self) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_run_ends_where_a_piece_is_there() {
        let map = PieceMap::new(95, 10).unwrap();
        let mut have = PieceSet::new(10);
        assert_eq!(missing_run(&have, map), Some(0..95));
        have.insert(0);
        have.insert(4);
        assert_eq!(missing_run(&have, map), Some(10..40));
        for index in 1..9 {
            have.insert(index);
        }
        assert_eq!(missing_run(&have, map), Some(90..95));
        have.insert(9);
        assert_eq!(missing_run(&have, map), None);
    }
}
