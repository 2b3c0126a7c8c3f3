//! Scrubber: verifies the whole store slowly for damage by the disk, and suspect blobs at once.
//!
//! Blobs are hashed when they come, not when they go: a client that got a flipped byte finds out by itself, and asks again. So a
//! client that asks again for a blob that it has just had makes it suspect, and gets it through the hashes of its pieces; a body
//! that the disk cut off makes a blob suspect too.

use std::{
    net::IpAddr,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::Digest;
use piecemeal_store::{Store, StoreError, Verified};
use piecemeal_swarm::Limiter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The time for which a verification counts.
const VERIFIED_LIFE: Duration = Duration::from_secs(24 * 3600);
/// The interval between two looks for blobs that are due.
const LOOK_AROUND: Duration = Duration::from_secs(60);
/// The most due blobs that are taken at once.
const BATCH: u32 = 64;
/// The most suspects that wait.
const SUSPECTS_MAX: usize = 64;
/// A client that has received and kept a blob does not ask for it again within this time.
const AGAIN_WITHIN: Duration = Duration::from_secs(600);
/// The most of each kind that is remembered: six blobs each of 10,000 nodes, in some 10 MB.
const REMEMBERED_MAX: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();
/// The rate at which suspects are checked, in bytes a second: fast enough to be soon, and so slow that clients cannot keep a
/// processor busy with their requests.
const SUSPECTS_RATE: u64 = 100_000_000;

/// Blobs that each client has recently received, and blobs that are suspect.
#[derive(Clone)]
pub(crate) struct Suspicions {
    suspects: mpsc::Sender<Digest>,
    table: Arc<Mutex<Table>>,
}

struct Table {
    had: LruCache<(IpAddr, Digest), Had>,
    /// When each blob last became suspect.
    suspected: LruCache<Digest, Instant>,
}

/// The bytes of a blob that a client has received, in one request or many.
struct Had {
    bytes: u64,
    /// The last of it.
    at: Instant,
}

/// The suspects, as the scrubber takes them.
pub(crate) type Suspects = mpsc::Receiver<Digest>;

impl Suspicions {
    pub(crate) fn new() -> (Self, Suspects) {
        let (suspects, received) = mpsc::channel(SUSPECTS_MAX);
        let table = Table {
            had: LruCache::new(REMEMBERED_MAX),
            suspected: LruCache::new(REMEMBERED_MAX),
        };
        let table = Arc::new(Mutex::new(table));
        (Self { suspects, table }, received)
    }

    /// A client asks for a complete blob, or for a part of it. Returns whether it has recently received as many bytes as the
    /// whole blob, so that the blob must be checked.
    pub(crate) fn asks(&self, client: IpAddr, digest: &Digest, blob_bytes: u64, now: Instant) -> bool {
        let again = self
            .lock()
            .had
            .get(&(client, *digest))
            .is_some_and(|had| had.bytes >= blob_bytes && is_soon(had.at, now));
        if again {
            self.suspect(digest, now);
        }
        again
    }

    /// A client has got so many bytes of a blob.
    pub(crate) fn has(&self, client: IpAddr, digest: &Digest, bytes: u64, now: Instant) {
        let mut table = self.lock();
        let before = table.had.get(&(client, *digest)).filter(|had| is_soon(had.at, now));
        let bytes = before.map_or(0, |had| had.bytes).saturating_add(bytes);
        table.had.put((client, *digest), Had { bytes, at: now });
    }

    /// Marks a complete blob as suspect. It is verified once in [`AGAIN_WITHIN`], however often it is marked.
    pub(crate) fn suspect(&self, digest: &Digest, now: Instant) {
        let mut table = self.lock();
        if table.suspected.get(digest).is_some_and(|&at| is_soon(at, now)) {
            return;
        }
        // When there are too many of them, most suspicions are wrong.
        if self.suspects.try_send(*digest).is_ok() {
            table.suspected.put(*digest, now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }
}

fn is_soon(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < AGAIN_WITHIN
}

/// Scrubs until `stop`, at the limiter's pace; suspects come first, and soon. A limiter without a rate scrubs nothing but
/// those.
pub(crate) async fn scrub(store: Store, limiter: Limiter, mut suspects: Suspects, stop: CancellationToken) {
    let scrubbing = async {
        let mut look_around = tokio::time::interval(LOOK_AROUND);
        look_around.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let hurry = Limiter::new(Some(SUSPECTS_RATE));
        loop {
            let looked = tokio::select! {
                biased;
                Some(suspect) = suspects.recv() => look_at(&store, &suspect, &hurry).await,
                _ = look_around.tick() => look_through(&store, &limiter, &mut suspects, &hurry).await,
            };
            // The error concerns all blobs alike: the next round is a minute away.
            if let Err(error) = looked {
                warn!(%error, "the cache cannot be verified: {error}");
            }
        }
    };
    stop.run_until_cancelled(scrubbing).await;
}

/// Verifies all blobs that are due.
async fn look_through(
    store: &Store,
    limiter: &Limiter,
    suspects: &mut Suspects,
    hurry: &Limiter,
) -> Result<(), StoreError> {
    while limiter.rate().is_some() {
        let digests = store.unverified(VERIFIED_LIFE, BATCH).await?;
        if digests.is_empty() {
            break;
        }
        for digest in digests {
            while let Ok(suspect) = suspects.try_recv() {
                look_at(store, &suspect, hurry).await?;
            }
            look_at(store, &digest, limiter).await?;
        }
    }
    Ok(())
}

async fn look_at(store: &Store, digest: &Digest, limiter: &Limiter) -> Result<(), StoreError> {
    let pace = async |bytes: u64| limiter.take(usize::try_from(bytes).unwrap_or(usize::MAX)).await;
    if store.verify(digest, pace).await? == Verified::Damaged {
        info!(blob.digest = %digest, "{digest} was damaged on disk; it is fetched again when it is asked for");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENTS: [[u8; 4]; 2] = [[10, 0, 0, 1], [10, 0, 0, 2]];

    const BYTES: u64 = 100;

    #[test]
    fn a_client_that_asks_again_soon_for_what_it_got_has_it_looked_at_and_makes_it_suspect_once() {
        let (suspicions, mut suspects) = Suspicions::new();
        let (now, digest) = (Instant::now(), Digest::of(b"blob"));
        let [one, other] = CLIENTS.map(IpAddr::from);
        assert!(!suspicions.asks(one, &digest, BYTES, now), "it has not got it yet");
        suspicions.has(one, &digest, BYTES, now);
        assert!(!suspicions.asks(other, &digest, BYTES, now));
        assert!(!suspicions.asks(one, &Digest::of(b"other"), BYTES, now));
        assert!(suspects.try_recv().is_err());
        for seconds in [5, 6, 7] {
            assert!(suspicions.asks(one, &digest, BYTES, now + Duration::from_secs(seconds)));
        }
        assert_eq!(suspects.try_recv(), Ok(digest));
        assert!(suspects.try_recv().is_err(), "it is being looked at");
        suspicions.has(other, &digest, BYTES, now);
        let later = now + AGAIN_WITHIN;
        assert!(
            !suspicions.asks(other, &digest, BYTES, later),
            "that may be another rollout"
        );
    }

    #[test]
    fn a_client_that_takes_a_blob_in_parts_has_had_it_after_the_last() {
        let (suspicions, _suspects) = Suspicions::new();
        let (now, digest) = (Instant::now(), Digest::of(b"blob"));
        let client = IpAddr::from(CLIENTS[0]);
        for bytes in [60, 39] {
            suspicions.has(client, &digest, bytes, now);
            assert!(!suspicions.asks(client, &digest, BYTES, now));
        }
        suspicions.has(client, &digest, 1, now);
        assert!(suspicions.asks(client, &digest, BYTES, now));
        suspicions.has(client, &digest, 1, now + AGAIN_WITHIN);
        let later = now + AGAIN_WITHIN;
        assert!(!suspicions.asks(client, &digest, BYTES, later), "the rest was long ago");
    }

    #[test]
    fn one_too_many_takes_the_place_of_the_oldest_alone() {
        let (suspicions, mut suspects) = Suspicions::new();
        let (now, client) = (Instant::now(), IpAddr::from(CLIENTS[0]));
        let digest = |number: usize| Digest::of(&number.to_le_bytes());
        let count = REMEMBERED_MAX.get();
        for number in 0..=count {
            suspicions.has(client, &digest(number), BYTES, now);
        }
        assert!(!suspicions.asks(client, &digest(0), BYTES, now));
        assert!((1..=count).all(|number| suspicions.asks(client, &digest(number), BYTES, now)));
        let waiting = std::iter::from_fn(|| suspects.try_recv().ok()).count();
        assert_eq!(waiting, SUSPECTS_MAX);
    }
}
