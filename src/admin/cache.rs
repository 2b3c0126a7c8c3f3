//! `/cache` on the admin port: lists the stored content, and removes, verifies and prefetches it.
//!
//! It answers as soon as the daemon runs, and until it drains. A long operation answers with one JSON object a line.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{ConnectInfo, Query, Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use piecemeal_proxy::{Cache, CacheError};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use tokio::time::timeout;

use super::{
    guard,
    state::{AdminState, Phase},
};
use crate::daemon::Daemon;

/// The most bytes of a request: a thousand images with long names.
const BODY_BYTES_MAX: usize = 1024 * 1024;
const BODY_TIME_MAX: Duration = Duration::from_secs(10);

pub(super) fn routes<D: Daemon>() -> Router<Arc<AdminState<D>>> {
    Router::new()
        .route("/cache", get(list::<D>))
        .route("/cache/item", get(item::<D>).delete(remove::<D>))
        .route("/cache/verify", post(verify::<D>))
        .route("/cache/warm", post(warm::<D>))
        .layer(middleware::from_fn(guarded))
}

async fn guarded(ConnectInfo(client): ConnectInfo<SocketAddr>, request: Request, next: Next) -> Response {
    match guard::check(client.ip(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => (StatusCode::FORBIDDEN, Json(json!({ "error": refusal.to_string() }))).into_response(),
    }
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

async fn list<D: Daemon>(State(state): State<Arc<AdminState<D>>>) -> Result<Response, Refused> {
    let list = state.cache().await?.list().await?;
    Ok(Json(list).into_response())
}

async fn item<D: Daemon>(
    State(state): State<Arc<AdminState<D>>>,
    Query(Named { name }): Query<Named>,
) -> Result<Response, Refused> {
    let item = state.cache().await?.item(&name).await?;
    Ok(Json(item).into_response())
}

async fn remove<D: Daemon>(
    State(state): State<Arc<AdminState<D>>>,
    Query(Named { name }): Query<Named>,
) -> Result<Response, Refused> {
    let removed = state.cache().await?.remove(&name).await?;
    Ok(Json(removed).into_response())
}

async fn verify<D: Daemon>(State(state): State<Arc<AdminState<D>>>, request: Request) -> Result<Response, Refused> {
    let request = read(request).await?;
    let lines = state.cache().await?.verify(request).await?;
    Ok(streamed(Body::from_stream(lines)))
}

async fn warm<D: Daemon>(State(state): State<Arc<AdminState<D>>>, request: Request) -> Result<Response, Refused> {
    let request = read(request).await?;
    let lines = state.cache().await?.warm(request).await?;
    Ok(streamed(Body::from_stream(lines)))
}

fn streamed(lines: Body) -> Response {
    ([(CONTENT_TYPE, "application/x-ndjson")], lines).into_response()
}

async fn read<T: DeserializeOwned>(request: Request) -> Result<T, Refused> {
    let body = timeout(BODY_TIME_MAX, to_bytes(request.into_body(), BODY_BYTES_MAX)).await;
    let body = match body {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return Err(Refused(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())),
        Err(_) => {
            return Err(Refused(
                StatusCode::REQUEST_TIMEOUT,
                "the request does not end".to_owned(),
            ));
        }
    };
    serde_json::from_slice(&body).map_err(|error| Refused(StatusCode::BAD_REQUEST, format!("the request: {error}")))
}

impl<D: Daemon> AdminState<D> {
    /// Never held for as long as an answer takes: draining must not wait for it.
    async fn cache(&self) -> Result<Cache, Refused> {
        let unavailable = |what: &str| {
            let text = format!("the {} {what}", D::NAME);
            Refused(StatusCode::SERVICE_UNAVAILABLE, text)
        };
        match &*self.phase.read().await {
            Phase::Starting => Err(unavailable("is starting")),
            Phase::Draining => Err(unavailable("is draining")),
            Phase::Running(daemon) => daemon.cache().ok_or_else(|| {
                let text = format!("a {} keeps no content; ask a mirror or a peer", D::NAME);
                Refused(StatusCode::NOT_FOUND, text)
            }),
        }
    }
}

struct Refused(StatusCode, String);

impl From<CacheError> for Refused {
    fn from(error: CacheError) -> Self {
        let status = match &error {
            CacheError::Malformed(_) => StatusCode::BAD_REQUEST,
            CacheError::Unknown(_) => StatusCode::NOT_FOUND,
            CacheError::Conflict(_) => StatusCode::CONFLICT,
            CacheError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}
