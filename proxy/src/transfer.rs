//! Downloads of blobs under way: one transfer per digest and upstream, whatever the number of its callers.
//!
//! Of several upstreams that send one digest at once the first leads: it fills the kept blob. The others follow it while they
//! have the same bytes (`fill/follow`). Until a blob is proven, one upstream's answer or silence never delays another's
//! callers.
//!
//! A transfer is detached from every reader: it ends when the blob is complete or cannot be fetched, never because a client left.
//! It is `Starting`, then `Open`, then either `Complete` or `Failed`, and never goes back; a later request begins another.
//!
//! It goes on with the right of one of its callers after the other (`callers`): a refusal ends one caller's part only. What
//! happens to the blob once it comes (wrong bytes, a lost connection) is the blob's own, and cools it down for all.

use std::{
    collections::HashMap,
    future::Future,
    num::NonZeroUsize,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::{Digest, FillId};
use piecemeal_store::{Blob, Extent, FillFailure, Filling, ReadBlobError, Repository, Store};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    Item,
    callers::{Callers, Right, RightKey, Standing},
};
use piecemeal_upstream::{Caller, Places, PullError};

/// How a successful transfer ended.
pub enum Arrived {
    Kept(Blob),
    /// There was no room for it: its readers go on within their window.
    Passed,
}

/// After a failure a digest is answered with that failure for this long, so that a client's resume goes to its next host
/// instead of starting the same download over. Doubles with each failure in a row.
const COOL_DOWN: Duration = Duration::from_secs(1);
const COOL_DOWN_MAX: Duration = Duration::from_secs(60);
/// The most transfers that fill apart at a time, and how long one of them may keep a place from an upstream that has none.
const DISPUTES_MAX: usize = 4;
const DISPUTE_SLOW: Duration = Duration::from_secs(5);
/// The most repositories of one upstream that a transfer remembers to have been answered under.
const ANSWERED_MAX: usize = 256;
/// How transfers end.
const KEPT: &str = "kept";
const PASSED: &str = "passed";
const FAILED: &str = "failed";
/// The most failures remembered, the oldest forgotten first.
const FAILURES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("it is not zero");
/// How often a caller starts a blob again whose transfer failed with another caller's right.
const REJOINS_MAX: usize = 3;

/// How far a transfer is.
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
    /// The right with which its source answered first.
    opener: OnceLock<Right>,
    /// The repositories under which the upstream has answered for the digest, the latest last; at most [`ANSWERED_MAX`].
    answered: Mutex<Vec<Repository>>,
    /// The upstream has shown that it has the bytes: it sends them, or what it sends was compared with them.
    shown: AtomicBool,
    /// Its readers read the fill of another upstream's transfer.
    follows: AtomicBool,
    progress: watch::Sender<Progress>,
    /// Another upstream has shown the blob first.
    outrun: AtomicBool,
    /// Cancelled when its work is to stop at once.
    stopped: CancellationToken,
    /// Cancelled when it has left the table.
    over: CancellationToken,
}

