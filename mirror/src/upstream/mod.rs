//! The client of an upstream registry: whose right a request is made with, which endpoint it goes to, where it is led, whether it
//! is there at all, what came of it, and how many connections a download is worth.

mod ask;
mod asked;
mod auth;
mod breaker;
mod client;
mod form;
mod held;
mod home;
mod lanes;
mod limits;
mod reach;
mod reachable;
mod redirect;
mod rewrite;
mod routes;
mod set;
mod verdicts;

pub use ask::{mirror_unanswered, require_cover};
#[cfg(any(test, fuzzing))]
pub(crate) use auth::Challenge;
pub use client::{BlobAnswer, FetchedManifest, ListAnswer, ManifestAnswer, Served, Upstream};
pub(crate) use client::{FILTERS_APPLIED, innermost};
pub use held::CredentialSource;
#[cfg(any(test, fuzzing))]
pub(crate) use home::is_home;
pub(crate) use lanes::{Seat, WIDTH_MAX};
pub use reachable::AllowedTarget;
pub use rewrite::RewriteRule;
pub use set::{ClientConfig, ClientError, ProxyConfig, Upstreams, mirror_http_client};
pub(crate) use set::{matches_pattern, via};
pub(crate) use verdicts::Who;
