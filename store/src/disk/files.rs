//! Files and disks, as traits: every access to the disk below `blobs/` and `partial/` goes through them.
//!
//! So tests can put a disk under the store that tears writes, runs full and loses what was not synced. The index and the lock stay
//! outside: SQLite has its own way to survive a crash.

use std::{
    io,
    ops::Range,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::io::Errno;

/// A disk. Every call may block.
pub trait Files: Send + Sync {
    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// Of kind `NotFound` when there is none, else whatever the disk says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn OpenFile>>;

    /// Makes an empty file, or empties the one that is there.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn OpenFile>>;

    /// Makes one folder.
    ///
    /// # Errors
    /// Whatever the disk says; a folder that exists is none.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes the entries of the folder durable: names made, changed and removed.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name, atomically.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name; open handles go on reading.
    ///
    /// # Errors
    /// Of kind `NotFound` when there is none, else whatever the disk says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The files in a folder and in the folders that it holds, in no particular order; none for a folder that does not exist.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn list(&self, path: &Path) -> io::Result<Vec<FileEntry>>;

    /// Bytes that this process may still write to the disk that holds `path`.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// An open file. Reads and writes may be short, as the operating system's are.
pub trait OpenFile: Send + Sync {
    /// # Errors
    /// Whatever the disk says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// # Errors
    /// Whatever the disk says.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// # Errors
    /// Whatever the disk says.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Makes the content durable.
    ///
    /// # Errors
    /// Whatever the disk says. The content that was written before is suspect afterwards, even when a second try succeeds.
    fn sync(&self) -> io::Result<()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn len(&self) -> io::Result<u64>;

    /// # Errors
    /// Whatever the disk says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buffer` if that needs no waiting for the disk; says whether it has.
    fn read_now(&self, _buffer: &mut [u8], _offset: u64) -> bool {
        false
    }

    /// Frees the bytes in that range, where the file is in memory. Other files ignore it.
    fn forget(&self, _range: Range<u64>) {}

    /// The operating system's own file, where there is one: it can be sent without being read.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// A stamp that changes with each write to the file. `None` where the disk does not say.
    fn stamp(&self) -> Option<FileStamp> {
        None
    }
}

/// Identity, length and last change of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStamp {
    pub device: u64,
    pub inode: u64,
    pub size: u64,
    /// Seconds and nanoseconds.
    pub modified: (i64, i64),
    pub changed: (i64, i64),
}

/// One file in a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileEntry {
    pub path: PathBuf,
    /// The length in bytes.
    pub bytes: u64,
}

/// Whether a disk that has answered a write so takes no more: it is full, over its quota, read-only or broken.
pub(crate) fn takes_no_more(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::WriteZero
    ) || error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

/// Writes all of `bytes`, however often that takes.
pub(crate) fn write_all_at(file: &dyn OpenFile, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fills `buffer`; an error of kind `UnexpectedEof` when the file ends before.
pub(crate) fn read_exact_at(file: &dyn OpenFile, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                buffer = &mut buffer[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Opens a file; `None` when there is none.
pub(crate) fn open_if_there(files: &dyn Files, path: &Path) -> io::Result<Option<Arc<dyn OpenFile>>> {
    match files.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Removes a file; one that is gone already is no error.
pub(crate) fn remove_if_there(files: &dyn Files, path: &Path) -> io::Result<()> {
    match files.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads a range without waiting for the disk; `None` when that is not possible.
pub(crate) fn read_now(file: &dyn OpenFile, range: &Range<u64>) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(range.end - range.start).ok()?];
    file.read_now(&mut bytes, range.start).then_some(bytes)
}

/// Reads a range that the file is known to hold; `UnexpectedEof` when it does not.
pub(crate) fn read_range(file: &dyn OpenFile, range: Range<u64>) -> io::Result<Vec<u8>> {
    let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    read_exact_at(file, &mut bytes, range.start)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_full_or_broken_takes_no_more_and_an_interrupted_write_says_nothing() {
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::IO, Errno::ROFS] {
            assert!(takes_no_more(&errno.into()), "{errno}");
        }
        for errno in [Errno::INTR, Errno::BADF, Errno::NOENT] {
            assert!(!takes_no_more(&errno.into()), "{errno}");
        }
    }
}
