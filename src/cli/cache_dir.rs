//! The folder that content is stored in: the one that was chosen, or a private temporary one.
//!
//! A temporary folder is removed in whatever way its [`CacheDir`] is dropped: after a drain, after a start that failed, when
//! told to stop twice. After SIGKILL or a power cut it stays, until the system's cleanup of temporary files removes it by its
//! prefix and its age.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::Context;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tracing::warn;

/// Must be dropped after everything that writes into it.
#[derive(Debug)]
pub(super) struct CacheDir {
    path: PathBuf,
    temporary: Option<TempDir>,
}

impl CacheDir {
    /// An empty path stands for a temporary folder.
    ///
    /// # Errors
    /// No temporary folder can be made.
    pub(super) fn open(chosen: &Path) -> anyhow::Result<Self> {
        if !chosen.as_os_str().is_empty() {
            return Ok(Self {
                path: chosen.to_owned(),
                temporary: None,
            });
        }
        let temporary = tempfile::Builder::new()
            .prefix("piecemeal-")
            // Private, also where the umask would let others read it.
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir();
        let temporary = temporary.with_context(|| {
            format!(
                "cannot make a temporary folder in {} (set by TMPDIR)",
                std::env::temp_dir().display()
            )
        })?;
        Ok(Self {
            path: temporary.path().to_owned(),
            temporary: Some(temporary),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Shuts the runtime down without waiting for the tasks that still run, and then removes what is temporary. Only a store that
    /// is just being opened is waited for a little, since it would create its folder again.
    pub(super) fn close_after(self, runtime: Runtime) {
        match self.temporary {
            Some(_) => runtime.shutdown_timeout(WRITERS_TIME_MAX),
            None => runtime.shutdown_background(),
        }
    }
}

impl Drop for CacheDir {
    fn drop(&mut self) {
        let Some(temporary) = self.temporary.take() else { return };
        // A process that was told to stop at once may still be writing a file into a folder that is about to go.
        for tries_left in (0..REMOVE_TRIES).rev() {
            match fs::remove_dir_all(temporary.path()) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(error) if tries_left == 0 => warn!(%error, "{} stays: {error}", temporary.path().display()),
                Err(_) => thread::sleep(REMOVE_PAUSE),
            }
        }
    }
}

const WRITERS_TIME_MAX: Duration = Duration::from_secs(1);
const REMOVE_TRIES: u32 = 20;
const REMOVE_PAUSE: Duration = Duration::from_millis(25);
