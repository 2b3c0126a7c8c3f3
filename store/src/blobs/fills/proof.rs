//! Proof of a fill: its pieces are hashed into the blob's digest as they arrive.
//!
//! The prefix's lock is held while pieces are read back and hashed, so that none is taken back meanwhile. All of it is for blocking
//! threads.

use std::io;

use bytes::Bytes;
use piecemeal_proto::Digest;

use super::{fill::Fill, prefix::Prefix};
use crate::disk::files::read_range;

impl Fill {
    /// Hashes on from the end of the contiguous prefix, at most `pieces_max` pieces; does nothing while another thread
    /// hashes. `fresh` is a piece that need not be read back.
    pub(crate) fn advance(&self, fresh: Option<(u32, &Bytes)>, pieces_max: u32) -> io::Result<()> {
        match self.prefix.try_lock() {
            Some(mut prefix) => self.hash_on(&mut prefix, fresh, pieces_max),
            None => Ok(()),
        }
    }

    /// As [`Fill::advance`], for all pieces that continue the prefix, and waiting for its turn.
    pub(super) fn hash_all(&self, fresh: Option<(u32, &Bytes)>) -> io::Result<()> {
        self.hash_on(&mut self.prefix.lock(), fresh, u32::MAX)
    }

    fn hash_on(&self, prefix: &mut Prefix, fresh: Option<(u32, &Bytes)>, pieces_max: u32) -> io::Result<()> {
        for _ in 0..pieces_max {
            let next = prefix.next();
            if let Some((_, bytes)) = fresh.filter(|(piece, _)| *piece == next) {
                prefix.push(bytes);
            } else if self.has(next) {
                prefix.push(&self.read_back(next)?);
            } else {
                break;
            }
            self.state.lock().hashed = prefix.next();
        }
        Ok(())
    }

    /// A resume found a piece in the file: hashes it when it continues the prefix.
    pub(crate) fn advance_found(&self, piece: u32, bytes: &[u8]) {
        let mut prefix = self.prefix.lock();
        if prefix.next() == piece {
            prefix.push(bytes);
        }
    }

    /// The digest of the whole blob, of which every piece is there.
    pub(crate) fn compute_digest(&self) -> io::Result<Digest> {
        let mut prefix = self.prefix.lock();
        while prefix.next() < self.map().count() {
            let bytes = self.read_back(prefix.next())?;
            prefix.push(&bytes);
        }
        Ok(prefix.digest())
    }

    fn read_back(&self, piece: u32) -> io::Result<Vec<u8>> {
        read_range(self.file().as_ref(), self.map().range(piece))
    }

    /// Forgets pieces that turned out to be wrong; returns those that were here. `None`: they cannot be fetched again, and
    /// the fill must be given up.
    pub(crate) fn take_back(&self, pieces: impl IntoIterator<Item = u32>) -> Option<Vec<u32>> {
        let mut prefix = self.prefix.lock();
        let mut state = self.state.lock();
        if state.end.is_some() {
            return Some(Vec::new());
        }
        let taken = state.pieces.landed_among(pieces);
        let Some(&lowest) = taken.first() else {
            return Some(taken);
        };
        if state.window.is_some() || !state.pieces.take_back(&taken) {
            return None;
        }
        if lowest < prefix.next() {
            *prefix = Prefix::new(self.digest().algorithm());
            state.hashed = 0;
        }
        self.changed();
        Some(taken)
    }

    /// The whole blob was found to have its digest.
    pub(crate) fn prove(&self) {
        self.state.lock().is_proven = true;
        self.changed();
    }
}
