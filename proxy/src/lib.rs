//! The pull-through proxy that a mirror and a peer both are: the OCI front, who may have what, one download for all callers, and what
//! keeps the store in order.
//!
//! A mirror puts it over the registries, a peer over its swarm. They differ behind the traits [`Source`], [`ManifestSource`] and
//! [`RightSource`].

mod access;
mod announce;
mod cache;
mod callers;
mod config;
mod content;
mod daemon;
/// Public so that a simulator can run the real decisions of a fill instead of a model of them.
pub mod fill;
mod flights;
mod front;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod item;
mod listing;
mod lists;
mod manifests;
mod metrics;
mod node_blob;
mod nodes;
mod pulls;
mod scrub;
mod sizes;
mod source;
mod store_metrics;
mod transfer;

pub use access::{Known, RightSource, Rights};
pub use announce::{Announcer, complete, filling_reports, have, lost};
pub use cache::{
    BlobState, Cache, CacheError, CacheItem, CacheLines, CacheList, CacheParts, CachedBlob, CachedImage,
    CachedManifest, Removed, VerifyEvent, VerifyRequest, WarmEvent, WarmRequest,
};
pub use callers::Right;
pub use config::CacheConfig;
pub use content::Content;
pub use daemon::{
    advertised, host_name, incarnation, keep_clean, open_store, rebound, store_problem, store_status, traffic_status,
};
pub use fill::{FillObserver, UpstreamBlobs, pass};
pub use front::{Admission, Front, UpstreamNames, error_response, front_router};
pub use item::Item;
pub use lists::{List, ListQuery};
pub use manifests::{ManifestSource, Manifests};
pub use metrics::{Destination, Origin, Traffic};
pub use node_blob::{INLINE_BYTES_MAX, NodeBlob, open_path};
pub use nodes::{Admitted, Nodes, RefuseClaimError, respond as node_refusal};
pub use pulls::Pulls;
pub use scrub::{Suspects, Suspicions, scrub};
pub use sizes::BlobSizes;
pub use source::Source;
pub use store_metrics::register_store;
pub use transfer::{Arrived, Joining, KnownHere, OpenBlob, Progress, Transfer, Transfers};
