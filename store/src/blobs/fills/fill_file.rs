//! File of a fill: on the disk, and in memory from the moment when the disk takes no more.
//!
//! Invariant: all of a piece that has landed is in one of the two. The fill sees to it that no write is under way at that moment.

use std::{
    io,
    ops::Range,
    os::fd::BorrowedFd,
    sync::{Arc, OnceLock},
};

use piecemeal_proto::PieceMap;

use super::memory_file::MemoryFile;
use crate::disk::files::{FileStamp, OpenFile};

/// A file on the disk, and pieces in memory that shadow it.
pub(crate) struct FillFile {
    disk: Arc<dyn OpenFile>,
    memory: OnceLock<MemoryFile>,
}

impl FillFile {
    pub(crate) fn new(disk: Arc<dyn OpenFile>) -> Self {
        Self {
            disk,
            memory: OnceLock::new(),
        }
    }

    /// The file on the disk.
    pub(crate) fn disk(&self) -> &Arc<dyn OpenFile> {
        &self.disk
    }

    /// From now on all that is written stays in memory.
    pub(super) fn overflow(&self, map: PieceMap) {
        self.memory.get_or_init(|| MemoryFile::new(map));
    }
}

impl OpenFile for FillFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(memory) = self.memory.get() else {
            return self.disk.read_at(buffer, offset);
        };
        match memory.read_at(buffer, offset)? {
            0 => {
                let len = memory.len_within_piece(offset, buffer.len());
                self.disk.read_at(&mut buffer[..len], offset)
            }
            read => Ok(read),
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        match self.memory.get() {
            Some(memory) => memory.write_at(bytes, offset),
            None => self.disk.write_at(bytes, offset),
        }
    }

    fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool {
        match self.memory.get() {
            Some(_) => false,
            None => self.disk.read_now(buffer, offset),
        }
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.disk.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.len()
    }

    fn forget(&self, range: Range<u64>) {
        match self.memory.get() {
            Some(memory) => memory.forget(range),
            None => self.disk.forget(range),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self.memory.get() {
            Some(_) => None,
            None => self.disk.descriptor(),
        }
    }

    fn stamp(&self) -> Option<FileStamp> {
        self.disk.stamp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::files::{read_range, write_all_at};

    #[test]
    fn what_was_written_to_the_disk_stays_readable_and_what_follows_is_in_memory() {
        let map = PieceMap::new(10, 4).unwrap();
        // A second file in memory stands for the disk.
        let disk: Arc<dyn OpenFile> = Arc::new(MemoryFile::new(map));
        let file = FillFile::new(Arc::clone(&disk));
        write_all_at(&file, b"0123", 0).unwrap();
        // Half of a piece, as the disk ran full.
        write_all_at(&file, b"xx", 4).unwrap();
        file.overflow(map);
        write_all_at(&file, b"4567", 4).unwrap();
        write_all_at(&file, b"89", 8).unwrap();
        assert_eq!(read_range(&file, 0..10).unwrap(), b"0123456789");
        assert_eq!(read_range(&file, 2..9).unwrap(), b"2345678");
        assert_eq!(read_range(disk.as_ref(), 0..8).unwrap(), b"0123xx\0\0");
        file.forget(4..8);
        assert_eq!(read_range(&file, 0..4).unwrap(), b"0123");
        assert_eq!(read_range(&file, 8..10).unwrap(), b"89");
    }
}
