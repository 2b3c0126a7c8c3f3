//! Transfer of one blob from one upstream: its callers, its progress and its end.
//!
//! A transfer that has ended goes no further, and one that has shown no bytes is a source of nothing.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use piecemeal_proto::{Digest, FillId};
use piecemeal_store::{Blob, FillFailure, Filling, Repository, Store};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::attendance::Attendance;
use crate::callers::{Callers, Right};
use piecemeal_upstream::{Caller, PullError};

/// Outcome of a successful transfer.
pub enum Arrived {
    Kept(Blob),
    /// There was no room for it: its readers go on within their window.
    Passed,
}

/// The most repositories of one upstream that a transfer remembers to have been answered under.
const ANSWERED_MAX: usize = 256;
#[derive(Clone)]
pub enum Progress {
    /// `blob_bytes`: the size, when a manifest has told it before the source has.
    Starting {
        blob_bytes: Option<u64>,
    },
    Open(Filling),
    Complete(Blob),
    Failed(PullError),
}

/// One blob on its way from one upstream.
pub struct Transfer {
    digest: Digest,
    upstream: String,
    callers: Callers,
    attendance: Attendance,
    /// The right with which its source answered first.
    opener: OnceLock<Right>,
    /// The repositories under which the upstream has answered for the digest, the latest last; at most [`ANSWERED_MAX`].
    answered: Mutex<Vec<Repository>>,
    /// The upstream has shown that it has the bytes: it sends them, or what it sends was compared with them.
    shown: AtomicBool,
    /// Its readers read the fill of another upstream's transfer.
    follows: AtomicBool,
    progress: watch::Sender<Progress>,
    /// The error that the source has answered with last, while it is asked again.
    source_error: Mutex<Option<PullError>>,
    /// Another upstream has shown the blob first.
    outrun: AtomicBool,
    /// Cancelled when its work is to stop at once.
    stopped: CancellationToken,
    /// Cancelled when it has left the table.
    over: CancellationToken,
}

impl Transfer {
    pub(super) fn new(digest: Digest, right: Right, blob_bytes: Option<u64>) -> Self {
        Self {
            digest,
            upstream: right.at.upstream.clone(),
            callers: Callers::new(right),
            attendance: Attendance::default(),
            opener: OnceLock::new(),
            answered: Mutex::default(),
            shown: AtomicBool::new(false),
            follows: AtomicBool::new(false),
            progress: watch::Sender::new(Progress::Starting { blob_bytes }),
            source_error: Mutex::default(),
            outrun: AtomicBool::new(false),
            stopped: CancellationToken::new(),
            over: CancellationToken::new(),
        }
    }

    /// Whether it goes on with this right now, so that what the source says of it is said of this caller.
    pub fn is_of(&self, caller: &Caller, at: &Repository) -> bool {
        self.callers.asks_with(&Right::new(caller, at))
    }

    /// Records the source's answer to a request on the caller's own account.
    pub fn judged(&self, caller: &Caller, at: &Repository, verdict: &Result<(), PullError>) {
        let right = Right::new(caller, at);
        match verdict {
            Ok(()) => {
                self.answered_under(at);
                self.callers.proven(&right);
            }
            Err(error) if error.is_refusal() => self.callers.refused_while_waiting(&right, error),
            Err(_) => {}
        }
    }

    /// The store's handle is there: readers may begin. `right`: what the source was asked with.
    pub fn open(&self, filling: Filling, right: Right) {
        self.answered_under(&right.at);
        self.opener.get_or_init(|| right);
        self.shown.store(true, Ordering::Relaxed);
        self.follows.store(false, Ordering::Relaxed);
        self.progress.send_replace(Progress::Open(filling));
    }

    /// Readers may begin with what another transfer fills, which goes on or ends without this one.
    pub fn follow(&self, filling: Filling, right: Right) {
        self.answered_under(&right.at);
        self.opener.get_or_init(|| right);
        self.shown.store(true, Ordering::Relaxed);
        self.follows.store(true, Ordering::Relaxed);
        self.progress.send_replace(Progress::Open(filling));
    }

    /// The fill that its readers read has ended without the blob: they wait for the fill that it goes on with.
    pub fn starts_over(&self) {
        self.shown.store(false, Ordering::Relaxed);
        if let Progress::Open(filling) = self.progress() {
            let blob_bytes = Some(filling.map().blob_bytes());
            self.progress.send_replace(Progress::Starting { blob_bytes });
        }
    }

    fn answered_under(&self, at: &Repository) {
        let mut answered = self.answered.lock();
        if !answered.contains(at) {
            let surplus = (answered.len() + 1).saturating_sub(ANSWERED_MAX);
            answered.drain(..surplus);
            answered.push(at.clone());
        }
    }

    /// Whether the upstream has answered for the digest under this repository.
    pub fn has_answered(&self, at: &Repository) -> bool {
        let answered = self.answered.lock();
        answered.contains(at)
    }

    /// The repositories under which the upstream has answered for the digest, once the blob is proven: its answers were then true.
    /// None of an upstream that has not shown its bytes, since the blob is then another's.
    pub fn sources(&self) -> Vec<Repository> {
        if !self.shown.load(Ordering::Relaxed) {
            return Vec::new();
        }
        self.answered.lock().clone()
    }

