//! Beginning a fill: joining a live fill, resuming a partial, or starting from nothing.
//!
//! A partial found on disk is not trusted: each piece that the index claims is hashed again before it counts. The whole
//! blob's space is reserved first, so that a fill that began never fails halfway for lack of it.

use std::{io, sync::Arc};

use piecemeal_proto::{Digest, FillId, PieceMap};
use tokio::sync::OwnedSemaphorePermit;
use tracing::{debug, warn};

use crate::{
    Filling, IndexError, Offer, Store,
    evict::{RoomError, Swept},
    files::OpenFile,
    fill::{Fill, read_range},
    gate::GateGuard,
    handle::{Handle, Held, Pin},
    index::{Durability, PartialRow, partials},
    quota::Kind,
    store::{Live, Shared},
    tail::Tail,
};

/// Why a fill could not begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginFillError {
    /// There is nothing to fill: read the blob.
    #[error("the blob is complete")]
    AlreadyComplete,
    /// Another fill of the blob is under way, with another id or other pieces. Abandon that one first.
    #[error("the blob is being filled as {fill} in pieces of {piece_bytes} bytes", piece_bytes = map.piece_bytes())]
    Conflict { fill: FillId, map: PieceMap },
    /// Evicting everything that is not in use would not make room for it. Pass the blob on without keeping it.
    #[error("no space for {needed} bytes (quota {quota}, {free_bytes} bytes free on disk)", quota = quota_text(*quota_bytes))]
    NoSpace {
        needed: u64,
        quota_bytes: Option<u64>,
        free_bytes: u64,
    },
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The local disk. Pass the blob on without keeping it.
    #[error("failed to make the file of a fill")]
    Io(#[from] io::Error),
}

impl Store {
    /// The fill of this blob that is open right now.
    pub fn filling(&self, digest: &Digest) -> Option<Filling> {
        self.shared.held(digest).map(Filling::new)
    }

    /// Begins to fill a blob, cut as `map` says. Joins the fill that is under way; else resumes what is on disk in the
    /// pieces whose bytes still have their hash; else starts with nothing.
    ///
    /// With `fill` given, only a fill of that id is joined or resumed, and what is on disk of another one is discarded.
    /// Without, a resumed fill keeps its id, and a new one draws one at random. Cancel safe.
    ///
    /// # Errors
    /// [`BeginFillError`].
    pub async fn begin(&self, digest: &Digest, map: PieceMap, fill: Option<FillId>) -> Result<Filling, BeginFillError> {
        if let Some(filling) = self.shared.join(digest, map, fill)? {
            return Ok(filling);
        }
        let gate = self.shared.gates.enter(digest).await;
        self.run(move |shared| {
            let begun = shared.begin(&gate, map, fill);
            shared.note_trouble(map, &begun);
            begun
        })
        .await
    }
}

impl Shared {
    fn note_trouble(&self, map: PieceMap, begun: &Result<Filling, BeginFillError>) {
        let mut state = self.state.lock();
        let fits = state.limits.quota_bytes.is_none_or(|quota| map.blob_bytes() <= quota);
        state.trouble = match begun {
            Err(error @ (BeginFillError::NoSpace { .. } | BeginFillError::Io(_) | BeginFillError::Index(_)))
                if fits =>
            {
                Some(format!("{error}; pulled blobs pass through and are not kept"))
            }
            Err(_) => return,
            Ok(_) => None,
        };
    }

    fn held(&self, digest: &Digest) -> Option<Arc<Handle>> {
        let handle = self.state.lock().live.get(digest)?.handle.upgrade()?;
        handle.fill.is_open().then_some(handle)
    }

    pub(crate) fn join(
        &self,
        digest: &Digest,
        map: PieceMap,
        id: Option<FillId>,
    ) -> Result<Option<Filling>, BeginFillError> {
        let kind = self.state.lock().ledger.get(digest).map(|entry| entry.kind);
        if kind == Some(Kind::Blob) {
            return Err(BeginFillError::AlreadyComplete);
        }
        match self.held(digest) {
            None => Ok(None),
            Some(handle) if handle.fill.suits(map, id) => Ok(Some(Filling::new(handle))),
            Some(handle) => Err(BeginFillError::Conflict {
                fill: handle.fill.id(),
                map: handle.fill.map(),
            }),
        }
    }

    fn begin(self: &Arc<Self>, gate: &GateGuard, map: PieceMap, id: Option<FillId>) -> Result<Filling, BeginFillError> {
        let digest = gate.digest();
        if let Some(filling) = self.join(digest, map, id)? {
            return Ok(filling);
        }
        // Without a handle, but still in memory: as good as new.
        let resting = self.state.lock().live.get(digest).map(|live| Arc::clone(&live.fill));
        if let Some(fill) = resting
            && fill.is_open()
            && fill.suits(map, id)
        {
            return Ok(self.attach(fill));
        }
        if let Some(filling) = self.resume(gate, map, id)? {
            return Ok(filling);
        }
        self.discard(gate, &mut Swept::default())?;
        self.start(gate, map, id.unwrap_or_else(|| self.new_fill()))
    }