impl Transfer {
    fn new(digest: Digest, right: Right, blob_bytes: Option<u64>) -> Self {
        Self {
            digest,
            upstream: right.at.upstream.clone(),
            callers: Callers::new(right),
            opener: OnceLock::new(),
            answered: Mutex::default(),
            shown: AtomicBool::new(false),
            follows: AtomicBool::new(false),
            progress: watch::Sender::new(Progress::Starting { blob_bytes }),
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

    /// The transfer that it followed has ended without the blob: its readers wait for the fill that it goes on with.
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

    /// Records the [`Transfer::sources`] of a blob that another transfer has published, and those that were added meanwhile.
    ///
    /// # Errors
    /// [`PullError::Store`].
    pub async fn record_sources(&self, store: &Store) -> Result<(), PullError> {
        for at in self.sources() {
            store.record_source(&at, &self.digest).await?;
        }
        Ok(())
    }

    /// What this transfer itself fills.
    pub(crate) fn own_filling(&self) -> Option<Filling> {
        match self.progress() {
            Progress::Open(filling) if !self.follows.load(Ordering::Relaxed) => Some(filling),
            _ => None,
        }
    }

    /// What it fills itself, if that is the fill of this id.
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

    fn outrun(&self) -> PullError {
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

    /// A reader of `filling` has met its end: whether the transfer goes on with another fill.
    async fn goes_on_after(&self, filling: &Filling) -> bool {
        if !self.follows.load(Ordering::Relaxed) && self.reads(filling) {
            return false;
        }
        tokio::select! {
            biased;
            () = self.leaves(filling) => true,
            () = self.over.cancelled() => false,
        }
    }

    fn reads(&self, filling: &Filling) -> bool {
        matches!(&*self.progress.borrow(), Progress::Open(own) if own.fill() == filling.fill())
    }

    /// Until its readers have another fill to read than `filling`.
    async fn leaves(&self, filling: &Filling) {
        let mut progress = self.progress.subscribe();
        let left = |progress: &Progress| match progress {
            Progress::Open(other) => other.fill() != filling.fill(),
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

    pub(crate) fn callers(&self) -> &Callers {
        &self.callers
    }

    /// How far it is now.
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

    /// Waits at most `patience` until the caller can be answered: with the blob, or with its size alone when that is known.
    async fn opened(
        self: &Arc<Self>,
        right: Right,
        patience: Duration,
        prove: impl Future<Output = Result<(), PullError>>,
    ) -> Result<OpenBlob, NotOpened> {
        let waiting = self.callers.wait(&right, self.started(), prove);
        let progress = match tokio::time::timeout(patience, waiting).await {
            Ok(Ok(progress)) => progress,
            Ok(Err(refusal)) => return Err(NotOpened::Own(refusal)),
            Err(_) => self.progress(),
        };
        match progress {
            Progress::Open(filling) => Ok(OpenBlob::Filling {
                filling,
                transfer: Some(Arc::clone(self)),
                has_read: false,
            }),
            Progress::Complete(blob) => Ok(OpenBlob::Complete(blob)),
            Progress::Failed(error @ PullError::Store(_)) => Err(NotOpened::Own(error)),
            Progress::Failed(error) if self.callers.asks_with(&right) => Err(NotOpened::Own(error)),
            Progress::Failed(error) => Err(NotOpened::Others(error)),
            Progress::Starting {
                blob_bytes: Some(blob_bytes),
            } => Ok(OpenBlob::Starting {
                blob_bytes,
                transfer: Arc::clone(self),
                unproven: Some(right),
            }),
            Progress::Starting { blob_bytes: None } => Err(NotOpened::Own(PullError::Unavailable(
                "the source has not answered yet; the request is still under way".to_owned(),
            ))),
        }
    }

    /// The first progress beyond `Starting`, for a caller that has nothing but `right` to show.
    async fn started_for(&self, right: &Right) -> Progress {
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

/// Whose error it is that a caller cannot be answered.
enum NotOpened {
    /// This caller's own error.
    Own(PullError),
    /// The error of another caller.
    Others(PullError),
}

/// A caller that asks for a blob.
#[derive(Clone, Copy)]
pub(crate) struct Joining<'a> {
    pub caller: &'a Caller,
    pub at: &'a Repository,
    pub digest: &'a Digest,
    /// The blob's size, where a manifest has told it.
    pub blob_bytes: Option<u64>,
    /// How long the caller waits until it can be answered.
    pub patience: Duration,
    /// Whether the source has recently served a caller from the repository.
    pub allows: &'a (dyn Fn(&Caller) -> bool + Sync),
}

impl Joining<'_> {
    fn right(&self) -> Right {
        Right::new(self.caller, self.at)
    }

    fn join(&self, transfer: &Transfer) {
        let standing = match (self.allows)(self.caller) {
            true => Standing::Proven,
            false => Standing::Unknown,
        };
        let public = (self.allows)(&Caller::default());
        transfer.callers.join(&self.right(), standing, public);
    }
}

/// All transfers of a daemon. Cheap to clone.
#[derive(Clone, Default)]
pub struct Transfers {
    table: Arc<Mutex<Table>>,
    disputes: Disputes,
    ended: Family<[(&'static str, &'static str); 1], Counter>,
    under_way: Gauge,
}

/// Places of transfers that fill apart, shared by upstream.
#[derive(Clone)]
struct Disputes(Places);

impl Default for Disputes {
    fn default() -> Self {
        Self(Places::giving_up(DISPUTES_MAX, DISPUTE_SLOW))
    }
}

/// What is known of a blob that is here, or on its way.
pub(crate) struct KnownHere {
    pub blob_bytes: u64,
    /// It is on its way, and its upstream has answered for it under the repository.
    is_answered: bool,
}

impl KnownHere {
    /// What a caller's right is asked for.
    pub(crate) fn item<'a>(&self, digest: &'a Digest) -> Item<'a> {
        match self.is_answered {
            true => Item::Answered(digest),
            false => Item::Blob(digest),
        }
    }
}

struct Table {
    /// Of one digest in the order in which they began, one an upstream.
    live: HashMap<Digest, Vec<Arc<Transfer>>>,
    failures: LruCache<FailureKey, Failure>,
}

/// For whom a failure counts.
#[derive(PartialEq, Eq, Hash)]
enum FailureKey {
    /// All callers of this upstream: it began to send the blob, and what came was wrong or broke off.
    Blob(String, Digest),
    /// Callers with this right: no byte has come for it.
    Right(RightKey, Digest),
}

struct Failure {
    error: PullError,
    until: Instant,
    in_a_row: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            live: HashMap::new(),
            failures: LruCache::new(FAILURES_MAX),
        }
    }
}

impl Transfers {
    /// Adds what is counted of them, all of it from zero on.
    pub fn register(&self, registry: &mut Registry) {
        for outcome in [KEPT, PASSED, FAILED] {
            self.ended.get_or_create(&[("outcome", outcome)]).inc_by(0);
        }
        let registry = registry.sub_registry_with_prefix("piecemeal");
        registry.register(
            "transfers",
            "Downloads of blobs that ended, by outcome",
            self.ended.clone(),
        );
        registry.register(
            "transfers_under_way",
            "Downloads of blobs under way",
            self.under_way.clone(),
        );
    }

