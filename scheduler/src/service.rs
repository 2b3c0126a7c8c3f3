//! Scheduler: the gRPC service around placement.
//!
//! Invariant: a stream has a slot among the sessions before its task starts, and gives it back when its session ends.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use piecemeal_http::Slot;
use piecemeal_proto::wire::{self, scheduler_server::Scheduler as Service};
use piecemeal_tls::{Acceptor, MakeCertificateError, ServerRole};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::{Duration, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};
use tracing::{error, info};

use crate::{
    SchedulerConfig,
    admission::Admission,
    connection::Origin,
    input::Input,
    limits::{Gates, StreamSlots},
    listener,
    metrics::Metrics,
    session::{EVENT_BYTES_MAX, Sessions},
    supervisor::supervise,
};

/// A running scheduler. Dropping it stops it; [`Scheduler::shutdown`] also waits for that.
pub struct Scheduler {
    local_addr: SocketAddr,
    inputs: mpsc::Sender<Input>,
    admission: Arc<Admission>,
    metrics: Metrics,
    gates: Gates,
    server: JoinHandle<()>,
    placement: JoinHandle<()>,
    stop: DropGuard,
}

/// Why a scheduler could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartSchedulerError {
    /// Another process has the port. Starting again helps once it is free.
    #[error("{address} is in use already (does another scheduler run here? Stop it, or let this one listen elsewhere)")]
    AddressInUse { address: SocketAddr },
    /// The address is not this host's, or the port is privileged.
    #[error("failed to listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// The system has no randomness for a key.
    #[error(transparent)]
    Certificate(#[from] MakeCertificateError),
}

impl Scheduler {
    /// Listens, and answers daemons from then on.
    ///
    /// # Errors
    /// [`StartSchedulerError`]: the address cannot be listened on, most likely.
    pub async fn start(config: SchedulerConfig) -> Result<Self, StartSchedulerError> {
        let (listener, local_addr) = bind(config.listen).await?;
        let tls = Acceptor::new(&config.authority_key, ServerRole::Scheduler)?;

        let (inputs, received) = mpsc::channel(INPUTS_MAX);
        let metrics = Metrics::new();
        let stop = CancellationToken::new();
        let gates = Gates::new(config.address_share);
        let admission = Arc::new(Admission::new(&config.authority_key, config.revoked));
        let sessions = Sessions {
            admission: Arc::clone(&admission),
            authority: config.authority_key.public(),
            authority_key: config.authority_key,
            inputs: inputs.clone(),
            event_budget: Arc::new(Semaphore::new(EVENT_BYTES_MAX)),
            metrics: metrics.clone(),
            stop: stop.clone(),
        };
        let service = SessionService {
            sessions: Arc::new(sessions),
            gates: gates.clone(),
        };
        let connections = gates.connections.clone();
        let server = tokio::spawn(listener::serve(listener, tls, connections, service, stop.clone()));
        let placement = tokio::spawn(supervise(
            received,
            Arc::clone(&admission),
            metrics.clone(),
            stop.clone(),
        ));
        info!(address = %local_addr, "the scheduler listens on {local_addr}");
        Ok(Self {
            local_addr,
            inputs,
            admission,
            metrics,
            gates,
            server,
            placement,
            stop: stop.drop_guard(),
        })
    }

    /// The address that it listens on. Where the configuration says port 0, it has the port that the kernel chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Adds the scheduler's metrics, `piecemeal_scheduler_…`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Each thing that the scheduler needs in order to work, with its problem if it has one.
    pub async fn readiness(&self) -> Vec<(String, Option<String>)> {
        let listener = self
            .server
            .is_finished()
            .then(|| "nothing listens any more; restart".into());
        let placement = match self.ask(|reply| Input::Ping { reply }).await {
            Some(()) => None,
            None => Some(format!("no answer within {} ms", ANSWER_WAIT.as_millis())),
        };
        let sessions_max = self.gates.sessions_max;
        let sessions = self
            .gates
            .sessions
            .is_full()
            .then(|| format!("all {sessions_max} sessions are taken; give some pools a scheduler of their own"));
        vec![
            ("listener".into(), listener),
            ("placement".into(), placement),
            ("sessions".into(), sessions),
        ]
    }

    /// The connected members and the progress of each swarm; an object with `error` when placement does not answer.
    pub async fn status(&self) -> serde_json::Value {
        match self.ask(|reply| Input::Status { reply }).await {
            Some(snapshot) => snapshot.to_json(),
            None => json!({ "error": "placement does not answer" }),
        }
    }

    /// Takes over the settings that can change while it runs: the generations of `join.key` and the nodes that are shut out.
    /// Sessions that are not admitted any more end at once. The rest of `config` has no effect.
    pub fn apply(&self, config: &SchedulerConfig) {
        self.admission.apply(&config.authority_key, config.revoked.clone());
        let inputs = self.inputs.clone();
        // An error: placement has stopped.
        tokio::spawn(async move { inputs.send(Input::Admission).await });
    }

    /// Ends every session, then the connections.
    pub async fn shutdown(self) {
        drop(self.stop);
        for task in [self.placement, self.server] {
            if let Err(failure) = task.await {
                error!(error = %failure, "a task of the scheduler failed");
            }
        }
    }

    /// `None` when placement has stopped, or does not answer in time.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Input) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let ask = async {
            self.inputs.send(question(reply)).await.ok()?;
            answer.await.ok()
        };
        timeout(ANSWER_WAIT, ask).await.ok()?
    }
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartSchedulerError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => StartSchedulerError::AddressInUse { address },
        _ => StartSchedulerError::Listen { address, source },
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let local_addr = listener.local_addr().map_err(failed)?;
    Ok((listener, local_addr))
}

/// The gRPC service of the protocol: spawns a task for each stream.
struct SessionService {
    sessions: Arc<Sessions>,
    gates: Gates,
}

#[tonic::async_trait]
impl Service for SessionService {
    type SessionStream = ReceiverStream<Result<wire::Orders, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::Reports>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let origin = request.extensions().get::<Origin>();
        let origin = origin.ok_or_else(|| Status::internal("the connection has no address"))?;
        let observed = origin.remote.ip().to_canonical();
        let slots = StreamSlots {
            connection: origin.slot.clone(),
            session: self.take_slot(observed)?,
        };
        // One message waits in the stream at most. The others wait in the outbox, which notices a daemon that does not read.
        let (orders, stream) = mpsc::channel(1);
        tokio::spawn(Arc::clone(&self.sessions).run(observed, slots, request.into_inner(), orders));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl SessionService {
    fn take_slot(&self, observed: IpAddr) -> Result<Slot, Status> {
        self.gates.sessions.admit(observed).ok_or_else(|| {
            self.sessions.metrics.refused("full");
            let sessions_max = self.gates.sessions_max;
            Status::resource_exhausted(format!(
                "nearly all {sessions_max} sessions are taken, and {observed} has its share (give some pools a scheduler of their own, or raise --address-share where many nodes are behind one address)"
            ))
        })
    }
}

/// Inputs that wait for placement at once; [`EVENT_BYTES_MAX`] bounds their bytes.
const INPUTS_MAX: usize = 1024;
/// The longest wait for an answer of placement to the admin port.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
