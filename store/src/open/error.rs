//! Errors of opening a store.
//!
//! Each has the path, and says what to do.

use std::{io, path::PathBuf};

use super::node_key::NodeKeyError;
use crate::values::error::IndexError;

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
        source: IndexError,
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
