//! Transfer of one blob into the store of a peer: opened at the mirror, then downloaded, followed or read through.
//!
//! A blob comes from upstream only when the mirror is lost or not configured, and only where that is allowed.

use std::{sync::Arc, time::Instant};

use piecemeal_proto::Digest;
use piecemeal_proxy::{Arrived, Destination, NodeBlob, Origin, Progress, Right, Transfer, pass};
use piecemeal_store::{BeginFillError, Blob, Filling, Offer, Repository};
use piecemeal_upstream::{Caller, PullError};
use tracing::{info, warn};

use super::{
    machine::{REFUSED_PATIENCE, REOPEN_DELAY},
    parts::Parts,
    task::Task,
};
use crate::DirectFallback;

impl Parts {
    /// Carries out a transfer.
    ///
    /// # Errors
    /// Why the blob cannot be fetched now; what has landed is kept for the next try.
    pub(crate) async fn transfer(
        self,
        right: Right,
        digest: Digest,
        transfer: Arc<Transfer>,
    ) -> Result<Arrived, PullError> {
        let Right { at, caller } = right.clone();
        let Some(opened) = self.open(&caller, &at, &digest).await? else {
            info!(blob.digest = %digest, "the mirror is lost: {digest} comes from {}", at.upstream);
            return self.upstream.clone().fill(right, digest, transfer).await;
        };
        while let Some(leader) = self.upstream.transfers.leader(&transfer) {
            // The mirror has compared what the two upstreams send, and fills the blob once for both.
            let Some(filling) = leader.filling_of(opened.fill_id()) else {
                return self.through_mirror(right, digest, transfer).await;
            };
            transfer.follow(filling, right.clone());
            match leader.ended().await {
                Progress::Complete(blob) => return Ok(Arrived::Kept(blob)),
                Progress::Open(_) => return Ok(Arrived::Passed),
                Progress::Starting { .. } | Progress::Failed(_) => transfer.starts_over(),
            }
        }
        if opened.passing && opened.content.is_none() {
            return self.through_mirror(right, digest, transfer).await;
        }
        let filling = match self.begin(&digest, &opened).await? {
            Begun::Filling(filling) => filling,
            // Another upstream's, just now: the caller has to show its right to it.
            Begun::Here(blob) => return Ok(Arrived::Kept(blob)),
        };
        transfer.open(filling.clone(), right.clone());
        if let Some(content) = opened.content(&digest) {
            self.traffic
                .count(Origin::Mirror, Destination::Store, content.len() as u64);
            if opened.blob_bytes > 0 {
                filling
                    .write_piece(0, content, None)
                    .await
                    .map_err(|error| PullError::Store(error.to_string()))?;
            }
            return self.upstream.publish(&at, &filling, &transfer).await;
        }
        Task::new(self, right, transfer, filling, opened).run().await
    }

    /// Reads the mirror as a registry: blobs that only pass through it, and those that it says differ from another upstream's.
    async fn through_mirror(self, right: Right, digest: Digest, transfer: Arc<Transfer>) -> Result<Arrived, PullError> {
        let no_mirror = || PullError::Unavailable("there is no mirror".to_owned());
        let registry = self.through_mirror.ok_or_else(no_mirror)?;
        registry.fill(right, digest, transfer).await
    }

    /// Asks the mirror, until it answers or its grace is over. `None`: it is lost, and upstream may be asked instead.
    async fn open(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<Option<NodeBlob>, PullError> {
        let may_use_upstream = self.direct_fallback == DirectFallback::Allowed;
        let Some(mirror) = &self.mirror else {
            return if may_use_upstream {
                Ok(None)
            } else {
                Err(PullError::Unavailable("there is no mirror".to_owned()))
            };
        };
        let asked_since = Instant::now();
        loop {
            let error = match mirror.open(caller, at, digest, None).await {
                Ok(opened) => return Ok(Some(opened)),
                Err(error) => error,
            };
            match (&error, mirror.lost_for()) {
                (PullError::Unreachable(_), Some(lost)) if lost >= self.mirror_grace.get() => {
                    return if may_use_upstream { Ok(None) } else { Err(error) };
                }
                (PullError::Unreachable(_), _) => {}
                // The mirror is there, and upstream has not answered it yet.
                (PullError::Unavailable(_), _) if asked_since.elapsed() < REFUSED_PATIENCE => {}
                _ => return Err(error),
            }
            tokio::time::sleep(REOPEN_DELAY).await;
        }
    }

    async fn begin(&self, digest: &Digest, opened: &NodeBlob) -> Result<Begun, PullError> {
        let nonsense = || PullError::BadGateway("the mirror states an impossible size".to_owned());
        let (map, fill) = opened.map().zip(opened.fill_id()).ok_or_else(nonsense)?;
        match self.store.begin(digest, map, Some(fill)).await {
            Ok(filling) => Ok(Begun::Filling(filling)),
            Err(BeginFillError::AlreadyComplete) => {
                let blob = self.store.blob(digest).await?;
                blob.map(Begun::Here)
                    .ok_or_else(|| PullError::Store("the blob was just deleted".to_owned()))
            }
            Err(error @ (BeginFillError::NoSpace { .. } | BeginFillError::Io(_))) => {
                warn!(blob.digest = %digest, %error, "{digest} passes through this node without being kept: {error}");
                let passing = pass(&self.store, digest, map, Some(fill), Offer::Pieces).await;
                passing.map(Begun::Filling)
            }
            Err(error) => Err(PullError::Store(error.to_string())),
        }
    }
}

enum Begun {
    Filling(Filling),
    Here(Blob),
}
