//! The download of one blob: asks upstream, opens the transfer at its first answer, and runs to the end.
//!
//! Upstream is asked before a caller is served.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use piecemeal_proto::{Digest, PieceMap};
use piecemeal_store::{FillFailure, Filling, Repository};
use tracing::{info, warn};

use super::{
    registry_source::{FillSource, RegistrySource},
    room::Room,
    segment::Body,
    task::{Task, Wanted},
};
use crate::{Arrived, Right, Transfer};
use piecemeal_upstream::{BlobAnswer, Caller, PullError, Served, innermost};

/// The largest blob of unstated size that is accepted, in bytes: it is held in memory until its end shows the size.
const UNSIZED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The time limit for reading one.
const UNSIZED_TIMEOUT: Duration = Duration::from_secs(600);

impl RegistrySource {
    /// Carries out a transfer: the whole blob, from where an earlier try has left it. Once it is open it goes on by itself with
    /// the rights of other callers at the same upstream.
    ///
    /// # Errors
    /// [`PullError`]; what has landed is kept, unless it proved to be bad.
    pub async fn fill(self, right: Right, digest: Digest, transfer: Arc<Transfer>) -> Result<Arrived, PullError> {
        let at = right.at.clone();
        let upstream = self.upstreams.get(&at.upstream)?;
        let room = Room::new(upstream.limits().fill(&at).await?);
        let source = FillSource {
            upstream: &upstream,
            right: &right,
            callers: Some(transfer.callers()),
            room: Some(&room),
        };
        let started = Instant::now();
        let arrived = self.fill_or_follow(source, &digest, &transfer).await?;
        let bytes = match &arrived {
            Arrived::Kept(blob) => Some(blob.map().blob_bytes()),
            Arrived::Passed => None,
        };
        info!(blob.digest = %digest, blob.bytes = bytes, upstream = at.upstream, repository = at.name, seconds = started.elapsed().as_secs_f64(), "filled {digest} from {}", at.upstream);
        Ok(arrived)
    }

    pub(super) async fn download(
        &self,
        source: FillSource<'_>,
        digest: &Digest,
        transfer: &Transfer,
    ) -> Result<Filling, PullError> {
        match self.known_map(&source.right.at, digest).await? {
            Some(map) => {
                let filling = self.reserve(digest, map).await?;
                if !self.has_same_left(source, &filling).await? {
                    warn!(blob.digest = %digest, upstream = source.right.at.upstream, "{} has other bytes for {digest} than came before; all of it is fetched again", source.right.at.upstream);
                    self.observer.revoked(digest, filling.fill());
                    filling.abandon(FillFailure::Revoked).await;
                    return self.download_unknown(source, digest, transfer).await;
                }
                self.download_known(source, &filling, transfer).await?;
                Ok(filling)
            }
            None => self.download_unknown(source, digest, transfer).await,
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
    async fn download_known(
        &self,
        source: FillSource<'_>,
        filling: &Filling,
        transfer: &Transfer,
    ) -> Result<(), PullError> {
        let FillSource { upstream, right, .. } = source;
        let (had, map) = (filling.landed().count(), filling.map());
        if had > 0 {
            info!(blob.digest = %filling.digest(), blob.bytes = map.blob_bytes(), pieces = had, "the fill of {} goes on", filling.digest());
        }
        let result = if had == map.count() {
            let head = upstream.head_blob(&right.caller, &right.at, filling.digest());
            head.await.map(|_| self.opened(right, filling, transfer))
        } else {
            let wanted = Wanted {
                opens: Some(transfer),
                ..Wanted::all_of(filling)
            };
            Task::new(self, source, filling, wanted).run().await
        };
        // No space stays reserved for a blob that upstream does not have, or does not serve to this caller.
        if result.is_err() && had == 0 && filling.landed().is_empty() && !transfer.is_open() {
            filling.abandon(FillFailure::Revoked).await;
        }
        result
    }

    pub(super) fn opened(&self, right: &Right, filling: &Filling, transfer: &Transfer) {
        self.observer.opened(filling);
        transfer.open(filling.clone(), right.clone());
    }

    /// Fills a blob of unknown size: upstream's answer states it, or the end of its body shows it.
    async fn download_unknown(
        &self,
        source: FillSource<'_>,
        digest: &Digest,
        transfer: &Transfer,
    ) -> Result<Filling, PullError> {
        let (map, body) = self.first_body(source, digest).await?;
        let filling = self.reserve(digest, map).await?;
        self.download_body(source, &filling, body, transfer).await?;
        Ok(filling)
    }

    /// Asks for the whole blob: how it is cut, and its bytes.
    pub(super) async fn first_body(
        &self,
        source: FillSource<'_>,
        digest: &Digest,
    ) -> Result<(PieceMap, Body), PullError> {
        let FillSource {
            upstream,
            right: Right { at, caller },
            ..
        } = source;
        let answer = upstream.blob(caller, at, digest, 0, None, Served::NotYet).await?;
        // A manifest may say 0. Whatever a size claims, bytes that do not have the digest are never served.
        let found = match answer.blob_bytes {
            Some(blob_bytes) => Some(blob_bytes),
            None => self.sizes.find(&self.store, at, digest).await?,
        };
        let (blob_bytes, body) = match found {
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
    pub(super) async fn download_body(
        &self,
        source: FillSource<'_>,
        filling: &Filling,
        body: Body,
        transfer: &Transfer,
    ) -> Result<(), PullError> {
        self.opened(source.right, filling, transfer);
        let mut task = Task::new(self, source, filling, Wanted::all_of(filling));
        task.begin_with(body).await;
        task.run().await
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

    /// Fetches what is missing of a blob, for a swarm that has lost its mirror.
    ///
    /// # Errors
    /// As [`RegistrySource::fill`].
    pub async fn complete(&self, caller: &Caller, at: &Repository, filling: &Filling) -> Result<(), PullError> {
        let upstream = self.upstreams.get(&at.upstream)?;
        let source = FillSource {
            upstream: &upstream,
            right: &Right::new(caller, at),
            callers: None,
            room: None,
        };
        Task::new(self, source, filling, Wanted::all_of(filling)).run().await
    }

    /// Fetches one run of pieces, as the scheduler has leased it. The first failure ends it: the scheduler knows others.
    ///
    /// # Errors
    /// As [`RegistrySource::fill`].
    pub async fn fetch_run(
        &self,
        caller: &Caller,
        at: &Repository,
        filling: &Filling,
        run: &Range<u64>,
    ) -> Result<(), PullError> {
        let upstream = self.upstreams.get(&at.upstream)?;
        let source = FillSource {
            upstream: &upstream,
            right: &Right::new(caller, at),
            callers: None,
            room: None,
        };
        let wanted = Wanted {
            within: run.clone(),
            patience: Duration::ZERO,
            opens: None,
        };
        Task::new(self, source, filling, wanted).run().await
    }
}

fn too_slow(at: &Repository, digest: &Digest) -> PullError {
    let seconds = UNSIZED_TIMEOUT.as_secs();
    PullError::BadGateway(format!(
        "{} does not state the size of {digest} and has not sent all of it within {seconds} s",
        at.upstream
    ))
}
