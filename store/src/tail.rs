//! The tail of a fill: the first bytes of a piece that has not arrived in full.
//!
//! A piece is up to 4 MiB. Its first bytes survive a cut and a crash in the place where the piece will be, and only the
//! fill's owner ever sees them. A fill remembers a tail for each of the few pieces that are on their way at once. It is
//! a hint: it counts only while the file has bytes with the hash that is kept for it, and the whole piece is written and
//! hashed again in the end.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use piecemeal_proto::{Algorithm, Digest, Hasher};

use crate::{
    Filling, PieceHash, WritePieceError,
    blocking::blocking,
    files::write_all_at,
    fill::{Claim, Fill, read_range},
    index::{TailChange, TailRow},
    pieces::Claimed,
};

/// The most tails of one fill: of the eight pieces that are on their way at once, and of as many that broke off and wait for
/// their turn.
pub(crate) const TAILS_MAX: usize = 16;

/// The tails of one fill.
#[derive(Default)]
pub(crate) struct Tails {
    /// Tails of different pieces; the one that was written to last comes last.
    tails: Vec<Tail>,
    /// Pieces whose tails the index does not know as they are.
    unsaved: BTreeSet<u32>,
}

impl Tails {
    pub(crate) fn get(&self, index: u32) -> Option<&Tail> {
        self.tails.iter().find(|tail| tail.index == index)
    }

    /// Replaces the piece's last tail. Beyond [`TAILS_MAX`] the tail that has not grown for longest is forgotten.
    pub(crate) fn keep(&mut self, tail: Tail) {
        self.unsaved.insert(tail.index);
        self.adopt(tail);
    }

    /// As [`Tails::keep`], for a tail that the index knows.
    pub(crate) fn adopt(&mut self, tail: Tail) {
        self.tails.retain(|other| other.index != tail.index);
        if self.tails.len() >= TAILS_MAX {
            let oldest = self.tails.remove(0);
            self.unsaved.insert(oldest.index);
        }
        self.tails.push(tail);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.tails.iter().map(|tail| tail.len).sum()
    }

    /// The whole piece is here.
    pub(crate) fn forget(&mut self, index: u32) {
        let had = self.tails.len();
        self.tails.retain(|tail| tail.index != index);
        if self.tails.len() < had {
            self.unsaved.insert(index);
        }
    }

    pub(crate) fn indexes(&self) -> Vec<u32> {
        self.tails.iter().map(|tail| tail.index).collect()
    }

    pub(crate) fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    pub(crate) fn take_unsaved(&mut self) -> Vec<TailChange> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let change = |piece| TailChange {
            piece,
            now: self.get(piece).map(Tail::row),
        };
        unsaved.into_iter().map(change).collect()
    }

    pub(crate) fn give_back_unsaved(&mut self, changes: &[TailChange]) {
        self.unsaved.extend(changes.iter().map(|change| change.piece));
    }
}

/// The first `len` bytes of a piece, hashed.
#[derive(Clone)]
pub(crate) struct Tail {
    index: u32,
    len: u64,
    hasher: Hasher,
}

impl Tail {
    fn new(index: u32) -> Self {
        Self {
            index,
            len: 0,
            hasher: Algorithm::Sha256.hasher(),
        }
    }

    /// The tail of the row, when its bytes are in the file.
    pub(crate) fn found(fill: &Fill, row: TailRow) -> Option<Self> {
        let start = fill.map().range(row.piece).start;
        let bytes = read_range(fill.file().as_ref(), start..start + row.bytes).ok()?;
        let tail = Self::new(row.piece).extended(&bytes);
        (tail.row() == row).then_some(tail)
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn row(&self) -> TailRow {
        TailRow {
            piece: self.index,
            bytes: self.len,
            hash: self.hash(),
        }
    }

    fn hash(&self) -> PieceHash {
        match self.hasher.clone().finish() {
            Digest::Sha256(hash) => hash,
            Digest::Sha512(_) => unreachable!("a tail is hashed with sha256"),
        }
    }

    fn extended(mut self, bytes: &[u8]) -> Self {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        self
    }

    fn read(&self, fill: &Fill) -> Option<Vec<u8>> {
        let start = fill.map().range(self.index).start;
        let bytes = read_range(fill.file().as_ref(), start..start + self.len).ok()?;
        (Self::new(self.index).extended(&bytes).hash() == self.hash()).then_some(bytes)
    }
}

impl Filling {
    /// Keeps bytes of a piece that is still on its way, to go on from after a cut or a crash: see [`Filling::tail`]. They
    /// follow those that were kept before; at `offset` 0 they begin a tail in place of the piece's last one. Of more than eight
    /// pieces, the tail that has not grown for longest is forgotten. Does nothing for a piece that is here or that another
    /// writer has. Cancel safe: a write that has begun runs to its end.
    ///
    /// # Errors
    /// [`WritePieceError`]: `WrongLength` for the whole piece or more, which only [`Filling::write_piece`] takes.
    pub async fn write_tail(&self, index: u32, offset: u64, bytes: Bytes) -> Result<(), WritePieceError> {
        let (expected, got) = (self.piece_len(index)?, offset.saturating_add(bytes.len() as u64));
        if got >= expected {
            return Err(WritePieceError::WrongLength { index, expected, got });
        }
        let Claim::Yours = self.fill_state().claim(index).map_err(WritePieceError::Abandoned)? else {
            return Ok(());
        };
        let handle = Arc::clone(&self.handle);
        let claimed = Claimed { handle, index };
        blocking(move || claimed.write_tail(offset, &bytes)).await?
    }

    /// The pieces of which a beginning is here, 16 at the most.
    pub fn tailed(&self) -> Vec<u32> {
        self.fill_state().tailed()
    }

    /// The bytes that have come so far: of pieces that have landed, and of the beginnings of others.
    pub fn arrived_bytes(&self) -> u64 {
        self.fill_state().arrived_bytes()
    }

    /// What is here of a piece that is not here in full: its first bytes. `None` also when the file does not have them any
    /// more.
    pub async fn tail(&self, index: u32) -> Option<Bytes> {
        let tail = self.fill_state().tail(index)?;
        let handle = Arc::clone(&self.handle);
        let bytes = blocking(move || tail.read(&handle.fill)).await.ok()??;
        let wanted = self.failure().is_none() && !self.fill_state().landed().contains(index);
        wanted.then(|| bytes.into())
    }
}

impl Claimed {
    fn write_tail(self, offset: u64, bytes: &[u8]) -> Result<(), WritePieceError> {
        let fill = &self.handle.fill;
        let tail = self.tail_up_to(offset)?;
        {
            let _writing = fill.enter_write().map_err(WritePieceError::Abandoned)?;
            write_all_at(fill.file().as_ref(), bytes, fill.map().range(self.index).start + offset)?;
            fill.keep_tail(tail.extended(bytes));
        }
        self.handle.shared().batch_if_due();
        Ok(())
    }

    fn tail_up_to(&self, offset: u64) -> Result<Tail, WritePieceError> {
        let index = self.index;
        if offset == 0 {
            return Ok(Tail::new(index));
        }
        let tail = self.handle.fill.tail(index);
        tail.filter(|tail| tail.len == offset)
            .ok_or(WritePieceError::NoSuchTail { index, offset })
    }
}
