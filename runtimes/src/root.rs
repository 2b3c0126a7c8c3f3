//! Root of a node's file system: a mounted folder where the program runs in a container.
//!
//! Paths are the node's own (`/etc/containerd/config.toml`). Symbolic links are followed as the node itself would follow them:
//! an absolute one begins at the root, and none leads out of it.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, ErrorKind, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
};

/// A node's file system.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    top: OwnedFd,
}

/// Identity of a file's state: device, inode, time of change, size. Equal while the file is still the one that was read.
pub(crate) type Stamp = (u64, u64, i64, i64, i64);

/// A file as it was when it was read.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub text: Option<String>,
    /// None: there was no file.
    pub stamp: Option<Stamp>,
}

impl Root {
    /// # Errors
    /// When `path` is no folder that can be opened.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let top = fs::open(path, FOLDER, Mode::empty())?;
        let path = path.to_owned();
        Ok(Self { path, top })
    }

    /// Its path in the file system of this process.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.with(path, |folder, name| {
            fs::statat(folder, name, AtFlags::empty()).or_else(|_| fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW))
        })
        .is_ok()
    }

    /// Whether the last part of `path` is a symbolic link: such a file is read, and never replaced.
    pub(crate) fn is_link(&self, path: &str) -> bool {
        let stat = self.with(path, |folder, name| fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW));
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
    }

    /// When a file was changed, in seconds since 1970.
    pub(crate) fn modified(&self, path: &str) -> Option<i64> {
        let file = self.open_file(path).ok()?;
        Some(fs::fstat(file).ok()?.st_mtime)
    }

    /// Calls `work` with a path of this process that leads to the node's `path`.
    ///
    /// # Errors
    /// Its folder cannot be opened.
    pub(crate) fn with_path<T>(&self, path: &str, work: impl FnOnce(&Path) -> T) -> io::Result<T> {
        let (parent, name) = split(path)?;
        let folder = self.folder(parent, None)?;
        let place = format!("/proc/self/fd/{}", folder.as_raw_fd());
        Ok(work(&Path::new(&place).join(name)))
    }

    /// The text of a file; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read, is no text, or is larger than any of these files has a reason to be.
    pub(crate) fn read(&self, path: &str) -> io::Result<Option<String>> {
        Ok(self.see(path)?.text)
    }

    /// The text with the file's stamp, by which a later change shows.
    ///
    /// # Errors
    /// As [`Root::read`].
    pub(crate) fn see(&self, path: &str) -> io::Result<Seen> {
        let file = match self.open_file(path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Seen::default());
            }
            Err(error) => return Err(error),
        };
        let stamp = Some(stamp(&fs::fstat(&file)?));
        let mut text = String::new();
        let bytes = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        if bytes as u64 > FILE_BYTES_MAX {
            return Err(io::Error::new(
                ErrorKind::FileTooLarge,
                "is too large for a configuration file",
            ));
        }
        Ok(Seen {
            text: Some(text),
            stamp,
        })
    }

    /// The names in a folder, sorted; none when it is absent.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let folder = match self.folder(path, None) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut names = Vec::new();
        for entry in fs::Dir::new(readable(&folder)?)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !matches!(&*name, "." | "..") {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// The file's stamp now; none where it is absent.
    pub(crate) fn stamp(&self, path: &str) -> Option<Stamp> {
        let stat = self.with(path, |folder, name| fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW));
        stat.ok().as_ref().map(stamp)
    }

    /// Makes a folder and its parents; those that were absent are added to `made`.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn make_folder(&self, path: &str, made: &mut Vec<String>) -> io::Result<()> {
        self.folder(path, Some(made))?;
        Ok(())
    }

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(crate) fn remove(&self, path: &str) -> io::Result<()> {
        let (parent, name) = split(path)?;
        let folder = match self.folder(parent, None) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        match fs::unlinkat(&folder, name, AtFlags::empty()) {
            Ok(()) => sync_folder(&folder),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a folder if nothing is in it; whether it is gone.
    pub(crate) fn remove_folder(&self, path: &str) -> bool {
        let removed = self.with(path, |folder, name| fs::unlinkat(folder, name, AtFlags::REMOVEDIR));
        matches!(removed, Ok(()) | Err(Errno::NOENT))
    }

    fn open_file(&self, path: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let (parent, name) = split(&path)?;
            let folder = self.folder(parent, None)?;
            match fs::openat(&folder, name, flags, Mode::empty()) {
                Ok(file) => return Ok(File::from(file)),
                Err(Errno::LOOP) => {
                    let target = fs::readlinkat(&folder, name, Vec::new())?;
                    let target = target.to_string_lossy();
                    path = if target.starts_with('/') {
                        target.into_owned()
                    } else {
                        format!("{parent}/{target}")
                    };
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::LOOP.into())
    }

    /// Calls `work` with the folder that `path` lies in and its name there.
    fn with<T>(&self, path: &str, work: impl Fn(&OwnedFd, &OsStr) -> Result<T, Errno>) -> Result<T, Errno> {
        let (parent, name) = split(path).map_err(|_| Errno::INVAL)?;
        work(&self.folder(parent, None)?, name)
    }

    /// Opens a folder part by part. With `made` it is made where it is absent.
    pub(crate) fn folder(&self, path: &str, mut made: Option<&mut Vec<String>>) -> Result<OwnedFd, Errno> {
        let parts =
            |path: &Path| -> Vec<OsString> { path.iter().filter(|part| *part != "/").map(OsStr::to_owned).collect() };
        let mut todo: VecDeque<OsString> = parts(Path::new(path)).into();
        let mut open: Vec<(OwnedFd, OsString)> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == "." {
                continue;
            }
            if part == ".." {
                // Above the root is the root.
                open.pop();
                continue;
            }
            let above = open.last().map_or(&self.top, |(folder, _)| folder);
            match fs::openat(above, &*part, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(folder) => open.push((folder, part)),
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    // Not a link either: then it is a file.
                    let target = fs::readlinkat(above, &*part, Vec::new()).map_err(|_| Errno::NOTDIR)?;
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP);
                    }
                    let target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
                    if target.is_absolute() {
                        open.clear();
                    }
                    for part in parts(&target).into_iter().rev() {
                        todo.push_front(part);
                    }
                }
                Err(Errno::NOENT) if made.is_some() => {
                    fs::mkdirat(above, &*part, Mode::from_raw_mode(0o755))?;
                    // Whatever the umask, as with files. A folder that is only a place cannot be changed.
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let new = fs::openat(above, &*part, flags, Mode::empty())?;
                    fs::fchmod(&new, Mode::from_raw_mode(0o755))?;
                    let made = made.as_mut().expect("it was looked at above");
                    let way = open.iter().map(|(_, name)| name).chain([&part]);
                    made.push(way.map(|name| format!("/{}", name.to_string_lossy())).collect());
                    todo.push_front(part);
                }
                Err(error) => return Err(error),
            }
        }
        match open.pop() {
            Some((folder, _)) => Ok(folder),
            None => fs::openat(&self.top, ".", FOLDER, Mode::empty()),
        }
    }
}

