//! Paths in the store's folder.
//!
//! A digest is always well formed, so its text may stand in a path.

use std::{
    io,
    path::{Path, PathBuf},
};

use piecemeal_proto::{Algorithm, Digest};

use super::files::Files;

/// The daemon's own key, and the same while it is made.
pub(crate) const NODE_KEY: &str = "node.key";
pub(crate) const NEW_NODE_KEY: &str = "node.key.new";

const INDEX: &str = "index.db";
/// The end of the name of an index that was set aside.
const SPOILT: &str = ".spoilt";

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
        self.dir.join(INDEX)
    }

    /// SQLite's log of the index, and the memory that it shares with other processes.
    pub(crate) fn index_logs(&self) -> [PathBuf; 2] {
        ["-wal", "-shm"].map(|end| self.dir.join(format!("{INDEX}{end}")))
    }

    /// An index that was set aside, and its log.
    pub(crate) fn spoilt_index(&self) -> [PathBuf; 2] {
        ["", "-wal"].map(|end| self.dir.join(format!("{INDEX}{SPOILT}{end}")))
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

    /// The digest of which the path is the blob's.
    pub(crate) fn digest_of_blob(&self, path: &Path) -> Option<Digest> {
        let hex = path.file_name()?.to_str()?;
        let folder = path.parent()?.parent()?.file_name()?.to_str()?;
        let digest: Digest = format!("{folder}:{hex}").parse().ok()?;
        (self.blob(&digest) == path).then_some(digest)
    }

    pub(crate) fn partials(&self) -> PathBuf {
        self.dir.join("partial")
    }

    /// A file that shows whether the disk takes bytes. It lies where recovery removes what a crash leaves.
    pub(crate) fn probe(&self) -> PathBuf {
        self.partials().join("probe")
    }

    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.partials()
            .join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }
}

/// The algorithms of which there are folders of blobs.
pub(crate) const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// Makes the folders of a store, where there are none.
pub(crate) fn make_folders(layout: &Layout, files: &dyn Files) -> io::Result<()> {
    files.create_dir(&layout.blobs())?;
    for algorithm in ALGORITHMS {
        files.create_dir(&layout.algorithm(algorithm))?;
    }
    files.create_dir(&layout.partials())?;
    // Also when they exist: an earlier run may have made them and crashed before this sync.
    files.sync_dir(&layout.blobs())?;
    files.sync_dir(layout.dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blobs_path_names_its_digest_and_no_other_path_does() {
        let layout = Layout::new("/cache".into());
        let digest = Digest::of(b"blob");
        let path = layout.blob(&digest);
        assert_eq!(layout.digest_of_blob(&path), Some(digest));
        let elsewhere = layout.algorithm(Algorithm::Sha256).join("00").join(digest.hex());
        let wrong = [
            elsewhere,
            layout.partial(&digest),
            path.with_extension("old"),
            "/".into(),
        ];
        assert_eq!(wrong.map(|path| layout.digest_of_blob(&path)), [None; 4]);
    }
}
