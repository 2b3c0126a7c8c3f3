//! Opening a store's folder: checks that it is a store or empty, and that no other process uses it.
//!
//! Nothing is written into a folder before it is known to be a store or empty, and other users cannot read anything in it.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use piecemeal_proto::NodeKey;
use rustix::fs::{FlockOperation, flock};

use super::{error::OpenStoreError, node_key, private::close_to_others};
use crate::{
    disk::layout::{Layout, NEW_NODE_KEY, NODE_KEY},
    index::{Index, OpenIndexError},
    values::clock::Clock,
};

/// Names that may lie in a folder that holds no index: a store's lock and key, and its daemon's socket, after a crash, or when the
/// store was emptied by hand, and the folder that mkfs makes.
const INNOCENT_NAMES: [&str; 5] = ["lock", NODE_KEY, NEW_NODE_KEY, "handover", "lost+found"];

/// A locked folder, with an index that this binary understands.
pub(crate) struct Opened {
    pub(crate) lock: fs::File,
    pub(crate) index: Index,
    pub(crate) node_key: NodeKey,
}

/// Claims the folder.
pub(crate) fn claim(layout: &Layout, clock: Arc<dyn Clock>) -> Result<Opened, OpenStoreError> {
    make_dir(layout.dir())?;
    refuse_foreign(layout)?;
    let lock = take_lock(layout)?;
    close_to_others(layout).map_err(|error| cannot_write(layout.dir().to_owned(), error))?;
    let node_key = node_key::open(layout)?;
    let path = layout.index();
    let index = Index::open(&path, clock).map_err(|error| match error {
        OpenIndexError::Newer { found, known } => OpenStoreError::NewerSchema {
            path: layout.dir().to_owned(),
            found,
            known,
        },
        OpenIndexError::Foreign => OpenStoreError::Foreign {
            path: layout.dir().to_owned(),
            found: "index.db".to_owned(),
        },
        OpenIndexError::Sqlite(source) => OpenStoreError::Index {
            path,
            source: source.into(),
        },
    })?;
    Ok(Opened { lock, index, node_key })
}

fn make_dir(dir: &Path) -> Result<(), OpenStoreError> {
    let path = dir.to_owned();
    match fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(_) => return Err(OpenStoreError::NotAFolder { path }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(cannot_write(path, error)),
    }
    // Blobs may be private: only this user has access.
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| cannot_write(path, error))
}

fn refuse_foreign(layout: &Layout) -> Result<(), OpenStoreError> {
    let path = || layout.dir().to_owned();
    if fs::exists(layout.index()).map_err(|error| cannot_write(path(), error))? {
        return Ok(());
    }
    for entry in fs::read_dir(layout.dir()).map_err(|error| cannot_write(path(), error))? {
        let name = entry.map_err(|error| cannot_write(path(), error))?.file_name();
        if !INNOCENT_NAMES.iter().any(|innocent| name == *innocent) {
            let found = name.to_string_lossy().into_owned();
            return Err(OpenStoreError::Foreign { path: path(), found });
        }
    }
    Ok(())
}

fn take_lock(layout: &Layout) -> Result<fs::File, OpenStoreError> {
    let lock = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(layout.lock())
        .map_err(|error| cannot_write(layout.dir().to_owned(), error))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenStoreError::Locked {
            path: layout.dir().to_owned(),
        }),
        Err(errno) => Err(cannot_write(layout.dir().to_owned(), errno.into())),
    }
}

fn cannot_write(path: PathBuf, source: io::Error) -> OpenStoreError {
    match source.kind() {
        io::ErrorKind::NotADirectory => OpenStoreError::NotAFolder { path },
        _ => OpenStoreError::Unwritable { path, source },
    }
}
