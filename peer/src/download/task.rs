//! Task of one download: all of its I/O, none of its decisions, which are the machine's.
//!
//! All waiting is in tasks of their own, so that orders are never kept waiting.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use piecemeal_proto::{
    PieceHash, SignedPieceHashes,
    wire::{self, ClientState, Lease, Outcome, feature::CLIENT_STATE, report::Report},
};
use piecemeal_proxy::{Arrived, NodeBlob, Origin, Right, Transfer, lost};
use piecemeal_store::{FillFailure, Filling, Repository};
use piecemeal_swarm::Session;
use piecemeal_upstream::{Caller, PullError};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::sleep_until,
};
use tracing::{debug, info, warn};

use super::{
    action::{Action, Failure},
    ended::Ended,
    fetch::Fetch,
    machine::{Beginning, Download, Reopened},
    mode::Facts,
    order::{ORDERS_MAX, Order},
    parts::Parts,
};
use crate::{DirectFallback, live::keep_beside, mirror_client::MirrorClient};

/// One blob on its way from the swarm.
pub(super) struct Task {
    parts: Parts,
    /// The mirror and upstream are asked with this caller's right. A refusal of it ends the run; the next caller's begins another.
    caller: Caller,
    at: Repository,
    /// Whose work it is.
    transfer: Arc<Transfer>,
    filling: Filling,
    opened: NodeBlob,
    machine: Download,
    /// The start of the machine's time.
    started: Instant,
    fetches: JoinSet<Ran>,
    /// The fetch of each lease under way.
    leases: HashMap<u64, AbortHandle>,
    /// The last error of the mirror or of upstream.
    error: Option<PullError>,
    /// The mirror's answer that names another fill.
    other: Option<NodeBlob>,
}

/// How a download has ended.
pub(super) enum TaskEnd {
    Arrived(Arrived),
    /// The mirror has begun another fill. Nothing is known of the bytes of the one before.
    OtherFill(Box<NodeBlob>),
}

impl From<Arrived> for TaskEnd {
    fn from(arrived: Arrived) -> Self {
        Self::Arrived(arrived)
    }
}

/// What a fetch or question of a download has brought.
enum Ran {
    Lease(u64, Ended),
    Piece(u32, Ended),
    Reopened(Result<NodeBlob, PullError>),
    Rest(Result<(), PullError>),
}

impl Task {
    pub(super) fn new(parts: Parts, right: Right, transfer: Arc<Transfer>, filling: Filling, opened: NodeBlob) -> Self {
        let beginning = Beginning {
            fill: filling.fill(),
            map: filling.map(),
            landed: filling.landed(),
            mirror_configured: parts.mirror.is_some(),
            may_use_upstream: parts.direct_fallback == DirectFallback::Allowed,
            seed: parts.store.random_u64(),
        };
        Self {
            parts,
            caller: right.caller,
            at: right.at,
            transfer,
            filling,
            opened,
            machine: Download::new(Duration::ZERO, beginning),
            started: Instant::now(),
            fetches: JoinSet::new(),
            leases: HashMap::new(),
            error: None,
            other: None,
        }
    }

    /// Runs until the blob is here and proven, or cannot be fetched, or the mirror begins another fill.
    pub(super) async fn run(mut self) -> Result<TaskEnd, PullError> {
        let (orders, mut inbox) = mpsc::channel(ORDERS_MAX);
        let digest = *self.filling.digest();
        let _live = self.parts.live.enter(digest, self.want(), self.filling.clone(), orders);
        self.report(self.want());
        let result = self.follow(&mut inbox).await;
        self.fetches.shutdown().await;
        if let Err(error) = &result {
            debug!(blob.digest = %digest, %error, "the download of {digest} stops: {error}");
        }
        let kept = matches!(result, Ok(Arrived::Kept(_)));
        let passed = self.filling.is_unstored() || matches!(result, Ok(Arrived::Passed));
        self.machine.handle_closed(kept, passed);
        self.act().await?;
        match (result, self.other.take()) {
            (Err(_), Some(other)) => {
                info!(blob.digest = %digest, "the mirror has begun another fill of {digest}; the download goes on with it");
                // In this order: a reader whose fill has ended looks for the next one.
                self.transfer.starts_over();
                self.filling.abandon(FillFailure::Stopped).await;
                Ok(TaskEnd::OtherFill(Box::new(other)))
            }
            (result, _) => result.map(TaskEnd::Arrived),
        }
    }

