//! Fill: the state of one blob that is being filled.
//!
//! Invariant: a piece lands only after its bytes had the hash that is kept for it and were written to the file, and nothing writes them
//! again. A fill of which the disk takes no more goes on unstored, with what has landed. A partial piece is in the file, but never visible to a reader or peer. A fill is proven only when the whole blob had its
//! digest. Every event that a reader or writer may wait for moves `changes`.

use std::{ops::Range, sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use piecemeal_proto::{Digest, FillId, PieceHash, PieceMap, PieceSet};
use tokio::sync::watch;

use super::{
    claims::Claims,
    end::End,
    failure::FillFailure,
    fill_file::FillFile,
    memory_file::MemoryFile,
    partial_piece::PartialPiece,
    pieces::Pieces,
    prefix::Prefix,
    waits::Waits,
    window::{Position, Window},
};
use crate::{disk::files::OpenFile, index::Progress};

/// The row of a fill that the index does not know.
const NO_ROW: i64 = -1;

/// One blob that is being filled.
pub(crate) struct Fill {
    digest: Digest,
    map: PieceMap,
    id: FillId,
    row: i64,
    file: Arc<FillFile>,
    pub(super) state: Mutex<FillState>,
    /// Held while pieces are hashed. Taken before `state`.
    pub(super) prefix: Mutex<Prefix>,
    /// Held shared by each write into the file, and exclusively by code that requires that no write is under way.
    writes: RwLock<()>,
    changes: watch::Sender<u64>,
}

pub(super) struct FillState {
    pub(super) pieces: Pieces,
    claims: Claims,
    waits: Waits,
    /// Of an unstored fill.
    pub(super) window: Option<Window>,
    /// The pieces of an unstored fill that landed on the disk before it was one. They stay.
    pub(super) on_disk: Option<PieceSet>,
    /// The first piece that the digest lacks.
    pub(super) hashed: u32,
    pub(super) is_proven: bool,
    pub(super) end: Option<End>,
}

/// The state of a piece that a writer wants to write.
pub(crate) enum Claim {
    Have(PieceHash),
    /// Another writer has the piece, or there is no room for it yet; wait for a change.
    Busy,
    /// There is no room for it, unless others can go: see [`Fill::make_way`]. Then as `Busy`.
    Beyond,
    /// The caller writes it, and calls [`Fill::land`] or [`Fill::release`].
    Yours,
}

impl Fill {
    /// A fill that has nothing, backed by `file`.
    pub(crate) fn new(digest: Digest, map: PieceMap, id: FillId, row: i64, file: Arc<dyn OpenFile>) -> Self {
        let state = FillState {
            pieces: Pieces::new(map),
            claims: Claims::default(),
            waits: Waits::default(),
            window: None,
            on_disk: None,
            hashed: 0,
            is_proven: false,
            end: None,
        };
        Self {
            digest,
            map,
            id,
            row,
            file: Arc::new(FillFile::new(file)),
            state: Mutex::new(state),
            prefix: Mutex::new(Prefix::new(digest.algorithm())),
            writes: RwLock::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// A fill whose blob is not kept. It has no row.
    pub(crate) fn unstored(digest: Digest, map: PieceMap, id: FillId) -> Self {
        let mut fill = Self::new(digest, map, id, NO_ROW, Arc::new(MemoryFile::new(map)));
        fill.state.get_mut().window = Some(Window::new(map));
        fill
    }

    pub(crate) fn digest(&self) -> &Digest {
        &self.digest
    }

    pub(crate) fn map(&self) -> PieceMap {
        self.map
    }

    pub(crate) fn id(&self) -> FillId {
        self.id
    }

    /// Its partial's id in the index.
    pub(crate) fn row(&self) -> i64 {
        self.row
    }

    pub(crate) fn file(&self) -> &Arc<FillFile> {
        &self.file
    }

    /// Whether it has a partial on the disk, kept or not.
    pub(crate) fn is_on_disk(&self) -> bool {
        self.row != NO_ROW
    }

    /// Whether the fill has this map, and this id where one is given.
    pub(crate) fn suits(&self, map: PieceMap, id: Option<FillId>) -> bool {
        self.map == map && id.is_none_or(|id| id == self.id)
    }

    pub(crate) fn is_unstored(&self) -> bool {
        self.state.lock().window.is_some()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// Pieces.
impl Fill {
    pub(crate) fn have(&self) -> PieceSet {
        self.state.lock().pieces.have().clone()
    }

    pub(crate) fn has(&self, piece: u32) -> bool {
        self.state.lock().pieces.have().contains(piece)
    }

    pub(crate) fn landed(&self) -> PieceSet {
        self.state.lock().pieces.landed().clone()
    }

    pub(crate) fn hash(&self, piece: u32) -> Option<PieceHash> {
        self.state.lock().pieces.hash(piece)
    }

    pub(crate) fn hashes(&self) -> Arc<[PieceHash]> {
        self.state.lock().pieces.hashes().into()
    }

    /// The number of pieces that have not landed.
    pub(crate) fn missing(&self) -> u32 {
        self.state.lock().pieces.missing()
    }

    pub(crate) fn missing_bytes(&self) -> u64 {
        self.state.lock().pieces.missing_bytes()
    }

    /// The bytes that it has still to write to the disk.
    pub(crate) fn unwritten_bytes(&self) -> u64 {
        if self.is_unstored() { 0 } else { self.missing_bytes() }
    }

    pub(crate) fn arrived_bytes(&self) -> u64 {
        self.state.lock().pieces.arrived_bytes()
    }

    /// A resume found the piece in the file, and the index knows it.
    pub(crate) fn adopt(&self, piece: u32, hash: PieceHash) {
        self.state.lock().pieces.adopt(piece, hash);
    }

    pub(crate) fn partial_piece(&self, piece: u32) -> Option<PartialPiece> {
        self.state.lock().pieces.partials().get(piece).cloned()
    }

    pub(crate) fn partial_pieces(&self) -> Vec<u32> {
        self.state.lock().pieces.partials().indexes()
    }

    /// The partial piece's bytes are in the file, and its piece is claimed. Only the fill's first bytes wake a waiter.
    pub(crate) fn keep_partial_piece(&self, partial: PartialPiece) {
        let mut state = self.state.lock();
        let had = state.pieces.arrived_bytes();
        state.pieces.keep_partial(partial);
        drop(state);
        if had == 0 {
            self.changed();
        }
    }

    /// A resume found the partial piece in the file, and the index knows it.
    pub(crate) fn adopt_partial_piece(&self, partial: PartialPiece) {
        self.state.lock().pieces.adopt_partial(partial);
    }

    pub(crate) fn take_unsaved(&self) -> Progress {
        self.state.lock().pieces.take_unsaved()
    }

    pub(crate) fn give_back_unsaved(&self, progress: Progress) {
        self.state.lock().pieces.give_back_unsaved(progress);
    }

    pub(crate) fn has_unsaved(&self) -> bool {
        self.state.lock().pieces.has_unsaved()
    }

    /// The number of times that pieces were taken back so far.
    pub(crate) fn takings(&self) -> usize {
        self.state.lock().pieces.takings()
    }

    /// Whether a byte below `offset` was taken back since there were `seen` lots.
    pub(crate) fn has_taken_back(&self, seen: usize, offset: u64) -> bool {
        self.state.lock().pieces.has_taken_back(seen, offset)
    }
}

/// Writers.
impl Fill {
    pub(crate) fn claim(&self, piece: u32) -> Result<Claim, FillFailure> {
        let mut state = self.state.lock();
        if let Some(hash) = state.pieces.hash(piece) {
            return Ok(Claim::Have(hash));
        }
        match &state.end {
            Some(End::Failed(why)) => return Err(why.clone()),
            Some(_) => unreachable!("a fill that was proven has every piece"),
            None => {}
        }
        let window = state.window.as_ref();
        if window.is_some_and(|window| window.position(piece) == Position::Beyond) {
            return Ok(Claim::Beyond);
        }
        let is_free = state.claims.take(piece);
        Ok(if is_free { Claim::Yours } else { Claim::Busy })
    }

    /// Gives a claim back; the next writer waiting for it goes on. Without one it wakes no waiter: each partial piece ends here.
    pub(crate) fn release(&self, piece: u32) {
        let is_waited_for = self.state.lock().claims.end(piece);
        if is_waited_for {
            self.changed();
        }
    }

    /// Keeps the file from being discarded or reused while the caller writes into it.
    pub(crate) fn enter_write(&self) -> Result<RwLockReadGuard<'_, ()>, FillFailure> {
        let guard = self.writes.read();
        self.failure().map_or(Ok(guard), Err)
    }

    /// Returns once no write is under way; those that come later are refused if the fill has failed by now.
    pub(crate) fn drain_writes(&self) {
        drop(self.writes.write());
    }

    /// The disk takes no more of it: from here on the fill is an unstored one, with all that has landed. `false`: it is one already, or
    /// has ended.
    pub(crate) fn overflow(&self) -> bool {
        let _no_writes = self.writes.write();
        let mut state = self.state.lock();
        if state.window.is_some() || state.end.is_some() {
            return false;
        }
        self.file.overflow(self.map);
        let first_missing = state.pieces.landed().missing().next();
        state.window = Some(Window::after(self.map, first_missing.unwrap_or(self.map.count())));
        state.on_disk = Some(state.pieces.have().clone());
        drop(state);
        self.changed();
        true
    }

    /// The piece is in the file. Takes the claim back.
    pub(crate) fn land(&self, piece: u32, hash: PieceHash) {
        let mut state = self.state.lock();
        state.claims.end(piece);
        // The index knows nothing of an unstored fill.
        match state.window {
            Some(_) => state.pieces.adopt(piece, hash),
            None => state.pieces.land(piece, hash),
        }
        drop(state);
        self.changed();
    }
}

/// Readers.
impl Fill {
    /// The end of the bytes that a client may see from `start` on, looking no further than `bytes_max`; `start` itself when
    /// it has to wait. `is_early`: whether that includes a final piece which is not proven.
    pub(crate) fn readable_end(&self, start: u64, bytes_max: u64, is_early: bool) -> Result<u64, FillFailure> {
        let state = self.state.lock();
        match &state.end {
            Some(End::Failed(why)) => Err(why.clone()),
            _ => Ok(state
                .pieces
                .contiguous_end(start, bytes_max, state.is_proven || is_early)),
        }
    }

    /// Notes that a reader of these pieces has no byte of the first one since `since`, until [`Fill::end_wait`].
    pub(crate) fn begin_wait(&self, pieces: Range<u32>, since: Duration) -> u64 {
        self.state.lock().waits.begin(pieces, since)
    }

    pub(crate) fn end_wait(&self, id: u64) {
        self.state.lock().waits.end(id);
    }

    /// The lowest piece that a reader waits for and that has not landed.
    pub(crate) fn wanted(&self) -> Option<u32> {
        let state = self.state.lock();
        state.waits.wanted(state.pieces.landed())
    }

    /// A client of another daemon waits for the piece.
    pub(crate) fn note_wait_elsewhere(&self, piece: u32) {
        self.state.lock().waits.note_elsewhere(piece);
    }

    /// The pieces that readers need whose first one has not landed, and those that clients elsewhere do: see [`Waits::pieces`].
    pub(crate) fn waited_for(&self) -> Vec<Range<u32>> {
        let state = self.state.lock();
        state.waits.pieces(state.pieces.landed())
    }

    /// The piece that was waited for longest, and how long.
    pub(crate) fn longest_wait(&self, now: Duration) -> Option<(u32, Duration)> {
        self.state.lock().waits.longest(now)
    }
}

/// The end.
impl Fill {
    pub(crate) fn is_proven(&self) -> bool {
        self.state.lock().is_proven
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state.lock().end.is_none()
    }

    pub(crate) fn end(&self) -> Option<End> {
        self.state.lock().end.clone()
    }

    pub(crate) fn failure(&self) -> Option<FillFailure> {
        match &self.state.lock().end {
            Some(End::Failed(why)) => Some(why.clone()),
            _ => None,
        }
    }

    /// Ends the fill otherwise than by a failure.
    pub(crate) fn finish(&self, end: End) {
        self.state.lock().end = Some(end);
        self.changed();
    }

    /// Ends the fill for its readers and writers; `false` when it had failed or was published before.
    pub(crate) fn fail(&self, why: FillFailure) -> bool {
        let mut state = self.state.lock();
        if matches!(state.end, Some(End::Failed(_) | End::Published | End::FinishedUnstored)) {
            return false;
        }
        state.end = Some(End::Failed(why));
        drop(state);
        self.changed();
        true
    }
}
