//! The admin port of a daemon: `/metrics`, `/livez`, `/readyz`, `/status`, and for this machine alone `/cache`.
//!
//! It answers from before the daemon starts until after the daemon has drained, so that an orchestrator can tell a slow start or
//! a long drain from a failure.

mod cache;
mod guard;
mod state;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use piecemeal_http::{Limits, Linger, Share, Sockets, serve_http};
use prometheus_client::{encoding::text::encode, metrics::info::Info, registry::Registry};
use serde_json::Value;
use tokio::{sync::RwLock, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

pub(crate) use guard::ADMIN_HEADER;

use self::state::{AdminState, Phase};
use crate::daemon::Daemon;

/// A running admin server. Dropping it leaves the port open until the runtime ends; [`Admin::stop`] closes it.
#[derive(Debug)]
pub(crate) struct Admin<D> {
    state: Arc<AdminState<D>>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl<D: Daemon> Admin<D> {
    /// Listens, by one of `sockets` where it fits, and answers for a daemon that is still starting.
    ///
    /// # Errors
    /// When `address` cannot be bound.
    pub(crate) async fn start(address: SocketAddr, sockets: &Sockets) -> std::io::Result<Self> {
        let listener = sockets.bind(address).await?;
        let mut registry = Registry::default();
        let version = Info::new([("component", D::NAME), ("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("piecemeal_build", "What runs here", version);
        let state = Arc::new(AdminState {
            phase: RwLock::new(Phase::Starting),
            registry: RwLock::new(registry),
        });
        let router = Router::new()
            .route("/metrics", get(metrics::<D>))
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz::<D>))
            .route("/status", get(status::<D>))
            .merge(cache::routes())
            .with_state(Arc::clone(&state));
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve_http(listener, (), router, LIMITS, stop.clone()));
        debug!(admin.address = %address, "admin port at {address}");
        Ok(Self { state, stop, serving })
    }

    /// From now on answers for `daemon`.
    pub(crate) async fn run(&self, daemon: D) {
        daemon.register_metrics(&mut *self.state.registry.write().await);
        *self.state.phase.write().await = Phase::Running(daemon);
    }

    /// Gives a running daemon the live settings of `config`.
    pub(crate) async fn apply(&self, config: &D::Config) {
        if let Phase::Running(daemon) = &*self.state.phase.read().await {
            daemon.apply(config);
        }
    }

    /// The daemon's problems, as one phrase each.
    pub(crate) async fn problems(&self) -> Vec<String> {
        let problem =
            |(name, problem): (String, Option<String>)| problem.map(|problem| format!("{} {name}: {problem}", D::NAME));
        match &*self.state.phase.read().await {
            Phase::Running(daemon) => daemon.readiness().await.into_iter().filter_map(problem).collect(),
            Phase::Starting | Phase::Draining => Vec::new(),
        }
    }

    /// Drains the daemon, if there is one, while the port goes on answering.
    pub(crate) async fn drain(&self) {
        let phase = std::mem::replace(&mut *self.state.phase.write().await, Phase::Draining);
        if let Phase::Running(daemon) = phase {
            daemon.shutdown().await;
        }
    }

    /// Closes the port; requests in progress have a moment to end.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let mut serving = self.serving;
        if timeout(STOP_TIME_MAX, &mut serving).await.is_err() {
            serving.abort();
        }
    }
}

async fn metrics<D: Daemon>(State(state): State<Arc<AdminState<D>>>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &*state.registry.read().await) {
        Ok(()) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn readyz<D: Daemon>(State(state): State<Arc<AdminState<D>>>) -> Response {
    let answer = timeout(ANSWER_TIME_MAX, async {
        match &*state.phase.read().await {
            Phase::Starting => vec![(D::NAME.to_owned(), Some("starting".to_owned()))],
            Phase::Running(daemon) => daemon.readiness().await,
            Phase::Draining => vec![(D::NAME.to_owned(), Some("draining".to_owned()))],
        }
    });
    let dependencies = answer
        .await
        .unwrap_or_else(|_| vec![(D::NAME.to_owned(), Some(NO_ANSWER.to_owned()))]);
    let is_ready = dependencies.iter().all(|(_, problem)| problem.is_none());
    let status = if is_ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let line = |(name, problem): &(String, Option<String>)| format!("{name}: {}\n", problem.as_deref().unwrap_or("ok"));
    (status, dependencies.iter().map(line).collect::<String>()).into_response()
}

async fn status<D: Daemon>(State(state): State<Arc<AdminState<D>>>) -> Response {
    let answer = timeout(ANSWER_TIME_MAX, async {
        match &*state.phase.read().await {
            Phase::Starting => serde_json::json!({ "phase": "starting" }),
            Phase::Running(daemon) => daemon.status().await,
            Phase::Draining => serde_json::json!({ "phase": "draining" }),
        }
    });
    let Ok(mut value) = answer.await else {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{NO_ANSWER}\n")).into_response();
    };
    if let Value::Object(fields) = &mut value {
        fields.entry("role").or_insert_with(|| D::NAME.into());
        fields
            .entry("version")
            .or_insert_with(|| env!("CARGO_PKG_VERSION").into());
    }
    ([(CONTENT_TYPE, "application/json")], format!("{value}\n")).into_response()
}

const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const NO_ANSWER: &str = "no answer from the daemon";
/// Below the 10 s after which Prometheus gives up by default.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// One address's share of the connections: few clients use the port, and seldom at once.
const ADMIN_SHARE: Share = Share::new(10).expect("a percentage");
const STOP_TIME_MAX: Duration = Duration::from_secs(2);
/// Any host on the LAN may ask, and none may take what clients need. A new connection always gets in: an orchestrator that has no
/// answer from `/livez` restarts the daemon.
const LIMITS: Limits = Limits {
    port: "admin",
    connections_max: 128,
    share: ADMIN_SHARE,
    busy_give_way: true,
    idle_max: Duration::from_secs(60),
    take_max: Duration::from_secs(30),
    linger: Linger::NONE,
    drain_max: Duration::from_secs(1),
};
