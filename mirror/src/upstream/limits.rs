//! What one upstream may make us hold at a time.
//!
//! Each has limits of its own, so that one that is slow, or means harm, costs the others nothing. A wait for room ends.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::PullError;

/// Fills that run. Each holds a piece or more.
const FILLS_MAX: usize = 256;
const FILL_WAIT: Duration = Duration::from_secs(600);
/// Blobs whose size nobody tells, each held as a whole.
const UNSIZED_MAX: usize = 2;
const UNSIZED_WAIT: Duration = Duration::from_secs(60);
/// Manifests and pages of lists beyond [`SMALL_BODY_BYTES`], each held as a whole.
const LARGE_BODIES_MAX: usize = 16;
/// Hardly any manifest is larger.
pub(super) const SMALL_BODY_BYTES: usize = 64 * 1024;
/// Whoever asks for one waits no longer either.
const LARGE_BODY_WAIT: Duration = crate::MANIFEST_TIMEOUT;

/// The room that there is. Clones share it.
#[derive(Clone)]
pub(crate) struct Limits {
    fills: Arc<Semaphore>,
    unsized_blobs: Arc<Semaphore>,
    large_bodies: Arc<Semaphore>,
}

/// A share of the room, until it is dropped.
pub(crate) struct Room {
    _permit: OwnedSemaphorePermit,
}

impl Default for Limits {
    fn default() -> Self {
        let room = |count| Arc::new(Semaphore::new(count));
        Self {
            fills: room(FILLS_MAX),
            unsized_blobs: room(UNSIZED_MAX),
            large_bodies: room(LARGE_BODIES_MAX),
        }
    }
}

impl Limits {
    /// # Errors
    /// [`PullError::Unavailable`], as of all of these: there was no room in time.
    pub(crate) async fn fill(&self) -> Result<Room, PullError> {
        room(&self.fills, FILL_WAIT, "downloads").await
    }

    pub(crate) async fn unsized_blob(&self) -> Result<Room, PullError> {
        room(&self.unsized_blobs, UNSIZED_WAIT, "downloads of unknown size").await
    }

    pub(crate) async fn large_body(&self) -> Result<Room, PullError> {
        room(&self.large_bodies, LARGE_BODY_WAIT, "large manifests").await
    }
}

async fn room(semaphore: &Arc<Semaphore>, wait: Duration, what: &str) -> Result<Room, PullError> {
    match tokio::time::timeout(wait, Arc::clone(semaphore).acquire_owned()).await {
        Ok(Ok(permit)) => Ok(Room { _permit: permit }),
        _ => Err(PullError::Unavailable(format!("too many {what} at a time; try again"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_finds_no_room_hears_of_it_and_the_next_gets_what_is_given_back() {
        let semaphore = Arc::new(Semaphore::new(1));
        let enter = || room(&semaphore, Duration::ZERO, "guests");
        let held = enter().await;
        assert!(held.is_ok());
        assert!(matches!(enter().await, Err(PullError::Unavailable(_))));
        drop(held);
        assert!(enter().await.is_ok());
    }
}