    /// Records the [`Transfer::sources`] that were added while the blob was published.
    ///
    /// # Errors
    /// [`PullError::Store`].
    pub async fn record_sources(&self, store: &Store) -> Result<(), PullError> {
        for at in self.sources() {
            store.record_source(&at, &self.digest).await?;
        }
        Ok(())
    }

    /// The fill of this transfer, unless it follows another's.
    pub(crate) fn own_filling(&self) -> Option<Filling> {
        match self.progress() {
            Progress::Open(filling) if !self.follows.load(Ordering::Relaxed) => Some(filling),
            _ => None,
        }
    }

    /// Whether its readers read `filling`, which another transfer fills.
    pub(super) fn follows(&self, filling: &Filling) -> bool {
        self.follows.load(Ordering::Relaxed) && self.reads(filling)
    }

    /// Its own fill, if that has this id.
    pub fn filling_of(&self, fill: Option<FillId>) -> Option<Filling> {
        self.own_filling().filter(|filling| Some(filling.fill()) == fill)
    }

    /// Ends it: another upstream has shown what the blob is. Its fill is abandoned for `why`, and its work has `patience` to notice.
    pub(crate) async fn stop(&self, filling: Option<Filling>, why: FillFailure, patience: Duration) {
        self.outrun.store(true, Ordering::Relaxed);
        if let Some(filling) = filling {
            filling.abandon(why).await;
        }
        if tokio::time::timeout(patience, self.over.cancelled()).await.is_err() {
            self.stopped.cancel();
            self.over.cancelled().await;
        }
    }

    /// The work begins, or begins again with another right: it has shown nothing yet.
    pub(super) fn begins(&self) {
        self.shown.store(false, Ordering::Relaxed);
        self.answered_with(None);
    }

    /// The source has not opened the blob, and is asked again: with this error, or none if its answer is still open.
    pub fn answered_with(&self, error: Option<PullError>) {
        *self.source_error.lock() = error;
    }

    /// The error that the source has answered with last, while it is asked again.
    pub(super) fn source_error(&self) -> Option<PullError> {
        self.source_error.lock().clone()
    }

    /// Until its work is to stop at once.
    pub(super) async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    pub(super) fn is_outrun(&self) -> bool {
        self.outrun.load(Ordering::Relaxed)
    }

    /// The right with which its source answered first.
    pub(super) fn opener(&self) -> Option<&Right> {
        self.opener.get()
    }

    /// It has left the table, and goes no further.
    pub(super) fn end(&self, progress: Progress) {
        self.progress.send_replace(progress);
        self.over.cancel();
    }

    pub(super) fn outrun(&self) -> PullError {
        PullError::Unavailable(format!(
            "another registry has sent the blob, and {} has sent other bytes or none; try again",
            self.upstream
        ))
    }

    /// Until it has ended, well or not; how it has.
    pub async fn ended(&self) -> Progress {
        self.over.cancelled().await;
        self.progress()
    }

    /// A reader of `filling` has met its end: whether the transfer goes on with another fill, or has ended with the blob.
    pub(super) async fn goes_on_after(&self, filling: &Filling) -> bool {
        if !self.follows.load(Ordering::Relaxed) && self.reads(filling) {
            return false;
        }
        tokio::select! {
            biased;
            () = self.leaves(filling) => true,
            // It may have ended with the blob, by a fill that this reader has not looked for.
            () = self.over.cancelled() => matches!(*self.progress.borrow(), Progress::Complete(_)),
        }
    }

    fn reads(&self, filling: &Filling) -> bool {
        matches!(&*self.progress.borrow(), Progress::Open(own) if own.is(filling))
    }

    /// Until its readers have another fill to read than `filling`.
    pub(super) async fn leaves(&self, filling: &Filling) {
        let mut progress = self.progress.subscribe();
        let left = |progress: &Progress| match progress {
            Progress::Open(other) => !other.is(filling),
            Progress::Starting { .. } => true,
            Progress::Complete(_) | Progress::Failed(_) => false,
        };
        // The sender is in `self`: this ends only so.
        drop(progress.wait_for(left).await);
    }

    /// Whether the source has begun to send the blob.
    pub(crate) fn is_open(&self) -> bool {
        matches!(*self.progress.borrow(), Progress::Open(_))
    }

    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(crate) fn upstream(&self) -> &str {
        &self.upstream
    }

    pub(super) fn attendance(&self) -> &Attendance {
        &self.attendance
    }

    pub(crate) fn callers(&self) -> &Callers {
        &self.callers
    }

    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits for the first progress beyond `Starting`.
    pub async fn started(&self) -> Progress {
        let mut progress = self.progress.subscribe();
        let started = progress
            .wait_for(|progress| !matches!(progress, Progress::Starting { .. }))
            .await;
        started.map_or_else(
            |_| Progress::Failed(PullError::Unavailable("the transfer was given up".to_owned())),
            |it| it.clone(),
        )
    }

    /// The first progress beyond `Starting`, for a caller that has nothing but `right` to show.
    pub(super) async fn started_for(&self, right: &Right) -> Progress {
        let nothing_to_prove = std::future::pending();
        match self.callers.wait(right, self.started(), nothing_to_prove).await {
            Ok(Progress::Failed(error)) | Err(error) => Progress::Failed(error),
            Ok(_) if !self.opener.get().is_some_and(|opener| opener.is_like(right)) => Progress::Failed(
                PullError::Unavailable("the source has answered another caller; try again".to_owned()),
            ),
            Ok(progress) => progress,
        }
    }
}
