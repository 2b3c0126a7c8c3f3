//! Files of the operating system.
//!
//! A file is readable by its owner only.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustix::io::{ReadWriteFlags, preadv2};

use crate::disk::files::{FileEntry, FileStamp, Files, OpenFile};

/// Folders listed at once. Measured with benches/open.rs.
const LIST_THREADS: usize = 8;

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
        let (mut files, folders) = list_folder(path)?;
        // Reading a file's length may wait for the disk, and a disk serves several requests at once.
        let next = AtomicUsize::new(0);
        let list_some = || {
            let mut found = Vec::new();
            while let Some(folder) = folders.get(next.fetch_add(1, Ordering::Relaxed)) {
                found.extend(list_folder(folder)?.0);
            }
            Ok(found)
        };
        let lists: Vec<io::Result<Vec<FileEntry>>> = thread::scope(|scope| {
            let helpers: Vec<_> = (1..folders.len().min(LIST_THREADS))
                .map(|_| scope.spawn(list_some))
                .collect();
            let ours = list_some();
            let theirs = helpers.into_iter().map(|helper| match helper.join() {
                Ok(list) => list,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            std::iter::once(ours).chain(theirs).collect()
        });
        for list in lists {
            files.extend(list?);
        }
        Ok(files)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(path)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

/// Its files and its folders.
fn list_folder(path: &Path) -> io::Result<(Vec<FileEntry>, Vec<PathBuf>)> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        Err(error) => return Err(error),
    };
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        } else {
            let bytes = entry.metadata()?.len();
            let path = entry.path();
            files.push(FileEntry { path, bytes });
        }
    }
    Ok((files, folders))
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

    fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool {
        let wanted = buffer.len();
        let read = preadv2(
            &self.0,
            &mut [io::IoSliceMut::new(buffer)],
            offset,
            ReadWriteFlags::NOWAIT,
        );
        read.is_ok_and(|read| read == wanted)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn stamp(&self) -> Option<FileStamp> {
        let metadata = self.0.metadata().ok()?;
        Some(FileStamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::files::{read_exact_at, remove_if_there, write_all_at};

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
        assert_eq!(DiskFiles.list(dir.path()).unwrap(), [FileEntry { path, bytes: 8 }]);
    }

    #[test]
    fn missing_things_are_told_apart_from_broken_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nothing");
        assert_eq!(DiskFiles.list(&path).unwrap(), []);
        let Err(error) = DiskFiles.open(&path) else { panic!() };
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        remove_if_there(&DiskFiles, &path).unwrap();
        DiskFiles.create_dir(&path).unwrap();
        DiskFiles.create_dir(&path).unwrap();
        assert!(DiskFiles.free_bytes(dir.path()).unwrap() > 0);
    }

    #[test]
    fn a_list_has_the_files_of_a_folder_and_of_those_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut expected = Vec::new();
        for number in 0..100 {
            let folder = dir.path().join(format!("{}", number % 20));
            fs::create_dir_all(folder.join("below")).unwrap();
            let path = folder.join(format!("{number}"));
            fs::write(&path, vec![0; number]).unwrap();
            fs::write(folder.join("below/file"), "too deep").unwrap();
            let bytes = number as u64;
            expected.push(FileEntry { path, bytes });
        }
        let path = dir.path().join("file");
        fs::write(&path, "at the top").unwrap();
        expected.push(FileEntry { path, bytes: 10 });
        expected.sort();
        let mut found = DiskFiles.list(dir.path()).unwrap();
        found.sort();
        assert_eq!(found, expected);
    }
}
