//! Endpoint: an address at which a registry or one of its token servers answers, and its reachability.
//!
//! Invariant: the path of a registry's URL comes after `/v2/`, before the repository's name.

use tokio::sync::watch;
use url::Url;

use crate::{reach::Reach, reachable::Zone};

/// An address that answers requests.
pub(crate) struct Endpoint {
    /// Of a registry: its path, if it has one, comes before every repository's name: so do caches that hold several registries name
    /// one. Of a token server: the whole question by which the daemon finds out whether it is there.
    pub(crate) url: Url,
    /// The zone of the host that named it, when it is a token server.
    pub(crate) led_from: Option<Zone>,
    pub(crate) reach: watch::Sender<Reach>,
}

impl Endpoint {
    /// An address of a registry.
    pub(crate) fn new(url: Url) -> Self {
        Self {
            url,
            led_from: None,
            reach: watch::Sender::default(),
        }
    }

    /// A token server, which a host in `from` has named.
    pub(crate) fn of_tokens(question: Url, from: Zone) -> Self {
        Self {
            led_from: Some(from),
            ..Self::new(question)
        }
    }

    /// Its name for messages.
    pub(crate) fn whom(&self, upstream: &str) -> String {
        match self.led_from {
            None => upstream.to_owned(),
            // Without the path, whose query may be a secret.
            Some(_) => format!("{upstream}'s token server {}", self.url.host_str().unwrap_or_default()),
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
