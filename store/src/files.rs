//! The file layer: every touch of the disk below `blobs/` and `partial/`.
//!
//! It is a trait so that tests can put a disk under the store that tears writes, runs full and loses what was not synced.
//! The index and the lock stay outside of it: SQLite brings its own discipline.

use std::{
    fs, io,
    ops::Range,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    },
    path::Path,
    sync::Arc,
};

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

    /// Takes a file's name away; handles that are open go on reading.
    ///
    /// # Errors
    /// Of kind `NotFound` when there is none, else whatever the disk says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The entries of a folder, in no particular order; none for a folder that does not exist.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn list(&self, path: &Path) -> io::Result<Vec<FileEntry>>;

    /// A file's length in bytes.
    ///
    /// # Errors
    /// Of kind `NotFound` when there is none, else whatever the disk says.
    fn len(&self, path: &Path) -> io::Result<u64>;

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

    /// The bytes in that range are not wanted any more. Only files in memory care.
    fn forget(&self, _range: Range<u64>) {}

    /// The operating system's own file, where there is one: it can be sent without being read.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// One name in a folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileEntry {
    /// Names that are not UTF-8 are not ours; they are given with replacement characters and match nothing.
    pub name: String,
    pub is_dir: bool,
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFiles;

impl Files for DiskFiles {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn OpenFile>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn OpenFile>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        Ok(Arc::new(DiskFile(file)))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            result => result,
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<FileEntry>> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        entries
            .map(|entry| {
                let entry = entry?;
                Ok(FileEntry {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    is_dir: entry.file_type()?.is_dir(),
                })
            })
            .collect()
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(path)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

struct DiskFile(fs::File);

impl OpenFile for DiskFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.0.write_at(bytes, offset)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
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

/// Removes a file; one that is gone already is no error.
pub(crate) fn remove_if_there(files: &dyn Files, path: &Path) -> io::Result<()> {
    match files.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_the_end_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = DiskFiles.create(&path).unwrap();
        write_all_at(file.as_ref(), b"pieces", 2).unwrap();
        let mut buffer = [0; 6];
        read_exact_at(file.as_ref(), &mut buffer, 2).unwrap();
        assert_eq!(&buffer, b"pieces");
        let error = read_exact_at(file.as_ref(), &mut buffer, 3).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(DiskFiles.len(&path).unwrap(), 8);
    }

    #[test]
    fn missing_things_are_told_apart_from_broken_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nothing");
        assert_eq!(DiskFiles.list(&path).unwrap(), []);
        assert_eq!(DiskFiles.len(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        remove_if_there(&DiskFiles, &path).unwrap();
        DiskFiles.create_dir(&path).unwrap();
        DiskFiles.create_dir(&path).unwrap();
        assert!(DiskFiles.free_bytes(dir.path()).unwrap() > 0);
    }
}
