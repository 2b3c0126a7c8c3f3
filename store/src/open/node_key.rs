//! The daemon's own key, beside its content.
//!
//! It lies in the store's folder, so that the folder's lock keeps two daemons from being one node, and apart from the content:
//! a store that is emptied, or whose index is rebuilt, is still the same node. The key is on the disk before anything is
//! signed with it, and is never written over.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::PathBuf,
};

use piecemeal_proto::{NodeKey, ParseKeyError};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::disk::layout::Layout;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum NodeKeyError {
    #[error("cannot read or write {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Never replaced by itself: a new key is a new node, which has none of the rights of this one.
    #[error("{}", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: ParseKeyError,
    },
    #[error("the system has no random numbers")]
    Random,
}

/// Reads the key, or makes one where there is none. The folder must be locked.
pub(crate) fn open(layout: &Layout) -> Result<NodeKey, NodeKeyError> {
    let path = layout.node_key();
    let failed = |source| NodeKeyError::Io {
        path: path.clone(),
        source,
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return make(layout).map_err(|error| error.at(path)),
        Err(error) => return Err(failed(error)),
    };
    let key = text.parse().map_err(|source| NodeKeyError::Parse {
        path: path.clone(),
        source,
    })?;
    // A copy or a backup may have opened it to others.
    if fs::metadata(&path).map_err(failed)?.mode() & 0o077 != 0 {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    }
    Ok(key)
}

enum MakeError {
    Io(io::Error),
    Random,
}

impl From<io::Error> for MakeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl MakeError {
    fn at(self, path: PathBuf) -> NodeKeyError {
        match self {
            Self::Io(source) => NodeKeyError::Io { path, source },
            Self::Random => NodeKeyError::Random,
        }
    }
}

fn make(layout: &Layout) -> Result<NodeKey, MakeError> {
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).map_err(|_| MakeError::Random)?;
    let key = NodeKey::from_seed(seed);
    let new = layout.new_node_key();
    // A file that a crash has left may have another mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(key.to_text().as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, layout.node_key())?;
    File::open(layout.dir())?.sync_all()?;
    Ok(key)
}
