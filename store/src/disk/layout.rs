//! Paths in the store's folder.
//!
//! A digest is always well formed, so its text may stand in a path.

use std::path::{Path, PathBuf};

use piecemeal_proto::{Algorithm, Digest};

/// The daemon's own key, and the same while it is made.
pub(crate) const NODE_KEY: &str = "node.key";
pub(crate) const NEW_NODE_KEY: &str = "node.key.new";

/// The paths below one store folder.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.dir.join("index.db")
    }

    pub(crate) fn node_key(&self) -> PathBuf {
        self.dir.join(NODE_KEY)
    }

    /// The key while it is made.
    pub(crate) fn new_node_key(&self) -> PathBuf {
        self.dir.join(NEW_NODE_KEY)
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.dir.join("blobs")
    }

    /// The folder of one algorithm's blobs.
    pub(crate) fn algorithm(&self, algorithm: Algorithm) -> PathBuf {
        self.blobs().join(algorithm.name())
    }

    /// The folder that holds this blob's file: 256 of them an algorithm, so that none grows long.
    pub(crate) fn blob_dir(&self, digest: &Digest) -> PathBuf {
        self.algorithm(digest.algorithm()).join(&digest.hex()[..2])
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blob_dir(digest).join(digest.hex())
    }

    pub(crate) fn partials(&self) -> PathBuf {
        self.dir.join("partial")
    }

    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.partials()
            .join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }
}
