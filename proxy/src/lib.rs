//! The pull-through proxy that a mirror and a peer both are: the OCI front, who may have what, one download for all callers, and what
//! keeps the store in order.
//!
//! A mirror puts it over the registries, a peer over its swarm. They differ behind one trait, [`Source`].

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
mod foundation;
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
mod proxy;
mod pulls;
mod scrub;
mod sizes;
mod source;
mod store_metrics;
mod transfer;
mod unchecked;

pub use access::Rights;
pub use announce::{Announcer, complete, filling_reports, have, lost};
pub(crate) use cache::CacheParts;
pub use cache::{
    BlobState, Cache, CacheError, CacheItem, CacheLines, CacheList, CachedBlob, CachedImage, CachedManifest, Removed,
    VerifyEvent, VerifyRequest, WarmEvent, WarmRequest,
};
pub use callers::Right;
pub use config::{CacheConfig, ProxyConfig};
pub use content::Content;
pub use fill::{FillObserver, RegistrySource, pass};
pub use foundation::{Foundation, Membership, PieceRules, StartProxyError};
pub use front::{Admission, UpstreamNames, error_response};
pub(crate) use front::{Front, Logins, PassedBy, front_router};
pub use item::Item;
pub use lists::{List, ListQuery};
pub use manifests::Manifests;
pub use metrics::{Destination, Origin, Traffic};
pub use node_blob::{INLINE_BYTES_MAX, NodeBlob, open_path};
pub use nodes::{AdmittedNode, Nodes, RefuseClaimError, respond as node_refusal};
pub use proxy::{Proxy, ProxyParts};
pub use pulls::Pulls;
pub(crate) use scrub::{Suspicions, scrub};
pub use sizes::BlobSizes;
pub use source::Source;
pub(crate) use store_metrics::register_store;
pub(crate) use transfer::Joining;
pub use transfer::{Arrived, OpenBlob, Progress, ReadPieces, Transfer, Transfers};
