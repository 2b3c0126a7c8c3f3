//! Fill of a blob apart from another upstream's fill of the same digest, and of a blob that no other transfer leads.
//!
//! A fill apart is in memory and unannounced. Its blob is kept only once it is proven and no other fill of it is left.

use std::{sync::Arc, time::Duration};

use piecemeal_proto::Digest;
use piecemeal_store::{FillFailure, Filling};
use tracing::warn;

use super::action::{Reason, Rival};
use crate::{
    Arrived, Transfer,
    fill::{
        machine::UNREAD_MAX,
        observer::Unannounced,
        registry_source::{FillSource, RegistrySource},
        segment::Body,
        task::{Task, Wanted},
    },
};
use piecemeal_upstream::PullError;

/// How long the work of a leader that is stopped has to notice.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

impl RegistrySource {
    /// Fills the kept blob, as the transfer that leads.
    ///
    /// # Errors
    /// As [`RegistrySource::fill`].
    pub(super) async fn lead(
        &self,
        source: FillSource<'_>,
        digest: &Digest,
        transfer: &Transfer,
    ) -> Result<Arrived, PullError> {
        // Another's, just now: the caller has to show its right to it.
        if let Some(blob) = self.store.blob(digest).await? {
            return Ok(Arrived::Kept(blob));
        }
        let filling = self.download(source, digest, transfer).await?;
        self.publish(&source.right.at, &filling, transfer).await
    }

    /// The same source, whose fills only count what they receive.
    pub(super) fn unannounced(&self) -> Self {
        Self {
            observer: Arc::new(Unannounced(Arc::clone(&self.observer))),
            ..self.clone()
        }
    }

    /// Fills a blob whose first body has begun, and proves it.
    ///
    /// # Errors
    /// As [`RegistrySource::fill`].
    pub(super) async fn fill_apart(
        &self,
        source: FillSource<'_>,
        filling: &Filling,
        body: Body,
        transfer: &Transfer,
    ) -> Result<Arrived, PullError> {
        self.download_body(source, filling, body, transfer).await?;
        self.publish(&source.right.at, filling, transfer).await
    }

    /// Fills a blob from what a leader has of its beginning and from this upstream, and proves it. Readers go on with it; they wait where
    /// it proves to be wrong.
    ///
    /// # Errors
    /// As [`RegistrySource::fill`].
    pub(super) async fn take_over(
        &self,
        source: FillSource<'_>,
        filling: &Filling,
        leader: &Filling,
        transfer: &Transfer,
    ) -> Result<Arrived, PullError> {
        transfer.follow(filling.clone(), source.right.clone());
        copy_beginning(leader, filling).await;
        let filled = Task::new(self, source, filling, Wanted::all_of(filling)).run().await;
        let arrived = match filled {
            Ok(()) => self.publish(&source.right.at, filling, transfer).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &arrived {
            filling.abandon(FillFailure::Upstream(error.to_string())).await;
        }
        arrived
    }

    /// Ends a leader that fills `filling`. Its pieces stay where they are the blob's.
    pub(super) async fn end_leader(&self, leader: &Transfer, filling: Option<Filling>, reason: Reason) {
        let why = match reason {
            Reason::Silent | Reason::Slow => FillFailure::Stopped,
            Reason::OtherBytes => {
                let (digest, liar) = (leader.digest(), leader.upstream());
                warn!(blob.digest = %digest, upstream = liar, "{liar} sends other bytes for {digest} than the blob has; all of them are dropped");
                if let Some(filling) = &filling {
                    self.observer.revoked(digest, filling.fill());
                }
                FillFailure::Revoked
            }
        };
        leader.stop(filling, why, STOP_PATIENCE).await;
    }

    /// Keeps a blob that was filled apart. `None` when that cannot be: it has passed.
    pub(super) async fn keep(&self, source: FillSource<'_>, proven: &Filling, transfer: &Transfer) -> Option<Arrived> {
        if !proven.have().is_full() {
            return None;
        }
        let (digest, map) = (proven.digest(), proven.map());
        let kept = self.store.begin(digest, map, None).await.ok()?;
        for piece in 0..map.count() {
            let bytes = proven.read_piece(piece).await.ok()??;
            kept.write_piece(piece, bytes, proven.hash(piece)).await.ok()?;
        }
        self.observer.opened(&kept);
        self.publish(&source.right.at, &kept, transfer).await.ok()
    }
}

/// Copies the pieces that a leader has from the blob's beginning on. It ends where one is missing, and where no reader makes room.
async fn copy_beginning(leader: &Filling, filling: &Filling) {
    for piece in 0..leader.map().count() {
        let (Ok(Some(bytes)), Some(hash)) = (leader.read_piece(piece).await, leader.hash(piece)) else {
            return;
        };
        let written = tokio::time::timeout(UNREAD_MAX, filling.write_piece(piece, bytes, Some(hash))).await;
        if !matches!(written, Ok(Ok(_))) {
            return;
        }
    }
}

/// What a leader's transfer fills, beside the proven blob.
pub(super) fn rival(filling: Option<&Filling>, proven: &Filling) -> Rival {
    let agrees = |filling: &Filling| {
        let is_same = |piece| filling.hash(piece) == proven.hash(piece);
        filling.map() == proven.map() && filling.landed().iter().all(is_same)
    };
    Rival {
        arrived: filling.map(Filling::arrived_bytes),
        agrees: filling.is_none_or(agrees),
        lacks: filling.is_some_and(|filling| !filling.landed().is_full()) && proven.have().is_full(),
    }
}
