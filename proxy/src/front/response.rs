//! The beginning of every successful answer, and the note beside it.

use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header, response::Builder};
use piecemeal_upstream::{Note, STALE_HEADER};

pub(super) fn base() -> Builder {
    Response::builder().status(StatusCode::OK)
}

/// The mark is for the site's peers, the warning for clients.
pub(super) fn add_note<T>(response: &mut Response<T>, note: &Note) {
    let warning = note.warning.as_deref().map(HeaderValue::from_str);
    if let Some(Ok(warning)) = warning {
        response.headers_mut().insert(header::WARNING, warning);
    }
    if note.is_stale {
        let mark = HeaderName::from_static(STALE_HEADER);
        response.headers_mut().insert(mark, HeaderValue::from_static("true"));
    }
}
