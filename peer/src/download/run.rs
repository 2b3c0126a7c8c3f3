//! The task behind a download: all of its I/O, none of its decisions (`mode`, `window`).

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use piecemeal_proto::{
    Digest, PieceHash, SignedPieceHashes,
    wire::{self, Lease, Outcome, report::Report},
};
use piecemeal_proxy::{
    Announcer, Arrived, Destination, NodeBlob, Origin, Progress, Right, Traffic, Transfer, UpstreamBlobs, lost, pass,
};
use piecemeal_store::{BeginFillError, Blob, FillFailure, Filling, Offer, Repository, Store};
use piecemeal_swarm::{PieceClient, Session};
use piecemeal_upstream::{Caller, PullError};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tracing::{debug, info, warn};

use super::{
    lease::{Ended, Fetch},
    mode::Facts,
    window::Window,
};
use crate::{
    DirectFallback,
    live::{LiveDownloads, keep_beside},
    mirror_client::MirrorClient,
};

/// How often the facts are checked when nothing happens.
const TICK: Duration = Duration::from_millis(250);
/// A client without a byte for this long is reported, so that its piece comes before rarer ones.
const WAITING_AFTER: Duration = Duration::from_secs(1);
/// Between questions to a mirror that does not answer.
const REOPEN_DELAY: Duration = Duration::from_millis(500);
/// How long a mirror that is there may answer with errors before a download without new pieces ends.
const REFUSED_PATIENCE: Duration = Duration::from_secs(10);
/// How long, beyond the mirror's grace, a download may go without a new piece.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// The spread in time of peers that go upstream for themselves, in milliseconds.
const UPSTREAM_JITTER_MAX_MS: u64 = 2000;
/// How often the scheduler is told that a window has moved while it moves by its own length.
const WINDOW_STEPS: u32 = 16;
/// The most orders that wait for one download.
pub(crate) const ORDERS_MAX: usize = 256;

/// An order from the scheduler about one blob.
#[derive(Debug)]
pub(crate) enum Order {
    Lease(Lease),
    Cancel(u64),
    Revoked(u64),
    /// These pieces of the fill do not match their hash.
    Drop {
        fill: u64,
        pieces: Vec<Range<u32>>,
    },
    /// The authority's word for the hashes of all pieces.
    PieceHashes(Arc<SignedPieceHashes>),
    /// The session is there again: the want is sent once more.
    Up,
    /// The want was not accepted: the grant is old.
    WantRefused(String),
}

/// What every download of a peer uses.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) mirror: Option<MirrorClient>,
    pub(crate) session: Option<Session>,
    pub(crate) announcer: Announcer,
    pub(crate) pieces: PieceClient,
    pub(crate) upstream: UpstreamBlobs,
    /// The mirror's registry in upstream's place, for blobs that only pass through the mirror.
    pub(crate) through_mirror: Option<UpstreamBlobs>,
    pub(crate) traffic: Traffic,
    pub(crate) live: LiveDownloads,
    pub(crate) direct_fallback: DirectFallback,
    pub(crate) mirror_grace: piecemeal_upstream::LiveDuration,
}

/// One blob on its way from the swarm.
struct Download {
    parts: Parts,
    /// The mirror and upstream are asked with this caller's right. A refusal of it ends the run; the next caller's begins another.
    caller: Caller,
    at: Repository,
    /// Whose work it is.
    transfer: Arc<Transfer>,
    filling: Filling,
    opened: NodeBlob,
    window: Window,
    tasks: JoinSet<Ran>,
    leases: Vec<(u64, AbortHandle)>,
    jitter: Duration,
    last_landed: Instant,
    last_waiting: Option<Instant>,
    last_reopened: Instant,
    /// The mirror is being asked again, or is to be at the next look around.
    reopening: bool,
    reopen_now: bool,
    /// A piece that arrived damaged: the mirror is asked to verify its own copy.
    suspect: Option<u32>,
    upstream_running: bool,
    /// Since when the mirror answers, but with errors only.
    refused_since: Option<Instant>,
    /// No request on this peer's own account before then: the last one failed.
    direct_after: Instant,
    /// The window that the scheduler was told of.
    told: Option<Range<u32>>,
    /// When the download last had a reader.
    read_at: Instant,
    /// The authority's word for the hashes of all pieces.
    list: Option<Arc<SignedPieceHashes>>,
}

/// What a task of a download has done. All waiting is in tasks, so that orders are never kept waiting.
enum Ran {
    Lease(u64, Ended),
    Direct(u32, Ended),
    Reopened(Result<NodeBlob, PullError>),
    Upstream(Result<(), PullError>),
}

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
        Download::new(self, right, transfer, filling, opened).run().await
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

