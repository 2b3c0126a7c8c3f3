//! Parts that every download of a peer shares. Clones are the same parts.

use piecemeal_proxy::{Announcer, RegistrySource, Traffic};
use piecemeal_store::Store;
use piecemeal_swarm::{PieceClient, Session};
use piecemeal_upstream::LiveDuration;

use crate::{DirectFallback, live::LiveDownloads, mirror_client::MirrorClient};

/// What every download of a peer uses.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) mirror: Option<MirrorClient>,
    pub(crate) session: Option<Session>,
    pub(crate) announcer: Announcer,
    pub(crate) pieces: PieceClient,
    pub(crate) upstream: RegistrySource,
    /// The mirror's registry in upstream's place, for blobs that only pass through the mirror.
    pub(crate) through_mirror: Option<RegistrySource>,
    pub(crate) traffic: Traffic,
    pub(crate) live: LiveDownloads,
    pub(crate) direct_fallback: DirectFallback,
    pub(crate) mirror_grace: LiveDuration,
}
