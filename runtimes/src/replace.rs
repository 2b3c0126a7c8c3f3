//! Replacement of a file's text as a whole.
//!
//! The new text is on disk before its name is: a runtime reads the old one or the new one, and a power cut leaves either.

use std::{
    fs::File,
    io::{self, ErrorKind, Write},
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};

use crate::root::{Root, Stamp, readable, split, sync_folder};

/// Replaces a file's text, or makes the file, whatever is there now.
///
/// # Errors
/// As [`replace`].
pub(crate) fn write(root: &Root, path: &str, text: &str, made: &mut Vec<String>) -> io::Result<()> {
    let current = root.stamp(path);
    replace(root, path, text, current, made).map(|_| ())
}

/// Replaces a file's text, or makes the file, if it still is what was seen. Its mode stays, and so does its owner unless this
/// process may not set it; the text then returned says so. Folders that are made on the way are added to `made`, the outermost
/// first.
///
/// # Errors
/// It cannot be written, or was changed meanwhile ([`ErrorKind::ResourceBusy`]); what was there is still there then.
pub(crate) fn replace(
    root: &Root,
    path: &str,
    text: &str,
    seen: Option<Stamp>,
    made: &mut Vec<String>,
) -> io::Result<Option<String>> {
    let (parent, name) = split(path)?;
    let folder = root.folder(parent, Some(made))?;
    let old = fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW).ok();
    if old.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile) {
        return Err(io::Error::other("is no regular file"));
    }
    remove_leftovers(&folder)?;
    let scratch = scratch_name();
    let scratch = scratch.as_str();
    let written = (|| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let new = fs::openat(&folder, scratch, flags, Mode::from_raw_mode(0o644))?;
        let mut owner = None;
        if let Some(old) = old {
            // Without root or the capability the file keeps our owner: better than not being written.
            owner = give_away(&new, &old).err();
            fs::fchmod(&new, Mode::from_raw_mode(old.st_mode & 0o7777))?;
        } else {
            // Whatever the umask: the runtime may run as another user.
            fs::fchmod(&new, Mode::from_raw_mode(0o644))?;
        }
        let mut new = File::from(new);
        new.write_all(text.as_bytes())?;
        new.sync_all()?;
        // An editor that saves between this and the next line is not seen; the time for it is as short as it can be.
        if root.stamp(path) != seen {
            return Err(io::Error::new(ErrorKind::ResourceBusy, CHANGED));
        }
        fs::renameat(&folder, scratch, &folder, name)?;
        sync_folder(&folder)?;
        Ok(owner)
    })();
    if written.is_err() {
        let _ = fs::unlinkat(&folder, scratch, AtFlags::empty());
    }
    written
}

/// Gives a new file the owner of the old one; the error says who owns it instead.
fn give_away(new: &OwnedFd, old: &Stat) -> Result<(), String> {
    let is_same = fs::fstat(new).is_ok_and(|new| (new.st_uid, new.st_gid) == (old.st_uid, old.st_gid));
    let (user, group) = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
    if is_same {
        return Ok(());
    }
    fs::fchown(new, Some(user), Some(group)).map_err(|error| {
        let (user, group) = (user.as_raw(), group.as_raw());
        format!("it could not be given back to its owner ({error}); do so with chown {user}:{group}")
    })
}

/// Removes scratch files that a crash left. The caller holds the lock, so that no other run is writing one.
fn remove_leftovers(folder: &OwnedFd) -> io::Result<()> {
    for entry in fs::Dir::new(readable(folder)?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name.starts_with(SCRATCH_START.as_bytes()) && name.ends_with(SCRATCH_END.as_bytes()) {
            fs::unlinkat(folder, entry.file_name(), AtFlags::empty())?;
        }
    }
    Ok(())
}

fn scratch_name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{SCRATCH_START}{}.{number}{SCRATCH_END}", std::process::id())
}

/// No runtime reads a file of such a name.
const SCRATCH_START: &str = ".piecemeal-node.";
const SCRATCH_END: &str = ".tmp";
const CHANGED: &str = "was changed by another program at the same time; run this again";

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;
    use crate::{lock::lock, root::testing::root};

    #[test]
    fn a_file_that_was_changed_since_it_was_seen_is_not_written_over() {
        let (dir, root) = root();
        let file = dir.path().join("node/etc/x");
        let mut made = Vec::new();
        let none = root.see("/etc/x").unwrap();
        assert_eq!((none.text, none.stamp), (None, None));
        fs::write(&file, "theirs").unwrap();
        let changed = replace(&root, "/etc/x", "ours", None, &mut made).unwrap_err();
        assert_eq!(changed.kind(), ErrorKind::ResourceBusy);
        let seen = root.see("/etc/x").unwrap();
        // As an editor saves: another file of the same name.
        fs::write(file.with_extension("new"), "newer!").unwrap();
        fs::rename(file.with_extension("new"), &file).unwrap();
        assert!(replace(&root, "/etc/x", "ours", seen.stamp, &mut made).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "newer!");
        assert_eq!(root.list("/etc").unwrap(), ["x"], "no scratch is left");
        let seen = root.see("/etc/x").unwrap();
        assert_eq!(replace(&root, "/etc/x", "ours", seen.stamp, &mut made).unwrap(), None);
    }

    #[test]
    fn an_owner_that_cannot_be_kept_is_told() {
        let (dir, _root) = root();
        let path = dir.path().join("outside");
        // Such a descriptor allows no change, not even to root.
        let new = rustix::fs::open(&path, OFlags::PATH, Mode::empty()).unwrap();
        let mut old = rustix::fs::fstat(&new).unwrap();
        assert_eq!(give_away(&new, &old), Ok(()));
        old.st_uid += 1;
        let told = give_away(&new, &old).unwrap_err();
        assert!(told.contains(&format!("chown {}:{}", old.st_uid, old.st_gid)), "{told}");
    }

    #[test]
    fn one_run_at_a_time_and_what_a_crash_left_goes() {
        let (dir, root) = root();
        let held = lock(&root, Duration::ZERO).unwrap();
        assert!(held.is_some() && lock(&root, Duration::ZERO).unwrap().is_none());
        drop(held);
        assert!(lock(&root, Duration::ZERO).unwrap().is_some());
        fs::write(dir.path().join("node/etc/.piecemeal-node.1.2.tmp"), "half").unwrap();
        write(&root, "/etc/x", "x", &mut Vec::new()).unwrap();
        assert_eq!(root.list("/etc").unwrap(), ["x"]);
    }
}
