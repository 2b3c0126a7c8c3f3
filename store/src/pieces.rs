//! `Filling`: the handle of writers and readers to a blob that is being filled.
//!
//! Clients see it through [`Filling::read`], which withholds the blob's final piece until the whole is proven: a client that
//! got everything but the end cannot mistake a bad blob for a good one. Other peers see it through [`Filling::read_piece`]:
//! they verify each piece and prove the blob themselves.

use std::{
    io,
    ops::Range,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use piecemeal_proto::{Digest, FillId, PieceMap, PieceSet};
use tokio::sync::watch;
use tracing::debug;

use crate::{
    Extent, FillFailure, PieceHash, ReadBlobError, StoreError,
    blobs::check_range,
    blocking::blocking,
    files::write_all_at,
    fill::{Claim, Fill, read_now, read_range},
    handle::Handle,
    index::{Durability, partials},
};

/// Pieces that one write hashes towards the blob's digest: more than one, so that the digest catches up with pieces that
/// came out of order; few, so that no writer pays for all of them.
const ADVANCE_PIECES_MAX: u32 = 4;

/// A blob that is being filled. Cheap to clone. When the last clone goes, what arrived stays on disk to be resumed.
///
/// Of a passing fill each clone that reads is a reader of its own, for as long as it lives.
pub struct Filling {
    pub(crate) handle: Arc<Handle>,
    seat: Mutex<Option<Seat>>,
    /// How many times pieces had been taken back when this clone first read.
    seen: OnceLock<usize>,
}

impl Clone for Filling {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.handle))
    }
}

/// A reader's place in the window of a passing fill.
struct Seat {
    handle: Arc<Handle>,
    id: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.handle.fill.leave(self.id, self.handle.shared().clock.monotonic());
    }
}

