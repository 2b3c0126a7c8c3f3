//! The downloads under way: dispatch of the scheduler's orders, and the inventory after a reconnection.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::{
    Digest, PieceSet, SignedPieceHashes,
    wire::{LeaseEnded, Outcome, report::Report},
};
use piecemeal_proxy::Announcer;
use piecemeal_store::{Blob, Filling, Store};
use piecemeal_swarm::{Inventory, SessionEvent};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::{download::Order, prefetch::Prefetcher};

/// All downloads under way, by digest.
#[derive(Clone, Default)]
pub(crate) struct LiveDownloads(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    downloads: BTreeMap<Digest, LiveDownload>,
    /// The download that carries out each lease.
    leases: HashMap<u64, Digest>,
}

struct LiveDownload {
    want: Report,
    filling: Filling,
    orders: mpsc::Sender<Order>,
}

/// Keeps a download in the table while it lives.
pub(crate) struct Entered {
    downloads: LiveDownloads,
    digest: Digest,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut table = self.downloads.lock();
        table.downloads.remove(&self.digest);
        table.leases.retain(|_, digest| *digest != self.digest);
    }
}

impl LiveDownloads {
    pub(crate) fn enter(&self, digest: Digest, want: Report, filling: Filling, orders: mpsc::Sender<Order>) -> Entered {
        self.lock()
            .downloads
            .insert(digest, LiveDownload { want, filling, orders });
        Entered {
            downloads: self.clone(),
            digest,
        }
    }

    /// The download has a new grant.
    pub(crate) fn renew(&self, digest: &Digest, want: Report) {
        if let Some(live) = self.lock().downloads.get_mut(digest) {
            live.want = want;
        }
    }

    /// The lease has ended: no order is about it any more.
    pub(crate) fn lease_ended(&self, lease: u64) {
        self.lock().leases.remove(&lease);
    }

    /// Passes the session's events on to the downloads that they are about.
    pub(crate) async fn dispatch(
        self,
        store: Store,
        announcer: Announcer,
        prefetcher: Prefetcher,
        mut events: mpsc::Receiver<SessionEvent>,
    ) {
        while let Some(event) = events.recv().await {
            match event {
                SessionEvent::Up => {
                    info!("connected to the scheduler");
                    let all: Vec<Digest> = self.lock().downloads.keys().copied().collect();
                    for digest in all {
                        self.order(&digest, Order::Up).await;
                    }
                }
                SessionEvent::Down => warn!("the scheduler is lost; pieces come from the mirror directly"),
                SessionEvent::Describe(digest) => announcer.describe(&store, &digest).await,
                SessionEvent::Lease(lease) => {
                    let id = lease.lease;
                    let taken = match lease.digest.parse() {
                        Ok(digest) => {
                            self.lock().leases.insert(id, digest);
                            self.order(&digest, Order::Lease(lease)).await
                        }
                        Err(_) => false,
                    };
                    if !taken {
                        self.lease_ended(id);
                        // The download has just ended: the source is free again.
                        announcer.report(Report::LeaseEnded(LeaseEnded {
                            lease: id,
                            outcome: Outcome::Cancelled.into(),
                            piece: 0,
                        }));
                    }
                }
                SessionEvent::Cancel(lease) => {
                    let digest = self.lock().leases.remove(&lease);
                    if let Some(digest) = digest {
                        self.order(&digest, Order::Cancel(lease)).await;
                    }
                }
                SessionEvent::Revoked { digest, fill } => {
                    self.order(&digest, Order::Revoked(fill.0)).await;
                }
                SessionEvent::Drop { digest, fill, pieces } => {
                    self.order(&digest, Order::Drop { fill: fill.0, pieces }).await;
                }
                SessionEvent::PieceHashes(list) => self.keep_list(&store, list).await,
                SessionEvent::WantRefused { digest, reason } => {
                    self.order(&digest, Order::WantRefused(reason)).await;
                }
                SessionEvent::Warm(image) => prefetcher.enqueue(image),
                // Mirrors alone are told of others' clients.
                SessionEvent::Clients { .. } => {}
            }
        }
    }

    /// Passes a list to the blob's download, or keeps it beside the blob if that is here.
    async fn keep_list(&self, store: &Store, list: SignedPieceHashes) {
        let (digest, list) = (*list.digest(), Arc::new(list));
        if self.order(&digest, Order::PieceHashes(Arc::clone(&list))).await {
            return;
        }
        if let Ok(Some(blob)) = store.blob(&digest).await {
            keep_beside(store, &blob, &list).await;
        }
    }

    /// Each download's own queue is bounded; a download reads it at once, since all its waiting is in tasks of their own.
    /// Says whether there was a download to take the order.
    async fn order(&self, digest: &Digest, order: Order) -> bool {
        let orders = self.lock().downloads.get(digest).map(|live| live.orders.clone());
        match orders {
            Some(orders) => orders.send(order).await.is_ok(),
            None => false,
        }
    }

    /// Each download with its pieces, for `piecemeal status`.
    pub(crate) fn status(&self) -> Vec<serde_json::Value> {
        let table = self.lock();
        let rows = table.downloads.iter().map(|(digest, live)| {
            let have = live.filling.landed();
            serde_json::json!({ "digest": digest.to_string(), "pieces": have.capacity(), "have": have.count() })
        });
        rows.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock()
    }
}

/// Keeps the authority's signature over the hashes that the blob has here.
pub(crate) async fn keep_beside(store: &Store, blob: &Blob, list: &SignedPieceHashes) {
    if blob.map() != list.map() || blob.piece_hashes()[..] != *list.hashes() {
        return;
    }
    let piece_bytes = list.map().piece_bytes();
    if let Err(error) = store
        .sign_piece_hashes(blob.digest(), piece_bytes, *list.signature())
        .await
    {
        warn!(blob.digest = %blob.digest(), %error, "the signature of its piece hashes cannot be kept: {error}");
    }
}

/// The inventory that a peer reports to the scheduler at each connection.
pub(crate) struct PeerInventory {
    pub(crate) store: Store,
    pub(crate) downloads: LiveDownloads,
}

#[async_trait]
impl Inventory for PeerInventory {
    async fn complete(&self) -> Vec<Digest> {
        self.store.complete_digests()
    }

    async fn live(&self) -> Vec<Report> {
        let table = self.downloads.lock();
        table
            .downloads
            .values()
            .map(|live| with_pieces(&live.want, &live.filling.have()))
            .collect()
    }
}

/// A want that states the pieces that are here now.
fn with_pieces(want: &Report, have: &PieceSet) -> Report {
    let mut want = want.clone();
    if let Report::Want(want) = &mut want {
        want.have = have.to_bytes();
    }
    want
}
