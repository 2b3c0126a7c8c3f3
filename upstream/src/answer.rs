//! An upstream's answer: what its headers state, and its body within a limit.
//!
//! Invariant: a body has a limit in bytes and in time, and no error repeats a URL.

use std::{error::Error, time::Duration};

use bytes::{Bytes, BytesMut};
use piecemeal_proto::Digest;
use reqwest::{
    Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName},
};

/// Enough for the largest manifest at a tenth of a megabyte a second.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads a body to its end, within [`BODY_TIMEOUT`] at the latest: all callers of the lookup would wait for one that drips.
pub(crate) async fn read_body(mut response: Response, bytes_max: usize) -> Result<Bytes, String> {
    let read = async {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| innermost(&error))? {
            if bytes.len() + chunk.len() > bytes_max {
                return Err(format!("a body of more than {bytes_max} bytes"));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    };
    let read = tokio::time::timeout(BODY_TIMEOUT, read).await;
    read.unwrap_or_else(|_| Err(format!("a body that takes longer than {} s", BODY_TIMEOUT.as_secs())))
}

/// The last cause of an error: reqwest's own text repeats the URL, whose query may be a secret.
pub fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if error.source().is_none() {
        "the connection failed".to_owned()
    } else {
        cause.to_string()
    }
}

/// The media type without its parameters.
pub(crate) fn media_type(response: &Response) -> Option<String> {
    let value = response.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    let media_type = value.split(';').next().unwrap_or_default().trim();
    (!media_type.is_empty()).then(|| media_type.to_owned())
}

pub(crate) fn stated_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// `None` also where it is the length of an encoded body.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    if encoding(headers).is_some() {
        return None;
    }
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The start and, when stated, the whole size of `Content-Range: bytes a-b/N`.
pub(crate) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = value.split_once('/')?;
    let start = range.split_once('-')?.0.parse().ok()?;
    Some((start, total.parse().ok()))
}

pub(crate) fn is_page(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"text/html"))
}

/// Whether it may be a page in words: of a filter, a login or an error.
pub(crate) fn is_text(headers: &HeaderMap) -> bool {
    let of_page = |value: &[u8]| {
        [
            &b"text/"[..],
            b"application/json",
            b"application/problem",
            b"application/xhtml",
            b"application/xml",
        ]
        .iter()
        .any(|kind| value.starts_with(kind))
    };
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| of_page(&value.as_bytes().to_ascii_lowercase()))
}

/// The encoding of the body, when it has one. The daemon asks for none: bytes of another form have another digest.
pub(crate) fn encoding(headers: &HeaderMap) -> Option<String> {
    let codings = list(headers, CONTENT_ENCODING)?;
    let mut codings = codings.split(',').map(str::trim);
    let is_none = codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case("identity"));
    (!is_none).then(|| list(headers, CONTENT_ENCODING)).flatten()
}

/// Whether a 4xx is about the request that it answers. A proxy's 407 is about the mirror, and some only say: not now.
pub(crate) fn refuses_request(status: StatusCode) -> bool {
    let others = [
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_EARLY,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    status.is_client_error() && !others.contains(&status)
}

/// A field that is a list, which may come in several fields or in one. Source: RFC 9110, section 5.3.
pub(crate) fn list(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let fields = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let fields: Vec<&str> = fields.map(str::trim).filter(|field| !field.is_empty()).collect();
    (!fields.is_empty()).then(|| fields.join(", "))
}

pub(crate) fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use reqwest::header::{LINK, WARNING};

    use super::*;

    fn sent(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.clone(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_list_is_the_same_in_one_field_and_in_several() {
        let all = Some(r#"199 - "a", 299 - "b, c""#.to_owned());
        for fields in [
            &[(WARNING, r#"199 - "a", 299 - "b, c""#)][..],
            &[(WARNING, r#"199 - "a""#), (LINK, "<x>"), (WARNING, r#"299 - "b, c""#)],
            &[(WARNING, ""), (WARNING, r#"199 - "a""#), (WARNING, r#" 299 - "b, c" "#)],
        ] {
            assert_eq!(list(&sent(fields), WARNING), all, "{fields:?}");
        }
        assert_eq!(list(&sent(&[(LINK, "<x>")]), WARNING), None);
    }

    #[test]
    fn an_encoded_body_is_known_by_any_of_its_fields_and_has_no_length() {
        let length = (CONTENT_LENGTH, "7");
        for (fields, expected) in [
            (&[][..], None),
            (&["identity"][..], None),
            (&["", "Identity, identity"], None),
            (&["gzip"], Some("gzip")),
            (&["identity", "br"], Some("identity, br")),
            (&["gzip, zstd"], Some("gzip, zstd")),
        ] {
            let codings = fields.iter().map(|&coding| (CONTENT_ENCODING, coding));
            let headers = sent(&codings.chain([length.clone()]).collect::<Vec<_>>());
            assert_eq!(encoding(&headers).as_deref(), expected, "{fields:?}");
            assert_eq!(content_length(&headers), expected.is_none().then_some(7), "{fields:?}");
        }
    }

    #[test]
    fn a_4xx_is_about_the_request_unless_it_says_not_now_or_is_a_proxys() {
        for status in [400, 401, 403, 404, 405, 413, 414, 421, 431, 451] {
            assert!(refuses_request(StatusCode::from_u16(status).unwrap()), "{status}");
        }
        for status in [200, 302, 407, 408, 425, 429, 500, 502, 503, 504, 521] {
            assert!(!refuses_request(StatusCode::from_u16(status).unwrap()), "{status}");
        }
    }
}
