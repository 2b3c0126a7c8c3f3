//! The state of one blob that is being filled.
//!
//! Invariant: a piece is in `landed` only after its bytes had the hash that is kept for it and were written to the file, and
//! nothing writes them again. It is in `have` as long as it can be read: for ever, unless the fill is an unstored one. A
//! partial piece is in the file, but never visible to a reader or peer. `proven` is set only when the whole blob had its digest. Nothing
//! here waits or touches the index; every event that readers may wait for moves `changes`.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    io,
    ops::Range,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use piecemeal_proto::{Digest, FillId, Hasher, PieceHash, PieceMap, PieceSet};
use tokio::sync::watch;

use super::{
    fill_failure::FillFailure,
    memory_file::MemoryFile,
    partial_piece::{PartialPiece, PartialPieces},
    window::{Place, Window},
};
use crate::{
    disk::files::{OpenFile, read_range},
    index::Progress,
};

pub(crate) struct Fill {
    digest: Digest,
    map: PieceMap,
    id: FillId,
    row: i64,
    file: Arc<dyn OpenFile>,
    state: Mutex<FillState>,
    prefix: Mutex<Prefix>,
    /// Held shared by each write into the file, and exclusively by code that requires that no write is under way.
    writes: RwLock<()>,
    changes: watch::Sender<u64>,
}

struct FillState {
    have: PieceSet,
    landed: PieceSet,
    landed_bytes: u64,
    /// Of an unstored fill.
    window: Option<Window>,
    /// Pieces that left the window and are still in the file.
    gone: Vec<u32>,
    /// The first piece that the digest lacks.
    hashed: u32,
    /// Of the pieces in `landed`; zeros elsewhere.
    hashes: Vec<PieceHash>,
    /// In `landed`, and not yet in the index.
    unsaved: Vec<u32>,
    /// The lowest piece of each lot that was taken back, in their order; at most [`TAKEN_BACK_MAX`].
    taken_back: Vec<u32>,
    /// Of pieces that are not in `landed`.
    partial_pieces: PartialPieces,
    /// Pieces that are being written, and for each whether another writer waits for it.
    claimed: HashMap<u32, bool>,
    waits: BTreeMap<u64, Wait>,
    waits_begun: u64,
    proven: bool,
    end: Option<End>,
}

/// How a fill ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Published,
    /// Proven, and not kept. Its readers go on within the window.
    FinishedUnstored,
    /// The disk would not take the finished blob. Its readers go on from the open file; the fill can only be abandoned.
    Lost,
    Failed(FillFailure),
}

/// The digest of the pieces from the first on without a gap.
struct Prefix {
    hasher: Hasher,
    next: u32,
}