    /// The places of transfers that fill apart.
    pub(crate) fn disputes(&self) -> &Places {
        &self.disputes.0
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// The size in bytes of a blob that is here, whole or on its way from the same upstream; `None` when it is unknown. The size
    /// that another upstream states of an unproven blob is not passed on.
    ///
    /// # Errors
    /// [`PullError::Store`].
    pub(crate) async fn known_here(
        &self,
        store: &Store,
        at: &Repository,
        digest: &Digest,
    ) -> Result<Option<KnownHere>, PullError> {
        if let Some(blob) = store.blob(digest).await? {
            let (blob_bytes, is_answered) = (blob.map().blob_bytes(), false);
            return Ok(Some(KnownHere {
                blob_bytes,
                is_answered,
            }));
        }
        let live = self.lock().live(digest, &at.upstream).cloned();
        Ok(live.and_then(|transfer| match transfer.progress() {
            Progress::Open(filling) => Some(KnownHere {
                blob_bytes: filling.map().blob_bytes(),
                is_answered: transfer.has_answered(at),
            }),
            Progress::Starting { .. } | Progress::Complete(_) | Progress::Failed(_) => None,
        }))
    }

    /// The transfer of the digest that began first, if that is not `transfer` itself.
    pub fn leader(&self, transfer: &Transfer) -> Option<Arc<Transfer>> {
        let table = self.lock();
        let first = table.live.get(&transfer.digest)?.first()?;
        (first.upstream != transfer.upstream).then(|| Arc::clone(first))
    }

    /// Joins the live transfer of the blob from the caller's upstream, or starts one that `run` carries out in a task of its own, and waits until the
    /// caller can be answered.
    ///
    /// `run` is called again with another right when the source has refused the one before. `prove`: asks the source whether
    /// it serves the blob to this caller.
    ///
    /// # Errors
    /// What the source said to this caller; why the transfer failed; the last failure, while the digest cools down after it
    /// for this caller.
    pub(crate) async fn open<F, P>(
        &self,
        joining: Joining<'_>,
        run: impl Fn(Right, Arc<Transfer>) -> F + Clone + Send + 'static,
        prove: impl Fn() -> P,
    ) -> Result<(Arc<Transfer>, OpenBlob), PullError>
    where
        F: Future<Output = Result<Arrived, PullError>> + Send + 'static,
        P: Future<Output = Result<(), PullError>>,
    {
        let mut rejoins = 0;
        loop {
            let joined = self.join_or_start(joining, run.clone())?;
            match joined.opened(joining.right(), joining.patience, prove()).await {
                Ok(opened) => return Ok((joined, opened)),
                Err(NotOpened::Others(_)) if rejoins < REJOINS_MAX => rejoins += 1,
                Err(NotOpened::Others(error)) if error.is_refusal() => {
                    return Err(PullError::Unavailable(
                        "the source is still being queried for other callers; try again".to_owned(),
                    ));
                }
                Err(NotOpened::Own(error) | NotOpened::Others(error)) => return Err(error),
            }
        }
    }

    fn join_or_start<F>(
        &self,
        joining: Joining<'_>,
        run: impl Fn(Right, Arc<Transfer>) -> F + Send + 'static,
    ) -> Result<Arc<Transfer>, PullError>
    where
        F: Future<Output = Result<Arrived, PullError>> + Send + 'static,
    {
        let digest = joining.digest;
        let mut table = self.lock();
        if let Some(transfer) = table.live(digest, &joining.at.upstream) {
            joining.join(transfer);
            return Ok(Arc::clone(transfer));
        }
        let right = joining.right();
        table.cools_down(digest, &right)?;
        let transfer = Arc::new(Transfer::new(*digest, right.clone(), joining.blob_bytes));
        joining.join(&transfer);
        table.live.entry(*digest).or_default().push(Arc::clone(&transfer));
        self.under_way.inc();
        let (transfers, running) = (self.clone(), Arc::clone(&transfer));
        tokio::spawn(async move {
            let result = tokio::select! {
                result = carry_out(&running, right, run) => result,
                () = running.stopped.cancelled() => Err(running.outrun()),
            };
            let result = result.map_err(|error| match running.outrun.load(Ordering::Relaxed) {
                true => running.outrun(),
                false => error,
            });
            if let (Err(error), Some(filling)) = (&result, running.own_filling()) {
                filling.abandon(FillFailure::Upstream(error.to_string())).await;
            }
            transfers.end(&running, result);
        });
        Ok(transfer)
    }

    fn end(&self, transfer: &Transfer, result: Result<Arrived, PullError>) {
        let digest = &transfer.digest;
        let mut table = self.lock();
        table.remove(transfer);
        self.under_way.dec();
        let outcome = match &result {
            Ok(Arrived::Kept(_)) => KEPT,
            Ok(Arrived::Passed) => PASSED,
            Err(_) => FAILED,
        };
        self.ended.get_or_create(&[("outcome", outcome)]).inc();
        let asked = transfer.callers.asked();
        let progress = match result {
            Ok(arrived) => {
                table
                    .failures
                    .pop(&FailureKey::Blob(asked.at.upstream.clone(), *digest));
                table.failures.pop(&FailureKey::Right(asked.key(), *digest));
                match arrived {
                    Arrived::Kept(blob) => Progress::Complete(blob),
                    Arrived::Passed => transfer.progress(),
                }
            }
            Err(error) => {
                let opener = transfer.opener.get();
                // A verdict concerns one caller, and the upstream client remembers it.
                if !error.is_verdict() {
                    let key = match opener.filter(|_| !error.is_refusal()) {
                        Some(opener) => FailureKey::Blob(opener.at.upstream.clone(), *digest),
                        None => FailureKey::Right(asked.key(), *digest),
                    };
                    table.remember(key, error.clone());
                }
                Progress::Failed(error)
            }
        };
        transfer.progress.send_replace(progress);
        transfer.over.cancel();
    }
}

/// Runs a transfer with one right after the other, until it ends.
async fn carry_out<F>(
    transfer: &Arc<Transfer>,
    first: Right,
    run: impl Fn(Right, Arc<Transfer>) -> F,
) -> Result<Arrived, PullError>
where
    F: Future<Output = Result<Arrived, PullError>> + Send + 'static,
{
    let mut right = first;
    loop {
        transfer.shown.store(false, Ordering::Relaxed);
        let work = run(right.clone(), Arc::clone(transfer));
        // Kept apart, so that even a panic in the work ends the transfer instead of leaving its readers waiting.
        let result = AbortOnDropHandle::new(tokio::spawn(work))
            .await
            .unwrap_or_else(|_| Err(PullError::Store("the transfer failed".to_owned())));
        right = match result {
            Err(error) if error.is_refusal() => transfer.callers.refused(&right, &error)?,
            Err(error) => return Err(error),
            Ok(arrived) => return Ok(arrived),
        };
    }
}

impl Table {
    fn live(&self, digest: &Digest, upstream: &str) -> Option<&Arc<Transfer>> {
        let transfers = self.live.get(digest)?;
        transfers.iter().find(|transfer| transfer.upstream == upstream)
    }

