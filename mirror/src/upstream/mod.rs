//! The client of an upstream registry: requests, redirects by hand, anonymous tokens, and how many connections it is worth.

mod auth;
mod client;
mod lanes;
mod redirect;

pub(crate) use client::innermost;
pub use client::{BlobAnswer, FetchedManifest, ManifestAnswer, Upstream, Upstreams, http_client};
pub(crate) use lanes::{Seat, WIDTH_MAX};
