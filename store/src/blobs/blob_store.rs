//! Store of blobs: its parts, and how a complete blob is opened.
//!
//! The operations that change it are beside it: begin, unstored, publish and damage. Each holds the digest's lock.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    blob_files::BlobFiles,
    digest_lock::DigestLocks,
    evictor::{Evictor, Limits},
    fills::live_fills::LiveFills,
    good_pieces::GoodPieces,
    inventory::{Inventory, Pin},
    ledger::Ledger,
    random::Random,
    unstored_places::Places,
};
use crate::{
    disk::files::OpenFile,
    index::{BlobRow, Index},
    values::error::StoreError,
};

/// All blobs of a store.
pub(crate) struct BlobStore {
    pub(crate) index: Arc<Index>,
    pub(crate) files: Arc<BlobFiles>,
    pub(crate) inventory: Arc<Inventory>,
    pub(crate) live: Arc<LiveFills>,
    pub(crate) locks: DigestLocks,
    pub(crate) evictor: Evictor,
    /// The places of fills whose blob is not kept.
    pub(crate) places: Places,
    pub(crate) good: GoodPieces,
    pub(crate) random: Random,
    /// Why blobs cannot be kept now: the last one found no room, or the disk failed.
    pub(crate) trouble: Mutex<Option<String>>,
}

/// A complete blob: its row, its open file, and what keeps it here.
pub(crate) struct OpenBlob {
    pub(crate) row: BlobRow,
    pub(crate) file: Arc<dyn OpenFile>,
    pub(crate) pin: Pin,
}

impl BlobStore {
    pub(crate) fn new(index: Arc<Index>, files: BlobFiles, ledger: Ledger, limits: Limits, random: Random) -> Self {
        let files = Arc::new(files);
        let inventory = Arc::new(Inventory::new(ledger, index.clock().clone()));
        let (live, locks) = (Arc::new(LiveFills::default()), DigestLocks::default());
        let evictor = Evictor::new(
            Arc::clone(&index),
            Arc::clone(&files),
            Arc::clone(&inventory),
            Arc::clone(&live),
            locks.clone(),
            limits,
        );
        Self {
            index,
            files,
            inventory,
            live,
            locks,
            evictor,
            places: Places::default(),
            good: GoodPieces::default(),
            random,
            trouble: Mutex::default(),
        }
    }

    /// The disk has not taken what was written to it.
    pub(crate) fn note_trouble(&self, error: &dyn std::error::Error) {
        let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        *self.trouble.lock() = Some(format!(
            "the disk does not take what is written ({why}); pulled blobs pass through and are not kept"
        ));
    }

    /// `None` when the row or the file is not what it should be.
    pub(crate) fn open_blob(&self, pin: Pin) -> Result<Option<OpenBlob>, StoreError> {
        let Some(row) = self.index.blob(pin.digest())? else {
            return Ok(None);
        };
        let Some(file) = self.files.open_blob(pin.digest())? else {
            return Ok(None);
        };
        if file.len()? != row.map.blob_bytes() {
            return Ok(None);
        }
        Ok(Some(OpenBlob { row, file, pin }))
    }
}
