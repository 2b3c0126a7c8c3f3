//! The beginning of every successful answer.

use axum::http::{Response, StatusCode, response::Builder};

pub(super) fn base() -> Builder {
    Response::builder().status(StatusCode::OK)
}
