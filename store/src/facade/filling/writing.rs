//! Writing to a blob that is being filled: whole pieces, partial pieces, and pieces that are taken back.
//!
//! A piece has one writer at a time. A write that has begun runs to its end.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use piecemeal_proto::{PieceHash, piece_hash};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::handle::{Filling, HeldFill};
use crate::{
    blobs::fills::{failure::FillFailure, fill::Claim, partial_piece::PartialPiece},
    disk::{
        blocking::blocking,
        files::{takes_no_more, write_all_at},
    },
    index::{Durability, partials},
    values::error::StoreError,
};

/// Pieces that one write hashes towards the blob's digest: more than one, so that the digest catches up with pieces that
/// came out of order; few, so that no writer pays for all of them.
const ADVANCE_PIECES_MAX: u32 = 4;

/// The interval at which a writer without room looks for readers that stand still.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How long a fill of which the disk takes no more waits for a place among those that are unstored.
const OVERFLOW_PATIENCE: Duration = Duration::from_secs(30);

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
    /// The part of the piece that is here ends elsewhere, or nothing of it is here.
    #[error("no partial piece {index} ends at {offset}")]
    NoSuchPartialPiece { index: u32, offset: u64 },
    /// The fill was ended by another task.
    #[error("the fill was abandoned")]
    Abandoned(#[source] FillFailure),
    /// The local disk; the piece itself is good.
    #[error("failed to write a piece to the store")]
    Io(#[from] io::Error),
}

impl Filling {
    /// Verifies a piece and keeps it; returns its hash. A piece that is here already stays as it is, and that is no error. When the disk
    /// does not take it the fill goes on unstored, with this piece. Cancel safe: a write that has begun runs to its end.
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
        loop {
            let claimed = match self.claim(index).await? {
                Ok(claimed) => claimed,
                Err(hash) => return Ok(hash),
            };
            let written = bytes.clone();
            match blocking(move || claimed.write(&written, expected)).await? {
                Err(WritePieceError::Io(error)) if takes_no_more(&error) && !self.is_unstored() => {
                    self.overflow(error).await?;
                }
                written => return written,
            }
        }
    }

    /// The disk does not take the blob. The fill goes on unstored, as soon as not too many others do.
    async fn overflow(&self, error: io::Error) -> Result<(), WritePieceError> {
        let (blobs, digest) = (&self.live.shared.blobs, self.digest());
        blobs.note_trouble(&error);
        let Ok(place) = tokio::time::timeout(OVERFLOW_PATIENCE, blobs.places.overflowed()).await else {
            return Err(error.into());
        };
        let live = self.live.clone();
        // It waits for the writes that are under way.
        let overflows = blocking(move || live.handle.overflow(&live.shared.blobs.live, place)).await?;
        if overflows {
            warn!(blob.digest = %digest, %error, "the disk does not take {digest}, which passes through from here on without being kept: {error}");
        }
        Ok(())
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
                    let live = self.live.clone();
                    return Ok(Ok(Claimed { live, index }));
                }
                Claim::Busy => changes.changed().await.expect("the sender is in our own handle"),
                Claim::Beyond => {
                    let (live, now) = (self.live.clone(), self.now());
                    blocking(move || live.handle.fill.make_way(index, now)).await??;
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
        let lock = self.live.shared.blobs.locks.enter(self.digest()).await;
        let live = self.live.clone();
        let has_way_back = blocking(move || {
            let fill = &live.handle.fill;
            // A batch may have taken these pieces: its rows come before they are deleted here, and none is given back after.
            let _saving = live.shared.blobs.live.save();
            let Some(taken) = fill.take_back(pieces) else {
                return Ok(false);
            };
            live.shared.index.write(Durability::Batched, |transaction| {
                partials::drop_pieces(transaction, fill.row(), &taken)
            })?;
            drop(lock);
            Ok::<_, StoreError>(true)
        })
        .await??;
        if !has_way_back {
            self.abandon(FillFailure::Revoked).await;
        }
        Ok(())
    }

    /// Keeps bytes of a piece that is still on its way, to go on from after a cut or a crash: see [`Filling::partial_piece`]. They
    /// follow those that were kept before; at `offset` 0 they take the place of what was here of the piece. Of more than sixteen
    /// pieces, the one that has not grown for longest is forgotten. Does nothing for a piece that is here or that another
    /// writer has. Cancel safe: a write that has begun runs to its end.
    ///
    /// # Errors
    /// [`WritePieceError`]: `WrongLength` for the whole piece or more, which only [`Filling::write_piece`] takes.
    pub async fn write_partial_piece(&self, index: u32, offset: u64, bytes: Bytes) -> Result<(), WritePieceError> {
        let (expected, got) = (self.piece_len(index)?, offset.saturating_add(bytes.len() as u64));
        if got >= expected {
            return Err(WritePieceError::WrongLength { index, expected, got });
        }
        let Claim::Yours = self.fill_state().claim(index).map_err(WritePieceError::Abandoned)? else {
            return Ok(());
        };
        let live = self.live.clone();
        let claimed = Claimed { live, index };
        blocking(move || claimed.write_partial_piece(offset, &bytes)).await?
    }

    /// The pieces of which a beginning is here, 16 at the most.
    pub fn partial_pieces(&self) -> Vec<u32> {
        self.fill_state().partial_pieces()
    }

    /// The bytes that have come so far: of pieces that have landed, and of the beginnings of others.
    pub fn arrived_bytes(&self) -> u64 {
        self.fill_state().arrived_bytes()
    }

    /// The first bytes of a piece that is not here in full. `None` when none are here, also when the file does not have them any
    /// more.
    pub async fn partial_piece(&self, index: u32) -> Option<Bytes> {
        let partial = self.fill_state().partial_piece(index)?;
        let (file, map) = (Arc::clone(self.fill_state().file()), self.map());
        let bytes = blocking(move || partial.read(file.as_ref(), map)).await.ok()??;
        let wanted = self.failure().is_none() && !self.fill_state().landed().contains(index);
        wanted.then(|| bytes.into())
    }
}

