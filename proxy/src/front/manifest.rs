//! Answers with a manifest: exactly the upstream's bytes. HEAD has the headers of GET. `Range` is ignored.

use axum::{
    body::Body,
    http::{HeaderValue, Response, header},
};

use super::response::{add_note, base};
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
    if let Ok(media_type) = HeaderValue::from_str(&manifest.media_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    }
    add_note(&mut response, &manifest.note);
    response
}