    fn remove(&mut self, ended: &Transfer) {
        let Some(transfers) = self.live.get_mut(&ended.digest) else {
            return;
        };
        transfers.retain(|transfer| transfer.upstream != ended.upstream);
        if transfers.is_empty() {
            self.live.remove(&ended.digest);
        }
    }

    fn cools_down(&mut self, digest: &Digest, right: &Right) -> Result<(), PullError> {
        let now = Instant::now();
        let keys = [
            FailureKey::Blob(right.at.upstream.clone(), *digest),
            FailureKey::Right(right.key(), *digest),
        ];
        for key in keys {
            let failure = self.failures.get(&key);
            if let Some(failure) = failure.filter(|failure| now < failure.until) {
                return Err(failure.error.clone());
            }
        }
        Ok(())
    }

    fn remember(&mut self, key: FailureKey, error: PullError) {
        let in_a_row = self.failures.get(&key).map_or(0, |failure| failure.in_a_row + 1);
        let cool_down = COOL_DOWN.saturating_mul(1 << in_a_row.min(10)).min(COOL_DOWN_MAX);
        let failure = Failure {
            error,
            until: Instant::now() + cool_down,
            in_a_row,
        };
        self.failures.put(key, failure);
    }
}

/// A blob that a client can be answered with: its size is known, its bytes are here or come.
pub enum OpenBlob {
    Complete(Blob),
    /// `transfer`: whose reader it is. When that goes on with another fill, so does a reader that has read nothing; the bytes of
    /// another end short.
    Filling {
        filling: Filling,
        transfer: Option<Arc<Transfer>>,
        has_read: bool,
    },
    /// `unproven`: no byte is read before the source has answered this very right.
    Starting {
        blob_bytes: u64,
        transfer: Arc<Transfer>,
        unproven: Option<Right>,
    },
}

impl OpenBlob {
    /// The caller's right is proven: it may read whatever comes.
    #[must_use]
    pub fn proven(self) -> Self {
        match self {
            Self::Starting {
                blob_bytes, transfer, ..
            } => Self::Starting {
                blob_bytes,
                transfer,
                unproven: None,
            },
            opened => opened,
        }
    }

