//! Looking through the store for what the disk has spoilt, slowly; and at once at what a reader gives reason to suspect.
//!
//! Blobs are hashed when they come, not when they go: a client that got a flipped byte finds out by itself, and asks again. So
//! who asks again for a whole blob that it has just had makes it suspect.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Mutex,
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
/// The most readers that are remembered.
const READERS_MAX: usize = 4096;

/// Who has had which blob of late.
pub struct Suspicions {
    suspects: mpsc::Sender<Digest>,
    had: Mutex<HashMap<(IpAddr, Digest), Instant>>,
}

/// The suspects, as the scrubber takes them.
pub type Suspects = mpsc::Receiver<Digest>;

impl Suspicions {
    pub fn new() -> (Self, Suspects) {
        let (suspects, received) = mpsc::channel(SUSPECTS_MAX);
        let had = Mutex::default();
        (Self { suspects, had }, received)
    }

    /// A client asks for the whole of a blob that is complete here.
    pub fn asks(&self, client: IpAddr, digest: &Digest, now: Instant) {
        if self.asks_again(client, digest, now) {
            // When there are too many of them, most suspicions are wrong.
            let _ = self.suspects.try_send(*digest);
        }
    }

    fn asks_again(&self, client: IpAddr, digest: &Digest, now: Instant) -> bool {
        let mut had = self.had.lock().expect("no holder of this lock panics");
        if had.len() >= READERS_MAX {
            had.retain(|_, at| now.saturating_duration_since(*at) < AGAIN_WITHIN);
        }
        if had.len() >= READERS_MAX {
            had.clear();
        }
        let before = had.insert((client, *digest), now);
        before.is_some_and(|at| now.saturating_duration_since(at) < AGAIN_WITHIN)
    }
}

/// Scrubs until `stop`, at the limiter's pace; suspects come first, and at once. A limiter without a rate scrubs nothing but
/// those.
pub async fn scrub(store: Store, limiter: Limiter, mut suspects: Suspects, stop: CancellationToken) {
    let scrubbing = async {
        let mut look_around = tokio::time::interval(LOOK_AROUND);
        look_around.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                Some(suspect) = suspects.recv() => look_at(&store, &suspect, None).await,
                _ = look_around.tick() => look_through(&store, &limiter, &mut suspects).await,
            }
        }
    };
    stop.run_until_cancelled(scrubbing).await;
}

/// Everything whose time has come.
async fn look_through(store: &Store, limiter: &Limiter, suspects: &mut Suspects) {
    while limiter.rate().is_some() {
        let digests = match store.unverified(VERIFIED_LIFE, BATCH).await {
            Ok(digests) => digests,
            Err(error) => return warn!(%error, "the cache cannot be looked through: {error}"),
        };
        if digests.is_empty() {
            return;
        }
        for digest in digests {
            while let Ok(suspect) = suspects.try_recv() {
                look_at(store, &suspect, None).await;
            }
            look_at(store, &digest, Some(limiter)).await;
        }
    }
}

async fn look_at(store: &Store, digest: &Digest, limiter: Option<&Limiter>) {
    let pace = async |bytes: u64| {
        if let Some(limiter) = limiter {
            limiter.take(usize::try_from(bytes).unwrap_or(usize::MAX)).await;
        }
    };
    let verified: Result<Verified, StoreError> = store.verify(digest, pace).await;
    match verified {
        Ok(Verified::Damaged) => {
            info!(blob.digest = %digest, "{digest} was damaged on disk; it is fetched again when it is asked for");
        }
        Ok(Verified::Good | Verified::Gone) => {}
        Err(error) => warn!(blob.digest = %digest, %error, "{digest} cannot be looked at: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_again_soon_makes_a_blob_suspect() {
        let (suspicions, mut suspects) = Suspicions::new();
        let (now, digest) = (Instant::now(), Digest::of(b"blob"));
        let clients: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        suspicions.asks(clients[0], &digest, now);
        suspicions.asks(clients[1], &digest, now);
        suspicions.asks(clients[0], &Digest::of(b"other"), now);
        assert!(suspects.try_recv().is_err());
        suspicions.asks(clients[1], &digest, now + Duration::from_secs(5));
        assert_eq!(suspects.try_recv(), Ok(digest));
        suspicions.asks(clients[0], &digest, now + AGAIN_WITHIN);
        assert!(suspects.try_recv().is_err());
    }

    #[test]
    fn readers_and_suspects_are_bounded() {
        let (suspicions, mut suspects) = Suspicions::new();
        let now = Instant::now();
        for round in 0..2 {
            for number in 0..3000_u32 {
                suspicions.asks(
                    [10, 0, 0, 1].into(),
                    &Digest::of(&number.to_le_bytes()),
                    now + Duration::from_secs(round),
                );
            }
        }
        assert!(suspicions.had.lock().unwrap().len() <= READERS_MAX);
        let waiting = std::iter::from_fn(|| suspects.try_recv().ok()).count();
        assert_eq!(waiting, SUSPECTS_MAX);
    }
}
