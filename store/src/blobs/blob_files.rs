//! Files of blobs and partials, by digest.
//!
//! A blob's file is under its final name only after it was synced. Knows neither rows nor the ledger.

use std::{
    collections::HashSet,
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use piecemeal_proto::{Digest, PieceMap};
use tracing::{info, warn};

use crate::disk::{
    files::{Files, OpenFile, open_if_there, remove_if_there, write_all_at},
    layout::{Layout, make_folders},
};

/// Bytes that are written to find out whether the disk takes any: more than a file system keeps beside its names.
const PROBE_BYTES: usize = 16 * 1024;

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

    /// Removes an index that was set aside, if there is one: content needs its room. The index is not on the disk of the other files, as
    /// tests have it.
    pub(crate) fn drop_spoilt_index(&self) {
        for path in self.layout.spoilt_index() {
            match std::fs::remove_file(&path) {
                Ok(()) => info!("removed {} to make room", path.display()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => warn!(%error, "{} cannot be removed: {error}", path.display()),
            }
        }
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
        let path = self.layout.partial(digest);
        let file = self.with_folders(|| self.files.create(&path))?;
        file.set_len(map.blob_bytes())?;
        Ok(file)
    }

    /// Whether the disk takes bytes: some are written, synced and removed.
    pub(crate) fn takes_bytes(&self) -> bool {
        let path = self.layout.probe();
        let written = self.with_folders(|| self.files.create(&path)).and_then(|file| {
            write_all_at(file.as_ref(), &[1; PROBE_BYTES], 0)?;
            file.sync()
        });
        remove_if_there(self.files.as_ref(), &path).is_ok() && written.is_ok()
    }

    /// Does it again with the store's folders, should they have been removed under a running daemon.
    fn with_folders<T>(&self, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match work() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                warn!(
                    "the folders in {} are gone; they are made again",
                    self.layout.dir().display()
                );
                self.durable_dirs.lock().clear();
                make_folder(self.layout.dir())?;
                make_folders(&self.layout, self.files.as_ref())?;
                work()
            }
            done => done,
        }
    }

    /// Makes a blob's file of a partial's, durably. The content must be synced.
    pub(crate) fn publish(&self, digest: &Digest) -> io::Result<()> {
        let dir = self.layout.blob_dir(digest);
        self.with_folders(|| self.make_blob_dir(digest, &dir))?;
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

/// Makes the store's own folder, for its user alone, where there is none.
fn make_folder(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
