//! Upkeep of a daemon with a store: opening and sweeping the store, and reporting its state and the ended pulls.
//!
//! Opening runs off the runtime, since recovery reads the disk.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use piecemeal_store::{Env, OpenStoreError, Store, StoreConfig};
use rustix::system::uname;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{Announcer, CacheConfig, Destination, Origin, Pulls, Traffic, announce};

/// The interval between two sweeps of expired content.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// The interval between two looks for ended pulls.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for the process before, which drains, to close the store: longer than a drain takes.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(90);
/// The interval between two tries to open a store that another process is closing.
const CLOSE_LOOK_EVERY: Duration = Duration::from_millis(50);

/// Opens a daemon's store, off the runtime: recovery reads the disk. `is_closing`: whether another process may still have it, but has
/// handed its ports over.
///
/// # Errors
/// [`OpenStoreError`].
///
/// # Panics
/// Only when opening does.
pub(crate) async fn open_store(cache: &CacheConfig, is_closing: bool) -> Result<Store, OpenStoreError> {
    let config = StoreConfig {
        dir: cache.dir.clone(),
        quota_bytes: cache.quota_bytes,
        free_bytes_min: cache.free_bytes_min,
        ttl: cache.ttl,
    };
    let patience = if is_closing { CLOSE_TIME_MAX } else { Duration::ZERO };
    let deadline = Instant::now() + patience;
    loop {
        let config = config.clone();
        let opened = tokio::task::spawn_blocking(|| Store::open(config, Env::system()))
            .await
            .expect("opening a store does not panic");
        match opened {
            Err(OpenStoreError::Locked { .. }) if Instant::now() < deadline => sleep(CLOSE_LOOK_EVERY).await,
            opened => return opened,
        }
    }
}

/// The addresses of the piece port that other nodes are told; empty when only the scheduler can see it.
pub(crate) fn advertised(advertise: &[SocketAddr], listen: SocketAddr) -> Vec<SocketAddr> {
    if advertise.is_empty() && !listen.ip().is_unspecified() {
        vec![listen]
    } else {
        advertise.to_vec()
    }
}

/// Sweeps the store now and then, tells the scheduler what went, and the log which pulls have ended.
pub(crate) async fn keep_clean(store: Store, announcer: Announcer, pulls: Pulls, stop: CancellationToken) {
    let mut evictions = store.evictions();
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    let mut telling = tokio::time::interval(TELL_INTERVAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            evicted = evictions.recv() => if let Ok(digest) = evicted { announcer.report(announce::lost(&digest)) },
            _ = telling.tick() => pulls.tell(),
            _ = interval.tick() => sweep(&store).await,
        }
    }
}

/// The store's problem, for readiness.
pub(crate) async fn store_problem(store: &Store) -> Option<String> {
    match store.usage().await {
        Ok(_) => store.trouble(),
        Err(error) => Some(error.to_string()),
    }
}

async fn sweep(store: &Store) {
    match store.sweep().await {
        Ok(swept) if !swept.blobs.is_empty() => info!(blobs = swept.blobs.len(), bytes = swept.bytes, "evicted"),
        Ok(_) => {}
        Err(error) => warn!(%error, "the cache could not be swept: {error}"),
    }
}

/// Changes a cache's bounds, also for what is in it: the next sweep is up to a minute away, so that one begins now.
pub(crate) fn rebound(store: &Store, cache: &CacheConfig, tracker: &TaskTracker) {
    store.set_limits(cache.quota_bytes, cache.free_bytes_min, cache.ttl);
    let store = store.clone();
    tracker.spawn(async move { sweep(&store).await });
}

/// The content of the store in figures, as JSON.
pub(crate) async fn store_status(store: &Store) -> serde_json::Value {
    match store.usage().await {
        Ok(usage) => {
            json!({ "blobs": usage.blobs, "blob_bytes": usage.blob_bytes, "partials": usage.partials, "reserved_bytes": usage.reserved_bytes, "manifests": usage.manifests })
        }
        Err(error) => json!({ "error": error.to_string() }),
    }
}

/// The bytes by where they came from and went, as JSON.
pub(crate) fn traffic_status(traffic: &Traffic) -> serde_json::Value {
    let received = |origin| traffic.total(origin, Destination::Store);
    let sent = |destination| traffic.total(Origin::Local, destination) + traffic.total(Origin::Transfer, destination);
    json!({
        "from_upstream": received(Origin::Upstream),
        "from_mirror": received(Origin::Mirror),
        "from_peers": received(Origin::Peer),
        "to_clients": sent(Destination::Client),
        "to_clients_from_local": traffic.total(Origin::Local, Destination::Client),
        "to_nodes": sent(Destination::Node),
    })
}

/// Grows with each start. A clock that was set back makes the older connection win until it ends, no more.
pub(crate) fn incarnation() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default() << 10
}

/// This machine's name, as its administrator knows it; empty when it has none.
pub(crate) fn host_name() -> String {
    uname().nodename().to_string_lossy().into_owned()
}
