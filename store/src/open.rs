//! Opening a store's folder: checks that it is a store or empty, and that no other process uses it.
//!
//! Nothing is written into a folder before it is known to be a store or empty, and other users cannot read anything in it.

use std::{
    fs,
    hash::{BuildHasher as _, RandomState},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use piecemeal_proto::NodeKey;
use rustix::fs::{FlockOperation, flock};

use crate::{
    clock::{Clock, SystemClock},
    files::{DiskFiles, Files},
    index::{Index, OpenIndexError},
    layout::{Layout, NEW_NODE_KEY, NODE_KEY},
    node_key::{self, NodeKeyError},
    private::close_to_others,
};

/// Names that may lie in a folder that holds no index: a store's lock and key after a crash, or when the store was emptied by
/// hand, and the folder that mkfs makes.
const INNOCENT_NAMES: [&str; 4] = ["lock", NODE_KEY, NEW_NODE_KEY, "lost+found"];

/// How a store is set up. All but the folder can be changed later by [`crate::Store::set_limits`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// The folder; made when it does not exist.
    pub dir: PathBuf,
    /// The most that blobs may take, whether complete or reserved, in bytes.
    pub quota_bytes: Option<u64>,
    /// The bytes that are left free on the disk.
    pub free_bytes_min: u64,
    /// How long content is kept since its last use.
    pub ttl: Duration,
}

/// What the store takes from its surroundings.
#[derive(Clone)]
pub struct Env {
    pub clock: Arc<dyn Clock>,
    pub files: Arc<dyn Files>,
    /// Starts the generator behind fill ids and [`crate::Store::random_u64`].
    pub seed: u64,
}

impl Env {
    /// The real clock, the real disk and an unpredictable seed.
    pub fn system() -> Self {
        Self {
            clock: Arc::new(SystemClock::new()),
            files: Arc::new(DiskFiles),
            // The standard library keys its hash tables from the operating system's randomness.
            seed: RandomState::new().hash_one("piecemeal-store"),
        }
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    #[error("{} is not a folder (point the store at a folder, or at a path that does not exist yet)", path.display())]
    NotAFolder { path: PathBuf },
    /// Nothing was touched.
    #[error(
        "{} is not empty and holds no store (it has {found:?}; point the store at an empty folder of its own)",
        path.display()
    )]
    Foreign { path: PathBuf, found: String },
    #[error("{} is in use by another process (stop it, or give this one its own folder)", path.display())]
    Locked { path: PathBuf },
    #[error("cannot write to {} (give this process's user the folder, and check that the disk is not mounted read-only)", path.display())]
    Unwritable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Nothing was touched.
    #[error("{} was written by a newer version: schema {found}, known up to {known} (run that version, or remove the folder to start empty)", path.display())]
    NewerSchema { path: PathBuf, found: i64, known: i64 },
    #[error("the index {} cannot be used (when this persists, remove its folder to start empty)", path.display())]
    Index {
        path: PathBuf,
        #[source]
        source: crate::IndexError,
    },
    #[error("the node's own key cannot be used")]
    NodeKey(#[from] NodeKeyError),
    #[error("failed to check what is in {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A locked folder, with an index that this binary understands.
pub(crate) struct Opened {
    pub(crate) lock: fs::File,
    pub(crate) index: Index,
    pub(crate) node_key: NodeKey,
}

/// Claims the folder.
pub(crate) fn claim(layout: &Layout) -> Result<Opened, OpenStoreError> {
    make_dir(layout.dir())?;
    refuse_foreign(layout)?;
    let lock = take_lock(layout)?;
    close_to_others(layout).map_err(|error| cannot_write(layout.dir().to_owned(), error))?;
    let node_key = node_key::open(layout)?;
    let path = layout.index();
    let index = Index::open(&path).map_err(|error| match error {
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
