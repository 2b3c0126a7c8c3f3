//! Reading a blob that is being filled, as clients and as peers do.
//!
//! A reader waits for its own piece and for nothing else.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;

use super::handle::{Filling, HeldFill, Seat};
use crate::{
    blobs::{
        fills::{failure::FillFailure, fill::Fill},
        read::{ReadBlobError, ReadRange, check_range},
    },
    disk::{
        blocking::blocking,
        extent::Extent,
        files::{read_now, read_range},
    },
};

impl Filling {
    /// Reads as a client may: waits until the range's first byte is here, and returns the bytes from there without a
    /// gap: at least one byte, at most [`crate::READ_BYTES_MAX`]. The blob's final piece counts as here once the blob is
    /// proven, or for an early range once it has landed. An empty range is an empty answer. Cancel safe.
    ///
    /// # Errors
    /// [`ReadBlobError`]: `Abandoned` when the fill fails, even for bytes that are here.
    pub async fn read(&self, range: impl Into<ReadRange>) -> Result<Bytes, ReadBlobError> {
        let range = self.readable(range.into()).await?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.read_file(range).await
    }

    /// Waits until a client may see the first byte of `range`, which lies within the blob. Cancel safe.
    ///
    /// # Errors
    /// As [`Filling::read`].
    pub async fn wait_readable(&self, range: impl Into<ReadRange>) -> Result<(), ReadBlobError> {
        self.readable(range.into()).await.map(drop)
    }

    /// As [`Filling::read`], but says where the bytes lie instead of reading them. `None` where they can only be read.
    ///
    /// # Errors
    /// As [`Filling::read`].
    pub async fn extent(&self, range: impl Into<ReadRange>) -> Result<Option<Extent>, ReadBlobError> {
        let range = self.readable(range.into()).await?;
        Ok(self.extent_of(range))
    }

    /// The place of a whole piece, the final one too; `None` when it is not here, or can only be read.
    ///
    /// # Errors
    /// [`ReadBlobError::Abandoned`].
    pub fn piece_extent(&self, index: u32) -> Result<Option<Extent>, ReadBlobError> {
        if let Some(why) = self.failure() {
            return Err(ReadBlobError::Abandoned(why));
        }
        let is_here = self.fill_state().has(index);
        Ok(is_here.then(|| self.extent_of(self.map().range(index))).flatten())
    }

    fn extent_of(&self, range: Range<u64>) -> Option<Extent> {
        // A piece that is not kept may go before it is sent.
        if self.is_unstored() {
            return None;
        }
        Extent::new(self.fill_state().file(), range, Arc::new(self.live.clone()))
    }

    /// Waits for the first byte of `range`; returns the part of it that a client may see without a gap.
    async fn readable(&self, ReadRange { bytes, is_early }: ReadRange) -> Result<Range<u64>, ReadBlobError> {
        let last = bytes.end.checked_sub(1).and_then(|last| self.map().piece_at(last));
        let range = check_range(bytes, self.map().blob_bytes())?;
        let Some(piece) = self.map().piece_at(range.start).filter(|_| !range.is_empty()) else {
            return Ok(range.start..range.start);
        };
        self.sit_at(piece)?;
        let seen = *self.seen.get_or_init(|| self.fill_state().takings());
        let mut changes = self.changes();
        let mut waiting = None;
        let end = loop {
            changes.borrow_and_update();
            if self.fill_state().has_taken_back(seen, range.start) {
                return Err(ReadBlobError::Abandoned(FillFailure::Revoked));
            }
            let end = self
                .fill_state()
                .readable_end(range.start, range.end - range.start, is_early)
                .map_err(ReadBlobError::Abandoned)?;
            if end > range.start {
                break end;
            }
            if self.fill_state().has_passed(piece) {
                return Err(ReadBlobError::Passed);
            }
            waiting
                .get_or_insert_with(|| Waiting::new(&self.live, piece..last.map_or(piece, |last| last.max(piece)) + 1));
            changes.changed().await.expect("the sender is in our own handle");
        };
        drop(waiting);
        Ok(range.start..end)
    }

