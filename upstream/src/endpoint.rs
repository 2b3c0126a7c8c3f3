//! Endpoint: one of the addresses at which a registry answers, and its reachability.
//!
//! Invariant: the path of its URL comes after `/v2/`, before the repository's name.

use tokio::sync::watch;
use url::Url;

use crate::reach::Reach;

/// An address at which a registry answers.
pub(crate) struct Endpoint {
    /// Its path, if it has one, comes before every repository's name: so do caches that hold several registries name one.
    pub(crate) url: Url,
    pub(crate) reach: watch::Sender<Reach>,
}

impl Endpoint {
    pub(crate) fn new(url: Url) -> Self {
        Self {
            url,
            reach: watch::Sender::default(),
        }
    }

    /// The path before a repository's name there: nothing, or a path that ends with a slash.
    pub(crate) fn prefix(&self) -> String {
        match self.url.path().trim_matches('/') {
            "" => String::new(),
            path => format!("{path}/"),
        }
    }

    pub(crate) fn v2(&self, rest: &str) -> Option<Url> {
        self.url.join(&format!("/v2/{rest}")).ok()
    }
}
