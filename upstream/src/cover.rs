//! Cover of a credential on its way: TLS, or this host's own network.
//!
//! Invariant: unless the administrator allows it, no credential crosses a network in the clear.

use url::Url;

use crate::PullError;

/// Lets a credential for `whom` go to `url` only over TLS or to this host, or where `allowed`: others on the way could read it.
///
/// # Errors
/// [`PullError::Withheld`], which says what to do.
pub fn require_cover(url: &Url, allowed: bool, whom: &str) -> Result<(), PullError> {
    if allowed || url.scheme() == "https" || is_loopback(url) {
        return Ok(());
    }
    Err(PullError::Withheld(format!(
        "a credential for {whom} would go to {} in the clear: let its URL begin with https://, or set allow_plain_credentials",
        url.host_str().unwrap_or_default()
    )))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(domain)) => domain == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}
