//! The client of an upstream registry: credentials, endpoints, redirects, reachability, rate limits, metrics, and the number of
//! connections of a download.

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
