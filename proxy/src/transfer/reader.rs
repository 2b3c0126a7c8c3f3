//! Reader of a transfer: a client that is connected and waits for the blob, or reads it.
//!
//! A transfer is attended for as long as one of its readers lives.

use std::{ops::Deref, sync::Arc, time::Instant};

use super::one::Transfer;

/// A transfer, held for a client.
pub struct Reader(Arc<Transfer>);

impl Reader {
    pub(super) fn new(transfer: Arc<Transfer>) -> Self {
        transfer.attendance().begin();
        Self(transfer)
    }

    pub(super) fn transfer(&self) -> &Arc<Transfer> {
        &self.0
    }
}

impl Clone for Reader {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.0))
    }
}

impl Deref for Reader {
    type Target = Transfer;

    fn deref(&self) -> &Transfer {
        &self.0
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.attendance().end(Instant::now());
    }
}
