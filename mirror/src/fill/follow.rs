//! What a transfer does while another upstream's transfer of the same digest is under way and leads.
//!
//! It follows it, so that the bytes cross the WAN once, as long as they are its own upstream's too and keep coming. Otherwise one of the
//! two upstreams lies or stalls, and until the blob is proven nothing says which: it then fills apart, in memory, and harms the
//! leader in nothing. The first whose bytes have the digest has told the truth, and the other's are dropped.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use piecemeal_proto::{Digest, FillId, PieceHash};
use piecemeal_store::{FillFailure, Filling};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::{FillObserver, PASSING_PATIENCE, SAMPLE_BYTES, UpstreamBlobs, Whence};
use crate::{Arrived, Progress, PullError, Transfer};

/// How long a leader may take for the first bytes that can be compared.
const LEADER_PATIENCE: Duration = Duration::from_secs(1);
/// Where those are, from the beginning on.
const COMPARED_WITHIN: u64 = 64 * 1024;
/// A leader that is slower, in bytes a second, is left.
const LEADER_RATE_MIN: u64 = 64 * 1024;
/// The least that a leader has for a piece.
const PIECE_TIME_MIN: Duration = Duration::from_secs(5);
/// How long the work of a leader that is stopped has to notice.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// How following a transfer has ended.
enum Followed {
    Arrived(Arrived),
    /// The leader has ended without the blob.
    LeaderFailed,
    /// Its bytes are others than this upstream's, or do not come.
    Left,
}

impl UpstreamBlobs {
    /// Carries out a transfer behind the one that leads, or instead of it once that has failed.
    ///
    /// # Errors
    /// As [`UpstreamBlobs::fill`].
    pub(super) async fn fill_or_follow(
        &self,
        whence: Whence<'_>,
        digest: &Digest,
        transfer: &Transfer,
    ) -> Result<Arrived, PullError> {
        while let Some(leader) = self.transfers.leader(transfer) {
            match self.follow(whence, &leader, transfer).await? {
                Followed::Arrived(arrived) => return Ok(arrived),
                Followed::LeaderFailed => {}
                Followed::Left => return self.fill_apart(whence, digest, &leader, transfer).await,
            }
        }
        // Another's, just now: the caller has to show its right to it.
        if let Some(blob) = self.store.blob(digest).await? {
            return Ok(Arrived::Kept(blob));
        }
        let filling = self.pour(whence, digest, transfer).await?;
        self.publish(&whence.right.at, &filling).await
    }

    async fn follow(&self, whence: Whence<'_>, leader: &Transfer, transfer: &Transfer) -> Result<Followed, PullError> {
        let Whence { upstream, right, .. } = whence;
        let begun = timeout(LEADER_PATIENCE, async {
            match leader.started().await {
                Progress::Open(filling) => Ok(self.first_sample(&filling).await.map(|sample| (filling, sample))),
                ended => Err(ended),
            }
        });
        let (filling, (start, sample)) = match begun.await {
            Ok(Ok(Some(begun))) => begun,
            Ok(Ok(None)) | Err(_) => return Ok(Followed::Left),
            Ok(Err(_)) => return Ok(followed(leader.ended().await)),
        };
        let has_same = upstream.has_sample(&right.caller, &right.at, filling.digest(), start, &sample);
        if !has_same.await? {
            return Ok(Followed::Left);
        }
        self.store.record_source(&right.at, filling.digest()).await?;
        transfer.follow(filling.clone(), right.clone());
        Ok(tokio::select! {
            ended = leader.ended() => followed(ended),
            () = stalls(&filling) => Followed::Left,
        })
    }

    /// Some of the first bytes of a fill, and their offset. `None` when they have proved to be bad.
    async fn first_sample(&self, filling: &Filling) -> Option<(u64, Bytes)> {
        let blob_bytes = filling.map().blob_bytes();
        if blob_bytes == 0 {
            return Some((0, Bytes::new()));
        }
        let start = self.store.random_u64() % blob_bytes.min(COMPARED_WITHIN);
        let read = filling.read(start..blob_bytes.min(start + SAMPLE_BYTES as u64));
        read.await.ok().map(|sample| (start, sample))
    }

