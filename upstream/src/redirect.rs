//! The target of a redirect, by its URL alone. `reachable.rs` decides whether its address may be connected to.
//!
//! Invariant: path and query go out as they were sent, as far as a URL has such characters: bytes that are not ASCII, and quotation marks,
//! angle brackets and apostrophes of a query, go out percent-encoded, which means the same. Signatures cover the decoded form.

use reqwest::header::{HeaderMap, LOCATION};
use url::Url;

/// The most redirects followed for one request.
pub(crate) const REDIRECTS_MAX: usize = 5;

/// The target of a redirect from `from`; `None` when there is none that may be followed: never from TLS to plain HTTP, and
/// never to anything but HTTP. The caller sends no `Authorization` of its own there: storage hosts refuse it, strangers must not see it.
pub(crate) fn target(from: &Url, headers: &HeaderMap) -> Option<Url> {
    let url = from.join(&ascii(headers.get(LOCATION)?.as_bytes())).ok()?;
    let keeps_tls = matches!((from.scheme(), url.scheme()), (_, "https") | ("http", "http"));
    keeps_tls.then_some(url)
}

/// The same bytes with all that are not ASCII percent-encoded, whatever character set they are in.
fn ascii(location: &[u8]) -> String {
    let mut text = String::with_capacity(location.len());
    for &byte in location {
        match byte.is_ascii() {
            true => text.push(char::from(byte)),
            false => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

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

    /// What goes out for a `Location`: the path and the query of the URI that the HTTP client makes of the URL.
    fn goes_out(location: &[u8]) -> String {
        let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_bytes(location).unwrap())]);
        let from = Url::parse("https://a.io/v2/team/app/blobs/sha256:0").unwrap();
        let uri: http::Uri = target(&from, &headers).unwrap().as_str().parse().unwrap();
        uri.path_and_query().unwrap().as_str().to_owned()
    }

    #[test]
    fn path_and_query_go_out_as_they_were_sent() {
        for sent in [
            "/store/x?a=%27b%27&c=+%2B&d=%2f&e=%2F&f=~%7E",
            "/store/it's/(a),!*;:@&=+$?q",
            "/a%2Fb//c/%C3%BC|^?x=|^`{}[]\\;/?:@!$()*,",
            "/s?X-Amz-Signature=0&X-Amz-Credential=a%2Fb&sig=a%2Bb%3D&empty=&&=",
            "/s?",
        ] {
            assert_eq!(goes_out(sent.as_bytes()), sent);
            assert_eq!(goes_out(format!("HTTPS://b.io{sent}").as_bytes()), sent);
            assert_eq!(goes_out(format!("https://user:pw@b.io{sent}#frag").as_bytes()), sent);
            assert_eq!(goes_out(format!("//b.io{sent}").as_bytes()), sent);
        }
    }

    #[test]
    fn what_no_uri_has_goes_out_percent_encoded() {
        for (sent, expected) in [
            (&b"/s?n=\xfc"[..], "/s?n=%FC"),
            ("/s/ü?n=ü".as_bytes(), "/s/%C3%BC?n=%C3%BC"),
            (br#"/s/"<>?x="<>'"#, "/s/%22%3C%3E?x=%22%3C%3E%27"),
            (b"store/x", "/v2/team/app/blobs/store/x"),
            (b"./x?y", "/v2/team/app/blobs/x?y"),
            (b"../x/../y", "/v2/team/app/y"),
            (b"?again", "/v2/team/app/blobs/sha256:0?again"),
        ] {
            assert_eq!(goes_out(sent), expected);
        }
    }
}
