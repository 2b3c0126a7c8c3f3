//! The mirror: a site's OCI pull cache, the only daemon that normally talks to upstream.
//!
//! It is the proxy over the registries themselves. What only a mirror does is here: it opens blobs for the nodes of its site (`node`) and
//! answers the scheduler.

mod config;
mod mirror;
mod node;

pub use config::MirrorConfig;
pub use mirror::{Mirror, StartMirrorError};