impl Download {
    fn new(parts: Parts, right: Right, transfer: Arc<Transfer>, filling: Filling, opened: NodeBlob) -> Self {
        let jitter = Duration::from_millis(parts.store.random_u64() % UPSTREAM_JITTER_MAX_MS);
        let now = Instant::now();
        Self {
            window: Window::new(filling.map().count()),
            parts,
            caller: right.caller,
            at: right.at,
            transfer,
            filling,
            opened,
            tasks: JoinSet::new(),
            leases: Vec::new(),
            jitter,
            last_landed: now,
            last_waiting: None,
            last_reopened: now,
            reopening: false,
            reopen_now: false,
            suspect: None,
            upstream_running: false,
            refused_since: None,
            direct_after: now,
            told: None,
            read_at: now,
            list: None,
        }
    }

    /// Runs until the blob is here and proven, or cannot be fetched.
    async fn run(mut self) -> Result<Arrived, PullError> {
        let (orders, mut inbox) = mpsc::channel(ORDERS_MAX);
        let digest = *self.filling.digest();
        let _live = self.parts.live.enter(digest, self.want(), self.filling.clone(), orders);
        self.report(self.want());
        let result = self.follow(&mut inbox).await;
        self.tasks.shutdown().await;
        for (lease, _) in std::mem::take(&mut self.leases) {
            self.end_lease(lease, &Outcome::Cancelled.into());
        }
        if let Err(error) = &result {
            debug!(blob.digest = %digest, %error, "the download of {digest} stops: {error}");
        }
        if !matches!(result, Ok(Arrived::Kept(_))) {
            self.report(Report::Unwant(wire::Unwant {
                digest: digest.to_string(),
            }));
        }
        if self.filling.is_unstored() {
            self.report(lost(&digest));
        }
        result
    }