    /// What a caller's right is asked for before it reads. `transfer`: whose blob it is.
    pub fn item<'a>(&self, transfer: &Transfer, at: &Repository, digest: &'a Digest) -> Item<'a> {
        match self {
            Self::Filling { .. } | Self::Starting { .. } if transfer.has_answered(at) => Item::Answered(digest),
            _ => Item::Blob(digest),
        }
    }

    /// In bytes.
    pub fn blob_bytes(&self) -> u64 {
        match self {
            Self::Complete(blob) => blob.map().blob_bytes(),
            Self::Filling { filling, .. } => filling.map().blob_bytes(),
            Self::Starting { blob_bytes, .. } => *blob_bytes,
        }
    }

    /// Waits until there is a byte at `offset`.
    ///
    /// # Errors
    /// What ended the transfer.
    pub async fn ready(&mut self, offset: u64) -> Result<(), ReadBlobError> {
        loop {
            let Started::Filling(filling, transfer) = self.started().await? else {
                return Ok(());
            };
            let readable = filling.wait_readable(offset);
            let Some(transfer) = transfer else {
                return readable.await;
            };
            tokio::select! {
                biased;
                readable = readable => match readable {
                    Err(_) if transfer.goes_on_after(filling).await => {}
                    readable => return readable,
                },
                () = transfer.leaves(filling) => {}
            }
            self.start_over()?;
        }
    }

