//! Access check of the admin port: only a program on this machine that sends the required header gets more than the status.
//!
//! The port may listen on every address. A web page in a browser on this machine comes from loopback too: it cannot set the header
//! without a preflight request, which nothing here answers, and `Host` bears the page's own host name, even where DNS resolves
//! that name to this machine.

use std::net::IpAddr;

use axum::http::{HeaderMap, Uri, header, uri::Authority};

/// The header that callers show.
pub(crate) const ADMIN_HEADER: &str = "piecemeal-admin";

/// Why a caller is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RefuseCallerError {
    #[error("only clients on this machine may send this request, to its loopback address: run `piecemeal cache` there")]
    Elsewhere,
    #[error("this request needs the header `Piecemeal-Admin: 1`")]
    NoHeader,
    #[error("the host of the URL must be an IP address or localhost")]
    Host,
}

/// Whether to answer a caller at `client`.
pub(super) fn check(client: IpAddr, uri: &Uri, headers: &HeaderMap) -> Result<(), RefuseCallerError> {
    if !client.to_canonical().is_loopback() {
        return Err(RefuseCallerError::Elsewhere);
    }
    if headers.get(ADMIN_HEADER).is_none_or(|value| value != "1") {
        return Err(RefuseCallerError::NoHeader);
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(RefuseCallerError::Host);
    };
    let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    let named = [host.as_ref(), uri.authority()];
    let are_ours = host.is_some() && named.into_iter().flatten().all(is_ours);
    are_ours.then_some(()).ok_or(RefuseCallerError::Host)
}

fn is_ours(authority: &Authority) -> bool {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    !authority.as_str().contains('@') && (host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn asked(
        client: &str,
        uri: &'static str,
        headers: &[(&'static str, &'static str)],
    ) -> Result<(), RefuseCallerError> {
        let headers = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        check(client.parse().unwrap(), &Uri::from_static(uri), &headers.collect())
    }

    const MEANT: (&str, &str) = (ADMIN_HEADER, "1");

    #[test]
    fn only_this_machine_is_answered() {
        let from = |client| asked(client, "/cache", &[MEANT, ("host", "127.0.0.1:65013")]);
        for here in ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(from(here), Ok(()), "{here}");
        }
        for elsewhere in ["10.0.0.1", "::ffff:10.0.0.1", "fd00::1", "0.0.0.0"] {
            assert_eq!(from(elsewhere), Err(RefuseCallerError::Elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn only_who_means_it_is_answered() {
        let host = ("host", "localhost");
        assert_eq!(asked("::1", "/cache", &[host]), Err(RefuseCallerError::NoHeader));
        let other = (ADMIN_HEADER, "0");
        assert_eq!(asked("::1", "/cache", &[host, other]), Err(RefuseCallerError::NoHeader));
    }

    #[test]
    fn a_host_that_is_neither_an_address_nor_localhost_is_refused() {
        let at = |host| asked("::1", "/cache", &[MEANT, ("host", host)]);
        for ours in [
            "127.0.0.1",
            "127.0.0.1:65013",
            "LocalHost:65013",
            "[::1]:65013",
            "10.88.0.2:1",
        ] {
            assert_eq!(at(ours), Ok(()), "{ours}");
        }
        for other in [
            "",
            "evil.example",
            "evil.example:65013",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "evil.example@127.0.0.1",
        ] {
            assert_eq!(at(other), Err(RefuseCallerError::Host), "{other}");
        }
        assert_eq!(asked("::1", "/cache", &[MEANT]), Err(RefuseCallerError::Host));
        let two = [MEANT, ("host", "localhost"), ("host", "localhost")];
        assert_eq!(
            asked("::1", "http://evil.example/cache", &two[..2]),
            Err(RefuseCallerError::Host)
        );
    }
}
