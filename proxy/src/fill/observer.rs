//! Observer of a fill's events.
//!
//! A fill apart reports only the bytes that it receives: the swarm knows of one fill of a blob, the leader's.

use std::sync::Arc;

use piecemeal_proto::{Digest, FillId, PieceHash};
use piecemeal_store::{Blob, Filling};

/// Observer of a fill's events. All methods return at once.
pub trait FillObserver: Send + Sync {
    /// The fill has begun, or gone on with the pieces that it has.
    fn opened(&self, filling: &Filling);
    /// A piece has landed.
    fn landed(&self, filling: &Filling, piece: u32, hash: PieceHash);
    /// The blob is proven and here; [`FillObserver::proven`] follows.
    fn kept(&self, _blob: &Blob) {}
    /// The blob's digest is proven; the blob is published.
    fn proven(&self, digest: &Digest, fill: FillId);
    /// None of the fill's pieces may be kept.
    fn revoked(&self, digest: &Digest, fill: FillId);
    /// `bytes` of a body have come from upstream.
    fn received(&self, bytes: usize);
}

/// Counts what comes from upstream, and tells of nothing else: the swarm knows of one fill of a blob, the leader's.
pub(super) struct Unannounced(pub(super) Arc<dyn FillObserver>);

impl FillObserver for Unannounced {
    fn opened(&self, _filling: &Filling) {}

    fn landed(&self, _filling: &Filling, _piece: u32, _hash: PieceHash) {}

    fn proven(&self, _digest: &Digest, _fill: FillId) {}

    fn revoked(&self, _digest: &Digest, _fill: FillId) {}

    fn received(&self, bytes: usize) {
        self.0.received(bytes);
    }
}
