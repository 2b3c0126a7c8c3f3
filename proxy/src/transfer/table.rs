//! All transfers of a daemon, and how a caller joins one.
//!
//! Of one digest each upstream has one transfer at most, and the first that began leads.

use std::{
    collections::HashMap,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::Digest;
use piecemeal_store::{FillFailure, Filling, Repository, Store};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    cool_down::CoolDowns,
    one::{Arrived, Progress, Transfer},
    open_blob::OpenBlob,
    read_pieces::ReadPieces,
};
use crate::{
    Item,
    callers::{Right, Standing},
};
use piecemeal_upstream::{Caller, Places, PullError};

/// The most transfers that fill apart at a time, and how long one of them may keep a place from an upstream that has none.
const DISPUTES_MAX: usize = 4;
const DISPUTE_SLOW: Duration = Duration::from_secs(5);
/// The ends of transfers, as metrics name them.
const KEPT: &str = "kept";
const PASSED: &str = "passed";
const FAILED: &str = "failed";
/// The most times that a caller starts a blob again whose transfer failed with another caller's right.
const REJOINS_MAX: usize = 3;

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

#[derive(Default)]
struct Table {
    /// Of one digest in the order in which they began, one an upstream.
    live: HashMap<Digest, Vec<Arc<Transfer>>>,
    cool_downs: CoolDowns,
}

impl Table {
    fn live(&self, digest: &Digest, upstream: &str) -> Option<&Arc<Transfer>> {
        let transfers = self.live.get(digest)?;
        transfers.iter().find(|transfer| transfer.upstream() == upstream)
    }

    fn remove(&mut self, ended: &Transfer) {
        let Some(transfers) = self.live.get_mut(ended.digest()) else {
            return;
        };
        transfers.retain(|transfer| transfer.upstream() != ended.upstream());
        if transfers.is_empty() {
            self.live.remove(ended.digest());
        }
    }
}

/// A caller that asks for a blob.
#[derive(Clone, Copy)]
pub(crate) struct Joining<'a> {
    pub caller: &'a Caller,
    pub at: &'a Repository,
    pub digest: &'a Digest,
    /// The blob's size, where a manifest has told it.
    pub blob_bytes: Option<u64>,
    /// The longest wait of the caller until it can be answered.
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
        transfer.callers().join(&self.right(), standing, public);
    }
}

/// A blob that is here, or on its way.
pub(crate) struct KnownHere {
    pub blob_bytes: u64,
    /// It is on its way, and its upstream has answered for it under the repository.
    is_answered: bool,
}

impl KnownHere {
    /// The item that a caller's right is checked for.
    pub(crate) fn item<'a>(&self, digest: &'a Digest) -> Item<'a> {
        match self.is_answered {
            true => Item::Answered(digest),
            false => Item::Blob(digest),
        }
    }
}

