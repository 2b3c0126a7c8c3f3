//! The mirror: a site's OCI pull cache, the only one that normally talks to upstream.
//!
//! Also a library: a peer is a mirror whose upstream is the swarm. Both serve the same front over the same store, and differ
//! behind the traits [`Blobs`], [`Tags`] and [`Access`].

mod access;
mod announce;
mod cache;
mod caller;
mod callers;
mod config;
mod error;
mod fill;
mod flights;
mod front;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod identity;
mod lists;
mod live;
mod manifests;
mod metrics;
mod mirror;
mod node;
mod nodes;
mod places;
mod pulls;
mod scrub;
mod server;
mod sizes;
mod source;
mod store_metrics;
mod transfer;
mod upstream;

pub use access::{Known, RightSource, Rights};
pub use announce::{Announcer, complete, filling_reports, have, lost};
pub use cache::{
    BlobState, Cache, CacheError, CacheItem, CacheLines, CacheList, CacheParts, CachedBlob, CachedImage,
    CachedManifest, Removed, VerifyEvent, VerifyRequest, WarmEvent, WarmRequest,
};
pub use caller::{Caller, Credential};
pub use callers::Right;
pub use config::{CacheConfig, MirrorConfig, UpstreamConfig};
pub use error::{ANSWER_TIMEOUT, MANIFEST_TIMEOUT, PullError, SOURCE_TIMEOUT};
pub use fill::{FillObserver, UpstreamBlobs, pass};
pub use front::{Admission, Front, UpstreamNames, error_response, front_router};
pub use identity::NodeIdentity;
pub use lists::{List, ListQuery};
pub use live::LiveDuration;
pub use manifests::{ManifestSource, Manifests};
pub use metrics::{Destination, Origin, Traffic};
pub use mirror::{
    Mirror, StartMirrorError, advertised, host_name, incarnation, keep_clean, open_store, rebound, store_problem,
    store_status, traffic_status,
};
pub use node::{INLINE_BYTES_MAX, NodeBlob, NodePort, node_router, open_path};
pub use nodes::Nodes;
pub use pulls::Pulls;
pub use scrub::{Suspects, Suspicions, scrub};
pub use server::{Clients, bind};
pub use sizes::BlobSizes;
pub use source::{Access, Blobs, Content, Item, Tags};
pub use store_metrics::register_store;
pub use transfer::{Arrived, Joining, KnownHere, OpenBlob, Progress, Transfer, Transfers};
pub use upstream::{
    AllowedTarget, BlobAnswer, ClientConfig, ClientError, CredentialSource, FetchedManifest, ListAnswer,
    ManifestAnswer, ProxyConfig, RewriteRule, Served, Upstream, Upstreams, mirror_http_client, mirror_unanswered,
    require_cover,
};
