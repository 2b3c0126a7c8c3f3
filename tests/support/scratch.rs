//! Temporary folders that do not outlive the test, even when the test process was killed.
//!
//! Everything that a test leaves on the machine carries its process id in its name, so that the next run can tell what the tests
//! of dead processes have left.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::Once,
};

use tempfile::TempDir;

/// A folder that is removed when dropped.
#[derive(Debug)]
pub struct ScratchDir(TempDir);

impl ScratchDir {
    /// Creates an empty folder, after removing those of test processes that were killed.
    pub fn new() -> Self {
        static STALE_REMOVED: Once = Once::new();
        STALE_REMOVED.call_once(remove_stale);
        let dir = tempfile::Builder::new()
            .prefix(&owned_name(""))
            .tempdir()
            .expect("creating a temporary folder");
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Creates a folder inside this one.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(&path).expect("creating a folder in the temporary folder");
        path
    }
}

/// A name that says which process made the thing.
pub fn owned_name(label: &str) -> String {
    format!("pm{}-{label}", process::id())
}

/// Whether a name was given by [`owned_name`] in a process that no longer exists.
pub fn is_orphan(name: &str) -> bool {
    let owner = name
        .strip_prefix("pm")
        .and_then(|rest| rest.split_once('-'))
        .and_then(|(pid, _)| pid.parse().ok());
    owner.is_some_and(|pid: u32| !Path::new(&format!("/proc/{pid}")).exists())
}

fn remove_stale() {
    for entry in fs::read_dir(env::temp_dir())
        .expect("listing the temporary folder")
        .flatten()
    {
        if is_orphan(&entry.file_name().to_string_lossy()) {
            // Best effort: another test process may be removing the same folder.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
