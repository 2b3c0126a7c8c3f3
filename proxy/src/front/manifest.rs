//! Answers with a manifest: exactly the upstream's bytes. HEAD has the headers of GET. `Range` is ignored.

use axum::{
    body::Body,
    http::{HeaderValue, Response, header},
};

use super::response::base;
use piecemeal_upstream::FetchedManifest;

pub(super) fn respond(manifest: FetchedManifest, head: bool) -> Response<Body> {
    let digest = manifest.digest.to_string();
    let mut response = base()
        .header(header::CONTENT_LENGTH, manifest.bytes.len())
        .header("docker-content-digest", &digest)
        .header(header::ETAG, format!("\"{digest}\""))
        .body(if head {
            Body::empty()
        } else {
            Body::from(manifest.bytes)
        })
        .expect("numbers and digests are header values");
    let optional = [
        (header::CONTENT_TYPE, Some(manifest.media_type)),
        (header::WARNING, manifest.warning),
    ];
    for (name, value) in optional {
        if let Some(Ok(value)) = value.map(|value| HeaderValue::from_str(&value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
