//! The fill: one download of a blob from upstream into the store, whatever the number of its readers.
//!
//! It uses as many connections as the path to upstream needs, each for one segment after the other. It resumes by Range after
//! every cut and across restarts, in mid-piece if need be, gives up only when upstream has sent nothing new for
//! [`FILL_PATIENCE`], and keeps what it has for the next try. A body that does not have the digest is revoked as a whole.

mod follow;
mod lane;
mod plan;
mod pour;

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use piecemeal_proto::{Digest, FillId, PieceHash, PieceMap};
use piecemeal_store::{BeginFillError, Blob, FillFailure, Filling, Offer, PublishBlobError, Repository, Store};
use piecemeal_swarm::Limiter;
use tracing::{info, warn};

use self::{lane::Body, pour::Pour};
use crate::{Arrived, BlobSizes, Right, Rights, Source, Transfer, Transfers, callers::Callers};
use piecemeal_upstream::{BlobAnswer, Caller, PullError, Served, Upstream, Upstreams, innermost};

/// How long upstream may send nothing new before a fill is given up.
const FILL_PATIENCE: Duration = Duration::from_secs(30);
/// How long a blob that there is no room for waits for a place among the passing fills.
const PASSING_PATIENCE: Duration = Duration::from_secs(10);
/// The size of the sample of an earlier fill's bytes that an upstream must match.
const SAMPLE_BYTES: usize = 1024;
/// The largest blob of unstated size that is accepted, in bytes: it is held in memory until its end shows the size.
const UNSIZED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The time limit for reading one.
const UNSIZED_TIMEOUT: Duration = Duration::from_secs(600);

/// Observer of a fill's events. All methods return at once.
pub trait FillObserver: Send + Sync {
    /// The fill has begun, or gone on with the pieces that it has.
    fn opened(&self, filling: &Filling);
    /// A piece has landed.
    fn landed(&self, filling: &Filling, piece: u32, hash: PieceHash);
    /// The blob is proven and here; [`FillObserver::proven`] follows.
    fn kept(&self, _blob: &Blob) {}
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
    pub access: Arc<Rights>,
    pub sizes: BlobSizes,
    pub transfers: Transfers,
    pub observer: Arc<dyn FillObserver>,
    pub limiter: Limiter,
}

/// Where a fill comes from, and with whose right.
#[derive(Clone, Copy)]
struct Whence<'a> {
    upstream: &'a Upstream,
    right: &'a Right,
    /// The callers with whose rights it may go on.
    callers: Option<&'a Callers>,
}

#[async_trait]
impl Source for UpstreamBlobs {
    async fn transfer(&self, right: Right, digest: Digest, transfer: Arc<Transfer>) -> Result<Arrived, PullError> {
        self.clone().fill(right, digest, transfer).await
    }

    async fn head_blob(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<Option<u64>, PullError> {
        self.upstreams.get(&at.upstream)?.head_blob(caller, at, digest).await
    }

    fn answers_early(&self) -> bool {
        false
    }

    fn states_no_size(&self, at: &Repository, digest: &Digest) -> PullError {
        PullError::BadGateway(format!("{} does not state the size of {digest}", at.upstream))
    }
}

impl UpstreamBlobs {
    /// Carries out a transfer: the whole blob, from where an earlier try has left it. Once it is open it goes on by itself with
    /// the rights of other callers at the same upstream.
    ///
    /// # Errors
    /// [`PullError`]; what has landed is kept, unless it proved to be bad.
    pub async fn fill(self, right: Right, digest: Digest, transfer: Arc<Transfer>) -> Result<Arrived, PullError> {
        let at = right.at.clone();
        let upstream = self.upstreams.get(&at.upstream)?;
        let whence = Whence {
            upstream: &upstream,
            right: &right,
            callers: Some(transfer.callers()),
        };
        let _room = upstream.limits().fill(&at).await?;
        let started = Instant::now();
        let arrived = self.fill_or_follow(whence, &digest, &transfer).await?;
        let bytes = match &arrived {
            Arrived::Kept(blob) => Some(blob.map().blob_bytes()),
            Arrived::Passed => None,
        };
        info!(blob.digest = %digest, blob.bytes = bytes, upstream = at.upstream, repository = at.name, seconds = started.elapsed().as_secs_f64(), "filled {digest} from {}", at.upstream);
        Ok(arrived)
    }

    async fn pour(&self, whence: Whence<'_>, digest: &Digest, transfer: &Transfer) -> Result<Filling, PullError> {
        match self.known_map(&whence.right.at, digest).await? {
            Some(map) => {
                let filling = self.reserve(digest, map).await?;
                if !self.has_same_left(whence, &filling).await? {
                    warn!(blob.digest = %digest, upstream = whence.right.at.upstream, "{} has other bytes for {digest} than came before; all of it is fetched again", whence.right.at.upstream);
                    self.observer.revoked(digest, filling.fill());
                    filling.abandon(FillFailure::Revoked).await;
                    return self.pour_unknown(whence, digest, transfer).await;
                }
                self.pour_known(whence, &filling, transfer).await?;
                Ok(filling)
            }
            None => self.pour_unknown(whence, digest, transfer).await,
        }
    }

