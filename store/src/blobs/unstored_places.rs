//! Places of fills whose blob is not kept.
//!
//! They are few, since each takes memory.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most unstored fills at a time.
const UNSTORED_MAX: usize = 4;
/// The most fills at a time that have become unstored since they began: their disk took no more.
const OVERFLOWED_MAX: usize = 4;
/// The most fills apart at a time, those included that have ended and are still read.
const APART_MAX: usize = 8;

/// The places of fills whose blob is not kept.
pub(crate) struct Places {
    unstored: Arc<Semaphore>,
    overflowed: Arc<Semaphore>,
    apart: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            unstored: Arc::new(Semaphore::new(UNSTORED_MAX)),
            overflowed: Arc::new(Semaphore::new(OVERFLOWED_MAX)),
            apart: Arc::new(Semaphore::new(APART_MAX)),
        }
    }
}

impl Places {
    /// Waits for a place of an unstored fill. Cancel safe.
    pub(crate) async fn unstored(&self) -> OwnedSemaphorePermit {
        acquire(&self.unstored).await
    }

    /// Waits for a place of a fill whose disk takes no more. Cancel safe.
    pub(crate) async fn overflowed(&self) -> OwnedSemaphorePermit {
        acquire(&self.overflowed).await
    }

    /// Waits for a place of a fill apart. Cancel safe.
    pub(crate) async fn apart(&self) -> OwnedSemaphorePermit {
        acquire(&self.apart).await
    }
}

async fn acquire(places: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    let place = Arc::clone(places).acquire_owned().await;
    place.expect("the semaphore is never closed")
}
