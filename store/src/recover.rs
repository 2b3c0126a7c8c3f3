//! Bringing disk and rows together when a store is opened.
//!
//! Afterwards every row has its file, of the right length if the blob is complete, and every file has its row: what the disk
//! holds is what the rows add up to. A complete blob's bytes are not hashed again: its row was written after its file was
//! synced. A partial's are, when it is resumed; a crash while it was published leaves its file under the blob's name, and it is
//! taken back, so that no more than the last moment is lost of a long download.

use std::{collections::HashSet, io, path::Path};

use piecemeal_proto::{Algorithm, Digest};
use tracing::info;

use crate::{
    OpenStoreError,
    clock::Stamp,
    files::{Files, remove_if_there},
    index::{Durability, Index, ListedRow, blobs, partials},
    layout::Layout,
    quota::{Kind, Ledger},
};

/// Drops rows without files, removes files without rows, and returns the catalogue of what is left.
pub(crate) fn recover(
    layout: &Layout,
    files: &dyn Files,
    index: &Index,
    stamp: Stamp,
) -> Result<Ledger, OpenStoreError> {
    let index_error = |source| OpenStoreError::Index {
        path: layout.index(),
        source,
    };
    let io_error = |source| OpenStoreError::Io {
        path: layout.dir().to_owned(),
        source,
    };
    make_dirs(layout, files).map_err(io_error)?;
    let mut recovery = Recovery {
        layout,
        files,
        ledger: Ledger::default(),
        stale_blobs: Vec::new(),
        stale_partials: Vec::new(),
    };
    recovery
        .check_blobs(index.blobs().map_err(index_error)?)
        .map_err(io_error)?;
    recovery
        .check_partials(index.partials().map_err(index_error)?)
        .map_err(io_error)?;
    let removed = recovery.remove_strays().map_err(io_error)?;
    let Recovery {
        ledger,
        stale_blobs,
        stale_partials,
        ..
    } = recovery;
    index
        .write(Durability::Batched, stamp, |transaction| {
            for digest in &stale_blobs {
                blobs::delete(transaction, digest)?;
            }
            for digest in &stale_partials {
                partials::delete(transaction, digest)?;
            }
            Ok(())
        })
        .map_err(index_error)?;
    info!(
        blobs = ledger.blobs().count,
        blob_bytes = ledger.blobs().bytes,
        partials = ledger.partials().count,
        rows.dropped = stale_blobs.len() + stale_partials.len(),
        files.removed = removed,
        "opened the store in {}",
        layout.dir().display()
    );
    Ok(ledger)
}

struct Recovery<'a> {
    layout: &'a Layout,
    files: &'a dyn Files,
    ledger: Ledger,
    /// Rows to delete. As text, for those that are no digest.
    stale_blobs: Vec<String>,
    stale_partials: Vec<String>,
}

impl Recovery<'_> {
    fn check_blobs(&mut self, rows: Vec<ListedRow>) -> io::Result<()> {
        for row in rows {
            match row {
                Ok((digest, blob_bytes, used)) if self.len(&self.layout.blob(&digest))? == Some(blob_bytes) => {
                    self.ledger.insert(digest, Kind::Blob, blob_bytes, used);
                }
                Ok((digest, ..)) => self.stale_blobs.push(digest.to_string()),
                Err(text) => self.stale_blobs.push(text),
            }
        }
        Ok(())
    }

    fn check_partials(&mut self, rows: Vec<ListedRow>) -> io::Result<()> {
        for row in rows {
            match row {
                Ok((digest, blob_bytes, used))
                    if self.ledger.get(&digest).is_none() && self.has_partial(&digest)? =>
                {
                    self.ledger.insert(digest, Kind::Partial, blob_bytes, used);
                }
                Ok((digest, ..)) => self.stale_partials.push(digest.to_string()),
                Err(text) => self.stale_partials.push(text),
            }
        }
        Ok(())
    }

    /// Whether there is a file for the partial, which is no complete blob; under its own name from here on.
    fn has_partial(&self, digest: &Digest) -> io::Result<bool> {
        let path = self.layout.partial(digest);
        if self.len(&path)?.is_some() {
            return Ok(true);
        }
        match self.files.rename(&self.layout.blob(digest), &path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The length of a file, `None` when there is none.
    fn len(&self, path: &Path) -> io::Result<Option<u64>> {
        match self.files.len(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes every file that has no entry by now; returns how many.
    fn remove_strays(&self) -> io::Result<u64> {
        let kept: HashSet<_> = [
            (Kind::Blob, Layout::blob as fn(&Layout, &Digest) -> _),
            (Kind::Partial, Layout::partial),
        ]
        .into_iter()
        .flat_map(|(kind, path)| {
            let digests = self.ledger.digests(kind);
            digests.into_iter().map(move |digest| path(self.layout, &digest))
        })
        .collect();
        let mut dirs = vec![self.layout.partials()];
        for algorithm in ALGORITHMS {
            let dir = self.layout.algorithm(algorithm);
            let entries = self.files.list(&dir)?;
            let below = entries.into_iter().filter(|entry| entry.is_dir);
            dirs.extend(below.map(|entry| dir.join(entry.name)));
            dirs.push(dir);
        }
        let mut removed = 0;
        for dir in dirs {
            for entry in self.files.list(&dir)? {
                let path = dir.join(entry.name);
                if !entry.is_dir && !kept.contains(&path) {
                    remove_if_there(self.files, &path)?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

fn make_dirs(layout: &Layout, files: &dyn Files) -> io::Result<()> {
    files.create_dir(&layout.blobs())?;
    for algorithm in ALGORITHMS {
        files.create_dir(&layout.algorithm(algorithm))?;
    }
    files.create_dir(&layout.partials())?;
    // Also when they are there: whoever made them may have crashed before this.
    files.sync_dir(&layout.blobs())?;
    files.sync_dir(layout.dir())
}
