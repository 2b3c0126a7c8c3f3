//! Caller of a request, and its credential.
//!
//! Invariant: a credential shows in no log, and is written down only as its fingerprint.

use std::{fmt, net::IpAddr};

use axum::http::{HeaderMap, HeaderValue, header};
use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use piecemeal_proto::NodeId;
use piecemeal_store::Shown;
use sha2::{Digest as _, Sha256};

/// A longer path of hosts is not passed on: no honest one is.
const VIA_BYTES_MAX: usize = 1024;

/// The caller of a request.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The admitted node that asks, if it has proven its identity: rights are kept under its id.
    pub node: Option<NodeId>,
    /// The client's own `Authorization`; `None` for a client without a credential.
    pub credential: Option<Credential>,
    /// The hosts that the request has passed already, as `Via` tells.
    pub via: Option<String>,
    /// The address that the request comes from, if it is known: callers that show nothing share scarce places by it.
    pub address: Option<IpAddr>,
}

impl Caller {
    /// The caller of a request. `node`: the node that the request has proven to come from.
    pub fn of_request(headers: &HeaderMap, node: Option<NodeId>, address: Option<IpAddr>) -> Self {
        let via: Vec<&str> = headers
            .get_all(header::VIA)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let via = Some(via.join(", ")).filter(|via| !via.is_empty() && via.len() <= VIA_BYTES_MAX);
        Self {
            node,
            credential: Credential::from_headers(headers),
            via,
            address,
        }
    }
}

/// The value of an `Authorization` header, as the client sent it. It is passed on to the upstream that it is for, is never
/// written down, and does not show in logs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credential(HeaderValue);

/// The SHA-256 of a credential: what verdicts are remembered by.
pub type Fingerprint = [u8; 32];

impl Credential {
    /// The client's credential. An empty user with an empty password (`Basic Og==`) is what some clients send instead of
    /// nothing, and is nothing.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut value = headers.get(header::AUTHORIZATION)?.clone();
        if is_empty(value.as_bytes()) {
            return None;
        }
        value.set_sensitive(true);
        Some(Self(value))
    }

    /// User and password, for an upstream that asks for them.
    ///
    /// # Panics
    /// Never: base64 is a header value.
    pub fn basic(user: &str, password: &str) -> Self {
        let text = format!("Basic {}", BASE64.encode(format!("{user}:{password}")));
        let mut value = HeaderValue::from_str(&text).expect("base64 is a header value");
        value.set_sensitive(true);
        Self(value)
    }

    /// A token; `None` when it cannot be sent.
    pub fn bearer(token: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }

    /// The value of `Authorization`.
    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// The credential in the form that the store keeps.
    pub fn shown(&self) -> Shown {
        Shown::Client(self.fingerprint())
    }

    pub fn fingerprint(&self) -> Fingerprint {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(..)")
    }
}

/// Whether the header holds no user and no password.
fn is_empty(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else {
        return false;
    };
    let text = text.trim();
    match text.split_once(' ') {
        Some((scheme, payload)) if scheme.eq_ignore_ascii_case("basic") => {
            BASE64.decode(payload.trim()).is_ok_and(|decoded| decoded == b":")
        }
        _ => text.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(value: &'static str) -> Option<Credential> {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
        Credential::from_headers(&headers)
    }

    #[test]
    fn an_empty_user_with_an_empty_password_is_no_credential() {
        for empty in ["Basic Og==", "basic Og==", "Basic  Og== ", ""] {
            assert_eq!(credential(empty), None, "{empty:?}");
        }
        assert_eq!(Credential::from_headers(&HeaderMap::new()), None);
        for present in ["Basic YTpi", "Basic OmI=", "Bearer Og==", "Basic"] {
            assert!(credential(present).is_some(), "{present:?}");
        }
    }

    #[test]
    fn a_credential_does_not_show() {
        let text = format!(
            "{:?} {:?}",
            Credential::basic("user", "secret"),
            Credential::bearer("secret")
        );
        assert!(!text.contains("secret") && !text.contains("c2VjcmV0"), "{text}");
    }
}