    /// Takes a seat in the window, or moves on within it.
    fn sit_at(&self, piece: u32) -> Result<(), ReadBlobError> {
        if !self.is_unstored() {
            return Ok(());
        }
        let (fill, now) = (self.fill_state(), self.now());
        let mut seat = self.seat.lock();
        match &*seat {
            Some(taken) => fill
                .move_to(taken.id, piece, now)
                .then_some(())
                .ok_or(ReadBlobError::Passed),
            None => {
                let id = fill.sit(piece, now).ok_or(ReadBlobError::Passed)?;
                let live = self.live.clone();
                *seat = Some(Seat { live, id });
                Ok(())
            }
        }
    }

    /// A whole piece, as peers get it, the final one too; `None` when it is not here. Does not wait.
    ///
    /// # Errors
    /// [`ReadBlobError`].
    pub async fn read_piece(&self, index: u32) -> Result<Option<Bytes>, ReadBlobError> {
        if let Some(why) = self.failure() {
            return Err(ReadBlobError::Abandoned(why));
        }
        if !self.fill_state().has(index) {
            return Ok(None);
        }
        match self.read_file(self.map().range(index)).await {
            Err(ReadBlobError::Passed) => Ok(None),
            read => read.map(Some),
        }
    }

    /// Waits until the piece is here, proven or not: a reader like any other. Cancel safe.
    ///
    /// # Errors
    /// [`ReadBlobError::Abandoned`] when the fill fails, [`ReadBlobError::OutOfRange`] when the blob has no such piece.
    pub async fn wait_piece(&self, index: u32) -> Result<(), ReadBlobError> {
        let map = self.map();
        if index >= map.count() {
            return Err(ReadBlobError::OutOfRange {
                range: map.range(index),
                blob_bytes: map.blob_bytes(),
            });
        }
        let mut changes = self.changes();
        let mut waiting = None;
        loop {
            changes.borrow_and_update();
            if let Some(why) = self.failure() {
                return Err(ReadBlobError::Abandoned(why));
            }
            if self.fill_state().has(index) {
                return Ok(());
            }
            if self.fill_state().has_passed(index) {
                return Err(ReadBlobError::Passed);
            }
            waiting.get_or_insert_with(|| Waiting::new(&self.live, index..index + 1));
            changes.changed().await.expect("the sender is in our own handle");
        }
    }

    /// Waits until something of the blob is here, of a partial piece too; an empty blob is. Cancel safe.
    ///
    /// # Errors
    /// [`ReadBlobError::Abandoned`] when the fill fails before.
    pub async fn wait_arrived(&self) -> Result<(), ReadBlobError> {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            if self.arrived_bytes() > 0 || self.map().blob_bytes() == 0 {
                return Ok(());
            }
            if let Some(why) = self.failure() {
                return Err(ReadBlobError::Abandoned(why));
            }
            changes.changed().await.expect("the sender is in our own handle");
        }
    }

    async fn read_file(&self, range: Range<u64>) -> Result<Bytes, ReadBlobError> {
        let read = match read_now(self.fill_state().file().as_ref(), &range) {
            Some(bytes) => Ok(bytes),
            None => {
                let (live, asked) = (self.live.clone(), range.clone());
                blocking(move || read_range(live.handle.fill.file().as_ref(), asked)).await?
            }
        };
        if self.is_unstored() && !self.is_still_here(&range) {
            return Err(ReadBlobError::Passed);
        }
        match read {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(ReadBlobError::Truncated { digest: *self.digest() })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn is_still_here(&self, range: &Range<u64>) -> bool {
        let last = range.end.checked_sub(1).and_then(|last| self.map().piece_at(last));
        let pieces = self.map().piece_at(range.start).zip(last);
        pieces.is_none_or(|(first, last)| (first..=last).all(|piece| self.fill_state().has(piece)))
    }
}

/// A reader without a byte, for as long as this lives.
struct Waiting<'a> {
    fill: &'a Fill,
    id: u64,
}

impl<'a> Waiting<'a> {
    fn new(live: &'a HeldFill, pieces: Range<u32>) -> Self {
        let since = live.shared.index.monotonic();
        Self {
            fill: &live.handle.fill,
            id: live.handle.fill.begin_wait(pieces, since),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.fill.end_wait(self.id);
    }
}
