//! The client of an upstream registry: requests, redirects by hand, anonymous tokens.

mod auth;
mod client;
mod redirect;

pub(crate) use client::innermost;
pub use client::{BlobAnswer, FetchedManifest, ManifestAnswer, Upstream, Upstreams, http_client};