    async fn follow(&mut self, inbox: &mut mpsc::Receiver<Order>) -> Result<Arrived, PullError> {
        let mut changes = self.filling.changes();
        loop {
            if let Some(arrived) = self.act().await? {
                return Ok(arrived);
            }
            let timeout = self.machine.poll_timeout();
            tokio::select! {
                Some(order) = inbox.recv() => self.order(order),
                Some(ran) = self.fetches.join_next(), if !self.fetches.is_empty() => {
                    // An aborted fetch has been accounted for, and one that panics ends by itself.
                    if let Ok(ran) = ran {
                        self.ran(ran);
                    }
                }
                _ = changes.changed() => {}
                () = sleep_until((self.started + timeout.unwrap_or_default()).into()), if timeout.is_some() => {
                    self.machine.handle_timeout(self.now(), &self.facts());
                }
            }
            self.note_stored();
        }
    }

    fn note_stored(&mut self) {
        let (landed, have) = (self.filling.landed(), self.filling.have());
        self.machine.handle_stored(self.now(), landed, &have);
    }

    fn order(&mut self, order: Order) {
        if let Order::WantRefused(reason) = &order {
            debug!(blob.digest = %self.filling.digest(), reason, "the want was refused; a new grant is asked for");
        }
        self.machine.handle_order(order);
    }

    fn ran(&mut self, ran: Ran) {
        match ran {
            Ran::Lease(lease, ended) => self.machine.handle_lease_ended(lease, ended, &self.filling.have()),
            Ran::Piece(piece, ended) => self
                .machine
                .handle_piece(self.now(), piece, ended, &self.filling.have()),
            Ran::Reopened(result) => {
                let reopened = self.reopened(result);
                self.machine.handle_reopened(self.now(), reopened);
            }
            Ran::Rest(result) => {
                self.machine.handle_rest_ended(result.is_ok());
                self.error = result.err();
            }
        }
    }

    fn reopened(&mut self, result: Result<NodeBlob, PullError>) -> Reopened {
        match result {
            Ok(opened) if opened.fill_id() == Some(self.filling.fill()) => {
                self.opened = opened;
                Reopened::Renewed
            }
            Ok(other) => {
                self.other = Some(other);
                Reopened::OtherFill
            }
            Err(error) => {
                let reopened = match &error {
                    error if error.is_refusal() => Reopened::Refused,
                    PullError::Unreachable(_) => Reopened::Lost,
                    _ => Reopened::Failed,
                };
                self.error = Some(error);
                reopened
            }
        }
    }

    /// Carries out what the machine has decided. `Some`: the blob has arrived.
    async fn act(&mut self) -> Result<Option<Arrived>, PullError> {
        while let Some(action) = self.machine.poll_action(self.now(), &self.facts()) {
            match action {
                Action::FetchLease { lease, pieces } => self.fetch_lease(lease, pieces),
                Action::AbortLease(lease) => self.abort_lease(lease),
                Action::EndLease { lease, ended } => self.end_lease(lease, ended),
                Action::FetchPiece(piece) => self.fetch_piece(piece),
                Action::FetchRest => self.fetch_rest(),
                Action::Reopen { suspect } => self.reopen(suspect),
                Action::NoteMirrorLost => self.note_mirror_lost(),
                Action::Compare(list) => {
                    let differing = differing(list.hashes(), |piece| self.filling.hash(piece));
                    self.machine.handle_compared(differing);
                }
                Action::TakeBack(pieces) => {
                    self.take_back(pieces).await?;
                    self.note_stored();
                }
                Action::SendWant => self.send_want(),
                Action::RenewWant => self.parts.live.renew(self.filling.digest(), self.want()),
                Action::SendWaiting(piece) => self.send_waiting(piece),
                Action::SendUnwant => self.send_unwant(),
                Action::SendLost => self.report(lost(self.filling.digest())),
                Action::Publish(list) => return self.publish(list).await.map(Some),
                Action::Abandon => self.filling.abandon(FillFailure::Revoked).await,
                Action::Fail(failure) => return Err(self.error(failure)),
            }
        }
        Ok(None)
    }

