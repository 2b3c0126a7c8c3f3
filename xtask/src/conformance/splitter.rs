//! A reverse proxy that makes a registry of two: what writes goes to the real one, what reads goes to its mirror.
//!
//! It changes nothing on the way, `Host` included: the `Location`s that the registry makes of that come back here.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};

/// A running splitter; it ends when dropped.
pub(super) struct Splitter {
    address: SocketAddr,
    _runtime: Runtime,
}

#[derive(Clone, Copy)]
struct Sides {
    registry: SocketAddr,
    mirror: SocketAddr,
}

impl Splitter {
    pub(super) fn start(registry: SocketAddr, mirror: SocketAddr) -> Result<Self> {
        let runtime = Runtime::new().context("cannot start the splitter's runtime")?;
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .context("the splitter cannot listen on loopback")?;
        let address = listener.local_addr()?;
        let router = Router::new().fallback(split).with_state(Sides { registry, mirror });
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Self {
            address,
            _runtime: runtime,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn split(State(sides): State<Sides>, request: Request) -> Response {
    let to = if reads(&request) { sides.mirror } else { sides.registry };
    forward(request, to)
        .await
        .unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, format!("splitter: {error:#}")).into_response())
}

/// Asking how far an upload has come is part of writing.
fn reads(request: &Request) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD) && !request.uri().path().contains("/blobs/uploads/")
}

/// Over a connection of its own, which is simple and shows what a connection's end does to a body.
async fn forward(request: Request, to: SocketAddr) -> Result<Response> {
    let stream = TcpStream::connect(to).await.context("cannot connect")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // A failure of the connection shows in the answer or in its body.
    tokio::spawn(connection);
    let response = sender.send_request(request).await.context("no answer")?;
    Ok(response.map(Body::new))
}