    /// How the blob is cut, as an earlier try or its manifest tells.
    async fn known_map(&self, at: &Repository, digest: &Digest) -> Result<Option<PieceMap>, PullError> {
        if let Some(map) = self.store.partial_map(digest).await? {
            return Ok(Some(map));
        }
        let hint = self.sizes.get(at, digest).filter(|&blob_bytes| blob_bytes > 0);
        hint.map(|blob_bytes| PieceMap::for_blob(blob_bytes).map_err(|error| PullError::BadGateway(error.to_string())))
            .transpose()
    }

    /// Upstream is asked before a caller is served: its first answer opens the transfer.
    async fn pour_known(&self, whence: Whence<'_>, filling: &Filling, transfer: &Transfer) -> Result<(), PullError> {
        let Whence { upstream, right, .. } = whence;
        let (had, map) = (filling.landed().count(), filling.map());
        if had > 0 {
            info!(blob.digest = %filling.digest(), blob.bytes = map.blob_bytes(), pieces = had, "the fill of {} goes on", filling.digest());
        }
        let result = if had == map.count() {
            let head = upstream.head_blob(&right.caller, &right.at, filling.digest());
            head.await.map(drop)
        } else {
            let mut pour = Pour::new(self, whence, filling, &(0..map.blob_bytes()), FILL_PATIENCE);
            let answered = pour.first_answer().await;
            if answered.is_ok() {
                self.opened(right, filling, transfer);
                return pour.rest().await;
            }
            answered
        };
        match result {
            Ok(()) => {
                self.opened(right, filling, transfer);
                Ok(())
            }
            Err(error) => {
                // No space stays reserved for a blob that upstream does not have, or does not serve to this caller.
                if had == 0 && filling.landed().is_empty() && !transfer.is_open() {
                    filling.abandon(FillFailure::Revoked).await;
                }
                Err(error)
            }
        }
    }

    /// What an earlier fill has left, pieces or the beginning of one, may be another registry's, and private: an upstream that has
    /// not served the blob before has to show that it has the same.
    async fn has_same_left(&self, whence: Whence<'_>, filling: &Filling) -> Result<bool, PullError> {
        let Whence { upstream, right, .. } = whence;
        let Some((start, sample)) = left_sample(filling).await? else {
            return Ok(true);
        };
        if self.store.has_upstream(&right.at.upstream, filling.digest()).await? {
            return Ok(true);
        }
        upstream
            .has_sample(&right.caller, &right.at, filling.digest(), start, &sample)
            .await
    }

    fn opened(&self, right: &Right, filling: &Filling, transfer: &Transfer) {
        self.observer.opened(filling);
        transfer.open(filling.clone(), right.clone());
    }

    /// Fills a blob of unknown size: upstream's answer states it, or the end of its body shows it.
    async fn pour_unknown(
        &self,
        whence: Whence<'_>,
        digest: &Digest,
        transfer: &Transfer,
    ) -> Result<Filling, PullError> {
        let (map, body) = self.first_body(whence, digest).await?;
        let filling = self.reserve(digest, map).await?;
        self.pour_body(whence, &filling, body, transfer).await?;
        Ok(filling)
    }

    /// Asks for the whole blob: how it is cut, and its bytes.
    async fn first_body(&self, whence: Whence<'_>, digest: &Digest) -> Result<(PieceMap, Body), PullError> {
        let Whence {
            upstream,
            right: Right { at, caller },
            ..
        } = whence;
        let answer = upstream.blob(caller, at, digest, 0, None, Served::NotYet).await?;
        // A manifest may say 0. Whatever a size claims, bytes that do not have the digest are never served.
        let (blob_bytes, body) = match answer.blob_bytes.or_else(|| self.sizes.get(at, digest)) {
            Some(blob_bytes) => (blob_bytes, Body::Answer(answer)),
            None => {
                let read = async {
                    let read = self.read_unsized(at, digest, answer);
                    let whole = tokio::time::timeout(UNSIZED_TIMEOUT, read).await;
                    whole.map_err(|_| too_slow(at, digest))?
                };
                let whole = upstream.limits().unsized_blob(at, read).await?;
                (whole.len() as u64, Body::Whole(whole))
            }
        };
        let map = PieceMap::for_blob(blob_bytes).map_err(|error| PullError::BadGateway(error.to_string()))?;
        Ok((map, body))
    }

