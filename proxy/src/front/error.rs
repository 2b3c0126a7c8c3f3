//! The only place where errors become OCI answers. Source: OCI distribution-spec, "Error Codes".

use axum::{
    body::Body,
    http::{HeaderValue, Method, Response, StatusCode, header},
};
use piecemeal_proto::ParseReferenceError;
use serde_json::json;

use piecemeal_upstream::PullError;

/// The answer for `error`; `unknown` is the code for what does not exist.
pub fn error_response(error: &PullError, unknown: &'static str) -> Response<Body> {
    let (status, code) = match error {
        PullError::Malformed(ParseReferenceError::Digest(_)) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        PullError::Malformed(ParseReferenceError::Tag) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
        PullError::Malformed(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
        PullError::Number(_) => (StatusCode::BAD_REQUEST, "UNSUPPORTED"),
        PullError::UnknownUpstream(_) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
        PullError::Unknown(_) => (StatusCode::NOT_FOUND, unknown),
        PullError::Denied { status: 401, .. } => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
        PullError::Denied { .. } | PullError::Withheld(_) => (StatusCode::FORBIDDEN, "DENIED"),
        PullError::Rejected { status, .. } => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_REQUEST);
            (status, "UNSUPPORTED")
        }
        PullError::Loop(_) => (StatusCode::MISDIRECTED_REQUEST, "UNSUPPORTED"),
        PullError::TooManyRequests { .. } => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
        PullError::BadGateway(_) | PullError::Misled { .. } => (StatusCode::BAD_GATEWAY, "UNKNOWN"),
        PullError::Unavailable(_) | PullError::Pending(_) | PullError::Unreachable(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE")
        }
        PullError::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
    };
    let mut response = coded(status, code, &error.to_string());
    let extra = match error {
        PullError::Denied { challenges, .. } => (header::WWW_AUTHENTICATE, &challenges[..]),
        PullError::TooManyRequests { retry_after, .. } => (header::RETRY_AFTER, retry_after.as_slice()),
        _ => return response,
    };
    let (name, values) = extra;
    for value in values
        .iter()
        .filter_map(|value| HeaderValue::from_bytes(value.as_bytes()).ok())
    {
        response.headers_mut().append(name.clone(), value);
    }
    response
}

/// An answer with one OCI error.
pub(super) fn coded(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = json!({ "errors": [{ "code": code, "message": message, "detail": null }] }).to_string();
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .expect("constant headers")
}

/// Nothing is ever pushed here.
pub(super) fn unsupported(method: &Method) -> Response<Body> {
    let mut response = coded(
        StatusCode::METHOD_NOT_ALLOWED,
        "UNSUPPORTED",
        &format!("{method} is not supported: this is a mirror for pulling; push to the registry itself"),
    );
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}
