//! Follower of a transfer: what a transfer does while another upstream's transfer of the same digest leads.
//!
//! It follows the leader, so that the bytes cross the WAN once, as long as they are public, are its own upstream's too and keep coming. (A sample
//! shows that an upstream knows the beginning of a blob: too little for what another keeps private.) Otherwise one of the two
//! upstreams may lie or stall, and until the blob is proven nothing says which: it then fills apart, in memory, and harms the
//! leader in nothing. The first whose bytes have the digest has told the truth, and the other's are dropped.

use std::{sync::Arc, time::Duration};

use piecemeal_proto::Digest;
use piecemeal_store::{FillFailure, Filling};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{
    comparison::{Comparison, LOOK_EVERY, PROBE_BYTES, Probe},
    observer::Unannounced,
    publish::PASSING_PATIENCE,
    registry_source::{FillSource, RegistrySource},
    sample::SAMPLE_BYTES,
};
use crate::{Arrived, Progress, Transfer};
use piecemeal_upstream::PullError;

/// How long a leader may bring nothing before this upstream is asked whether it would.
const LEADER_PATIENCE: Duration = Duration::from_secs(1);
/// How long that answer may take; an upstream that does not answer would bring nothing either.
const OWN_PATIENCE: Duration = Duration::from_secs(2);
/// How often a leader that brings nothing is waited for.
const LEADER_WAITS_MAX: u32 = 10;
/// How often it is looked whether a leader's first bytes have come.
const FIRST_BYTES_EVERY: Duration = Duration::from_millis(20);
/// How long the work of a leader that is stopped has to notice.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// How following a transfer has ended.
enum Followed {
    Arrived(Arrived),
    /// The leader has ended without the blob.
    LeaderFailed,
    /// Its bytes are private, are others than this upstream's, or do not come.
    Left,
}

impl RegistrySource {
    /// Carries out a transfer behind the one that leads, or instead of it once that has failed.
    ///
    /// # Errors
    /// As [`RegistrySource::fill`].
    pub(super) async fn fill_or_follow(
        &self,
        source: FillSource<'_>,
        digest: &Digest,
        transfer: &Transfer,
    ) -> Result<Arrived, PullError> {
        while let Some(leader) = self.transfers.leader(transfer) {
            match self.follow(source, &leader, transfer).await? {
                Followed::Arrived(arrived) => return Ok(arrived),
                Followed::LeaderFailed => {}
                Followed::Left => return self.fill_apart(source, digest, &leader, transfer).await,
            }
        }
        // Another's, just now: the caller has to show its right to it.
        if let Some(blob) = self.store.blob(digest).await? {
            return Ok(Arrived::Kept(blob));
        }
        let filling = self.download(source, digest, transfer).await?;
        self.publish(&source.right.at, &filling, transfer).await
    }

    async fn follow(
        &self,
        source: FillSource<'_>,
        leader: &Transfer,
        transfer: &Transfer,
    ) -> Result<Followed, PullError> {
        if !(self.is_public)(&leader.callers().asked().at) {
            return Ok(Followed::Left);
        }
        let filling = match self.begun(source, leader).await? {
            Ok(filling) => filling,
            Err(ended) => return Ok(ended),
        };
        if !self.has_same(source, &filling, SAMPLE_BYTES as u64).await? {
            return Ok(Followed::Left);
        }
        transfer.follow(filling.clone(), source.right.clone());
        let followed = tokio::select! {
            ended = leader.ended() => followed(ended),
            left = self.is_to_be_left(source, &filling) => {
                left?;
                Followed::Left
            }
        };
        if matches!(followed, Followed::LeaderFailed) {
            transfer.starts_over();
        }
        Ok(followed)
    }

    /// Waits for the leader's first bytes, as long as this upstream would bring none either.
    async fn begun(&self, source: FillSource<'_>, leader: &Transfer) -> Result<Result<Filling, Followed>, PullError> {
        let FillSource { upstream, right, .. } = source;
        for _ in 0..LEADER_WAITS_MAX {
            let begun = async {
                match leader.started().await {
                    Progress::Open(filling) => first_bytes(&filling).await.then_some(filling),
                    _ => None,
                }
            };
            match timeout(LEADER_PATIENCE, begun).await {
                Ok(Some(filling)) => return Ok(Ok(filling)),
                Ok(None) => return Ok(Err(followed(leader.ended().await))),
                Err(_) => {}
            }
            let own = upstream.head_blob(&right.caller, &right.at, leader.digest());
            match timeout(OWN_PATIENCE, own).await {
                Ok(Ok(_)) => break,
                Ok(Err(error)) if error.is_refusal() => return Err(error),
                Ok(Err(_)) | Err(_) => {}
            }
        }
        Ok(Err(Followed::Left))
    }