/// A reader without a byte.
#[derive(Clone, Copy)]
struct Wait {
    piece: u32,
    since: Duration,
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
        Self {
            digest,
            map,
            id,
            row,
            file,
            state: Mutex::new(FillState {
                have: PieceSet::new(map.count()),
                landed: PieceSet::new(map.count()),
                landed_bytes: 0,
                window: None,
                gone: Vec::new(),
                hashed: 0,
                hashes: vec![[0; 32]; map.count() as usize],
                unsaved: Vec::new(),
                taken_back: Vec::new(),
                partial_pieces: PartialPieces::default(),
                claimed: HashMap::new(),
                waits: BTreeMap::new(),
                waits_begun: 0,
                proven: false,
                end: None,
            }),
            prefix: Mutex::new(Prefix {
                hasher: digest.algorithm().hasher(),
                next: 0,
            }),
            writes: RwLock::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// A fill whose blob is not kept. It has no row.
    pub(crate) fn unstored(digest: Digest, map: PieceMap, id: FillId) -> Self {
        let fill = Self::new(digest, map, id, NO_ROW, Arc::new(MemoryFile::new(map)));
        fill.state.lock().window = Some(Window::new(map));
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

    pub(crate) fn file(&self) -> &Arc<dyn OpenFile> {
        &self.file
    }

    /// Whether the fill has this map, and this id where one is given.
    pub(crate) fn suits(&self, map: PieceMap, id: Option<FillId>) -> bool {
        self.map == map && id.is_none_or(|id| id == self.id)
    }

    pub(crate) fn have(&self) -> PieceSet {
        self.state.lock().have.clone()
    }

    pub(crate) fn has(&self, index: u32) -> bool {
        self.state.lock().have.contains(index)
    }

    pub(crate) fn landed(&self) -> PieceSet {
        self.state.lock().landed.clone()
    }

    /// The pieces that an unstored fill would have room for.
    pub(crate) fn window(&self) -> Option<Range<u32>> {
        let state = self.state.lock();
        let range = state.window.as_ref()?.room(state.hashed);
        let count = self.map.count();
        Some(range.start.min(count)..range.end.min(count))
    }

    pub(crate) fn is_unstored(&self) -> bool {
        self.state.lock().window.is_some()
    }

    /// Whether an unstored fill has let `piece` go already.
    pub(crate) fn has_passed(&self, piece: u32) -> bool {
        let state = self.state.lock();
        let window = state.window.as_ref();
        window.is_some_and(|window| window.place(piece) == Place::Passed)
    }

    pub(crate) fn has_readers(&self) -> bool {
        self.state.lock().window.as_ref().is_none_or(Window::has_readers)
    }

    pub(crate) fn hash(&self, index: u32) -> Option<PieceHash> {
        let state = self.state.lock();
        state.landed.contains(index).then(|| state.hashes[index as usize])
    }

    pub(crate) fn hashes(&self) -> Arc<[PieceHash]> {
        self.state.lock().hashes.as_slice().into()
    }

    pub(crate) fn missing(&self) -> u32 {
        let state = self.state.lock();
        state.landed.capacity() - state.landed.count()
    }

    pub(crate) fn missing_bytes(&self) -> u64 {
        self.map.blob_bytes() - self.state.lock().landed_bytes
    }

    /// The bytes that it has still to write to the disk.
    pub(crate) fn unwritten_bytes(&self) -> u64 {
        if self.is_unstored() { 0 } else { self.missing_bytes() }
    }

    pub(crate) fn is_proven(&self) -> bool {
        self.state.lock().proven
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state.lock().end.is_none()
    }

    pub(crate) fn is_published(&self) -> bool {
        self.state.lock().end == Some(End::Published)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.state.lock().end == Some(End::Lost)
    }

    pub(crate) fn failure(&self) -> Option<FillFailure> {
        match &self.state.lock().end {
            Some(End::Failed(why)) => Some(why.clone()),
            _ => None,
        }
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    // Writing.

    pub(crate) fn claim(&self, index: u32) -> Result<Claim, FillFailure> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.landed.contains(index) {
            return Ok(Claim::Have(state.hashes[index as usize]));
        }
        if state.end.is_none()
            && let Some(window) = &state.window
            && window.place(index) == Place::Beyond
        {
            return Ok(Claim::Beyond);
        }
        match &state.end {
            Some(End::Failed(why)) => Err(why.clone()),
            Some(_) => unreachable!("a fill that was proven has every piece"),
            None => match state.claimed.entry(index) {
                Entry::Vacant(free) => {
                    free.insert(false);
                    Ok(Claim::Yours)
                }
                Entry::Occupied(mut busy) => {
                    busy.insert(true);
                    Ok(Claim::Busy)
                }
            },
        }
    }

    /// Gives a claim back; the next writer waiting for it goes on. Without one it wakes no waiter: each partial piece ends here.
    pub(crate) fn release(&self, index: u32) {
        let waited_for = self.state.lock().claimed.remove(&index);
        if waited_for == Some(true) {
            self.changed();
        }
    }

    /// Keeps the file from being discarded or reused while the caller writes into it.
    pub(crate) fn enter_write(&self) -> Result<RwLockReadGuard<'_, ()>, FillFailure> {
        let guard = self.writes.read();
        match &self.state.lock().end {
            Some(End::Failed(why)) => Err(why.clone()),
            _ => Ok(guard),
        }
    }

    /// Returns once no write is under way; those that come later are refused if the fill has failed by now.
    pub(crate) fn drain_writes(&self) {
        drop(self.writes.write());
    }

    /// The piece is in the file. Takes the claim back.
    pub(crate) fn land(&self, index: u32, hash: PieceHash) {
        let mut state = self.state.lock();
        state.claimed.remove(&index);
        self.insert(&mut state, index, hash);
        if state.window.is_none() {
            state.unsaved.push(index);
        }
        drop(state);
        self.changed();
    }

    /// The piece was found in the file by a resume, and the index knows it.
    pub(crate) fn adopt(&self, index: u32, hash: PieceHash) {
        self.insert(&mut self.state.lock(), index, hash);
    }

    /// Forgets pieces that turned out to be wrong; returns those that were here. `None`: they cannot be fetched again, and
    /// the fill must be given up.
    pub(crate) fn take_back(&self, pieces: impl IntoIterator<Item = u32>) -> Option<Vec<u32>> {
        // Keeps pieces from being hashed in the meantime.
        let mut prefix = self.prefix.lock();
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.end.is_some() {
            return Some(Vec::new());
        }
        let mut taken: Vec<u32> = pieces
            .into_iter()
            .filter(|&piece| state.landed.contains(piece))
            .collect();
        taken.sort_unstable();
        let Some(&lowest) = taken.first() else {
            return Some(taken);
        };
        if state.window.is_some() || state.taken_back.len() >= TAKEN_BACK_MAX {
            return None;
        }
        for &piece in &taken {
            if state.landed.remove(piece) {
                state.landed_bytes -= self.map.len(piece);
            }
            state.have.remove(piece);
            state.unsaved.retain(|&unsaved| unsaved != piece);
        }
        state.taken_back.push(lowest);
        if lowest < prefix.next {
            *prefix = Prefix {
                hasher: self.digest.algorithm().hasher(),
                next: 0,
            };
            state.hashed = 0;
        }
        self.changed();
        Some(taken)
    }

    /// How many times pieces were taken back so far.
    pub(crate) fn takings(&self) -> usize {
        self.state.lock().taken_back.len()
    }

    /// Whether a byte below `offset` was taken back since there were `seen` lots.
    pub(crate) fn has_taken_back(&self, seen: usize, offset: u64) -> bool {
        let state = self.state.lock();
        let starts = state
            .taken_back
            .iter()
            .skip(seen)
            .map(|&lowest| self.map.range(lowest).start);
        starts.into_iter().any(|start| start < offset)
    }

    fn insert(&self, state: &mut FillState, index: u32, hash: PieceHash) {
        if state.landed.insert(index) {
            state.have.insert(index);
            state.landed_bytes += self.map.len(index);
            state.hashes[index as usize] = hash;
        }
        state.partial_pieces.forget(index);
    }

    // Unstored fills.

    /// A writer has a piece for which there is no room yet: lets go of the pieces that may go. On a blocking thread.
    pub(crate) fn make_way(&self, index: u32, now: Duration) -> io::Result<()> {
        if let Some(window) = &mut self.state.lock().window {
            window.want(index);
        }
        self.catch_up(None, now)
    }

    /// Hashes all that continues the prefix, and lets the window move. On a blocking thread.
    pub(crate) fn catch_up(&self, fresh: Option<(u32, &Bytes)>, now: Duration) -> io::Result<()> {
        let result = self.hash_on(&mut self.prefix.lock(), fresh, u32::MAX);
        self.slide(now);
        // The room has grown, whether or not anything had to go for it.
        self.changed();
        result
    }

    /// A reader of an unstored fill is at `piece`; `None` when that has passed.
    pub(crate) fn sit(&self, piece: u32, now: Duration) -> Option<u64> {
        let seat = self.state.lock().window.as_mut()?.sit(piece, now);
        self.slide(now);
        seat
    }

    pub(crate) fn move_to(&self, seat: u64, piece: u32, now: Duration) -> bool {
        let moved = match &mut self.state.lock().window {
            Some(window) => window.move_to(seat, piece, now),
            None => true,
        };
        self.slide(now);
        moved
    }

    pub(crate) fn leave(&self, seat: u64, now: Duration) {
        if let Some(window) = &mut self.state.lock().window {
            window.leave(seat);
        }
        self.slide(now);
        // Wakes tasks that act on an unstored fill without readers.
        self.changed();
    }

    fn slide(&self, now: Duration) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(window) = &mut state.window else {
            return;
        };
        let gone = window.slide(state.hashed, now);
        if gone.is_empty() {
            return;
        }
        for piece in gone {
            state.have.remove(piece);
            state.gone.push(piece);
        }
        self.changed();
    }