/// The right to write one piece; given back when it is dropped.
struct Claimed {
    live: HeldFill,
    index: u32,
}

impl Claimed {
    fn write(self, bytes: &Bytes, expected: Option<PieceHash>) -> Result<PieceHash, WritePieceError> {
        let computed = piece_hash(bytes);
        if let Some(expected) = expected.filter(|expected| *expected != computed) {
            return Err(WritePieceError::Mismatch { expected, computed });
        }
        let fill = &self.live.handle.fill;
        fill.free_gone();
        {
            let _writing = fill.enter_write().map_err(WritePieceError::Abandoned)?;
            write_all_at(fill.file().as_ref(), bytes, fill.map().range(self.index).start)?;
            fill.land(self.index, computed);
        }
        let hashed = match fill.is_unstored() {
            // A piece that is not hashed cannot go, and there may be no later write that hashes it.
            true => fill.catch_up(Some((self.index, bytes)), self.live.shared.index.monotonic()),
            false => fill.advance(Some((self.index, bytes)), ADVANCE_PIECES_MAX),
        };
        if let Err(error) = hashed {
            // Publishing reads that piece again, and says so if it cannot.
            debug!(blob.digest = %fill.digest(), error = &error as &dyn std::error::Error, "failed to read a piece back");
        }
        self.live.shared.batch_if_due();
        Ok(computed)
    }

    fn write_partial_piece(self, offset: u64, bytes: &[u8]) -> Result<(), WritePieceError> {
        let fill = &self.live.handle.fill;
        let partial = self.up_to(offset)?;
        {
            let _writing = fill.enter_write().map_err(WritePieceError::Abandoned)?;
            write_all_at(fill.file().as_ref(), bytes, fill.map().range(self.index).start + offset)?;
            fill.keep_partial_piece(partial.extended(bytes));
        }
        self.live.shared.batch_if_due();
        Ok(())
    }

    fn up_to(&self, offset: u64) -> Result<PartialPiece, WritePieceError> {
        let index = self.index;
        if offset == 0 {
            return Ok(PartialPiece::new(index));
        }
        let partial = self.live.handle.fill.partial_piece(index);
        partial
            .filter(|partial| partial.len() == offset)
            .ok_or(WritePieceError::NoSuchPartialPiece { index, offset })
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.live.handle.fill.release(self.index);
    }
}
