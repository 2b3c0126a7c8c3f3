//! Extent: bytes of a blob as a place in a file, which are sent to a socket without passing through this process.
//!
//! Sending must not wait for the disk, since it happens on the runtime's threads: [`Extent::make_resident`] sees to that first.

use std::{io, ops::Range, os::fd::BorrowedFd, sync::Arc};

use rustix::{
    fs::sendfile,
    io::{Errno, ReadWriteFlags, preadv2},
};

use crate::disk::{blocking::blocking, files::OpenFile};

/// The stride of probes for whether a file is in memory: the kernel reads ahead by half of this or more.
const PROBE_STRIDE: u64 = 256 * 1024;
/// The size of a copy, where the file cannot be sent without one.
const COPIED_BYTES: usize = 16 * 1024;
/// The size of a read that brings a file into memory.
const SCRATCH_BYTES: usize = 128 * 1024;

/// A part of a blob's file. While it lives the blob stays.
pub struct Extent {
    file: Arc<dyn OpenFile>,
    range: Range<u64>,
    /// Keeps the blob from leaving.
    hold: Arc<dyn Send + Sync>,
}

impl Extent {
    /// `None` for a file that the operating system does not have, such as one in memory.
    pub(crate) fn new(file: &Arc<dyn OpenFile>, range: Range<u64>, hold: Arc<dyn Send + Sync>) -> Option<Self> {
        file.descriptor()?;
        Some(Self {
            file: Arc::clone(file),
            range,
            hold,
        })
    }

    /// In bytes.
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Brings the bytes that are not in memory there, on a blocking thread; returns at once when all are. Cancel safe.
    ///
    /// # Errors
    /// The disk's error.
    pub async fn make_resident(&self) -> io::Result<()> {
        if self.is_resident() {
            return Ok(());
        }
        let (file, range) = (Arc::clone(&self.file), self.range.clone());
        blocking(move || read_through(file.as_ref(), range)).await?
    }

    fn is_resident(&self) -> bool {
        let Some(file) = self.file.descriptor() else {
            return true;
        };
        let probes = (self.range.start..self.range.end).step_by(usize::try_from(PROBE_STRIDE).unwrap_or(usize::MAX));
        let last = self.range.end.saturating_sub(1);
        probes.chain([last]).all(|offset| {
            let mut byte = [0];
            let read = preadv2(
                file,
                &mut [io::IoSliceMut::new(&mut byte)],
                offset,
                ReadWriteFlags::NOWAIT,
            );
            // Where the file system cannot tell, it is read in first.
            read.is_ok()
        })
    }

    /// Sends at most `bytes_max` bytes from the front, and takes them off. 0: the file ends here, short of its blob.
    ///
    /// # Errors
    /// `WouldBlock` when the socket takes nothing now; else the error of socket or disk.
    pub fn send_to(&mut self, socket: BorrowedFd<'_>, bytes_max: usize) -> io::Result<usize> {
        let file = self
            .file
            .descriptor()
            .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        let bytes = usize::try_from(self.len()).map_or(bytes_max, |len| len.min(bytes_max));
        match sendfile(socket, file, Some(&mut self.range.start), bytes) {
            // A file system or a sandbox without this system call.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => self.copy_to(socket, bytes),
            sent => Ok(sent?),
        }
    }

    fn copy_to(&mut self, socket: BorrowedFd<'_>, bytes_max: usize) -> io::Result<usize> {
        let mut bytes = [0; COPIED_BYTES];
        let read = self
            .file
            .read_at(&mut bytes[..bytes_max.min(COPIED_BYTES)], self.range.start)?;
        let sent = rustix::io::write(socket, &bytes[..read])?;
        self.range.start += sent as u64;
        Ok(sent)
    }

    /// Takes the first `bytes` off as an extent of their own.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    pub fn split_to(&mut self, bytes: u64) -> Self {
        assert!(bytes <= self.len(), "an extent is split within it");
        let middle = self.range.start + bytes;
        let front = Self {
            file: Arc::clone(&self.file),
            range: self.range.start..middle,
            hold: Arc::clone(&self.hold),
        };
        self.range.start = middle;
        front
    }
}

fn read_through(file: &dyn OpenFile, range: Range<u64>) -> io::Result<()> {
    let mut scratch = vec![0; SCRATCH_BYTES];
    let mut at = range.start;
    while at < range.end {
        let rest = usize::try_from(range.end - at).map_or(SCRATCH_BYTES, |rest| rest.min(SCRATCH_BYTES));
        match file.read_at(&mut scratch[..rest], at) {
            // The file is shorter than it should be; sending it fails on that.
            Ok(0) => return Ok(()),
            Ok(read) => at += read as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        os::fd::AsFd as _,
    };

    use super::*;
    use crate::disk::{
        disk_files::DiskFiles,
        files::{Files as _, write_all_at},
    };

    fn file(content: &[u8]) -> (tempfile::TempDir, Arc<dyn OpenFile>) {
        let dir = tempfile::tempdir().unwrap();
        let file = DiskFiles.create(&dir.path().join("blob")).unwrap();
        write_all_at(file.as_ref(), content, 0).unwrap();
        (dir, file)
    }

    #[tokio::test]
    async fn an_extent_is_sent_from_its_front_and_knows_what_is_left() {
        let (_dir, file) = file(b"0123456789");
        let mut extent = Extent::new(&file, 2..9, Arc::new(())).unwrap();
        extent.make_resident().await.unwrap();
        let front = extent.split_to(3);
        assert_eq!((front.len(), extent.len()), (3, 4));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        for mut part in [front, extent] {
            while !part.is_empty() {
                assert!(part.send_to(sender.as_fd(), 2).unwrap() <= 2);
            }
        }
        sender.flush().unwrap();
        drop(sender);
        let mut received = String::new();
        listener.accept().unwrap().0.read_to_string(&mut received).unwrap();
        assert_eq!(received, "2345678");
    }

    #[test]
    fn a_file_that_is_too_short_sends_nothing_more() {
        let (_dir, file) = file(b"01");
        let mut extent = Extent::new(&file, 2..9, Arc::new(())).unwrap();
        let (_end, sender) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(extent.send_to(sender.as_fd(), 100).unwrap(), 0);
    }
}