    /// Returns when this upstream has shown to be several times faster than the leader, or to have other bytes.
    async fn is_to_be_left(&self, source: FillSource<'_>, filling: &Filling) -> Result<(), PullError> {
        let mut comparison = Comparison::new(filling.arrived_bytes());
        loop {
            sleep(comparison.pause()).await;
            if comparison.look(filling.arrived_bytes(), filling.landed().is_full())
                && comparison.leaves(self.probe(source, filling).await?)
            {
                return Ok(());
            }
        }
    }

    async fn probe(&self, source: FillSource<'_>, filling: &Filling) -> Result<Probe, PullError> {
        let asked = Instant::now();
        match timeout(LOOK_EVERY, self.has_same(source, filling, PROBE_BYTES)).await {
            Ok(Ok(true)) => Ok(Probe::Same(asked.elapsed())),
            Ok(Ok(false)) => Ok(Probe::Other),
            Ok(Err(error)) if error.is_refusal() => Err(error),
            Ok(Err(_)) | Err(_) => Ok(Probe::Silent),
        }
    }

    /// Fills from this upstream in memory, beside the leader. Once the bytes have the digest they are kept, if all of them are still in
    /// memory, and the leader ends.
    async fn fill_apart(
        &self,
        source: FillSource<'_>,
        digest: &Digest,
        leader: &Transfer,
        transfer: &Transfer,
    ) -> Result<Arrived, PullError> {
        let (at, other) = (&source.right.at, leader.upstream());
        info!(blob.digest = %digest, upstream = at.upstream, leader = other, "{digest} comes from {} apart: what {other} sends of it is private, differs, or does not come", at.upstream);
        let apart = Self {
            observer: Arc::new(Unannounced(Arc::clone(&self.observer))),
            ..self.clone()
        };
        let too_many = || {
            PullError::Unavailable(format!(
                "{other} and {} send {digest} at once, and too many blobs are in such a dispute; try again",
                at.upstream
            ))
        };
        let place = timeout(PASSING_PATIENCE, self.transfers.disputes().take(&at.upstream)).await;
        let place = place.map_err(|_| too_many())?.map_err(|_| too_many())?;
        let had = leader.own_filling().map(|filling| filling.arrived_bytes());
        let filled = async {
            let (map, body) = apart.first_body(source, digest).await?;
            let begun = timeout(PASSING_PATIENCE, self.store.begin_apart(digest, map)).await;
            let filling = begun.map_err(|_| too_many())?;
            apart.download_body(source, &filling, body, transfer).await?;
            let arrived = apart.publish(at, &filling, transfer).await?;
            Ok::<_, PullError>((filling, arrived))
        };
        let (filling, arrived) = tokio::select! {
            filled = filled => filled?,
            () = place.given_up() => return Err(too_many()),
        };
        if !self.outrun(leader, had, &filling).await {
            return Ok(arrived);
        }
        // Only the transfer that leads writes into the store: another one may have gone on in the leader's place meanwhile.
        while let Some(next) = self.transfers.leader(transfer) {
            if next.own_filling().is_none() || !self.outrun(&next, None, &filling).await {
                return Ok(arrived);
            }
        }
        match self.keep(source, &filling, transfer).await {
            Some(kept) => Ok(kept),
            None => Ok(arrived),
        }
    }

    /// Ends the leader of a blob that `proven` is the truth of, unless its bytes are the blob's and go on coming. Says whether it has
    /// ended. Its pieces stay where they are the blob's.
    async fn outrun(&self, leader: &Transfer, had: Option<u64>, proven: &Filling) -> bool {
        let filling = leader.own_filling();
        let mut why = FillFailure::Stopped;
        if let Some(filling) = &filling {
            let hashes = |piece| filling.hash(piece) == proven.hash(piece);
            let agrees = filling.map() == proven.map() && filling.landed().iter().all(hashes);
            if agrees && Some(filling.arrived_bytes()) > had {
                return false;
            }
            if !agrees {
                let (digest, liar) = (filling.digest(), leader.upstream());
                warn!(blob.digest = %digest, upstream = liar, "{liar} sends other bytes for {digest} than the blob has; all of them are dropped");
                self.observer.revoked(digest, filling.fill());
                why = FillFailure::Revoked;
            }
        }
        leader.stop(filling, why, STOP_PATIENCE).await;
        true
    }

    /// Keeps a blob that was filled apart. `None` when that cannot be: it has passed.
    async fn keep(&self, source: FillSource<'_>, proven: &Filling, transfer: &Transfer) -> Option<Arrived> {
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

fn followed(ended: Progress) -> Followed {
    match ended {
        Progress::Complete(blob) => Followed::Arrived(Arrived::Kept(blob)),
        Progress::Open(_) => Followed::Arrived(Arrived::Passed),
        Progress::Starting { .. } | Progress::Failed(_) => Followed::LeaderFailed,
    }
}

/// Waits until there is something of a fill to compare; `false` when it fails before.
async fn first_bytes(filling: &Filling) -> bool {
    while filling.arrived_bytes() == 0 && filling.map().blob_bytes() > 0 {
        if filling.failure().is_some() {
            return false;
        }
        sleep(FIRST_BYTES_EVERY).await;
    }
    true
}