/// Why a piece could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum WritePieceError {
    /// The sender's mistake.
    #[error("piece {index} has {expected} bytes, got {got}")]
    WrongLength { index: u32, expected: u64, got: u64 },
    /// The sender's mistake: do not ask it for this blob again.
    #[error("the piece's hash differs from the expected one")]
    Mismatch { expected: PieceHash, computed: PieceHash },
    #[error("a blob of {count} pieces has no piece {index}")]
    NoSuchPiece { index: u32, count: u32 },
    /// The tail that is remembered is another piece's, or of another length.
    #[error("no tail of piece {index} ends at {offset}")]
    NoSuchTail { index: u32, offset: u64 },
    /// The fill was ended by another task.
    #[error("the fill was abandoned")]
    Abandoned(#[source] FillFailure),
    /// The local disk; the piece itself is good.
    #[error("failed to write a piece to the store")]
    Io(#[from] io::Error),
}

impl Filling {
    pub(crate) fn new(handle: Arc<Handle>) -> Self {
        Self {
            handle,
            seat: Mutex::default(),
            seen: OnceLock::new(),
        }
    }

    pub(crate) fn fill_state(&self) -> &Fill {
        &self.handle.fill
    }

    pub fn digest(&self) -> &Digest {
        self.fill_state().digest()
    }

    pub fn map(&self) -> PieceMap {
        self.fill_state().map()
    }

    /// The fill's id, which travels with its pieces.
    pub fn fill(&self) -> FillId {
        self.fill_state().id()
    }

    /// The pieces that are here, each verified.
    pub fn have(&self) -> PieceSet {
        self.fill_state().have()
    }

    /// The pieces that have been here, each verified; those of a passing fill may have gone again.
    pub fn landed(&self) -> PieceSet {
        self.fill_state().landed()
    }

    /// Whether the blob will not be kept.
    pub fn is_passing(&self) -> bool {
        self.fill_state().is_passing()
    }

    /// The pieces that a passing fill would have room for if they came now; `None` for one that keeps everything.
    pub fn window(&self) -> Option<Range<u32>> {
        self.fill_state().window()
    }

    /// Whether the byte at `offset` of a passing fill has gone already.
    pub fn has_passed(&self, offset: u64) -> bool {
        let piece = self.map().piece_at(offset);
        piece.is_some_and(|piece| self.fill_state().has_passed(piece))
    }

    /// Whether a passing fill has readers. A fill that keeps everything counts as read.
    pub fn has_readers(&self) -> bool {
        self.fill_state().has_readers()
    }

    /// The hash of a piece that has been here.
    pub fn hash(&self, index: u32) -> Option<PieceHash> {
        self.fill_state().hash(index)
    }

    /// Whether the whole blob was found to have its digest.
    pub fn is_proven(&self) -> bool {
        self.fill_state().is_proven()
    }

    /// Why the fill ended without its blob, if it did.
    pub fn failure(&self) -> Option<FillFailure> {
        self.fill_state().failure()
    }

    /// A counter that moves with each new piece, with the proof, and with the end.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.fill_state().changes()
    }

    /// The lowest piece that is not here and that a [`Filling::read`] waits for right now.
    pub fn wanted(&self) -> Option<u32> {
        self.fill_state().wanted()
    }

    /// The [`Filling::read`] that has waited longest for its first byte: the piece that it needs, and how long.
    pub fn longest_wait(&self) -> Option<(u32, Duration)> {
        self.fill_state().longest_wait(self.now())
    }

    fn now(&self) -> Duration {
        self.handle.shared().clock.monotonic()
    }

    /// Verifies a piece and keeps it; returns its hash. A piece that is here already stays as it is, and that is no error.
    /// Cancel safe: a write that has begun runs to its end.
    ///
    /// # Errors
    /// [`WritePieceError`].
    pub async fn write_piece(
        &self,
        index: u32,
        bytes: Bytes,
        expected: Option<PieceHash>,
    ) -> Result<PieceHash, WritePieceError> {
        let (piece_len, got) = (self.piece_len(index)?, bytes.len() as u64);
        if got != piece_len {
            let expected = piece_len;
            return Err(WritePieceError::WrongLength { index, expected, got });
        }
        let claimed = match self.claim(index).await? {
            Ok(claimed) => claimed,
            Err(hash) => return Ok(hash),
        };
        blocking(move || claimed.write(&bytes, expected)).await?
    }

    pub(crate) fn piece_len(&self, index: u32) -> Result<u64, WritePieceError> {
        let (map, count) = (self.map(), self.map().count());
        match index < count {
            true => Ok(map.len(index)),
            false => Err(WritePieceError::NoSuchPiece { index, count }),
        }
    }

    /// The right to write the piece, once no other writer has it; or its hash, when it is here.
    async fn claim(&self, index: u32) -> Result<Result<Claimed, PieceHash>, WritePieceError> {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            match self.fill_state().claim(index).map_err(WritePieceError::Abandoned)? {
                Claim::Have(hash) => return Ok(Err(hash)),
                Claim::Yours => {
                    let handle = Arc::clone(&self.handle);
                    return Ok(Ok(Claimed { handle, index }));
                }
                Claim::Busy => changes.changed().await.expect("the sender is in our own handle"),
                Claim::Beyond => {
                    let (handle, now) = (Arc::clone(&self.handle), self.now());
                    blocking(move || handle.fill.make_way(index, now)).await??;
                    if !changes.has_changed().unwrap_or(true) {
                        self.wait_for_way(&mut changes).await;
                    }
                }
            }
        }
    }

    /// Waits until the window may have moved. It wakes now and then, since a reader that stands still causes no change.
    async fn wait_for_way(&self, changes: &mut watch::Receiver<u64>) {
        let changed = tokio::time::timeout(LOOK_AGAIN, changes.changed()).await;
        if let Ok(changed) = changed {
            changed.expect("the sender is in our own handle");
        }
    }

    /// Takes back pieces that turned out to be wrong. They are missing again. A reader (a clone) that may have read one of
    /// them gets an error: it has read bytes that are not the blob's. A fill whose pieces cannot be fetched again is
    /// abandoned.
    ///
    /// # Errors
    /// [`StoreError::Index`].
    pub async fn take_back(&self, pieces: Vec<u32>) -> Result<(), StoreError> {
        let gate = self.handle.shared().gates.enter(self.digest()).await;
        let handle = Arc::clone(&self.handle);
        let has_way_back = blocking(move || {
            let fill = &handle.fill;
            let Some(taken) = fill.take_back(pieces) else {
                return Ok(false);
            };
            handle.shared().write(Durability::Batched, |transaction| {
                partials::drop_pieces(transaction, fill.row(), &taken)
            })?;
            drop(gate);
            Ok::<_, StoreError>(true)
        })
        .await??;
        if !has_way_back {
            self.abandon(FillFailure::Revoked).await;
        }
        Ok(())
    }

    /// Reads as a client may: waits until the range's first byte is here, and returns the bytes from there without a
    /// gap: at least one byte, at most [`crate::READ_BYTES_MAX`]. The blob's final piece counts as here once the blob is
    /// proven. An empty range is an empty answer. Cancel safe.
    ///
    /// # Errors
    /// [`ReadBlobError`]: `Abandoned` when the fill fails, even for bytes that are here.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes, ReadBlobError> {
        let range = self.readable(range).await?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.read_file(range).await
    }

    /// Waits until a client may see the byte at `offset`, which lies within the blob. Cancel safe.
    ///
    /// # Errors
    /// As [`Filling::read`].
    pub async fn wait_readable(&self, offset: u64) -> Result<(), ReadBlobError> {
        self.readable(offset..offset + 1).await.map(drop)
    }

    /// As [`Filling::read`], but says where the bytes lie instead of reading them. `None` where they can only be read.
    ///
    /// # Errors
    /// As [`Filling::read`].
    pub async fn extent(&self, range: Range<u64>) -> Result<Option<Extent>, ReadBlobError> {
        let range = self.readable(range).await?;
        Ok(self.extent_of(range))
    }

    /// Where a whole piece lies, the final one too; `None` when it is not here, or can only be read.
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
        if self.is_passing() {
            return None;
        }
        Extent::new(self.fill_state().file(), range, Arc::clone(&self.handle) as _)
    }

    /// Waits for the first byte of `range`; returns the part of it that a client may see without a gap.
    async fn readable(&self, range: Range<u64>) -> Result<Range<u64>, ReadBlobError> {
        let range = check_range(range, self.map().blob_bytes())?;
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
                .readable_end(range.start, range.end - range.start)
                .map_err(ReadBlobError::Abandoned)?;
            if end > range.start {
                break end;
            }
            if self.fill_state().has_passed(piece) {
                return Err(ReadBlobError::Passed);
            }
            waiting.get_or_insert_with(|| Waiting::new(&self.handle, piece));
            changes.changed().await.expect("the sender is in our own handle");
        };
        drop(waiting);
        Ok(range.start..end)
    }

    /// Takes a seat in the window, or moves on within it.
    fn sit_at(&self, piece: u32) -> Result<(), ReadBlobError> {
        if !self.is_passing() {
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
                let handle = Arc::clone(&self.handle);
                *seat = Some(Seat { handle, id });
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

    /// Waits until the piece is here, proven or not. Cancel safe.
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
            changes.changed().await.expect("the sender is in our own handle");
        }
    }

    async fn read_file(&self, range: Range<u64>) -> Result<Bytes, ReadBlobError> {
        let read = match read_now(self.fill_state().file().as_ref(), &range) {
            Some(bytes) => Ok(bytes),
            None => {
                let (handle, asked) = (Arc::clone(&self.handle), range.clone());
                blocking(move || read_range(handle.fill.file().as_ref(), asked)).await?
            }
        };
        if self.is_passing() && !self.is_still_here(&range) {
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
}

impl Filling {
    fn is_still_here(&self, range: &Range<u64>) -> bool {
        let last = range.end.checked_sub(1).and_then(|last| self.map().piece_at(last));
        let pieces = self.map().piece_at(range.start).zip(last);
        pieces.is_none_or(|(first, last)| (first..=last).all(|piece| self.fill_state().has(piece)))
    }
}

/// How often a writer without room looks for readers that stand still.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The right to write one piece; given back when it is dropped.
pub(crate) struct Claimed {
    pub(crate) handle: Arc<Handle>,
    pub(crate) index: u32,
}

impl Claimed {
    fn write(self, bytes: &Bytes, expected: Option<PieceHash>) -> Result<PieceHash, WritePieceError> {
        let Digest::Sha256(computed) = Digest::of(bytes) else {
            unreachable!("the canonical digest is sha256");
        };
        if let Some(expected) = expected.filter(|expected| *expected != computed) {
            return Err(WritePieceError::Mismatch { expected, computed });
        }
        let fill = &self.handle.fill;
        fill.let_go();
        {
            let _writing = fill.enter_write().map_err(WritePieceError::Abandoned)?;
            write_all_at(fill.file().as_ref(), bytes, fill.map().range(self.index).start)?;
            fill.land(self.index, computed);
        }
        let hashed = match fill.is_passing() {
            // A piece that is not hashed cannot go, and there may be no later write that hashes it.
            true => fill.catch_up(Some((self.index, bytes)), self.handle.shared().clock.monotonic()),
            false => fill.advance(Some((self.index, bytes)), ADVANCE_PIECES_MAX),
        };
        if let Err(error) = hashed {
            // Publishing reads that piece again, and says so if it cannot.
            debug!(blob.digest = %fill.digest(), error = &error as &dyn std::error::Error, "failed to read a piece back");
        }
        self.handle.shared().batch_if_due();
        Ok(computed)
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.handle.fill.release(self.index);
    }
}

/// A reader without a byte, for as long as this lives.
struct Waiting<'a> {
    fill: &'a Fill,
    id: u64,
}

impl<'a> Waiting<'a> {
    fn new(handle: &'a Handle, piece: u32) -> Self {
        let since = handle.shared().clock.monotonic();
        Self {
            fill: &handle.fill,
            id: handle.fill.begin_wait(piece, since),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.fill.end_wait(self.id);
    }
}