    /// Frees the memory of pieces that have gone.
    pub(crate) fn let_go(&self) {
        for piece in std::mem::take(&mut self.state.lock().gone) {
            self.file.forget(self.map.range(piece));
        }
    }

    pub(crate) fn partial_piece(&self, index: u32) -> Option<PartialPiece> {
        self.state.lock().partial_pieces.get(index).cloned()
    }

    pub(crate) fn partial_pieces(&self) -> Vec<u32> {
        self.state.lock().partial_pieces.indexes()
    }

    pub(crate) fn arrived_bytes(&self) -> u64 {
        let state = self.state.lock();
        state.landed_bytes + state.partial_pieces.bytes()
    }

    /// The partial piece's bytes are in the file, and its piece is claimed.
    pub(crate) fn keep_partial_piece(&self, partial: PartialPiece) {
        self.state.lock().partial_pieces.keep(partial);
    }

    /// The partial piece was found in the file by a resume, and the index knows it.
    pub(crate) fn adopt_partial_piece(&self, partial: PartialPiece) {
        let mut state = self.state.lock();
        if !state.landed.contains(partial.index()) {
            state.partial_pieces.adopt(partial);
        }
    }

    pub(crate) fn take_unsaved(&self) -> Progress {
        let mut state = self.state.lock();
        let unsaved = std::mem::take(&mut state.unsaved);
        Progress {
            partial_pieces: state.partial_pieces.take_unsaved(),
            pieces: unsaved
                .into_iter()
                .map(|index| (index, state.hashes[index as usize]))
                .collect(),
        }
    }

