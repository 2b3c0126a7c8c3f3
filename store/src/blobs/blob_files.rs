//! Files of blobs and partials, by digest.
//!
//! A blob's file is under its final name only after it was synced. Knows neither rows nor the ledger.

use std::{collections::HashSet, io, path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use piecemeal_proto::{Digest, PieceMap};

use crate::disk::{
    files::{Files, OpenFile, open_if_there, remove_if_there},
    layout::Layout,
};

/// The files of a store's blobs.
pub(crate) struct BlobFiles {
    layout: Layout,
    files: Arc<dyn Files>,
    /// Folders of blobs that are durable: 512 at the most.
    durable_dirs: Mutex<HashSet<PathBuf>>,
}

impl BlobFiles {
    pub(crate) fn new(layout: Layout, files: Arc<dyn Files>) -> Self {
        Self {
            layout,
            files,
            durable_dirs: Mutex::default(),
        }
    }

    /// Bytes that may still be written to the disk.
    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        self.files.free_bytes(self.layout.dir())
    }

    /// `None` when there is no such file.
    pub(crate) fn open_blob(&self, digest: &Digest) -> io::Result<Option<Arc<dyn OpenFile>>> {
        open_if_there(self.files.as_ref(), &self.layout.blob(digest))
    }

    /// As long as the blob. `None` when there is no such file.
    pub(crate) fn open_partial(&self, digest: &Digest, map: PieceMap) -> io::Result<Option<Arc<dyn OpenFile>>> {
        let file = open_if_there(self.files.as_ref(), &self.layout.partial(digest))?;
        if let Some(file) = &file
            && file.len()? != map.blob_bytes()
        {
            file.set_len(map.blob_bytes())?;
        }
        Ok(file)
    }

    /// As long as the blob, and empty.
    pub(crate) fn create_partial(&self, digest: &Digest, map: PieceMap) -> io::Result<Arc<dyn OpenFile>> {
        let file = self.files.create(&self.layout.partial(digest))?;
        file.set_len(map.blob_bytes())?;
        Ok(file)
    }

    /// Makes a blob's file of a partial's, durably. The content must be synced.
    pub(crate) fn publish(&self, digest: &Digest) -> io::Result<()> {
        let dir = self.layout.blob_dir(digest);
        self.make_blob_dir(digest, &dir)?;
        self.files
            .rename(&self.layout.partial(digest), &self.layout.blob(digest))?;
        self.files.sync_dir(&dir)
    }

    /// Makes the folder durable once in each run: an existing folder may still be lost in a power cut.
    fn make_blob_dir(&self, digest: &Digest, dir: &PathBuf) -> io::Result<()> {
        if self.durable_dirs.lock().contains(dir) {
            return Ok(());
        }
        self.files.create_dir(dir)?;
        self.files.sync_dir(&self.layout.algorithm(digest.algorithm()))?;
        self.durable_dirs.lock().insert(dir.clone());
        Ok(())
    }

    /// Makes a partial's file of a blob's.
    pub(crate) fn demote(&self, digest: &Digest) -> io::Result<()> {
        self.files
            .rename(&self.layout.blob(digest), &self.layout.partial(digest))
    }

    pub(crate) fn remove_blob(&self, digest: &Digest) -> io::Result<()> {
        remove_if_there(self.files.as_ref(), &self.layout.blob(digest))
    }

    pub(crate) fn remove_partial(&self, digest: &Digest) -> io::Result<()> {
        remove_if_there(self.files.as_ref(), &self.layout.partial(digest))
    }
}
