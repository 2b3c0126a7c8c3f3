//! Transfer of one blob into the store of a peer: opened at the mirror, then downloaded, followed or read through.
//!
//! A blob comes from upstream only when the mirror is lost or not configured, and only where that is allowed.

use std::{sync::Arc, time::Duration};

use piecemeal_proto::Digest;
use piecemeal_proxy::{Arrived, Destination, NodeBlob, Origin, Progress, Right, Transfer, pass};
use piecemeal_store::{BeginFillError, Blob, Filling, Offer, Repository};
use piecemeal_upstream::{Caller, PullError};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::{
    opening::{Opening, OpeningStep},
    parts::Parts,
    task::{Task, TaskEnd},
};
use crate::{DirectFallback, mirror_client::NotOpened};

/// The most fills of the mirror that one transfer follows, one after the other.
const FILLS_MAX: u32 = 4;

impl Parts {
    /// Carries out a transfer. When the mirror begins another fill, the transfer goes on with that one.
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
        let Some(mut opened) = self.open(&caller, &at, &digest, &transfer).await? else {
            info!(blob.digest = %digest, "the mirror is lost: {digest} comes from {}", at.upstream);
            return self.upstream.clone().fill(right, digest, transfer).await;
        };
        for _ in 0..FILLS_MAX {
            let (right, transfer) = (right.clone(), Arc::clone(&transfer));
            let followed = self.clone().follow_fill(right, digest, transfer, opened).await;
            let followed = followed.inspect_err(|error| {
                if !error.is_refusal() {
                    warn!(blob.digest = %digest, upstream = at.upstream, %error, "the download of {digest} ends: {error}");
                }
            });
            match followed? {
                TaskEnd::Arrived(arrived) => return Ok(arrived),
                TaskEnd::OtherFill(other) => opened = *other,
            }
        }
        Err(PullError::Unavailable(format!(
            "the mirror has begun {FILLS_MAX} fills of {digest}, one after the other"
        )))
    }

    /// Follows one fill of the mirror, to the blob or to the mirror's next fill.
    async fn follow_fill(
        self,
        right: Right,
        digest: Digest,
        transfer: Arc<Transfer>,
        opened: NodeBlob,
    ) -> Result<TaskEnd, PullError> {
        let at = right.at.clone();
        while let Some(leader) = self.upstream.transfers.leader(&transfer) {
            // The mirror has compared what the two upstreams send, and fills the blob once for both.
            let Some(filling) = leader.filling_of(opened.fill_id()) else {
                return self.through_mirror(right, digest, transfer).await.map(TaskEnd::Arrived);
            };
            transfer.follow(filling, right.clone());
            match leader.ended().await {
                Progress::Complete(blob) => return Ok(Arrived::Kept(blob).into()),
                Progress::Open(_) => return Ok(Arrived::Passed.into()),
                Progress::Starting { .. } | Progress::Failed(_) => transfer.starts_over(),
            }
        }
        if opened.passing && opened.content.is_none() {
            return self.through_mirror(right, digest, transfer).await.map(TaskEnd::Arrived);
        }
        let filling = match self.begin(&digest, &opened).await? {
            Begun::Filling(filling) => filling,
            // Another upstream's, just now: the caller has to show its right to it.
            Begun::Here(blob) => return Ok(Arrived::Kept(blob).into()),
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
            let published = self.upstream.publish(&at, &filling, &transfer).await;
            return published.map(TaskEnd::Arrived);
        }
        Task::new(self, right, transfer, filling, opened).run().await
    }

    /// Reads the mirror as a registry: blobs that only pass through it, and those that it says differ from another upstream's.
    async fn through_mirror(self, right: Right, digest: Digest, transfer: Arc<Transfer>) -> Result<Arrived, PullError> {
        let registry = self.through_mirror.ok_or_else(no_mirror)?;
        registry.fill(right, digest, transfer).await
    }

    /// Asks the mirror, until it answers or its grace is over. `None`: it is lost, and upstream may be asked instead.
    async fn open(
        &self,
        caller: &Caller,
        at: &Repository,
        digest: &Digest,
        transfer: &Transfer,
    ) -> Result<Option<NodeBlob>, PullError> {
        let may_use_upstream = self.direct_fallback == DirectFallback::Allowed;
        let opening = Opening::new(Duration::ZERO, self.mirror.is_some(), may_use_upstream);
        let ask = move || async move {
            let mirror = self.mirror.as_ref().ok_or_else(no_mirror)?;
            mirror.open(caller, at, digest, None).await
        };
        let note = |unopened: &NotOpened| transfer.answered_with(unopened.answer());
        let opened = follow(opening, ask, note, || self.mirror_grace.get()).await;
        if opened.is_ok() {
            transfer.answered_with(None);
        }
        if let Err(error) = &opened
            && !error.is_refusal()
        {
            warn!(blob.digest = %digest, upstream = at.upstream, %error, "{digest} cannot be fetched from {} now: {error}", at.upstream);
        }
        opened
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
            Err(error @ (BeginFillError::NoSpace { .. } | BeginFillError::Io(_) | BeginFillError::Index(_))) => {
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

/// Does what the opening decides. `ask`: asks the mirror. `note`: records why an answer has not opened the blob, before the next question.
async fn follow<T, A: Future<Output = Result<T, NotOpened>>>(
    mut opening: Opening,
    ask: impl Fn() -> A,
    note: impl Fn(&NotOpened),
    mirror_grace: impl Fn() -> Duration,
) -> Result<Option<T>, PullError> {
    let started = Instant::now();
    let mut error = no_mirror();
    loop {
        match opening.poll(started.elapsed()) {
            OpeningStep::Ask => match ask().await {
                Ok(opened) => return Ok(Some(opened)),
                Err(failed) => {
                    note(&failed);
                    opening.handle_unopened(started.elapsed(), failed.unopened, mirror_grace());
                    error = failed.error;
                }
            },
            OpeningStep::Wait(until) => sleep_until(started + until).await,
            OpeningStep::UseUpstream => return Ok(None),
            OpeningStep::Fail => return Err(error),
        }
    }
}

fn no_mirror() -> PullError {
    PullError::Unavailable("there is no mirror".to_owned())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::download::{Unopened, machine::REOPEN_DELAY};

    fn lost(time: Duration) -> NotOpened {
        NotOpened {
            error: PullError::Unreachable("no mirror".to_owned()),
            unopened: Unopened::Lost { lost: Some(time) },
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_mirror_is_asked_twice_a_second_until_it_answers() {
        let started = Instant::now();
        let asked = &Cell::new(0);
        let ask = || async move {
            asked.set(asked.get() + 1);
            match asked.get() {
                9 => Ok("opened"),
                count if count % 2 == 0 => Err(PullError::Unavailable("not now".to_owned()).into()),
                _ => Err(lost(started.elapsed())),
            }
        };
        let opening = Opening::new(Duration::ZERO, true, true);
        let promises = &Cell::new(0);
        let note = |unopened: &NotOpened| promises.set(promises.get() + usize::from(unopened.answer().is_none()));
        let opened = follow(opening, ask, note, || Duration::from_secs(30)).await;
        assert_eq!(
            promises.get(),
            4,
            "an answer with an error is no promise, and a mirror that is lost may come back"
        );
        assert_eq!(opened.ok(), Some(Some("opened")));
        assert_eq!(started.elapsed(), 8 * REOPEN_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_mirror_that_stays_lost_gives_way_to_upstream_or_its_last_error_is_the_reason() {
        let started = Instant::now();
        let ask = || async move { Err::<(), _>(lost(started.elapsed())) };
        let grace = Duration::from_secs(30);
        let opening = |may_use_upstream| Opening::new(Duration::ZERO, true, may_use_upstream);
        assert!(matches!(
            follow(opening(true), &ask, |_: &NotOpened| {}, || grace).await,
            Ok(None)
        ));
        assert_eq!(started.elapsed(), grace);
        let failed = follow(opening(false), &ask, |_: &NotOpened| {}, || grace).await;
        assert!(matches!(failed, Err(PullError::Unreachable(_))), "{failed:?}");
    }
}