    fn fetch_lease(&mut self, lease: Lease, pieces: Vec<u32>) {
        let id = lease.lease;
        let (caller, at) = (self.caller.clone(), self.at.clone());
        let fetch = self
            .parts
            .clone()
            .fetch_lease(caller, at, self.filling.clone(), lease, pieces);
        let failed = Ran::Lease(id, Outcome::Cancelled.into());
        let handle = self.spawn(failed, async move { Ran::Lease(id, fetch.await) });
        self.leases.insert(id, handle);
    }

    fn abort_lease(&mut self, lease: u64) {
        if let Some(fetch) = self.leases.remove(&lease) {
            fetch.abort();
        }
        self.parts.live.lease_ended(lease);
    }

    fn end_lease(&mut self, lease: u64, ended: Ended) {
        self.leases.remove(&lease);
        self.parts.live.lease_ended(lease);
        self.report(Report::LeaseEnded(wire::LeaseEnded {
            lease,
            outcome: ended.outcome.into(),
            piece: ended.piece,
        }));
    }

    /// The mirror may wait for the WAN, and sends the hash along.
    fn fetch_piece(&mut self, piece: u32) {
        let fetch = Fetch {
            addresses: self.opened.piece_addresses.clone(),
            token: self.opened.grant.clone(),
            origin: Origin::Mirror,
            pieces: vec![piece],
            hashes: Vec::new(),
            patient: true,
        };
        let (parts, filling) = (self.parts.clone(), self.filling.clone());
        let ended = Ended {
            outcome: Outcome::Cancelled,
            piece,
        };
        self.spawn(Ran::Piece(piece, ended), async move {
            Ran::Piece(piece, parts.fetch_pieces(&filling, fetch).await)
        });
    }

    fn fetch_rest(&mut self) {
        info!(blob.digest = %self.filling.digest(), "mirror and scheduler are lost: the rest of {} comes from {}", self.filling.digest(), self.at.upstream);
        let (upstream, filling) = (self.parts.upstream.clone(), self.filling.clone());
        let (caller, at) = (self.caller.clone(), self.at.clone());
        self.spawn(Ran::Rest(Err(panicked())), async move {
            Ran::Rest(upstream.complete(&caller, &at, &filling).await)
        });
    }

    fn reopen(&mut self, suspect: Option<u32>) {
        let Some(mirror) = self.parts.mirror.clone() else {
            return;
        };
        let (caller, at, digest) = (self.caller.clone(), self.at.clone(), *self.filling.digest());
        self.spawn(Ran::Reopened(Err(panicked())), async move {
            let opened = mirror.open(&caller, &at, &digest, suspect).await;
            Ran::Reopened(opened.map_err(|not_opened| not_opened.error))
        });
    }

    /// Runs a fetch or question beside the download. `failed`: what a panic in it counts as. Without that, the machine would wait for its
    /// end for ever.
    fn spawn(&mut self, failed: Ran, fetch: impl Future<Output = Ran> + Send + 'static) -> AbortHandle {
        self.fetches.spawn(or_if_it_panics(fetch, failed))
    }

    fn note_mirror_lost(&self) {
        if let Some(mirror) = &self.parts.mirror {
            mirror.saw(Err("the mirror's piece port cannot be reached".to_owned()));
        }
    }

    async fn take_back(&self, pieces: Vec<u32>) -> Result<(), PullError> {
        let digest = self.filling.digest();
        warn!(blob.digest = %digest, pieces = pieces.len(), "{} pieces of {digest} differ from the mirror's; they are dropped and fetched again", pieces.len());
        self.filling.take_back(pieces).await?;
        Ok(())
    }

    async fn publish(&self, list: Option<Arc<SignedPieceHashes>>) -> Result<Arrived, PullError> {
        let arrived = self
            .parts
            .upstream
            .publish(&self.at, &self.filling, &self.transfer)
            .await?;
        let (digest, bytes) = (self.filling.digest(), self.filling.map().blob_bytes());
        if let (Arrived::Kept(blob), Some(list)) = (&arrived, &list) {
            keep_beside(&self.parts.store, blob, list).await;
        }
        match arrived {
            Arrived::Kept(_) => info!(blob.digest = %digest, blob.bytes = bytes, "{digest} is here"),
            Arrived::Passed => info!(blob.digest = %digest, blob.bytes = bytes, "{digest} has passed through"),
        }
        Ok(arrived)
    }

