//! An upstream's answer: what its headers state, and its body within a limit.
//!
//! Invariant: a body has a limit in bytes and in time, and no error repeats a URL.

use std::{error::Error, time::Duration};

use bytes::{Bytes, BytesMut};
use piecemeal_proto::Digest;
use reqwest::{
    Response,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName},
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

pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
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

pub(crate) fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}