    async fn follow(&mut self, inbox: &mut mpsc::Receiver<Order>) -> Result<Arrived, PullError> {
        let mut changes = self.filling.changes();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut had = self.filling.landed().count();
        loop {
            if self.filling.landed().is_full() && self.drop_what_differs().await? {
                return self.publish().await;
            }
            if let Some(failure) = self.filling.failure() {
                return Err(PullError::BadGateway(format!("the fill failed: {failure}")));
            }
            tokio::select! {
                Some(order) = inbox.recv() => self.obey(order).await?,
                Some(ran) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    // The code that cancelled a task has accounted for it.
                    if let Ok(ran) = ran {
                        self.ran(ran)?;
                    }
                }
                _ = changes.changed() => {}
                _ = tick.tick() => self.look_around()?,
            }
            let have = self.filling.landed().count();
            if have > had {
                self.last_landed = Instant::now();
            }
            had = have;
            self.follow_window();
            self.help_itself();
        }
    }

    /// Tells the scheduler which pieces of an unstored fill there is room for.
    fn follow_window(&mut self) {
        let Some(window) = self.filling.window() else {
            return;
        };
        let Some(told) = &self.told else {
            return self.tell_window(window);
        };
        let step = (window.end - window.start).div_ceil(WINDOW_STEPS);
        let landed = self.filling.landed();
        // No piece of the reported window is missing: the scheduler has no lease to give.
        let is_done = || told.clone().all(|piece| landed.contains(piece));
        if window.start >= told.start + step || (window.start > told.start && is_done()) {
            self.tell_window(window);
        }
    }

    fn tell_window(&mut self, window: Range<u32>) {
        self.told = Some(window);
        self.parts.live.renew(self.filling.digest(), self.want());
        self.report(self.want());
    }

    async fn publish(&mut self) -> Result<Arrived, PullError> {
        let arrived = self
            .parts
            .upstream
            .publish(&self.at, &self.filling, &self.transfer)
            .await?;
        let (digest, bytes) = (self.filling.digest(), self.filling.map().blob_bytes());
        if let (Arrived::Kept(blob), Some(list)) = (&arrived, &self.list) {
            keep_beside(&self.parts.store, blob, list).await;
        }
        match arrived {
            Arrived::Kept(_) => info!(blob.digest = %digest, blob.bytes = bytes, "{digest} is here"),
            Arrived::Passed => info!(blob.digest = %digest, blob.bytes = bytes, "{digest} has passed through"),
        }
        Ok(arrived)
    }

    async fn obey(&mut self, order: Order) -> Result<(), PullError> {
        match order {
            Order::Lease(lease) if lease.fill == self.filling.fill().0 => self.start_lease(lease),
            Order::Lease(lease) => self.end_lease(lease.lease, &Outcome::Cancelled.into()),
            Order::Cancel(lease) => {
                if let Some(position) = self.leases.iter().position(|(id, _)| *id == lease) {
                    self.leases.swap_remove(position).1.abort();
                    self.window.lease_ended(lease);
                    self.parts.live.lease_ended(lease);
                }
            }
            Order::Revoked(fill) if fill == self.filling.fill().0 => {
                self.filling.abandon(FillFailure::Revoked).await;
                return Err(PullError::BadGateway("the mirror revoked the fill".to_owned()));
            }
            Order::Revoked(_) => {}
            Order::Drop { fill, pieces } if fill == self.filling.fill().0 => {
                let count = self.filling.map().count();
                let pieces = pieces
                    .into_iter()
                    .flat_map(|range| range.start.min(count)..range.end.min(count));
                self.take_back(pieces.collect()).await?;
            }
            Order::Drop { .. } => {}
            Order::PieceHashes(list) => {
                self.list = Some(list);
                self.drop_what_differs().await?;
            }
            Order::Up => self.report(self.want()),
            Order::WantRefused(reason) => {
                debug!(blob.digest = %self.filling.digest(), reason, "the want was refused; a new grant is asked for");
                self.reopen_now = true;
            }
        }
        Ok(())
    }

    /// Compares the pieces that are here with the signed list and drops those that differ; returns whether none did.
    async fn drop_what_differs(&mut self) -> Result<bool, PullError> {
        let wrong = match &self.list {
            Some(list) if list.map() == self.filling.map() => {
                differing(list.hashes(), |piece| self.filling.hash(piece))
            }
            _ => Vec::new(),
        };
        let none = wrong.is_empty();
        if !none {
            self.take_back(wrong).await?;
        }
        Ok(none)
    }

    /// Drops pieces, and reports again what is here: an earlier report may have crossed the order.
    async fn take_back(&mut self, pieces: Vec<u32>) -> Result<(), PullError> {
        let digest = self.filling.digest();
        warn!(blob.digest = %digest, pieces = pieces.len(), "{} pieces of {digest} differ from the mirror's; they are dropped and fetched again", pieces.len());
        self.filling.take_back(pieces).await?;
        self.parts.live.renew(self.filling.digest(), self.want());
        self.report(self.want());
        Ok(())
    }

    fn start_lease(&mut self, lease: Lease) {
        let id = lease.lease;
        let count = self.filling.map().count();
        let range = lease.first..lease.first.saturating_add(lease.count).min(count);
        let pieces = self.window.lease(id, range, &self.filling.landed());
        let fetch = self.parts.clone().fetch_lease(
            self.caller.clone(),
            self.at.clone(),
            self.filling.clone(),
            lease,
            pieces,
        );
        let handle = self.tasks.spawn(async move { Ran::Lease(id, fetch.await) });
        self.leases.push((id, handle));
    }

    fn ran(&mut self, ran: Ran) -> Result<(), PullError> {
        match ran {
            Ran::Lease(lease, ended) => self.end_lease(lease, &ended),
            Ran::Direct(piece, ended) => self.end_direct(piece, &ended),
            Ran::Reopened(result) => return self.reopened(result),
            Ran::Upstream(result) => {
                self.upstream_running = false;
                return result;
            }
        }
        Ok(())
    }

    fn end_lease(&mut self, lease: u64, ended: &Ended) {
        self.note_corrupt(ended);
        self.leases.retain(|(id, _)| *id != lease);
        self.window.lease_ended(lease);
        self.parts.live.lease_ended(lease);
        self.report(Report::LeaseEnded(wire::LeaseEnded {
            lease,
            outcome: ended.outcome.into(),
            piece: ended.piece,
        }));
    }

    fn note_corrupt(&mut self, ended: &Ended) {
        if ended.outcome == Outcome::Corrupt {
            (self.suspect, self.reopen_now) = (Some(ended.piece), true);
        }
    }

    fn end_direct(&mut self, piece: u32, ended: &Ended) {
        self.note_corrupt(ended);
        self.window.request_ended(piece);
        if ended.outcome == Outcome::Done {
            return;
        }
        self.direct_after = Instant::now() + TICK;
        if ended.outcome == Outcome::Unreachable
            && let Some(mirror) = &self.parts.mirror
        {
            mirror.saw(Err("the mirror's piece port cannot be reached".to_owned()));
        }
        // The mirror may have restarted, or begun another fill: asked again, it fills the blob.
        self.reopen_now = true;
    }

    /// Once a tick: reports a waiting client to the scheduler, asks the mirror again, goes upstream, gives up.
    fn look_around(&mut self) -> Result<(), PullError> {
        self.report_waiting();
        if self.filling.has_readers() {
            self.read_at = Instant::now();
        } else if self.read_at.elapsed() >= IDLE_MAX {
            return Err(PullError::Unavailable(
                "the blob does not fit into the cache, and its last reader has left".to_owned(),
            ));
        }
        let facts = self.facts();
        let mode = facts.mode();
        if mode.upstream && !self.upstream_running {
            info!(blob.digest = %self.filling.digest(), "mirror and scheduler are lost: the rest of {} comes from {}", self.filling.digest(), self.at.upstream);
            self.upstream_running = true;
            let (upstream, filling) = (self.parts.upstream.clone(), self.filling.clone());
            let (caller, at) = (self.caller.clone(), self.at.clone());
            self.tasks
                .spawn(async move { Ran::Upstream(upstream.complete(&caller, &at, &filling).await) });
        }
        if (mode.reopen || self.reopen_now) && !self.reopening && self.last_reopened.elapsed() >= REOPEN_DELAY {
            self.reopen();
        }
        if facts.idle >= facts.mirror_grace.saturating_add(IDLE_MAX) && !self.upstream_running {
            return Err(PullError::Unavailable(format!(
                "no source has sent a piece for {} s",
                facts.idle.as_secs()
            )));
        }
        Ok(())
    }

    fn report_waiting(&mut self) {
        if let Some((piece, waited)) = self.filling.longest_wait()
            && waited >= WAITING_AFTER
            && self.last_waiting.is_none_or(|at| at.elapsed() >= WAITING_AFTER)
        {
            self.last_waiting = Some(Instant::now());
            self.report(Report::Waiting(wire::Waiting {
                digest: self.filling.digest().to_string(),
                piece,
            }));
        }
    }

    fn facts(&self) -> Facts {
        let mirror = self.parts.mirror.as_ref();
        Facts {
            scheduler_up: self.parts.session.as_ref().is_some_and(Session::is_up),
            mirror_lost: mirror.and_then(MirrorClient::lost_for),
            mirror_configured: mirror.is_some(),
            starved: self.filling.longest_wait().map(|(_, waited)| waited),
            idle: self.last_landed.elapsed(),
            may_use_upstream: self.parts.direct_fallback == DirectFallback::Allowed,
            mirror_grace: self.parts.mirror_grace.get(),
            jitter: self.jitter,
        }
    }

    /// Asks the mirror for pieces without a lease, as far as the mode allows.
    fn help_itself(&mut self) {
        if Instant::now() < self.direct_after {
            return;
        }
        let size = self.facts().mode().direct_window;
        while let Some(piece) = self
            .window
            .poll_request(size, &self.filling.landed(), self.filling.wanted())
        {
            let fetch = Fetch {
                addresses: self.opened.piece_addresses.clone(),
                token: self.opened.grant.clone(),
                origin: Origin::Mirror,
                pieces: vec![piece],
                hashes: Vec::new(),
                patient: true,
            };
            let (parts, filling) = (self.parts.clone(), self.filling.clone());
            self.tasks
                .spawn(async move { Ran::Direct(piece, parts.fetch_pieces(&filling, fetch).await) });
        }
    }

    /// A mirror that has restarted fills again what it is asked for, and its grants are new.
    fn reopen(&mut self) {
        let Some(mirror) = self.parts.mirror.clone() else {
            return;
        };
        (self.reopening, self.reopen_now, self.last_reopened) = (true, false, Instant::now());
        let suspect = self.suspect.take();
        let (caller, at, digest) = (self.caller.clone(), self.at.clone(), *self.filling.digest());
        self.tasks
            .spawn(async move { Ran::Reopened(mirror.open(&caller, &at, &digest, suspect).await) });
    }

    fn reopened(&mut self, result: Result<NodeBlob, PullError>) -> Result<(), PullError> {
        (self.reopening, self.last_reopened) = (false, Instant::now());
        match result {
            Ok(opened) if opened.fill_id() == Some(self.filling.fill()) => {
                self.refused_since = None;
                self.opened = opened;
                self.parts.live.renew(self.filling.digest(), self.want());
                Ok(())
            }
            Ok(_) => Err(PullError::Unavailable("the mirror has begun another fill".to_owned())),
            Err(error) if error.is_refusal() => Err(error),
            // The mirror is lost: it may come back, and meanwhile the swarm may have the pieces.
            Err(PullError::Unreachable(_)) => Ok(()),
            // The mirror is there, but its own fill fails. While pieces still land from elsewhere that is no reason to stop.
            Err(error) => {
                let refused = self.refused_since.get_or_insert_with(Instant::now).elapsed();
                let idle = self.last_landed.elapsed();
                if refused.min(idle) >= REFUSED_PATIENCE {
                    Err(error)
                } else {
                    Ok(())
                }
            }
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
            have: if have.is_empty() { Vec::new() } else { have.to_bytes() },
            ..wire::Want::default()
        })
    }

    fn report(&self, report: Report) {
        self.parts.announcer.report(report);
    }
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

    #[test]
    fn only_what_is_here_and_another_differs() {
        let here = |piece: u32| (piece < 3).then_some([u8::try_from(piece).expect("a small number"); 32]);
        assert_eq!(differing(&[[0; 32], [9; 32], [2; 32], [9; 32]], here), [1]);
    }
}