    fn error(&mut self, failure: Failure) -> PullError {
        let unknown = || PullError::Unavailable("a source failed without a reason".to_owned());
        match failure {
            Failure::Revoked => PullError::BadGateway("the mirror revoked the fill".to_owned()),
            Failure::OtherFill => PullError::Unavailable("the mirror has begun another fill".to_owned()),
            Failure::Mirror | Failure::Upstream => self.error.take().unwrap_or_else(unknown),
            Failure::Fill => {
                let failure = self.filling.failure().map(|failure| failure.to_string());
                PullError::BadGateway(format!("the fill failed: {}", failure.unwrap_or_default()))
            }
            Failure::Unread => {
                PullError::Unavailable("the blob does not fit into the cache, and its last reader has left".to_owned())
            }
            Failure::Idle { seconds } => PullError::Unavailable(format!("no source has sent a piece for {seconds} s")),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn facts(&self) -> Facts {
        Facts {
            scheduler_up: self.parts.session.as_ref().is_some_and(Session::is_up),
            mirror_lost: self.parts.mirror.as_ref().and_then(MirrorClient::lost_for),
            mirror_grace: self.parts.mirror_grace.get(),
            waited_for: self.filling.waited_for(),
            longest_wait: self.filling.longest_wait(),
            has_readers: self.filling.has_readers(),
            is_attended: self.is_attended(),
            window: self.filling.window(),
            fill_failed: self.filling.failure().is_some(),
        }
    }

    fn want(&self) -> Report {
        let map = self.filling.map();
        let have = self.filling.have();
        let window = self.filling.window().unwrap_or(0..0);
        Report::Want(wire::Want {
            window_first: window.start,
            window_count: window.end - window.start,
            digest: self.filling.digest().to_string(),
            grant: self.opened.grant.clone().into_bytes(),
            fill: self.filling.fill().0,
            blob_bytes: map.blob_bytes(),
            piece_bytes: map.piece_bytes(),
            client: self.client().into(),
            have: if have.is_empty() { Vec::new() } else { have.to_bytes() },
            ..wire::Want::default()
        })
    }

    fn is_attended(&self) -> bool {
        self.parts.upstream.transfers.is_attended(self.filling.digest())
    }

    /// Unspecified to a scheduler that does not ask.
    fn client(&self) -> ClientState {
        let session = self.parts.session.as_ref();
        match session.is_some_and(|session| session.has_feature(CLIENT_STATE)) {
            true if self.is_attended() => ClientState::Connected,
            true => ClientState::Absent,
            false => ClientState::Unspecified,
        }
    }

    fn send_want(&self) {
        self.parts.live.renew(self.filling.digest(), self.want());
        self.report(self.want());
    }

    fn send_waiting(&self, piece: u32) {
        let digest = self.filling.digest().to_string();
        self.report(Report::Waiting(wire::Waiting { digest, piece }));
    }

    fn send_unwant(&self) {
        let digest = self.filling.digest().to_string();
        self.report(Report::Unwant(wire::Unwant { digest }));
    }

    fn report(&self, report: Report) {
        self.parts.announcer.report(report);
    }
}

/// The panic hook has reported the panic. What it leaves behind goes with the future.
async fn or_if_it_panics<T>(fetch: impl Future<Output = T>, failed: T) -> T {
    AssertUnwindSafe(fetch).catch_unwind().await.unwrap_or(failed)
}

fn panicked() -> PullError {
    PullError::Unavailable("a fetch ended with a panic, which is in this daemon's log".to_owned())
}

/// The pieces that are here with another hash than in the signed list.
fn differing(stated: &[PieceHash], here: impl Fn(u32) -> Option<PieceHash>) -> Vec<u32> {
    let stated = (0..).zip(stated);
    let differs = stated.filter(|(piece, stated)| here(*piece).is_some_and(|here| here != **stated));
    differs.map(|(piece, _)| piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fetch_that_panics_counts_as_failed() {
        let mut fetches = JoinSet::new();
        fetches.spawn(or_if_it_panics(async { panic!("a bug") }, "failed"));
        assert_eq!(fetches.join_next().await.and_then(Result::ok), Some("failed"));
        fetches.spawn(or_if_it_panics(async { "done" }, "failed"));
        assert_eq!(fetches.join_next().await.and_then(Result::ok), Some("done"));
    }

    #[test]
    fn only_what_is_here_and_another_differs() {
        let here = |piece: u32| (piece < 3).then_some([u8::try_from(piece).expect("a small number"); 32]);
        assert_eq!(differing(&[[0; 32], [9; 32], [2; 32], [9; 32]], here), [1]);
    }
}