    /// The transfer goes on with another fill. A reader that has read of the one before has read what may be wrong.
    fn start_over(&mut self) -> Result<(), ReadBlobError> {
        *self = match self {
            Self::Filling {
                filling,
                transfer: Some(transfer),
                has_read: false,
            } => Self::Starting {
                blob_bytes: filling.map().blob_bytes(),
                transfer: Arc::clone(transfer),
                unproven: None,
            },
            _ => return Err(given_up("the blob now comes from another download; resume")),
        };
        Ok(())
    }

    /// Reads at least one byte from the start of `range`, waiting for it when it is still on its way.
    ///
    /// # Errors
    /// What ended the transfer, or damage on disk.
    pub async fn read(&mut self, range: Range<u64>) -> Result<Bytes, ReadBlobError> {
        match self.wait_for_first(&range).await? {
            Started::Complete(blob) => blob.read(range).await,
            Started::Filling(filling, _) => filling.read(range).await,
        }
    }

    /// As [`OpenBlob::read`], but says where the bytes lie. `None` where they can only be read.
    ///
    /// # Errors
    /// As [`OpenBlob::read`].
    pub async fn extent(&mut self, range: Range<u64>) -> Result<Option<Extent>, ReadBlobError> {
        match self.wait_for_first(&range).await? {
            Started::Complete(blob) => blob.extent(range),
            Started::Filling(filling, _) => filling.extent(range).await,
        }
    }

    /// Waits for the first byte of `range`.
    async fn wait_for_first(&mut self, range: &Range<u64>) -> Result<Started<'_>, ReadBlobError> {
        if !range.is_empty() {
            self.ready(range.start).await?;
        }
        if let Self::Filling { has_read, .. } = self {
            *has_read = true;
        }
        self.started().await
    }

    async fn started(&mut self) -> Result<Started<'_>, ReadBlobError> {
        if let Self::Starting {
            blob_bytes,
            transfer,
            unproven,
        } = self
        {
            let stated = *blob_bytes;
            let progress = match unproven {
                Some(right) => transfer.started_for(right).await,
                None => transfer.started().await,
            };
            *self = match progress {
                Progress::Open(filling) => Self::Filling {
                    filling,
                    transfer: Some(Arc::clone(transfer)),
                    has_read: false,
                },
                Progress::Complete(blob) => Self::Complete(blob),
                Progress::Failed(error) => return Err(given_up(&error.to_string())),
                Progress::Starting { .. } => return Err(given_up("it has not started")),
            };
            if self.blob_bytes() != stated {
                return Err(given_up("the source states another size than the manifest"));
            }
        }
        match self {
            Self::Complete(blob) => Ok(Started::Complete(blob)),
            Self::Filling { filling, transfer, .. } => Ok(Started::Filling(filling, transfer.as_deref())),
            Self::Starting { .. } => Err(given_up("it has not started")),
        }
    }
}

/// A blob whose bytes are here or come.
enum Started<'a> {
    Complete(&'a Blob),
    Filling(&'a Filling, Option<&'a Transfer>),
}

fn given_up(why: &str) -> ReadBlobError {
    ReadBlobError::Abandoned(FillFailure::Upstream(why.to_owned()))
}
