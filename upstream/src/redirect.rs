//! The target of a redirect, by its URL alone. `reachable.rs` decides whether its address may be connected to.

use reqwest::header::{HeaderMap, LOCATION};
use url::Url;

/// The most redirects followed for one request.
pub(crate) const REDIRECTS_MAX: usize = 5;

/// The target of a redirect from `from`; `None` when there is none that may be followed: never from TLS to plain HTTP, and
/// never to anything but HTTP. The caller sends no `Authorization` of its own there: storage hosts refuse it, strangers must not see it.
pub(crate) fn target(from: &Url, headers: &HeaderMap) -> Option<Url> {
    let url = from.join(headers.get(LOCATION)?.to_str().ok()?).ok()?;
    let keeps_tls = matches!((from.scheme(), url.scheme()), (_, "https") | ("http", "http"));
    keeps_tls.then_some(url)
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
            ("http://a.io/v2/x", "data:,x", None),
        ];
        for (from, location, to) in cases {
            let headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
            let url = target(&Url::parse(from).unwrap(), &headers);
            assert_eq!(url.as_ref().map(Url::as_str), to, "{location}");
        }
        assert_eq!(target(&Url::parse("http://a.io").unwrap(), &HeaderMap::new()), None);
    }
}