fn stamp(stat: &Stat) -> Stamp {
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or_default();
    (stat.st_dev, stat.st_ino, stat.st_mtime, nanoseconds, stat.st_size)
}

/// The folder of a path, and the name there.
pub(crate) fn split(path: &str) -> io::Result<(&str, &OsStr)> {
    let (parent, name) = path.rsplit_once('/').ok_or(ErrorKind::InvalidInput)?;
    if matches!(name, "" | "." | "..") {
        return Err(ErrorKind::InvalidInput.into());
    }
    Ok((parent, OsStr::new(name)))
}

/// A folder that was opened only as a place, to be listed, locked or synced.
pub(crate) fn readable(folder: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(folder, ".", flags, Mode::empty())
}

pub(crate) fn sync_folder(folder: &OwnedFd) -> io::Result<()> {
    Ok(fs::fsync(readable(folder)?)?)
}

/// For looking up names in a folder, which needs no right to list it.
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// As many as the kernel follows.
const LINKS_MAX: usize = 40;
const FILE_BYTES_MAX: u64 = 4 << 20;

#[cfg(test)]
pub(crate) mod testing {
    use std::fs;

    use tempfile::TempDir;

    use super::Root;

    /// A root in a folder of its own, beside a file that it must not reach.
    pub(crate) fn root() -> (TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("node/etc")).unwrap();
        fs::write(dir.path().join("outside"), "secret").unwrap();
        let root = Root::open(&dir.path().join("node")).unwrap();
        (dir, root)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::testing::root;
    use super::*;
    use crate::replace::write;

