//!
//! Content of the piece port: a complete blob, or a live fill.
//!
//! Invariant: a complete blob is served under any requested fill id, a live fill under its own id alone.

use piecemeal_http::{EXTENT_BYTES_MAX, SendfileQueue};
use piecemeal_proto::{Digest, FillId, PieceHash, PieceMap};
use piecemeal_store::{Blob, Extent, Filling, ReadBlobError, Store, StoreError};

use super::part::Part;

pub(super) enum Content {
    Blob(Blob),
    Filling(Filling),
}

impl Content {
    /// `None` when the blob is not here, or only in part and of another fill.
    pub(super) async fn find(store: &Store, digest: &Digest, fill: FillId) -> Result<Option<Self>, StoreError> {
        if let Some(filling) = store.filling(digest).filter(|filling| filling.fill() == fill) {
            return Ok(Some(Self::Filling(filling)));
        }
        Ok(store.blob(digest).await?.map(Self::Blob))
    }

    pub(super) fn map(&self) -> PieceMap {
        match self {
            Self::Blob(blob) => blob.map(),
            Self::Filling(filling) => filling.map(),
        }
    }

    pub(super) fn fill(&self) -> FillId {
        match self {
            Self::Blob(blob) => blob.fill(),
            Self::Filling(filling) => filling.fill(),
        }
    }

    /// The hash of each of `pieces`; `None` when one of them is not here.
    pub(super) fn hashes(&self, pieces: std::ops::Range<u32>) -> Option<Vec<PieceHash>> {
        match self {
            Self::Blob(blob) => {
                let hashes = blob.piece_hashes();
                let pieces = usize::try_from(pieces.start).ok()?..usize::try_from(pieces.end).ok()?;
                hashes.get(pieces).map(<[PieceHash]>::to_vec)
            }
            Self::Filling(filling) => pieces.map(|piece| filling.hash(piece)).collect(),
        }
    }

    /// Waits until a piece is here, or the fill fails. Cancel safe.
    pub(super) async fn wait(&self, piece: u32) -> Result<(), ReadBlobError> {
        match self {
            Self::Blob(_) => Ok(()),
            Self::Filling(filling) => filling.wait_piece(piece).await,
        }
    }

    /// The bytes of `piece` from byte `position` of the blob, at most to the piece's end. Empty when the piece is not here.
    /// With a sendfile queue, bytes stay in their file where that is possible.
    pub(super) async fn read(
        &self,
        piece: u32,
        position: u64,
        sendfile: Option<&SendfileQueue>,
    ) -> Result<Part, ReadBlobError> {
        let range = self.map().range(piece);
        if sendfile.is_some_and(|sendfile| sendfile.takes(range.end - position))
            && let Some(extent) = self.extent(piece, position)?
        {
            extent.make_resident().await?;
            return Ok(Part::Extent(extent));
        }
        let bytes = match self {
            Self::Blob(blob) => blob.read(position..range.end).await?,
            Self::Filling(filling) => {
                let mut bytes = filling.read_piece(piece).await?.unwrap_or_default();
                let skipped = usize::try_from(position - range.start).unwrap_or(usize::MAX);
                bytes.split_off(skipped.min(bytes.len()))
            }
        };
        Ok(Part::Bytes(bytes))
    }

    fn extent(&self, piece: u32, position: u64) -> Result<Option<Extent>, ReadBlobError> {
        let range = self.map().range(piece);
        let extent = match self {
            Self::Blob(blob) => blob.extent(position..range.end)?,
            Self::Filling(filling) => filling.piece_extent(piece)?.map(|mut extent| {
                let _read_before = extent.split_to(position - range.start);
                extent
            }),
        };
        Ok(extent.map(|mut extent| extent.split_to(extent.len().min(EXTENT_BYTES_MAX as u64))))
    }
}
