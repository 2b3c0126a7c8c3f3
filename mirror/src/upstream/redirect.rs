//! Where a redirect may lead.

use std::net::Ipv4Addr;

use reqwest::header::{HeaderMap, LOCATION};
use url::{Host, Url};

/// The most redirects followed for one request.
pub(super) const REDIRECTS_MAX: usize = 5;

/// The target of a redirect from `from`; `None` when there is none that may be followed: never from TLS to plain HTTP, never
/// to anything but HTTP, and never from outside to inside. The caller sends no `Authorization` there: storage hosts refuse it, strangers must not see it.
pub(super) fn target(from: &Url, headers: &HeaderMap) -> Option<Url> {
    let url = from.join(headers.get(LOCATION)?.to_str().ok()?).ok()?;
    let keeps_tls = matches!((from.scheme(), url.scheme()), (_, "https") | ("http", "http"));
    (keeps_tls && (!is_inside(&url) || is_inside(from))).then_some(url)
}

/// Whether the host is by its name one of this machine or of a private network: a registry out there has no business to send
/// us to those.
fn is_inside(url: &Url) -> bool {
    let v4 = |ip: Ipv4Addr| ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified();
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Some(Host::Ipv4(ip)) => v4(ip),
        Some(Host::Ipv6(ip)) => {
            let inside = ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local();
            inside || ip.to_ipv4_mapped().is_some_and(v4)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_and_never_lose_tls() {
        let cases = [
            (
                "https://a.io/v2/x",
                "https://b.io/y?sig=1",
                Some("https://b.io/y?sig=1"),
            ),
            ("https://a.io/v2/x", "/y", Some("https://a.io/y")),
            ("http://a.io/v2/x", "http://b.io/", Some("http://b.io/")),
            ("https://a.io/v2/x", "http://a.io/y", None),
            ("http://a.io/v2/x", "file:///etc/passwd", None),
            ("http://a.io/v2/x", "http://127.0.0.1:65013/metrics", None),
            ("http://a.io/v2/x", "http://169.254.169.254/latest", None),
            ("http://a.io/v2/x", "http://[::ffff:10.0.0.1]/", None),
            ("http://a.io/v2/x", "http://localhost./", None),
            ("http://10.0.0.1/v2/x", "http://10.0.0.2/y", Some("http://10.0.0.2/y")),
        ];
        for (from, location, to) in cases {
            let headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
            let url = target(&Url::parse(from).unwrap(), &headers);
            assert_eq!(url.as_ref().map(Url::as_str), to, "{location}");
        }
        assert_eq!(target(&Url::parse("http://a.io").unwrap(), &HeaderMap::new()), None);
    }
}
