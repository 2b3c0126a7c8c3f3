//! The gRPC service around placement: the listener, the streams' lives, and what the admin port asks.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use piecemeal_http::{Gate, Slot};
use piecemeal_proto::wire::{
    self, MESSAGE_BYTES_MAX,
    scheduler_server::{Scheduler as Service, SchedulerServer},
};
use piecemeal_tls::{Acceptor, MakeCertificateError, ServerRole};
use prometheus_client::registry::Registry;
use serde_json::json;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
    time::{Duration, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use tracing::{debug, error, info, warn};

use crate::{
    SchedulerConfig,
    admission::Admission,
    connection::{Connection, Origin},
    driver::{Input, supervise},
    limits::{Gates, Places},
    metrics::Metrics,
    session::{ROOM_BYTES, Sessions},
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
    /// The system lacks what a key is made of.
    #[error(transparent)]
    Certificate(#[from] MakeCertificateError),
}

impl Scheduler {
    /// Listens, and answers daemons from then on.
    ///
    /// # Errors
    /// [`StartSchedulerError`]: the address cannot be listened on, most likely.
    pub async fn start(config: SchedulerConfig) -> Result<Self, StartSchedulerError> {
        let address = config.listen;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => StartSchedulerError::AddressInUse { address },
            _ => StartSchedulerError::Listen { address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;

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
            room: Arc::new(Semaphore::new(ROOM_BYTES)),
            metrics: metrics.clone(),
            stop: stop.clone(),
        };
        let door = Door {
            sessions: Arc::new(sessions),
            gates: gates.clone(),
        };
        let server = tokio::spawn(serve(listener, tls, door, stop.clone()));
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

    /// Where it listens: the port that was taken, when port 0 was asked for.
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
        let room = self
            .gates
            .sessions
            .is_full()
            .then(|| format!("all {sessions_max} sessions are taken; give some pools a scheduler of their own"));
        vec![
            ("listener".into(), listener),
            ("placement".into(), placement),
            ("sessions".into(), room),
        ]
    }

    /// The connected members and the progress of each swarm; an object with `error` when placement does not answer.
    pub async fn status(&self) -> serde_json::Value {
        match self.ask(|reply| Input::Status { reply }).await {
            Some(snapshot) => snapshot.to_json(),
            None => json!({ "error": "placement does not answer" }),
        }
    }

    /// Takes over what can be changed while it runs: the generations of `join.key` and the nodes that are shut out. Sessions that
    /// are admitted no more end at once. The rest of `config` is not looked at.
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

    /// `None` when placement has stopped, or has more to do than it can.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Input) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let ask = async {
            self.inputs.send(question(reply)).await.ok()?;
            answer.await.ok()
        };
        timeout(ANSWER_WAIT, ask).await.ok()?
    }
}

/// The gRPC service: spawns a task for each stream.
struct Door {
    sessions: Arc<Sessions>,
    gates: Gates,
}

#[tonic::async_trait]
impl Service for Door {
    type SessionStream = ReceiverStream<Result<wire::Orders, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::Reports>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let origin = request.extensions().get::<Origin>();
        let origin = origin.ok_or_else(|| Status::internal("the connection has no address"))?;
        let observed = origin.remote.ip().to_canonical();
        let places = Places {
            connection: origin.slot.clone(),
            session: self.take_place(observed)?,
        };
        // One message waits in the stream at most: what is behind it is the outbox's, which notices.
        let (orders, stream) = mpsc::channel(1);
        tokio::spawn(Arc::clone(&self.sessions).run(observed, places, request.into_inner(), orders));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Door {
    fn take_place(&self, observed: IpAddr) -> Result<Slot, Status> {
        self.gates.sessions.admit(observed).ok_or_else(|| {
            self.sessions.metrics.refused("full");
            let sessions_max = self.gates.sessions_max;
            Status::resource_exhausted(format!(
                "nearly all {sessions_max} sessions are taken, and {observed} has its share (give some pools a scheduler of their own, or raise --address-share where many nodes are behind one address)"
            ))
        })
    }
}

async fn serve(listener: TcpListener, tls: Acceptor, door: Door, stop: CancellationToken) {
    let (connections, accepted) = mpsc::channel(1);
    let gate = door.gates.connections.clone();
    let service = SchedulerServer::new(door)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(STREAM_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEAD_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
        .http2_max_local_error_reset_streams(Some(RESETS_MAX))
        .add_service(service)
        .serve_with_incoming_shutdown(ReceiverStream::new(accepted), stop.clone().cancelled_owned());
    let drained = async {
        stop.cancelled().await;
        sleep(DRAIN_MAX).await;
    };
    tokio::select! {
        () = accept(listener, tls, gate, connections, stop.clone()) => {}
        served = server => if let Err(failure) = served {
            error!(error = %failure, "the listener failed");
        },
        () = drained => {}
    }
}

/// Never ends by itself: a host that is out of file descriptors has some again later. Daemons come with TLS or without.
async fn accept(
    listener: TcpListener,
    tls: Acceptor,
    gate: Gate,
    connections: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
) {
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((connection, remote)) => {
                    let Some(slot) = gate.admit(remote.ip()) else {
                        continue;
                    };
                    // Costs latency alone when it fails.
                    let _ = connection.set_nodelay(true);
                    let (tls, connections) = (tls.clone(), connections.clone());
                    // Apart, so that a daemon that says nothing keeps none waiting.
                    tokio::spawn(async move {
                        let closed = slot.closed().clone();
                        match closed.run_until_cancelled(tls.take(connection)).await {
                            Some(Ok(stream)) => {
                                slot.greeted();
                                let connection = Connection::new(stream, Origin { remote, slot });
                                // An error: nothing serves any more.
                                drop(connections.send(Ok(connection)).await);
                            }
                            None => debug!("a connection of {remote} was late, or gave way to another"),
                            Some(Err(failure)) => {
                                debug!(error = %failure, "a connection of {remote} failed: {failure}");
                            }
                        }
                    });
                }
                Err(failure) => {
                    warn!(error = %failure, "failed to accept a connection");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    };
    let serving = async {
        tokio::select! {
            () = accept => {}
            () = gate.sweep() => {}
        }
    };
    stop.run_until_cancelled(serving).await;
    drop(listener);
    std::future::pending().await
}

/// Messages to placement that wait at once; their bytes are bounded by [`ROOM_BYTES`].
const INPUTS_MAX: usize = 1024;
/// Finds connections that broke without a word before the kernel does; sessions have heartbeats besides.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// What a daemon may send ahead: enough for a LAN's full speed, and bounded for 20,000 daemons.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// A daemon has one session a connection, and a second while it reconnects.
const STREAMS_MAX: u32 = 4;
/// A request's head has a path and a few headers.
const HEAD_BYTES_MAX: u32 = 16 * 1024;
/// Streams that were reset, or are more than [`STREAMS_MAX`]: with more than so many a connection ends.
const RESETS_MAX: usize = 16;
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// How long connections may take to end after their streams did.
const DRAIN_MAX: Duration = Duration::from_secs(1);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