    /// The whole of a blob, whose first body has begun.
    async fn pour_body(
        &self,
        whence: Whence<'_>,
        filling: &Filling,
        body: Body,
        transfer: &Transfer,
    ) -> Result<(), PullError> {
        self.opened(whence.right, filling, transfer);
        let all = 0..filling.map().blob_bytes();
        let mut pour = Pour::new(self, whence, filling, &all, FILL_PATIENCE);
        pour.begin_with(body).await;
        pour.rest().await
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

    async fn reserve(&self, digest: &Digest, map: PieceMap) -> Result<Filling, PullError> {
        match self.store.begin(digest, map, None).await {
            Ok(filling) => Ok(filling),
            // Or the disk is full in fact, whatever it said before, or broken.
            Err(error @ (BeginFillError::NoSpace { .. } | BeginFillError::Io(_))) => {
                warn!(blob.digest = %digest, %error, "{digest} is passed on without being kept: {error}");
                pass(&self.store, digest, map, None, Offer::Nothing).await
            }
            Err(error) => Err(PullError::Store(error.to_string())),
        }
    }

    /// Fetches what is missing of a blob, for a swarm that has lost its mirror.
    ///
    /// # Errors
    /// As [`UpstreamBlobs::fill`].
    pub async fn complete(&self, caller: &Caller, at: &Repository, filling: &Filling) -> Result<(), PullError> {
        let upstream = self.upstreams.get(&at.upstream)?;
        let whence = Whence {
            upstream: &upstream,
            right: &Right::new(caller, at),
            callers: None,
        };
        let all = 0..filling.map().blob_bytes();
        Pour::new(self, whence, filling, &all, FILL_PATIENCE).rest().await
    }

    /// Fetches one run of pieces, as the scheduler has leased it. The first failure ends it: the scheduler knows others.
    ///
    /// # Errors
    /// As [`UpstreamBlobs::fill`].
    pub async fn fetch_run(
        &self,
        caller: &Caller,
        at: &Repository,
        filling: &Filling,
        run: &Range<u64>,
    ) -> Result<(), PullError> {
        let upstream = self.upstreams.get(&at.upstream)?;
        let whence = Whence {
            upstream: &upstream,
            right: &Right::new(caller, at),
            callers: None,
        };
        Pour::new(self, whence, filling, run, Duration::ZERO).rest().await
    }

    async fn received(&self, bytes: usize) {
        self.observer.received(bytes);
        self.limiter.take(bytes).await;
    }

    /// Verifies and publishes a blob that is all here, or has all passed; drops all of it when it proves to be another.
    ///
    /// # Errors
    /// [`PullError::BadGateway`] for the wrong bytes, [`PullError::Store`].
    pub async fn publish(&self, at: &Repository, filling: &Filling, transfer: &Transfer) -> Result<Arrived, PullError> {
        let arrived = match filling.is_passing() {
            true => filling.pass().await.map(|()| Arrived::Passed),
            false => filling.publish(&transfer.sources()).await.map(Arrived::Kept),
        };
        match arrived {
            Ok(Arrived::Kept(blob)) => {
                self.observer.kept(&blob);
                self.observer.proven(filling.digest(), filling.fill());
                Ok(Arrived::Kept(blob))
            }
            Ok(Arrived::Passed) => Ok(Arrived::Passed),
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

/// Some bytes of what an earlier fill has left, and their offset in the blob; `None` where it has left nothing.
async fn left_sample(filling: &Filling) -> Result<Option<(u64, Bytes)>, PullError> {
    let start = |piece| filling.map().range(piece).start;
    let cut = |bytes: Bytes| bytes.slice(..bytes.len().min(SAMPLE_BYTES));
    if let Some(piece) = filling.landed().iter().next() {
        let read = filling.read_piece(piece).await;
        let read = read.map_err(|error| PullError::Unavailable(error.to_string()))?;
        return Ok(read.map(|bytes| (start(piece), cut(bytes))));
    }
    for piece in filling.tailed() {
        if let Some(bytes) = filling.tail(piece).await.filter(|bytes| !bytes.is_empty()) {
            return Ok(Some((start(piece), cut(bytes))));
        }
    }
    Ok(None)
}

/// Begins to pass a blob on that there is no room for, as soon as not too many others do.
///
/// # Errors
/// [`PullError::Unavailable`] when none of those ends soon; [`PullError::Store`].
pub async fn pass(
    store: &Store,
    digest: &Digest,
    map: PieceMap,
    fill: Option<FillId>,
    offer: Offer,
) -> Result<Filling, PullError> {
    let begun = tokio::time::timeout(PASSING_PATIENCE, store.begin_passing(digest, map, fill, offer)).await;
    let begun = begun.map_err(|_| {
        PullError::Unavailable(
            "the blob does not fit into the cache, and too many blobs already pass through memory; try again"
                .to_owned(),
        )
    })?;
    begun.map_err(|error| match error {
        BeginFillError::Conflict { .. } => PullError::Unavailable(error.to_string()),
        error => PullError::Store(error.to_string()),
    })
}

fn too_slow(at: &Repository, digest: &Digest) -> PullError {
    let seconds = UNSIZED_TIMEOUT.as_secs();
    PullError::BadGateway(format!(
        "{} does not state the size of {digest} and has not sent all of it within {seconds} s",
        at.upstream
    ))
}