    #[test]
    fn runtimes_of_other_users_read_what_is_made_whatever_the_umask() {
        let (dir, root) = root();
        // The daemons' own; of the whole process, and no other test looks at it.
        rustix::process::umask(Mode::from_raw_mode(0o077));
        write(&root, "/etc/a/b/c.toml", "one", &mut Vec::new()).unwrap();
        for (path, expected) in [("a", 0o755), ("a/b", 0o755), ("a/b/c.toml", 0o644)] {
            let metadata = fs::metadata(dir.path().join("node/etc").join(path)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o7777, expected, "{path}");
        }
    }

    #[test]
    fn a_text_is_written_read_and_removed_and_the_folders_made_are_told() {
        let (dir, root) = root();
        let mut made = Vec::new();
        write(&root, "/etc/a/b/c.toml", "one", &mut made).unwrap();
        assert_eq!(made, ["/etc/a", "/etc/a/b"]);
        let file = dir.path().join("node/etc/a/b/c.toml");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        write(&root, "/etc/a/b/c.toml", "two", &mut made).unwrap();
        assert_eq!(
            (made.len(), root.read("/etc/a/b/c.toml").unwrap().as_deref()),
            (2, Some("two"))
        );
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(root.list("/etc/a/b").unwrap(), ["c.toml"], "nothing is left beside it");
        assert!(!root.remove_folder("/etc/a/b"), "a folder with something in it stays");
        root.remove("/etc/a/b/c.toml").unwrap();
        root.remove("/etc/a/b/c.toml").unwrap();
        assert!(root.remove_folder("/etc/a/b") && !root.exists("/etc/a/b"));
        assert_eq!(
            (root.read("/none/x").unwrap(), root.list("/none").unwrap().len()),
            (None, 0)
        );
    }

    #[test]
    fn links_are_the_nodes_own_and_none_leads_out() {
        let (dir, root) = root();
        let etc = dir.path().join("node/etc");
        fs::create_dir(etc.join("real")).unwrap();
        symlink("/etc/real", etc.join("absolute")).unwrap();
        symlink("../../../../../../../etc/real", etc.join("climbing")).unwrap();
        symlink(dir.path(), etc.join("out")).unwrap();
        symlink(dir.path().join("outside"), etc.join("file")).unwrap();
        symlink("loop", etc.join("loop")).unwrap();
        let mut made = Vec::new();
        write(&root, "/etc/absolute/x", "x", &mut made).unwrap();
        write(&root, "/etc/climbing/y", "y", &mut made).unwrap();
        assert_eq!(root.list("/etc/real").unwrap(), ["x", "y"]);
        assert!(root.read("/etc/out/outside").unwrap().is_none() && root.read("/etc/file").unwrap().is_none());
        assert!(write(&root, "/etc/loop/x", "x", &mut made).is_err() && root.read("/etc/loop").is_err());
        assert!(
            write(&root, "/etc/file", "x", &mut made).is_err(),
            "a link is not ours to replace"
        );
        assert!(root.is_link("/etc/file") && !root.is_link("/etc/real/x"));
        assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "secret");
        assert!(made.is_empty());
    }

    #[test]
    fn what_is_no_text_is_an_error_and_no_text() {
        let (dir, root) = root();
        fs::write(dir.path().join("node/etc/x"), [0xff, 0xfe]).unwrap();
        assert!(root.read("/etc/x").is_err());
        assert!(root.read("/etc").is_err(), "a folder");
    }
}