    /// Fills from this upstream in memory, beside the leader. Once the bytes have the digest they are kept, if all of them are still in
    /// memory, and the leader ends.
    async fn fill_apart(
        &self,
        whence: Whence<'_>,
        digest: &Digest,
        leader: &Transfer,
        transfer: &Transfer,
    ) -> Result<Arrived, PullError> {
        let (at, other) = (&whence.right.at, leader.upstream());
        info!(blob.digest = %digest, upstream = at.upstream, leader = other, "{digest} is downloaded from {} separately: {other} sends different bytes of it, or none", at.upstream);
        let apart = Self {
            observer: Arc::new(Unannounced(Arc::clone(&self.observer))),
            ..self.clone()
        };
        let (map, body) = apart.first_body(whence, digest).await?;
        let begun = timeout(PASSING_PATIENCE, self.store.begin_apart(digest, map)).await;
        let filling = begun.map_err(|_| {
            PullError::Unavailable(format!(
                "{other} and {} are both sending {digest}, and too many blobs are being compared between upstreams; try again",
                at.upstream
            ))
        })?;
        apart.pour_body(whence, &filling, body, transfer).await?;
        let arrived = apart.publish(at, &filling).await?;
        self.stop(leader, &filling).await;
        match self.keep(whence, &filling).await {
            Some(kept) => Ok(kept),
            None => Ok(arrived),
        }
    }

    /// Ends the leader of a blob that `proven` is the truth of. Its pieces stay where they are the blob's.
    async fn stop(&self, leader: &Transfer, proven: &Filling) {
        if let Some(filling) = leader.own_filling() {
            let agrees = filling.map() == proven.map()
                && filling
                    .landed()
                    .iter()
                    .all(|piece| filling.hash(piece) == proven.hash(piece));
            if agrees {
                filling.abandon(FillFailure::Stopped).await;
            } else {
                let (digest, liar) = (filling.digest(), leader.upstream());
                warn!(blob.digest = %digest, upstream = liar, "{liar} sends wrong bytes for {digest}; all of them are dropped");
                self.observer.revoked(digest, filling.fill());
                filling.abandon(FillFailure::Revoked).await;
            }
        }
        leader.stop(STOP_PATIENCE).await;
    }

    /// Keeps a blob that was filled apart. `None` when that cannot be: it has passed.
    async fn keep(&self, whence: Whence<'_>, proven: &Filling) -> Option<Arrived> {
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
        self.publish(&whence.right.at, &kept).await.ok()
    }
}

fn followed(ended: Progress) -> Followed {
    match ended {
        Progress::Complete(blob) => Followed::Arrived(Arrived::Kept(blob)),
        Progress::Open(_) => Followed::Arrived(Arrived::Passed),
        Progress::Starting { .. } | Progress::Failed(_) => Followed::LeaderFailed,
    }
}

/// Until no piece has landed for longer than a leader has for one.
async fn stalls(filling: &Filling) {
    let piece_time = Duration::from_secs(filling.map().piece_bytes() / LEADER_RATE_MIN).max(PIECE_TIME_MIN);
    let mut changes = filling.changes();
    let mut landed = filling.landed().count();
    let mut until = Instant::now() + piece_time;
    while filling.landed().is_full() || timeout_at(until, changes.changed()).await.is_ok() {
        if filling.landed().is_full() {
            // What is left is to prove it.
            return std::future::pending().await;
        }
        let now_landed = filling.landed().count();
        if now_landed > landed {
            (landed, until) = (now_landed, Instant::now() + piece_time);
        }
    }
}

/// Counts what comes from upstream, and tells of nothing else: the swarm knows of one fill of a blob, the leader's.
struct Unannounced(Arc<dyn FillObserver>);

impl FillObserver for Unannounced {
    fn opened(&self, _filling: &Filling) {}

    fn landed(&self, _filling: &Filling, _piece: u32, _hash: PieceHash) {}

    fn proven(&self, _digest: &Digest, _fill: FillId) {}

    fn revoked(&self, _digest: &Digest, _fill: FillId) {}

    fn received(&self, bytes: usize) {
        self.0.received(bytes);
    }
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::PieceMap;
    use piecemeal_store::{Env, Store, StoreConfig};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_leader_is_left_when_no_piece_lands_and_not_while_its_pieces_do() {
        let dir = tempfile::tempdir().expect("a folder");
        let config = StoreConfig {
            dir: dir.path().to_owned(),
            quota_bytes: None,
            free_bytes_min: 0,
            ttl: SECOND,
        };
        let store = Store::open(config, Env::system()).expect("a store");
        let map = PieceMap::new(4 * 4096, 4096).expect("four pieces");
        let filling = store.begin(&Digest::of(b"any"), map, None).await.expect("a fill");
        let begun = Instant::now();
        let lands = async {
            for piece in 0..2 {
                tokio::time::sleep(SECOND * 4).await;
                let written = filling.write_piece(piece, vec![7; 4096].into(), None).await;
                written.expect("it is kept");
            }
        };
        tokio::join!(stalls(&filling), lands);
        let taken = begun.elapsed().as_secs();
        assert_eq!(taken, 13, "five seconds after the last piece");
        for piece in 2..4 {
            let written = filling.write_piece(piece, vec![7; 4096].into(), None).await;
            written.expect("it is kept");
        }
        assert!(
            timeout(SECOND * 60, stalls(&filling)).await.is_err(),
            "what is left is to prove it"
        );
    }
}
