//! The client of an upstream registry: whose right a request is made with, which endpoint it goes to, where it is led, whether it
//! is there at all, what came of it, and how many connections a download is worth.

mod auth;
mod breaker;
mod caller;
mod client;
mod concurrency;
mod config;
mod error;
mod form;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod home;
mod identity;
mod limits;
mod live;
mod metrics;
mod places;
mod reach;
mod reachable;
mod redirect;
mod request;
mod rewrite;
mod routes;
mod set;
mod site_credentials;
mod verdicts;

pub use caller::{Caller, Credential, Fingerprint};
pub use client::{
    BlobAnswer, FILTERS_APPLIED, FetchedManifest, ListAnswer, ManifestAnswer, Served, Upstream, innermost,
};
pub use concurrency::{Lanes, Seat, WIDTH_MAX};
pub use config::UpstreamConfig;
pub use error::{ANSWER_TIMEOUT, MANIFEST_TIMEOUT, PullError, SOURCE_TIMEOUT};
pub use identity::{AGAIN_HEADER, Claim, NodeIdentity, Showing, Shown, TIME_HEADER};
pub use limits::Limits;
pub use live::LiveDuration;
pub use places::{CrowdedError, Place, Places};
pub use reachable::AllowedTarget;
pub use request::{mirror_unanswered, require_cover};
pub use rewrite::RewriteRule;
pub use set::{ClientConfig, ClientError, ProxyConfig, Upstreams, matches_pattern, mirror_http_client, via};
pub use site_credentials::CredentialSource;
pub use verdicts::Who;
