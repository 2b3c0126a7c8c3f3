//! HTTPS server for the API server's reviews. Each new connection is shown the current certificate.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{HttpBody, to_bytes},
    extract::{Path, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use futures_util::{StreamExt, future::ready};
use piecemeal_http::{Greet, Limits, Linger, Share, serve_http};
use piecemeal_tls::SiteStream;
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{message::AdmissionRequest, reviewer::Reviewer};
use crate::decide::mode::LABELS;

/// Path of the reviews of pods that carry the label themselves. Pods of a labelled namespace are reviewed at [`NAMESPACE_PATH`]
/// followed by the label's name: the API server has matched the namespace's labels already, so that the webhook decides without
/// reading namespaces.
pub const POD_PATH: &str = "/mutate/pod";
/// See [`POD_PATH`].
pub const NAMESPACE_PATH: &str = "/mutate/namespace/";

/// The most bytes of one review. An API server's objects have at most about 3 MiB.
const BODY_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The most memory that the bodies take together, in KiB.
const ROOM_KIB: usize = 32 * 1024;
/// The API server does not wait longer.
const BODY_TIME_MAX: Duration = Duration::from_secs(5);
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// Each API server has one address, and opens a connection for each review that is under way.
const API_SERVER_SHARE: Share = Share::new(30).expect("a percentage");
const LIMITS: Limits = Limits {
    port: "webhook",
    connections_max: 1024,
    share: API_SERVER_SHARE,
    busy_give_way: false,
    // The API server keeps idle connections for 90 s; a server that closes them earlier loses a request now and then.
    idle_max: Duration::from_secs(120),
    take_max: Duration::from_secs(30),
    linger: Linger::NONE,
    drain_max: Duration::from_secs(10),
};

/// The TLS configuration of new connections; none until there is a certificate.
pub(crate) type Tls = watch::Receiver<Option<Arc<ServerConfig>>>;

/// Answers until told to stop, then lets answers that are under way end. From `leaving` on, each answer is the last of its connection.
pub(crate) async fn serve(
    listener: TcpListener,
    reviewer: Reviewer,
    tls: Tls,
    [leaving, stop]: [CancellationToken; 2],
) {
    let router = Router::new()
        .route(POD_PATH, post(review_pod))
        .route(&format!("{NAMESPACE_PATH}{{*label}}"), post(review_pod_of_namespace))
        .with_state(ReviewHandler {
            reviewer,
            room: Arc::new(Semaphore::new(ROOM_KIB)),
            leaving,
        });
    serve_http(listener, TlsHandshake(tls), router, LIMITS, stop).await;
}

async fn review_pod(State(handler): State<ReviewHandler>, request: Request) -> Response {
    handler.handle(request, None).await
}

async fn review_pod_of_namespace(
    State(handler): State<ReviewHandler>,
    Path(label): Path<String>,
    request: Request,
) -> Response {
    match LABELS.iter().find(|name| **name == label) {
        Some(label) => handler.handle(request, Some(label)).await,
        None => (StatusCode::NOT_FOUND, format!("{label} is not a label of Piecemeal\n")).into_response(),
    }
}

/// Handler of reviews over HTTP. Any client may connect, so that the bodies that are being read are bounded together.
#[derive(Clone)]
struct ReviewHandler {
    reviewer: Reviewer,
    /// Room for bodies that are being read, in KiB.
    room: Arc<Semaphore>,
    /// From then on each answer is the last of its connection.
    leaving: CancellationToken,
}

impl ReviewHandler {
    async fn handle(&self, request: Request, namespace_label: Option<&str>) -> Response {
        let size = request
            .body()
            .size_hint()
            .upper()
            .filter(|bytes| *bytes <= BODY_BYTES_MAX);
        let Some(kib) = size.and_then(|bytes| u32::try_from(bytes.div_ceil(1024)).ok()) else {
            // Read and dropped: a client that is still writing does not read the answer.
            let _ = timeout(
                BODY_TIME_MAX,
                request.into_body().into_data_stream().for_each(|_| ready(())),
            )
            .await;
            let text = format!("a review has a length, and is no longer than {BODY_BYTES_MAX} bytes\n");
            return (StatusCode::PAYLOAD_TOO_LARGE, text).into_response();
        };
        let request = {
            let _room = self.room.acquire_many(kib).await;
            let limit = usize::try_from(BODY_BYTES_MAX).unwrap_or(usize::MAX);
            match timeout(BODY_TIME_MAX, to_bytes(request.into_body(), limit)).await {
                Ok(Ok(body)) => AdmissionRequest::read(&body),
                Ok(Err(_)) | Err(_) => {
                    return (StatusCode::BAD_REQUEST, "the body did not arrive in time\n").into_response();
                }
            }
        };
        match request {
            Ok(request) => {
                let answer = self.reviewer.answer(&request, namespace_label).await;
                let connection = if self.leaving.is_cancelled() {
                    "close"
                } else {
                    "keep-alive"
                };
                let headers = [("content-type", "application/json"), ("connection", connection)];
                (headers, answer.to_string()).into_response()
            }
            Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
        }
    }
}

/// TLS handshake of each new connection, with the certificate of the moment.
#[derive(Clone)]
struct TlsHandshake(Tls);

impl Greet for TlsHandshake {
    async fn greet(&self, stream: TcpStream) -> io::Result<Option<SiteStream>> {
        let config = self.0.borrow().clone();
        let config = config.ok_or_else(|| io::Error::other("there is no certificate yet"))?;
        let stream = timeout(HANDSHAKE_TIME_MAX, TlsAcceptor::from(config).accept(stream)).await??;
        Ok(Some(SiteStream::Tls(Box::new(stream))))
    }
}
