//! Recovery: reconciles disk and rows when a store is opened.
//!
//! Afterwards every row has its file, of the right length if the blob is complete, and every file has its row: what the disk
//! holds is what the rows add up to. A complete blob's bytes are not hashed again: its row was written after its file was
//! synced. A partial's are, when it is resumed; a crash while it was published leaves its file under the blob's name, and
//! recovery renames it back, so that a long download loses no more than its last moment.

use std::{collections::HashMap, ffi::OsString, io, path::PathBuf};

use piecemeal_proto::{Digest, PieceMap};
use rusqlite::Transaction;
use tracing::info;

use super::error::OpenStoreError;
use crate::{
    blobs::{entry::EntryKind, ledger::Ledger},
    disk::{
        files::{Files, remove_if_there},
        layout::{ALGORITHMS, Layout, make_folders},
    },
    index::{Durability, Index, ListedRow, blobs, partials},
};

/// Drops rows without files, removes files without rows, and returns the ledger of what is left. A new index gets a row for each blob
/// that is here: the file itself has to show that it is the blob, when it is next asked for (`blobs/begin.rs`).
pub(crate) fn recover(layout: &Layout, files: &dyn Files, index: &Index) -> Result<Ledger, OpenStoreError> {
    let index_error = |source| OpenStoreError::Index {
        path: layout.index(),
        source,
    };
    let io_error = |source| OpenStoreError::Io {
        path: layout.dir().to_owned(),
        source,
    };
    make_folders(layout, files).map_err(io_error)?;
    let mut recovery = Recovery {
        layout,
        files,
        found: find(layout, files).map_err(io_error)?,
        ledger: Ledger::default(),
        stale_blobs: Vec::new(),
        stale_partials: Vec::new(),
    };
    if index.is_new {
        let found = recovery.found_blobs();
        let used = index.now();
        index
            .write(Durability::Synced, |transaction| {
                for (digest, map) in &found {
                    partials::insert_unproven(transaction, digest, *map, used)?;
                }
                Ok(())
            })
            .map_err(index_error)?;
    }
    recovery.check_blobs(index.blobs().map_err(index_error)?);
    recovery
        .check_partials(index.partials().map_err(index_error)?)
        .map_err(io_error)?;
    let removed = recovery.remove_strays().map_err(io_error)?;
    index
        .write(Durability::Batched, |transaction| recovery.delete_stale(transaction))
        .map_err(index_error)?;
    recovery.tell(removed);
    Ok(recovery.ledger)
}

struct Recovery<'a> {
    layout: &'a Layout,
    files: &'a dyn Files,
    /// The files that no row has claimed yet, and their lengths. By texts, which hash faster than paths.
    found: HashMap<OsString, u64>,
    ledger: Ledger,
    /// Rows to delete. As text, for those that are no digest.
    stale_blobs: Vec<String>,
    stale_partials: Vec<String>,
}

impl Recovery<'_> {
    /// Files under a blob's name, and how such a blob is cut.
    fn found_blobs(&self) -> Vec<(Digest, PieceMap)> {
        let found = self.found.iter().filter_map(|(path, bytes)| {
            let digest = self.layout.digest_of_blob(path.as_ref())?;
            Some((digest, PieceMap::for_blob(*bytes).ok()?))
        });
        found.collect()
    }

    fn check_blobs(&mut self, rows: Vec<ListedRow>) {
        for row in rows {
            match row {
                Ok((digest, blob_bytes, used))
                    if self.claim(self.layout.blob(&digest), |bytes| bytes == blob_bytes) =>
                {
                    self.ledger.insert(digest, EntryKind::Blob, blob_bytes, used);
                }
                Ok((digest, ..)) => self.stale_blobs.push(digest.to_string()),
                Err(text) => self.stale_blobs.push(text),
            }
        }
    }

    fn check_partials(&mut self, rows: Vec<ListedRow>) -> io::Result<()> {
        for row in rows {
            match row {
                Ok((digest, blob_bytes, used))
                    if self.ledger.get(&digest).is_none() && self.claim_partial(&digest)? =>
                {
                    self.ledger.insert(digest, EntryKind::Partial, blob_bytes, used);
                }
                Ok((digest, ..)) => self.stale_partials.push(digest.to_string()),
                Err(text) => self.stale_partials.push(text),
            }
        }
        Ok(())
    }

    /// Whether there is a file for the partial, which is no complete blob; under its own name from here on.
    fn claim_partial(&mut self, digest: &Digest) -> io::Result<bool> {
        let (partial, blob) = (self.layout.partial(digest), self.layout.blob(digest));
        if self.claim(partial.clone(), |_| true) {
            return Ok(true);
        }
        let is_found = self.claim(blob.clone(), |_| true);
        if is_found {
            self.files.rename(&blob, &partial)?;
        }
        Ok(is_found)
    }

    /// Whether there is such a file; it is no stray then.
    fn claim(&mut self, path: PathBuf, suits: impl FnOnce(u64) -> bool) -> bool {
        let path = path.into_os_string();
        let is_ours = self.found.get(&path).is_some_and(|bytes| suits(*bytes));
        if is_ours {
            self.found.remove(&path);
        }
        is_ours
    }

    /// Removes every file that no row has claimed; returns how many.
    fn remove_strays(&self) -> io::Result<usize> {
        let mut strays: Vec<_> = self.found.keys().collect();
        // The same disk takes the same steps each time.
        strays.sort_unstable();
        for path in &strays {
            remove_if_there(self.files, path.as_ref())?;
        }
        Ok(strays.len())
    }

    fn delete_stale(&self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        for digest in &self.stale_blobs {
            blobs::delete(transaction, digest)?;
        }
        for digest in &self.stale_partials {
            partials::delete(transaction, digest)?;
        }
        Ok(())
    }

    fn tell(&self, files_removed: usize) {
        let (blobs, partials) = (self.ledger.blobs(), self.ledger.partials());
        info!(
            blobs = blobs.count,
            blob_bytes = blobs.bytes,
            partials = partials.count,
            rows.dropped = self.stale_blobs.len() + self.stale_partials.len(),
            files.removed = files_removed,
            "opened the store in {}",
            self.layout.dir().display()
        );
    }
}

/// Every file that may be a blob's or a partial's.
fn find(layout: &Layout, files: &dyn Files) -> io::Result<HashMap<OsString, u64>> {
    let mut found = HashMap::new();
    let folders = ALGORITHMS.map(|algorithm| layout.algorithm(algorithm));
    for folder in folders.into_iter().chain([layout.partials()]) {
        let list = files.list(&folder)?;
        found.extend(list.into_iter().map(|file| (file.path.into_os_string(), file.bytes)));
    }
    Ok(found)
}
