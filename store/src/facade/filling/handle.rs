//! Handle of writers and readers to a blob that is being filled.
//!
//! Clients see it through [`Filling::read`], which withholds the blob's final piece until the whole is proven: a client that
//! got everything but the end cannot mistake a bad blob for a good one. Only an early range, a small part, gets it as soon as it has landed.
//! Other peers see it through [`Filling::read_piece`]: they verify each piece and prove the blob themselves.

use std::{
    io,
    ops::Range,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use piecemeal_proto::{Digest, FillId, PieceHash, PieceMap, PieceSet};
use tokio::sync::watch;

use crate::{
    blobs::{
        fills::{failure::FillFailure, fill::Fill, live_fills::FillHandle},
        publish::{Ending, PublishBlobError},
    },
    disk::blocking::blocking,
    facade::blob::Blob,
    shared::Shared,
    values::repository::Repository,
};

/// A blob that is being filled. Cheap to clone. When the last clone goes, what arrived stays on disk to be resumed.
///
/// Of an unstored fill each clone that reads is a reader of its own, for as long as it lives.
pub struct Filling {
    pub(super) live: HeldFill,
    pub(super) seat: Mutex<Option<Seat>>,
    /// The number of times that pieces had been taken back when this clone first read.
    pub(super) seen: OnceLock<usize>,
}

/// A live fill in its store. The fill's handle goes first: its last use is then still written.
#[derive(Clone)]
pub(super) struct HeldFill {
    pub(super) handle: Arc<FillHandle>,
    pub(super) shared: Arc<Shared>,
}

impl Clone for Filling {
    fn clone(&self) -> Self {
        Self::of(self.live.clone())
    }
}

/// A reader's place in the window of an unstored fill.
pub(super) struct Seat {
    pub(super) live: HeldFill,
    pub(super) id: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.live.handle.fill.leave(self.id, self.live.shared.index.monotonic());
    }
}

impl Filling {
    pub(crate) fn new(shared: &Arc<Shared>, handle: Arc<FillHandle>) -> Self {
        let shared = Arc::clone(shared);
        Self::of(HeldFill { handle, shared })
    }

    fn of(live: HeldFill) -> Self {
        Self {
            live,
            seat: Mutex::default(),
            seen: OnceLock::new(),
        }
    }

    pub(crate) fn fill_state(&self) -> &Fill {
        &self.live.handle.fill
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

    /// Whether both are handles of one fill. Two fills may have one id: a later one resumes what an earlier has left.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.live.handle.fill, &other.live.handle.fill)
    }

    /// Another handle, which has read what this one has, and has no place in a window.
    #[must_use]
    pub fn witness(&self) -> Self {
        Self {
            live: self.live.clone(),
            seat: Mutex::default(),
            seen: self.seen.clone(),
        }
    }

    /// Whether a byte below `offset` that this handle may have read has been taken back.
    pub fn has_lost(&self, offset: u64) -> bool {
        let seen = self.seen.get();
        seen.is_some_and(|&seen| self.fill_state().has_taken_back(seen, offset))
    }

    /// The pieces that are here, each verified.
    pub fn have(&self) -> PieceSet {
        self.fill_state().have()
    }

    /// The pieces that have been here, each verified; those of an unstored fill may have gone again.
    pub fn landed(&self) -> PieceSet {
        self.fill_state().landed()
    }

    /// Whether the blob will not be kept.
    pub fn is_unstored(&self) -> bool {
        self.fill_state().is_unstored()
    }

    /// The pieces that an unstored fill would have room for if they came now; `None` for one that keeps everything.
    pub fn window(&self) -> Option<Range<u32>> {
        self.fill_state().window()
    }

    /// Whether the byte at `offset` of an unstored fill has gone already.
    pub fn has_passed(&self, offset: u64) -> bool {
        let piece = self.map().piece_at(offset);
        piece.is_some_and(|piece| self.fill_state().has_passed(piece))
    }

    /// Whether an unstored fill has readers. A fill that keeps everything counts as read.
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

    /// A counter that moves with the first bytes, with each new piece, with the proof, and with the end.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.fill_state().changes()
    }

    /// The lowest piece that is not here and that a [`Filling::read`] waits for right now.
    pub fn wanted(&self) -> Option<u32> {
        self.fill_state().wanted()
    }

    /// The pieces that are not here yet and that a reader needs which waits right now, or a client of another daemon, by their first piece: the
    /// lowest of them, each only once, 64 at the most.
    pub fn waited_for(&self) -> Vec<Range<u32>> {
        self.fill_state().waited_for()
    }

    /// A client of another daemon waits for the piece. The latest 64 such pieces are remembered; one that the blob does not have is ignored.
    pub fn note_wait_elsewhere(&self, piece: u32) {
        if piece < self.map().count() {
            self.fill_state().note_wait_elsewhere(piece);
        }
    }

    /// The [`Filling::read`] that has waited longest for its first byte: the piece that it needs, and how long.
    pub fn longest_wait(&self) -> Option<(u32, Duration)> {
        self.fill_state().longest_wait(self.now())
    }

    pub(super) fn now(&self) -> Duration {
        self.live.shared.index.monotonic()
    }

    /// Proves the blob and makes it one of the store's, together with its `sources`, the repositories under which an upstream
    /// has sent it: no reader finds the blob without them. Again on a published blob, returns it. Cancel safe: once begun,
    /// it runs to its end.
    ///
    /// # Errors
    /// [`PublishBlobError`].
    pub async fn publish(&self, sources: &[Repository]) -> Result<Blob, PublishBlobError> {
        let sources = sources.to_vec();
        let published = self.end(move |ending| ending.publish(&sources)).await??;
        Ok(Blob::new(&self.live.shared, published))
    }

    /// Whether it has become an unstored fill since it began: its disk took no more.
    pub fn has_overflowed(&self) -> bool {
        self.is_unstored() && self.fill_state().is_on_disk()
    }

    /// Proves the blob of an unstored fill, of which every piece has come, and lets the fill go on: its pieces are here until it ends.
    ///
    /// # Errors
    /// As [`Filling::publish`].
    pub async fn prove_unstored(&self) -> Result<(), PublishBlobError> {
        self.end(|ending| ending.prove_unstored()).await?
    }

    /// Proves the blob of an unstored fill, of which every piece has come. Its readers get the rest, and nothing is kept.
    ///
    /// # Errors
    /// As [`Filling::publish`].
    pub async fn finish_unstored(&self) -> Result<(), PublishBlobError> {
        self.end(|ending| ending.finish_unstored()).await?
    }

    /// Ends the fill: its readers and writers get `why`, and the blob can be begun again at once. What arrived is kept for
    /// that, unless `why` says that it is bad. Does nothing to a fill that has ended before. Cancel safe.
    pub async fn abandon(&self, why: FillFailure) {
        // An error means that the runtime is shutting down.
        let _ = self.end(move |ending| ending.abandon(why)).await;
    }

    /// Runs one end of the fill under its digest's lock.
    async fn end<T: Send + 'static>(&self, end: impl FnOnce(Ending<'_>) -> T + Send + 'static) -> io::Result<T> {
        let lock = self.live.shared.blobs.locks.enter(self.digest()).await;
        let live = self.live.clone();
        blocking(move || {
            end(Ending {
                blobs: &live.shared.blobs,
                lock: &lock,
                fill: &live.handle.fill,
            })
        })
        .await
    }
}
