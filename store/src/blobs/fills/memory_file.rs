//! File in memory: the pieces of a blob that is not kept.
//!
//! A piece takes memory from its first byte until it is forgotten.

use std::{collections::HashMap, io, ops::Range};

use parking_lot::Mutex;
use piecemeal_proto::PieceMap;

use crate::disk::files::{OpenFile, read_exact_at};

/// A file in memory, of the pieces that are within the window.
pub(super) struct MemoryFile {
    map: PieceMap,
    pieces: Mutex<HashMap<u32, Box<[u8]>>>,
}

impl MemoryFile {
    pub(super) fn new(map: PieceMap) -> Self {
        Self {
            map,
            pieces: Mutex::default(),
        }
    }

    /// How many of `len` bytes from `offset` on lie in the piece at `offset`.
    pub(super) fn len_within_piece(&self, offset: u64, len: usize) -> usize {
        self.within(offset, len).map_or(len, |(_, range)| range.len())
    }

    /// The part of `len` bytes from `offset` on that lies in one piece: the piece, and the range in it.
    fn within(&self, offset: u64, len: usize) -> Option<(u32, Range<usize>)> {
        let piece = self.map.piece_at(offset)?;
        let range = self.map.range(piece);
        let start = usize::try_from(offset - range.start).ok()?;
        let end = usize::try_from(range.end - range.start)
            .ok()?
            .min(start.saturating_add(len));
        Some((piece, start..end))
    }
}

impl OpenFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some((piece, range)) = self.within(offset, buffer.len()) else {
            return Ok(0);
        };
        let pieces = self.pieces.lock();
        let Some(bytes) = pieces.get(&piece) else {
            return Ok(0);
        };
        let part = &bytes[range];
        buffer[..part.len()].copy_from_slice(part);
        Ok(part.len())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let (piece, range) = self
            .within(offset, bytes.len())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let piece_bytes = usize::try_from(self.map.len(piece)).map_err(io::Error::other)?;
        let mut pieces = self.pieces.lock();
        let place = pieces
            .entry(piece)
            .or_insert_with(|| vec![0; piece_bytes].into_boxed_slice());
        let len = range.len();
        place[range].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool {
        read_exact_at(self, buffer, offset).is_ok()
    }

    fn set_len(&self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.map.blob_bytes())
    }

    fn forget(&self, pieces: Range<u64>) {
        let (first, end) = (self.map.piece_at(pieces.start), self.map.piece_at(pieces.end));
        let mut kept = self.pieces.lock();
        kept.retain(|&piece, _| first.is_none_or(|first| piece < first) || end.is_some_and(|end| piece >= end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_memory_holds_what_was_written_until_it_is_forgotten() {
        let file = MemoryFile::new(PieceMap::new(10, 4).unwrap());
        assert_eq!(file.write_at(b"0123456789", 0).unwrap(), 4, "to the piece's end");
        assert_eq!(file.write_at(b"67", 6).unwrap(), 2);
        assert_eq!(file.write_at(b"89", 8).unwrap(), 2);
        let mut buffer = [0; 8];
        assert_eq!(file.read_at(&mut buffer, 1).unwrap(), 3);
        assert_eq!(&buffer[..3], b"123");
        file.forget(0..4);
        assert_eq!(file.read_at(&mut buffer, 0).unwrap(), 0);
        assert_eq!(file.read_at(&mut buffer, 8).unwrap(), 2);
        file.forget(4..10);
        assert_eq!(file.read_at(&mut buffer, 9).unwrap(), 0);
        assert_eq!(file.read_at(&mut buffer, 10).unwrap(), 0);
    }
}