/// The error with which a caller cannot be answered, by the caller that it belongs to.
enum NotOpened {
    /// This caller's own error.
    Own(PullError),
    /// The error of another caller.
    Others(PullError),
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
        let first = table.live.get(transfer.digest())?.first()?;
        (first.upstream() != transfer.upstream()).then(|| Arc::clone(first))
    }

    /// The repositories whose upstreams have shown the bytes of `filling`: those of `transfer`, which fills it, and of the transfers that
    /// follow. They are written together with the blob: a reader that finds it has no upstream show its bytes again.
    pub(crate) fn sources(&self, transfer: &Transfer, filling: &Filling) -> Vec<Repository> {
        let table = self.lock();
        let others = table.live.get(transfer.digest()).into_iter().flatten();
        let followers = others.filter(|other| other.follows(filling));
        let shown = followers.flat_map(|follower| follower.sources());
        transfer.sources().into_iter().chain(shown).collect()
    }

    /// Joins the live transfer of the blob from the caller's upstream, or starts one that `run` carries out in a task of its own, and waits until the
    /// caller can be answered.
    ///
    /// `run` is called again with another right when the source has refused the one before. `prove`: asks the source whether
    /// it serves the blob to this caller.
    ///
    /// # Errors
    /// The source's error for this caller; the reason why the transfer failed; the last failure, while the digest cools down after
    /// it for this caller.
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
            match opened(&joined, joining.right(), joining.patience, prove()).await {
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
        table.cool_downs.require_none(digest, &right, Instant::now())?;
        let transfer = Arc::new(Transfer::new(*digest, right.clone(), joining.blob_bytes));
        joining.join(&transfer);
        table.live.entry(*digest).or_default().push(Arc::clone(&transfer));
        self.under_way.inc();
        let (transfers, running) = (self.clone(), Arc::clone(&transfer));
        tokio::spawn(async move {
            let result = tokio::select! {
                result = carry_out(&running, right, run) => result,
                () = running.stopped() => Err(running.outrun()),
            };
            let result = result.map_err(|error| match running.is_outrun() {
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
        let digest = transfer.digest();
        let mut table = self.lock();
        table.remove(transfer);
        self.under_way.dec();
        let outcome = match &result {
            Ok(Arrived::Kept(_)) => KEPT,
            Ok(Arrived::Passed) => PASSED,
            Err(_) => FAILED,
        };
        self.ended.get_or_create(&[("outcome", outcome)]).inc();
        let asked = transfer.callers().asked();
        let progress = match result {
            Ok(arrived) => {
                table.cool_downs.end(digest, &asked);
                match arrived {
                    Arrived::Kept(blob) => Progress::Complete(blob),
                    Arrived::Passed => transfer.progress(),
                }
            }
            Err(error) => {
                let (opener, now) = (transfer.opener(), Instant::now());
                table.cool_downs.begin(digest, &asked, opener, &error, now);
                Progress::Failed(error)
            }
        };
        transfer.end(progress);
    }
}

/// Waits at most `patience` until the caller can be answered: with the blob, or with its size alone when that is known.
async fn opened(
    transfer: &Arc<Transfer>,
    right: Right,
    patience: Duration,
    prove: impl Future<Output = Result<(), PullError>>,
) -> Result<OpenBlob, NotOpened> {
    let waiting = transfer.callers().wait(&right, transfer.started(), prove);
    let progress = match tokio::time::timeout(patience, waiting).await {
        Ok(Ok(progress)) => progress,
        Ok(Err(refusal)) => return Err(NotOpened::Own(refusal)),
        Err(_) => transfer.progress(),
    };
    match progress {
        Progress::Open(filling) => Ok(OpenBlob::Filling {
            filling,
            transfer: Some(Arc::clone(transfer)),
            read: ReadPieces::default(),
        }),
        Progress::Complete(blob) => Ok(OpenBlob::Complete(blob)),
        Progress::Failed(error @ PullError::Store(_)) => Err(NotOpened::Own(error)),
        Progress::Failed(error) if transfer.callers().asks_with(&right) => Err(NotOpened::Own(error)),
        Progress::Failed(error) => Err(NotOpened::Others(error)),
        Progress::Starting {
            blob_bytes: Some(blob_bytes),
        } => Ok(OpenBlob::Starting {
            blob_bytes,
            transfer: Arc::clone(transfer),
            unproven: Some(right),
            read: ReadPieces::default(),
        }),
        Progress::Starting { blob_bytes: None } => Err(NotOpened::Own(PullError::Unavailable(
            "the source has not answered yet; the request is still under way".to_owned(),
        ))),
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
        transfer.begins();
        let work = run(right.clone(), Arc::clone(transfer));
        // Kept apart, so that even a panic in the work ends the transfer instead of leaving its readers waiting.
        let result = AbortOnDropHandle::new(tokio::spawn(work))
            .await
            .unwrap_or_else(|_| Err(PullError::Store("the transfer failed".to_owned())));
        right = match result {
            Err(error) if error.is_refusal() => transfer.callers().refused(&right, &error)?,
            Err(error) => return Err(error),
            Ok(arrived) => return Ok(arrived),
        };
    }
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::PieceMap;
    use piecemeal_store::{Env, StoreConfig};

    use super::*;

    fn right(upstream: &str) -> Right {
        let at = Repository {
            upstream: upstream.to_owned(),
            name: "app".to_owned(),
        };
        Right::new(&Caller::default(), &at)
    }

    #[tokio::test]
    async fn a_blob_has_the_sources_of_the_transfers_that_follow_its_fill_and_of_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            dir: dir.path().join("store"),
            quota_bytes: None,
            free_bytes_min: 0,
            ttl: Duration::from_secs(3600),
        };
        let store = Store::open(config, Env::system()).unwrap();
        let (digest, transfers) = (Digest::of(b"blob"), Transfers::default());
        let map = PieceMap::for_blob(4).unwrap();
        let [kept, apart] = [
            store.begin(&digest, map, None).await.unwrap(),
            store.begin_apart(&digest, map).await,
        ];
        let begin = |upstream: &str| {
            let transfer = Arc::new(Transfer::new(digest, right(upstream), None));
            transfers
                .lock()
                .live
                .entry(digest)
                .or_default()
                .push(Arc::clone(&transfer));
            transfer
        };
        let [leads, follows, fills_apart, _waits] = ["a.test", "b.test", "c.test", "d.test"].map(begin);
        leads.open(kept.clone(), right("a.test"));
        follows.follow(kept.clone(), right("b.test"));
        fills_apart.open(apart.clone(), right("c.test"));
        let named = |transfer: &Transfer, filling: &Filling| {
            let sources = transfers.sources(transfer, filling).into_iter();
            sources.map(|at| at.upstream).collect::<Vec<_>>()
        };
        assert_eq!(named(&leads, &kept), ["a.test", "b.test"]);
        assert_eq!(named(&fills_apart, &apart), ["c.test"]);
        follows.starts_over();
        assert_eq!(named(&leads, &kept), ["a.test"], "it waits for another fill");
        store.close().await;
    }
}
