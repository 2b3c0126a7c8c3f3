//! Opening a store's folder: checks that it is a store or empty, and that no other process uses it.
//!
//! Nothing is written into a folder before it is known to be a store or empty, and other users cannot read anything in it. An index that is
//! spoilt or lost is no reason to stop where the node's key shows that the folder is ours: a new one takes its place.

use std::{
    ffi::OsString,
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
    /// Why the index is a new one, although content is here.
    pub(crate) index_lost: Option<String>,
}

/// Claims the folder.
pub(crate) fn claim(layout: &Layout, clock: &Arc<dyn Clock>) -> Result<Opened, OpenStoreError> {
    make_dir(layout.dir())?;
    let has_index = refuse_foreign(layout)?;
    let lock = take_lock(layout)?;
    close_to_others(layout).map_err(|error| cannot_write(layout.dir().to_owned(), error))?;
    let is_ours = fs::exists(layout.node_key()).unwrap_or(false);
    let node_key = node_key::open(layout)?;
    if !has_index {
        // A log without its index says nothing.
        remove(&layout.index_logs()).map_err(|error| cannot_write(layout.dir().to_owned(), error))?;
    }
    let (index, index_lost) = match open_index(layout, clock) {
        Err(OpenStoreError::Index { source, .. }) if is_ours && source.is_spoilt() => {
            let why = innermost(&source);
            (begin_new_index(layout, clock)?, Some(why))
        }
        Ok(index) if index.is_new && fs::exists(layout.blobs()).unwrap_or(false) => {
            (index, Some("it was not there".to_owned()))
        }
        opened => (opened?, None),
    };
    Ok(Opened {
        lock,
        index,
        node_key,
        index_lost,
    })
}

fn open_index(layout: &Layout, clock: &Arc<dyn Clock>) -> Result<Index, OpenStoreError> {
    let path = layout.index();
    Index::open(&path, Arc::clone(clock)).map_err(|error| match error {
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
    })
}

/// Sets a spoilt index aside, for a person to look at, in place of the one that was set aside before; begins a new one.
pub(crate) fn begin_new_index(layout: &Layout, clock: &Arc<dyn Clock>) -> Result<Index, OpenStoreError> {
    let set_aside = || {
        remove(&layout.spoilt_index())?;
        let [log, shared] = layout.index_logs();
        let [index_aside, log_aside] = layout.spoilt_index();
        fs::rename(layout.index(), index_aside)?;
        if fs::exists(&log)? {
            fs::rename(log, log_aside)?;
        }
        remove(&[shared])
    };
    set_aside().map_err(|error| cannot_write(layout.dir().to_owned(), error))?;
    open_index(layout, clock)
}

/// Removes files; those that are gone already are no error.
fn remove(paths: &[PathBuf]) -> io::Result<()> {
    for path in paths {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
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

/// Says whether there is an index.
fn refuse_foreign(layout: &Layout) -> Result<bool, OpenStoreError> {
    let path = || layout.dir().to_owned();
    if fs::exists(layout.index()).map_err(|error| cannot_write(path(), error))? {
        return Ok(true);
    }
    let own = own_names(layout);
    // A folder that was removed under a running daemon has been made again without the key.
    let is_there = |path: PathBuf| fs::exists(path).unwrap_or(false);
    let is_ours = is_there(layout.node_key()) || (is_there(layout.blobs()) && is_there(layout.partials()));
    for entry in fs::read_dir(layout.dir()).map_err(|error| cannot_write(path(), error))? {
        let name = entry.map_err(|error| cannot_write(path(), error))?.file_name();
        let is_known = INNOCENT_NAMES.iter().any(|innocent| name == *innocent) || (is_ours && own.contains(&name));
        if !is_known {
            let found = name.to_string_lossy().into_owned();
            return Err(OpenStoreError::Foreign { path: path(), found });
        }
    }
    Ok(false)
}

/// Names that a store leaves in its folder when its index is lost.
fn own_names(layout: &Layout) -> Vec<OsString> {
    let mut paths = vec![layout.blobs(), layout.partials()];
    paths.extend(layout.index_logs());
    paths.extend(layout.spoilt_index());
    let names = paths.iter().filter_map(|path| path.file_name());
    names.map(OsString::from).collect()
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
