//! Looking through the store for what the disk has spoilt, slowly; and at once at what a reader gives reason to suspect.
//!
//! Blobs are hashed when they come, not when they go: a client that got a flipped byte finds out by itself, and asks again. So
//! who asks again for a blob that it has just had makes it suspect, and so does a body that the disk cut off.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use piecemeal_proto::Digest;
use piecemeal_store::{Store, StoreError, Verified};
use piecemeal_swarm::Limiter;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long a blob is left alone that was found to be good.
const VERIFIED_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked for blobs whose time has come.
const LOOK_AROUND: Duration = Duration::from_secs(60);
/// How many are taken at once.
const BATCH: u32 = 64;
/// The most suspects that wait.
const SUSPECTS_MAX: usize = 64;
/// So soon nobody asks again for what it has got and kept.
const AGAIN_WITHIN: Duration = Duration::from_secs(600);
/// The most of each kind that is remembered.
const REMEMBERED_MAX: usize = 4096;
/// How fast suspects are looked at, in bytes a second: soon, and nobody can keep a processor busy by asking for things.
const SUSPECTS_RATE: u64 = 100_000_000;

/// Who has had which blob of late, and which blobs are suspect.
#[derive(Clone)]
pub struct Suspicions {
    suspects: mpsc::Sender<Digest>,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    /// The whole of it.
    had: HashMap<(IpAddr, Digest), Instant>,
    /// When it was made suspect last.
    suspected: HashMap<Digest, Instant>,
}

/// The suspects, as the scrubber takes them.
pub type Suspects = mpsc::Receiver<Digest>;

impl Suspicions {
    pub fn new() -> (Self, Suspects) {
        let (suspects, received) = mpsc::channel(SUSPECTS_MAX);
        let table = Arc::default();
        (Self { suspects, table }, received)
    }

    /// A client asks for a blob that is complete here, from its beginning on.
    pub(crate) fn asks(&self, client: IpAddr, digest: &Digest, now: Instant) {
        let again = self
            .lock()
            .had
            .get(&(client, *digest))
            .is_some_and(|&at| is_soon(at, now));
        if again {
            self.suspect(digest, now);
        }
    }

    /// A client has got the whole of a blob.
    pub(crate) fn has(&self, client: IpAddr, digest: &Digest, now: Instant) {
        let mut table = self.lock();
        make_room(&mut table.had, now);
        table.had.insert((client, *digest), now);
    }

    /// Something is wrong with a blob that is complete here. Looked at once in [`AGAIN_WITHIN`], whatever is said of it.
    pub(crate) fn suspect(&self, digest: &Digest, now: Instant) {
        let mut table = self.lock();
        if table.suspected.get(digest).is_some_and(|&at| is_soon(at, now)) {
            return;
        }
        make_room(&mut table.suspected, now);
        // When there are too many of them, most suspicions are wrong.
        if self.suspects.try_send(*digest).is_ok() {
            table.suspected.insert(*digest, now);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of this lock panics")
    }
}

fn is_soon(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < AGAIN_WITHIN
}

fn make_room<K: Eq + Hash>(table: &mut HashMap<K, Instant>, now: Instant) {
    if table.len() >= REMEMBERED_MAX {
        table.retain(|_, at| is_soon(*at, now));
    }
    if table.len() >= REMEMBERED_MAX {
        table.clear();
    }
}

/// Scrubs until `stop`, at the limiter's pace; suspects come first, and soon. A limiter without a rate scrubs nothing but
/// those.
pub async fn scrub(store: Store, limiter: Limiter, mut suspects: Suspects, stop: CancellationToken) {
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
            // Whatever is wrong is wrong for all of them: the next round is a minute away.
            if let Err(error) = looked {
                warn!(%error, "the cache cannot be looked through: {error}");
            }
        }
    };
    stop.run_until_cancelled(scrubbing).await;
}

/// Everything whose time has come.
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

    #[test]
    fn who_asks_again_soon_for_what_it_got_makes_a_blob_suspect_once() {
        let (suspicions, mut suspects) = Suspicions::new();
        let (now, digest) = (Instant::now(), Digest::of(b"blob"));
        let [one, other] = CLIENTS.map(IpAddr::from);
        suspicions.asks(one, &digest, now);
        suspicions.asks(one, &digest, now);
        assert!(suspects.try_recv().is_err(), "it has not got it yet");
        suspicions.has(one, &digest, now);
        suspicions.asks(other, &digest, now);
        suspicions.asks(one, &Digest::of(b"other"), now);
        assert!(suspects.try_recv().is_err());
        for seconds in [5, 6, 7] {
            suspicions.asks(one, &digest, now + Duration::from_secs(seconds));
        }
        assert_eq!(suspects.try_recv(), Ok(digest));
        assert!(suspects.try_recv().is_err(), "it is being looked at");
        suspicions.has(other, &digest, now);
        suspicions.asks(other, &digest, now + AGAIN_WITHIN);
        assert!(suspects.try_recv().is_err(), "that may be another rollout");
    }

    #[test]
    fn what_is_remembered_and_what_waits_is_bounded() {
        let (suspicions, mut suspects) = Suspicions::new();
        let now = Instant::now();
        for number in 0..9000_u32 {
            let digest = Digest::of(&number.to_le_bytes());
            suspicions.has(CLIENTS[0].into(), &digest, now);
            suspicions.suspect(&digest, now);
        }
        let table = suspicions.lock();
        assert!(table.had.len() <= REMEMBERED_MAX && table.suspected.len() <= REMEMBERED_MAX);
        drop(table);
        let waiting = std::iter::from_fn(|| suspects.try_recv().ok()).count();
        assert_eq!(waiting, SUSPECTS_MAX);
    }
}
