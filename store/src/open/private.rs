//! File modes: only the store's own user may read its folder, which holds names, manifests and layers of private images.
//!
//! Another program may have made the folder, and a copy of it may have lost its modes. Files that other users may read are closed
//! before the index is opened: the folder first, so that no other user can reach what is in it meanwhile, and the index last, so that
//! a process that dies in between looks once more. A folder and an index that are closed already stand for all the rest, which
//! the store itself has made, and nothing is walked through.

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use tracing::{info, warn};

use crate::disk::layout::Layout;

/// The mode bits of users other than the owner.
const OTHERS: u32 = 0o077;
/// Folders in folders: `blobs/sha256/00`.
const DEPTH_MAX: u32 = 3;

/// Closes the store to other users, and makes the index when there is none, so that SQLite, which gives its log the index's mode,
/// finds it closed. A file that cannot be closed is logged, and stays as it is.
///
/// # Errors
/// The index cannot be made.
pub(crate) fn close_to_others(layout: &Layout) -> io::Result<()> {
    let index = layout.index();
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&index)?;
    let mut closed = Closed::default();
    let beside = ["-wal", "-shm"].map(|suffix| with_suffix(&index, suffix));
    let has_been_open = is_open(layout.dir()) || is_open(&index) || beside.iter().any(|path| is_open(path));
    if has_been_open {
        closed.close(layout.dir());
        for path in beside.iter().chain([&layout.lock()]) {
            closed.close(path);
        }
        closed.walk(&layout.blobs(), DEPTH_MAX);
        closed.walk(&layout.partials(), DEPTH_MAX);
        closed.close(&index);
    }
    closed.tell(layout.dir());
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
}

/// Whether other users may do anything with it. A missing file counts as closed, and so does a link.
fn is_open(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|metadata| !metadata.is_symlink() && metadata.permissions().mode() & OTHERS != 0)
}

#[derive(Default)]
struct Closed {
    count: u64,
    failed: u64,
    /// The first failure.
    failure: Option<(PathBuf, io::Error)>,
}

impl Closed {
    /// A folder, and what is in it. It is closed when it is listed, so that no other user changes what is in it.
    fn walk(&mut self, folder: &Path, depth: u32) {
        self.close(folder);
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.note(folder, error),
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))) {
                Ok((path, kind)) if kind.is_dir() && depth > 0 => self.walk(&path, depth - 1),
                Ok((path, kind)) if kind.is_dir() || kind.is_file() => self.close(&path),
                Ok(_) => {}
                Err(error) => self.note(folder, error),
            }
        }
    }

    fn close(&mut self, path: &Path) {
        if !is_open(path) {
            return;
        }
        match close(path) {
            Ok(()) => self.count += 1,
            Err(errno) => self.note(path, errno.into()),
        }
    }

    fn note(&mut self, path: &Path, error: io::Error) {
        // Before the store's first start there is little.
        if error.kind() == io::ErrorKind::NotFound {
            return;
        }
        self.failed += 1;
        self.failure.get_or_insert_with(|| (path.to_owned(), error));
    }

    fn tell(&self, dir: &Path) {
        if self.count > 0 {
            info!(
                files.closed = self.count,
                "closed {} files and folders in {} that other users of this machine could read",
                self.count,
                dir.display()
            );
        }
        if let Some((path, error)) = &self.failure {
            warn!(
                files.open = self.failed,
                %error,
                "other users of this machine may read {} and {} more files and folders in {}: {error}; take their rights away, or give them to this process's user",
                path.display(),
                self.failed - 1,
                dir.display()
            );
        }
    }
}

/// Removes the rights of others from the file itself, never from a link's target.
fn close(path: &Path) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let mode = rustix::fs::fstat(&file)?.st_mode;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777 & !OTHERS))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn open_up(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A folder that was copied together without its modes.
    fn copied() -> (tempfile::TempDir, Layout, Vec<PathBuf>) {
        let top = tempfile::tempdir().unwrap();
        let layout = Layout::new(top.path().join("store"));
        let folder = layout.blobs().join("sha256/00");
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(layout.partials()).unwrap();
        let files = [
            layout.index(),
            with_suffix(&layout.index(), "-wal"),
            with_suffix(&layout.index(), "-shm"),
            layout.lock(),
            folder.join("blob"),
            layout.partials().join("sha256-00"),
        ];
        let folders = [folder, layout.partials(), layout.blobs(), layout.dir().to_owned()];
        for file in &files {
            fs::write(file, "private").unwrap();
            open_up(file, 0o644);
        }
        for folder in &folders {
            open_up(folder, 0o2755);
        }
        (top, layout, files.into_iter().chain(folders).collect())
    }

    #[test]
    fn whatever_others_could_read_is_closed_and_the_rest_of_a_mode_stays() {
        let (_top, layout, paths) = copied();
        close_to_others(&layout).unwrap();
        for path in &paths {
            let expected = if path.is_dir() { 0o2700 } else { 0o600 };
            assert_eq!(mode(path), expected, "{}", path.display());
        }
    }

    #[test]
    fn a_process_that_died_while_it_closed_things_is_followed_by_one_that_goes_on() {
        let (_top, layout, paths) = copied();
        open_up(layout.dir(), 0o700);
        close_to_others(&layout).unwrap();
        assert!(paths.iter().all(|path| !is_open(path)));
    }

    #[test]
    fn an_index_is_closed_from_its_first_moment_on() {
        let top = tempfile::tempdir().unwrap();
        let layout = Layout::new(top.path().to_owned());
        close_to_others(&layout).unwrap();
        assert_eq!(mode(&layout.index()), 0o600);
    }

    #[test]
    fn what_a_link_leads_to_is_left_alone() {
        let (top, layout, _) = copied();
        let theirs = top.path().join("theirs");
        fs::write(&theirs, "public").unwrap();
        open_up(&theirs, 0o644);
        symlink(&theirs, layout.blobs().join("link")).unwrap();
        symlink(top.path(), layout.partials().join("folder")).unwrap();
        close_to_others(&layout).unwrap();
        assert_eq!(mode(&theirs), 0o644);
    }
}