    pub(crate) fn give_back_unsaved(&self, progress: Progress) {
        let mut state = self.state.lock();
        state.partial_pieces.give_back_unsaved(&progress.partial_pieces);
        state
            .unsaved
            .extend(progress.pieces.into_iter().map(|(index, _)| index));
    }

    pub(crate) fn has_unsaved(&self) -> bool {
        let state = self.state.lock();
        !state.unsaved.is_empty() || state.partial_pieces.has_unsaved()
    }

    // Proving.

    /// Hashes on from the end of the contiguous prefix, at most `pieces_max` pieces; does nothing while another thread
    /// hashes. `fresh` is a piece that need not be read back.
    pub(crate) fn advance(&self, fresh: Option<(u32, &Bytes)>, pieces_max: u32) -> io::Result<()> {
        match self.prefix.try_lock() {
            Some(mut prefix) => self.hash_on(&mut prefix, fresh, pieces_max),
            None => Ok(()),
        }
    }

    fn hash_on(&self, prefix: &mut Prefix, fresh: Option<(u32, &Bytes)>, pieces_max: u32) -> io::Result<()> {
        for _ in 0..pieces_max {
            if let Some((_, bytes)) = fresh.filter(|(index, _)| *index == prefix.next) {
                prefix.hasher.update(bytes);
            } else if self.has(prefix.next) {
                let bytes = self.read_back(prefix.next)?;
                prefix.hasher.update(&bytes);
            } else {
                break;
            }
            prefix.next += 1;
            self.state.lock().hashed = prefix.next;
        }
        Ok(())
    }

    /// A resume found piece `index` in the file: hashes it when it continues the prefix.
    pub(crate) fn advance_found(&self, index: u32, bytes: &[u8]) {
        let mut prefix = self.prefix.lock();
        if prefix.next == index {
            prefix.hasher.update(bytes);
            prefix.next += 1;
        }
    }

    /// The digest of the whole blob, of which every piece is there.
    pub(crate) fn compute_digest(&self) -> io::Result<Digest> {
        let mut prefix = self.prefix.lock();
        while prefix.next < self.map.count() {
            let bytes = self.read_back(prefix.next)?;
            prefix.hasher.update(&bytes);
            prefix.next += 1;
        }
        Ok(prefix.hasher.clone().finish())
    }

    fn read_back(&self, index: u32) -> io::Result<Vec<u8>> {
        read_range(self.file.as_ref(), self.map.range(index))
    }

    pub(crate) fn prove(&self) {
        self.state.lock().proven = true;
        self.changed();
    }

    pub(crate) fn end_published(&self) {
        self.state.lock().end = Some(End::Published);
        self.changed();
    }

    pub(crate) fn end_unstored(&self) {
        self.state.lock().end = Some(End::FinishedUnstored);
        self.changed();
    }

    pub(crate) fn end_lost(&self) {
        self.state.lock().end = Some(End::Lost);
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

    // Reading.

    /// The end of the bytes that a client may see from `start` on, looking no further than `bytes_max`; `start` itself when
    /// it has to wait.
    pub(crate) fn readable_end(&self, start: u64, bytes_max: u64) -> Result<u64, FillFailure> {
        let state = self.state.lock();
        if let Some(End::Failed(why)) = &state.end {
            return Err(why.clone());
        }
        let mut end = start;
        while end - start < bytes_max
            && let Some(index) = self.map.piece_at(end)
            && state.have.contains(index)
            && (state.proven || Some(index) != self.map.last())
        {
            end = self.map.range(index).end;
        }
        Ok(end.min(start.saturating_add(bytes_max)))
    }

    /// Notes that a reader has no byte of `piece` since `since`, until [`Fill::end_wait`].
    pub(crate) fn begin_wait(&self, piece: u32, since: Duration) -> u64 {
        let mut state = self.state.lock();
        state.waits_begun += 1;
        let id = state.waits_begun;
        state.waits.insert(id, Wait { piece, since });
        id
    }

    pub(crate) fn end_wait(&self, id: u64) {
        self.state.lock().waits.remove(&id);
    }

    pub(crate) fn wanted(&self) -> Option<u32> {
        let state = self.state.lock();
        state
            .waits
            .values()
            .map(|wait| wait.piece)
            .filter(|piece| !state.landed.contains(*piece))
            .min()
    }

    pub(crate) fn longest_wait(&self, now: Duration) -> Option<(u32, Duration)> {
        let state = self.state.lock();
        let wait = state.waits.values().min_by_key(|wait| wait.since)?;
        Some((wait.piece, now.saturating_sub(wait.since)))
    }
}

/// The most times that a fill may lose pieces before it is given up.
const TAKEN_BACK_MAX: usize = 64;

/// The row of a fill that the index does not know.
const NO_ROW: i64 = -1;
