//! Blobs on their way here: one transfer per digest, whoever asks and however many.
//!
//! A transfer is detached from every reader: it ends when the blob is complete or cannot be had, never since a client left.
//! It is `Starting`, then `Open`, then either `Complete` or `Failed`, and never goes back; a later request begins another.

use std::{
    collections::HashMap,
    future::Future,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use piecemeal_proto::Digest;
use piecemeal_store::{Blob, Extent, FillFailure, Filling, ReadBlobError, Repository, Store};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::watch;

use crate::{Caller, Credential, PullError};

/// How a transfer that went well has ended.
pub enum Arrived {
    Kept(Blob),
    /// There was no room for it: its readers go on within their window.
    Passed,
}

/// After a failure a digest is answered with that failure for this long, so that a client's resume goes to its next host
/// instead of starting the same download over. Doubles with each failure in a row.
const COOL_DOWN: Duration = Duration::from_secs(1);
const COOL_DOWN_MAX: Duration = Duration::from_secs(60);
/// How transfers end.
const KEPT: &str = "kept";
const PASSED: &str = "passed";
const FAILED: &str = "failed";
/// The most failures remembered.
const FAILURES_MAX: usize = 4096;

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

/// One blob on its way.
pub struct Transfer {
    at: Repository,
    /// Of whoever asked for it first.
    credential: Option<Credential>,
    progress: watch::Sender<Progress>,
}

impl Transfer {
    /// Whether it was begun with this right, so that what the source says of it is said of this caller.
    pub fn is_of(&self, caller: &Caller, at: &Repository) -> bool {
        self.at == *at && self.credential == caller.credential
    }

    /// The store's handle is there: readers may begin.
    pub fn open(&self, filling: Filling) {
        self.progress.send_replace(Progress::Open(filling));
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

    /// Waits at most `patience` until a client can be answered: with the blob, or with its size alone when that is known.
    async fn opened(self: &Arc<Self>, patience: Duration) -> Result<OpenBlob, PullError> {
        let progress = match tokio::time::timeout(patience, self.started()).await {
            Ok(progress) => progress,
            Err(_) => self.progress(),
        };
        match progress {
            Progress::Open(filling) => Ok(OpenBlob::Filling(filling)),
            Progress::Complete(blob) => Ok(OpenBlob::Complete(blob)),
            Progress::Failed(error) => Err(error),
            Progress::Starting {
                blob_bytes: Some(blob_bytes),
            } => Ok(OpenBlob::Starting {
                blob_bytes,
                transfer: Arc::clone(self),
            }),
            Progress::Starting { blob_bytes: None } => Err(PullError::Unavailable(
                "the source has not answered yet; it is still being asked".to_owned(),
            )),
        }
    }
}

/// All transfers of a daemon. Cheap to clone.
#[derive(Clone, Default)]
pub struct Transfers {
    table: Arc<Mutex<Table>>,
    ended: Family<[(&'static str, &'static str); 1], Counter>,
    under_way: Gauge,
}

#[derive(Default)]
struct Table {
    live: HashMap<Digest, Arc<Transfer>>,
    failures: HashMap<(Repository, Digest), Failure>,
}

struct Failure {
    error: PullError,
    until: Instant,
    in_a_row: u32,
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
            "Blobs that were on their way here, by how that ended",
            self.ended.clone(),
        );
        registry.register("transfers_under_way", "Blobs on their way here", self.under_way.clone());
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of this lock panics")
    }

    /// The size in bytes of a blob that is here, whole or on its way from the same upstream; `None` when nothing is known of
    /// it. What another upstream says of a blob that is not proven yet is not passed on.
    ///
    /// # Errors
    /// [`PullError::Store`].
    pub async fn blob_bytes_here(
        &self,
        store: &Store,
        at: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, PullError> {
        if let Some(blob) = store.blob(digest).await? {
            return Ok(Some(blob.map().blob_bytes()));
        }
        let live = self.lock().live.get(digest).cloned();
        let own = live.filter(|transfer| transfer.at.upstream == at.upstream);
        Ok(own.and_then(|transfer| match transfer.progress() {
            Progress::Open(filling) => Some(filling.map().blob_bytes()),
            Progress::Starting { .. } | Progress::Complete(_) | Progress::Failed(_) => None,
        }))
    }

    /// Joins the live transfer of `digest`, or starts one that `run` carries out in a task of its own, and waits at most
    /// `patience` until a client can be answered.
    ///
    /// A failure may be one caller's in one repository (it does not exist there, it is not allowed, its manifest lied): who
    /// joined another's transfer and hears of one asks again for itself.
    ///
    /// # Errors
    /// Why the transfer failed; the last failure, while the digest cools down after it under this repository.
    pub async fn open<F>(
        &self,
        caller: &Caller,
        at: &Repository,
        digest: &Digest,
        blob_bytes: Option<u64>,
        patience: Duration,
        run: impl Fn(Arc<Transfer>) -> F,
    ) -> Result<(Arc<Transfer>, OpenBlob), PullError>
    where
        F: Future<Output = Result<Arrived, PullError>> + Send + 'static,
    {
        let joined = self.join_or_start(caller, at, digest, blob_bytes, &run)?;
        match joined.opened(patience).await {
            Ok(opened) => Ok((joined, opened)),
            Err(error) if !matches!(error, PullError::Store(_)) && !joined.is_of(caller, at) => {
                let own = self.join_or_start(caller, at, digest, blob_bytes, &run)?;
                let opened = own.opened(patience).await?;
                Ok((own, opened))
            }
            Err(error) => Err(error),
        }
    }

    fn join_or_start<F>(
        &self,
        caller: &Caller,
        at: &Repository,
        digest: &Digest,
        blob_bytes: Option<u64>,
        run: impl Fn(Arc<Transfer>) -> F,
    ) -> Result<Arc<Transfer>, PullError>
    where
        F: Future<Output = Result<Arrived, PullError>> + Send + 'static,
    {
        let mut table = self.lock();
        if let Some(transfer) = table.live.get(digest) {
            return Ok(Arc::clone(transfer));
        }
        let key = (at.clone(), *digest);
        if let Some(failure) = table
            .failures
            .get(&key)
            .filter(|failure| Instant::now() < failure.until)
        {
            return Err(failure.error.clone());
        }
        let transfer = Arc::new(Transfer {
            at: at.clone(),
            credential: caller.credential.clone(),
            progress: watch::Sender::new(Progress::Starting { blob_bytes }),
        });
        table.live.insert(*digest, Arc::clone(&transfer));
        self.under_way.inc();
        let (transfers, running, work) = (self.clone(), Arc::clone(&transfer), run(Arc::clone(&transfer)));
        tokio::spawn(async move {
            // Kept apart, so that even a panic in the work ends the transfer instead of leaving its readers waiting.
            let result = tokio::spawn(work)
                .await
                .unwrap_or_else(|_| Err(PullError::Store("the transfer broke".to_owned())));
            if let (Err(error), Progress::Open(filling)) = (&result, running.progress()) {
                filling.abandon(FillFailure::Upstream(error.to_string())).await;
            }
            transfers.end(key, &running, result);
        });
        Ok(transfer)
    }

    fn end(&self, key: (Repository, Digest), transfer: &Transfer, result: Result<Arrived, PullError>) {
        let mut table = self.lock();
        table.live.remove(&key.1);
        self.under_way.dec();
        let outcome = match &result {
            Ok(Arrived::Kept(_)) => KEPT,
            Ok(Arrived::Passed) => PASSED,
            Err(_) => FAILED,
        };
        self.ended.get_or_create(&[("outcome", outcome)]).inc();
        let progress = match result {
            Ok(arrived) => {
                table.failures.remove(&key);
                match arrived {
                    Arrived::Kept(blob) => Progress::Complete(blob),
                    Arrived::Passed => transfer.progress(),
                }
            }
            Err(error) => {
                // A verdict is one caller's, and whoever gave it remembers it.
                if !error.is_verdict() {
                    table.remember(key, error.clone());
                }
                Progress::Failed(error)
            }
        };
        transfer.progress.send_replace(progress);
    }
}

impl Table {
    fn remember(&mut self, key: (Repository, Digest), error: PullError) {
        let now = Instant::now();
        if self.failures.len() >= FAILURES_MAX {
            self.failures.retain(|_, failure| now < failure.until);
        }
        if self.failures.len() >= FAILURES_MAX {
            self.failures.clear();
        }
        let in_a_row = self.failures.get(&key).map_or(0, |failure| failure.in_a_row + 1);
        let cool_down = COOL_DOWN.saturating_mul(1 << in_a_row.min(10)).min(COOL_DOWN_MAX);
        self.failures.insert(
            key,
            Failure {
                error,
                until: now + cool_down,
                in_a_row,
            },
        );
    }
}

/// A blob that a client can be answered with: its size is known, its bytes are here or come.
pub enum OpenBlob {
    Complete(Blob),
    Filling(Filling),
    Starting { blob_bytes: u64, transfer: Arc<Transfer> },
}

impl OpenBlob {
    /// In bytes.
    pub fn blob_bytes(&self) -> u64 {
        match self {
            Self::Complete(blob) => blob.map().blob_bytes(),
            Self::Filling(filling) => filling.map().blob_bytes(),
            Self::Starting { blob_bytes, .. } => *blob_bytes,
        }
    }

    /// Waits until there is a byte at `offset`.
    ///
    /// # Errors
    /// What ended the transfer.
    pub async fn ready(&mut self, offset: u64) -> Result<(), ReadBlobError> {
        match self.started().await? {
            Started::Complete(_) => Ok(()),
            Started::Filling(filling) => filling.wait_readable(offset).await,
        }
    }

    /// Reads at least one byte from the start of `range`, waiting for it when it is still on its way.
    ///
    /// # Errors
    /// What ended the transfer, or damage on disk.
    pub async fn read(&mut self, range: Range<u64>) -> Result<Bytes, ReadBlobError> {
        match self.started().await? {
            Started::Complete(blob) => blob.read(range).await,
            Started::Filling(filling) => filling.read(range).await,
        }
    }

    /// As [`OpenBlob::read`], but says where the bytes lie. `None` where they can only be read.
    ///
    /// # Errors
    /// As [`OpenBlob::read`].
    pub async fn extent(&mut self, range: Range<u64>) -> Result<Option<Extent>, ReadBlobError> {
        match self.started().await? {
            Started::Complete(blob) => blob.extent(range),
            Started::Filling(filling) => filling.extent(range).await,
        }
    }

    async fn started(&mut self) -> Result<Started<'_>, ReadBlobError> {
        if let Self::Starting { blob_bytes, transfer } = self {
            let stated = *blob_bytes;
            *self = match transfer.started().await {
                Progress::Open(filling) => Self::Filling(filling),
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
            Self::Filling(filling) => Ok(Started::Filling(filling)),
            Self::Starting { .. } => Err(given_up("it has not started")),
        }
    }
}

/// A blob whose bytes are here or come.
enum Started<'a> {
    Complete(&'a Blob),
    Filling(&'a Filling),
}

fn given_up(why: &str) -> ReadBlobError {
    ReadBlobError::Abandoned(FillFailure::Upstream(why.to_owned()))
}