    /// `None` when no partial on disk fits.
    fn resume(
        self: &Arc<Self>,
        gate: &GateGuard,
        map: PieceMap,
        id: Option<FillId>,
    ) -> Result<Option<Filling>, BeginFillError> {
        let digest = gate.digest();
        if self.state.lock().ledger.get(digest).is_none() {
            return Ok(None);
        }
        let Some(row) = self.index.partial(digest)? else {
            return Ok(None);
        };
        if row.map != map || id.is_some_and(|id| id != row.fill) {
            return Ok(None);
        }
        let Some(file) = self.open_partial(digest, map)? else {
            return Ok(None);
        };
        let fill = Fill::new(*digest, map, row.fill, row.id, file);
        let torn = rehash(&fill, &row);
        for tail in row.tails.iter().filter_map(|tail| Tail::found(&fill, *tail)) {
            fill.adopt_tail(tail);
        }
        debug!(
            blob.digest = %digest, pieces.kept = map.count() - fill.missing(), pieces.torn = torn.len(),
            "resuming {digest}"
        );
        if !torn.is_empty() {
            self.write(Durability::Batched, |transaction| {
                partials::drop_pieces(transaction, row.id, &torn)
            })?;
        }
        let reserving = self.reserving.lock();
        self.make_room(&reserving, 0, fill.missing_bytes(), &mut Swept::default())
            .map_err(|error| no_room(error, fill.missing_bytes()))?;
        Ok(Some(self.attach(Arc::new(fill))))
    }

    fn open_partial(&self, digest: &Digest, map: PieceMap) -> io::Result<Option<Arc<dyn OpenFile>>> {
        let file = match self.files.open(&self.layout.partial(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if file.len()? != map.blob_bytes() {
            file.set_len(map.blob_bytes())?;
        }
        Ok(Some(file))
    }

    fn start(self: &Arc<Self>, gate: &GateGuard, map: PieceMap, id: FillId) -> Result<Filling, BeginFillError> {
        let digest = gate.digest();
        // Until the fill is attached, only this lock reserves the space that it has still to write.
        let reserving = self.reserving.lock();
        self.make_room(&reserving, map.blob_bytes(), map.blob_bytes(), &mut Swept::default())
            .map_err(|error| no_room(error, map.blob_bytes()))?;
        let now = self.now();
        self.state
            .lock()
            .ledger
            .insert(*digest, Kind::Partial, map.blob_bytes(), now);
        match self.make_partial(digest, map, id) {
            Ok(fill) => Ok(self.attach(Arc::new(fill))),
            Err(error) => {
                if let Err(error) = self.discard(gate, &mut Swept::default()) {
                    warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "failed to clean up {digest}");
                }
                Err(error)
            }
        }
    }

    fn make_partial(&self, digest: &Digest, map: PieceMap, id: FillId) -> Result<Fill, BeginFillError> {
        let now = self.now();
        let row = self.write(Durability::Batched, |transaction| {
            partials::insert(transaction, digest, map, id, now)
        })?;
        let file = self.files.create(&self.layout.partial(digest))?;
        file.set_len(map.blob_bytes())?;
        Ok(Fill::new(*digest, map, id, row, file))
    }

    /// Makes the first handle of a fill. The digest's gate keeps its entry from leaving.
    fn attach(self: &Arc<Self>, fill: Arc<Fill>) -> Filling {
        let digest = *fill.digest();
        let now = self.now();
        let mut state = self.state.lock();
        if state.ledger.get(&digest).is_none() {
            state.ledger.insert(digest, Kind::Partial, fill.map().blob_bytes(), now);
        }
        let generation = state
            .ledger
            .pin(&digest)
            .expect("the entry is there and its gate is ours");
        let handle = Arc::new(Handle {
            fill: Arc::clone(&fill),
            held: Held::Space(Pin::new(self, digest, generation)),
        });
        let live = Live {
            fill,
            handle: Arc::downgrade(&handle),
        };
        state.live.insert(digest, live);
        drop(state);
        Filling::new(handle)
    }
}

impl Shared {
    /// Makes the first handle of a passing fill. With [`Offer::Nothing`] other callers cannot find the fill by its digest.
    pub(crate) fn attach_passing(
        self: &Arc<Self>,
        fill: Arc<Fill>,
        place: OwnedSemaphorePermit,
        offer: Offer,
    ) -> Filling {
        let handle = Arc::new(Handle {
            fill: Arc::clone(&fill),
            held: Held::Nothing {
                shared: Arc::clone(self),
                place,
            },
        });
        if offer == Offer::Pieces {
            let digest = *fill.digest();
            let live = Live {
                fill,
                handle: Arc::downgrade(&handle),
            };
            self.state.lock().live.insert(digest, live);
        }
        Filling::new(handle)
    }
}

/// A quota as text for people.
fn quota_text(quota_bytes: Option<u64>) -> String {
    quota_bytes.map_or_else(|| "none".to_owned(), |bytes| format!("{bytes} bytes"))
}

/// Takes over each piece of the row whose bytes have their hash; returns the others.
fn rehash(fill: &Fill, row: &PartialRow) -> Vec<u32> {
    let mut torn = Vec::new();
    for &(index, hash) in &row.pieces {
        match read_range(fill.file().as_ref(), fill.map().range(index)) {
            Ok(bytes) if Digest::of(&bytes) == Digest::Sha256(hash) => {
                fill.adopt(index, hash);
                fill.advance_found(index, &bytes);
            }
            // Also when it cannot be read: fetching it again writes it elsewhere.
            _ => torn.push(index),
        }
    }
    torn
}

fn no_room(error: RoomError, needed: u64) -> BeginFillError {
    match error {
        RoomError::NoSpace {
            quota_bytes,
            free_bytes,
        } => BeginFillError::NoSpace {
            needed,
            quota_bytes,
            free_bytes,
        },
        RoomError::Io(error) => error.into(),
    }
}
