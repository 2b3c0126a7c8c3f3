//! The peer: a node's daemon. A mirror whose upstream is the swarm.
//!
//! The same front over the same store; blobs come from other peers and the mirror as the scheduler says, from the mirror
//! directly while the scheduler is lost, and from upstream when the mirror is lost too.

mod config;
/// Public for the simulator of a site, which runs the real decisions of every download.
pub mod download;
mod live;
mod mirror_client;
mod mirror_first;
mod peer;
mod prefetch;
mod swarm_source;

pub use config::{DirectFallback, DownloadPattern, PeerConfig};
pub use peer::Peer;
