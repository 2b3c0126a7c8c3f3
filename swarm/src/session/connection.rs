//! One connection to the scheduler, from the challenge to its end.
//!
//! Reading and writing go on side by side, so that neither direction's backpressure stops the other. A scheduler that is
//! silent for a second counts as down at once, but is listened to for a while longer: it may only have been frozen.

use std::{collections::VecDeque, io, sync::Arc};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use piecemeal_proto::wire::{
    self, HEARTBEAT, INVENTORY_CHUNK_MAX, MESSAGE_BYTES_MAX, VERSION, feature, order::Order, report::Report,
    scheduler_client::SchedulerClient,
};
use piecemeal_tls::{ClientStream, Connector, RefuseServerError, ServerRole, refusal};
use tokio::{
    sync::mpsc::{self, error::SendTimeoutError},
    time::{Duration, Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Endpoint};
use tower::service_fn;
use tracing::{debug, warn};

use super::{Inventory, SessionConfig, SessionEvent, order, queue::pack, state::Shared};
use crate::AuthorityClock;

/// What each connection of a session needs.
pub(super) struct Connection {
    pub(super) config: SessionConfig,
    pub(super) inventory: Arc<dyn Inventory>,
    pub(super) clock: AuthorityClock,
    pub(super) shared: Arc<Shared>,
    pub(super) events: mpsc::Sender<SessionEvent>,
}

/// A stream whose hello was accepted.
pub(super) struct Greeted {
    reports: mpsc::Sender<wire::Reports>,
    orders: Orders,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum EndConnectionError {
    /// Trying again soon will not help.
    #[error("{0}")]
    Refused(String),
    /// The server that answers is not this site's scheduler: trying again soon will not help either.
    #[error(transparent)]
    Untrusted(#[from] RefuseServerError),
    /// Try again.
    #[error("{0}")]
    Lost(String),
    /// The receiver of this session's events is gone.
    #[error("this session has ended here")]
    Unheeded,
}

use EndConnectionError::{Lost, Refused, Unheeded, Untrusted};

impl Connection {
    /// Connects and is welcomed.
    pub(super) async fn greet(&self) -> Result<Greeted, EndConnectionError> {
        let late = |_| Lost(format!("no welcome within {} s", GREETING_MAX.as_secs()));
        timeout(GREETING_MAX, self.try_greet()).await.map_err(late)?
    }

    async fn try_greet(&self) -> Result<Greeted, EndConnectionError> {
        let (reports, mut orders) = self.connect().await?;
        let Order::Challenge(challenge) = orders.next().await? else {
            return Err(Lost("it did not begin with a challenge".into()));
        };
        if !(challenge.version_min..=challenge.version_max).contains(&VERSION) {
            return Err(Refused(format!(
                "it speaks versions {} to {} of the protocol, and this daemon version {VERSION} (upgrade the older of the two)",
                challenge.version_min, challenge.version_max
            )));
        }
        let hello = Report::Hello(self.hello(&challenge));
        self.shared.note_features(challenge.features);
        for message in pack(vec![hello]) {
            send(&reports, message).await?;
        }
        match orders.next().await? {
            Order::Welcome(welcome) => {
                debug!(scheduler.observed = %welcome.observed_ip, "welcomed by the scheduler {}", self.config.scheduler);
                self.clock.learn(welcome.unix_seconds);
                Ok(Greeted { reports, orders })
            }
            Order::Refused(refused) => Err(Refused(refused.reason)),
            _ => Err(Lost("it answered the hello with neither welcome nor refusal".into())),
        }
    }

    async fn connect(&self) -> Result<(mpsc::Sender<wire::Reports>, Orders), EndConnectionError> {
        let lost = |error: tonic::transport::Error| {
            let refused = refusal(&error, ServerRole::Scheduler);
            refused.map_or_else(|| Lost(causes(&error)), Untrusted)
        };
        let endpoint = Endpoint::from_shared(self.config.scheduler.clone())
            .map_err(lost)?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = match endpoint.uri().scheme_str() {
            Some("https") => endpoint.connect_with_connector(service_fn(self.tls())).await,
            _ => endpoint.connect().await,
        };
        let channel = channel.map_err(lost)?;
        // Reports in this channel have left the queue and can no longer be merged, so it is short.
        let (reports, outgoing) = mpsc::channel(1);
        let stream = SchedulerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .session(ReceiverStream::new(outgoing))
            .await
            .map_err(|status| Lost(status.message().to_owned()))?
            .into_inner();
        let read = VecDeque::new();
        Ok((reports, Orders { stream, read }))
    }

    /// Connects to the scheduler that a URL names, and to no other site's. It does not use tonic's own TLS, which cannot tell a
    /// server of another site from any other failure.
    fn tls(&self) -> impl Fn(Uri) -> BoxFuture<'static, io::Result<TokioIo<ClientStream>>> + use<> {
        let connector = Connector::new(self.config.authority, ServerRole::Scheduler);
        move |uri| {
            let connector = connector.clone();
            Box::pin(async move {
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
                let port = uri.port_u16().unwrap_or(HTTPS_PORT);
                connector.connect(host, port).await.map(TokioIo::new)
            })
        }
    }

    fn hello(&self, challenge: &wire::Challenge) -> wire::Hello {
        let config = &self.config;
        let addresses = config.addresses.iter().map(|address| wire::Address {
            ip: address.ip().to_string(),
            port: address.port().into(),
        });
        let mut hello = wire::Hello {
            version_min: VERSION,
            version_max: VERSION,
            features: FEATURES.map(str::to_owned).to_vec(),
            role: config.role.into(),
            node: config.node_key.id().0.to_vec(),
            incarnation: config.incarnation,
            pool: config.pool.clone(),
            zone: config.zone.clone(),
            addresses: addresses.collect(),
            piece_port: config.piece_port.into(),
            proof: Vec::new(),
            may_use_upstream: config.may_use_upstream,
            ..wire::Hello::default()
        };
        hello.proof = config.role_key.prove(&hello.claim(&challenge.nonce)).to_vec();
        if challenge
            .features
            .iter()
            .any(|stated| stated == feature::SIGNED_IDENTITY)
        {
            hello.sign(&config.node_key, &challenge.nonce);
            hello.host_name.clone_from(&config.host_name);
            env!("CARGO_PKG_VERSION").clone_into(&mut hello.release);
            hello.rates = config.limiter.rate().map(|total| wire::Rates {
                total,
                ..wire::Rates::default()
            });
        }
        hello
    }

    /// Runs a welcomed connection to its end.
    pub(super) async fn attend(&self, greeted: Greeted) -> EndConnectionError {
        // Before the session reports that it is up, and before the inventory is read: changes in between are reported twice.
        self.shared.queue.open();
        self.set_up(true).await;
        let Greeted { reports, orders } = greeted;
        let end = tokio::select! {
            end = self.read(orders) => end,
            end = self.write(&reports) => end,
            () = self.shared.queue.overflowed() => Err(Lost("it takes reports more slowly than they come".into())),
        };
        match end {
            Err(end) => end,
        }
    }

    /// Flips [`super::Session::is_up`] at once, then tells the listener.
    pub(super) async fn set_up(&self, up: bool) {
        if self.shared.up.send_replace(up) == up {
            return;
        }
        let event = if up { SessionEvent::Up } else { SessionEvent::Down };
        // An error means that the listener is gone; the next order fails on that.
        let _ = self.events.send(event).await;
    }

    async fn read(&self, mut orders: Orders) -> Result<Never, EndConnectionError> {
        let mut has_warned = false;
        loop {
            for order in orders.read.drain(..) {
                match order::read(order, &self.config.authority) {
                    Ok(Some(event)) => self.deliver(event).await?,
                    Ok(None) => {}
                    Err(error) if has_warned => debug!("ignored an order of the scheduler: {error}"),
                    Err(error) => {
                        has_warned = true;
                        warn!("ignored an order of the scheduler {}: {error}", self.config.scheduler);
                    }
                }
            }
            if let Ok(heard) = timeout(SILENCE, orders.hear()).await {
                heard?;
                continue;
            }
            self.set_up(false).await;
            let silent = |_| Lost(format!("no message arrived for {} s", SILENCE_MAX.as_secs()));
            timeout(SILENCE_MAX - SILENCE, orders.hear()).await.map_err(silent)??;
            self.set_up(true).await;
        }
    }

    async fn deliver(&self, event: SessionEvent) -> Result<(), EndConnectionError> {
        match self.events.send_timeout(event, LISTENER_LAG_MAX).await {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Closed(_)) => Err(Unheeded),
            Err(SendTimeoutError::Timeout(_)) => Err(Lost("this daemon does not process its orders in time".into())),
        }
    }

    async fn write(&self, reports: &mpsc::Sender<wire::Reports>) -> Result<Never, EndConnectionError> {
        self.tell_inventory(reports).await?;
        let queue = &self.shared.queue;
        let mut next_batch = Instant::now();
        loop {
            if timeout(HEARTBEAT, queue.ready()).await.is_err() {
                send(reports, wire::Reports::default()).await?;
                continue;
            }
            // A report after a pause goes at once; those that follow within the delay go together.
            sleep_until(next_batch).await;
            while let Some(message) = queue.poll_message() {
                send(reports, message).await?;
            }
            next_batch = Instant::now() + wire::BATCH_DELAY;
        }
    }

    async fn tell_inventory(&self, reports: &mpsc::Sender<wire::Reports>) -> Result<(), EndConnectionError> {
        let complete = beating(reports, self.inventory.complete()).await?;
        let mut chunks = complete.chunks(INVENTORY_CHUNK_MAX).peekable();
        loop {
            let chunk = chunks.next().unwrap_or_default();
            let inventory = wire::Inventory {
                complete: chunk.iter().map(ToString::to_string).collect(),
                last: chunks.peek().is_none(),
            };
            let last = inventory.last;
            let report = Some(Report::Inventory(inventory));
            let message = vec![wire::Report { report }];
            send(reports, wire::Reports { reports: message }).await?;
            if last {
                break;
            }
        }
        let live = beating(reports, self.inventory.live()).await?;
        for message in pack(live) {
            send(reports, message).await?;
        }
        Ok(())
    }
}

/// The result of loops that end only with an error.
enum Never {}

/// The scheduler's orders.
struct Orders {
    stream: Streaming<wire::Orders>,
    /// Orders received and not yet handled.
    read: VecDeque<wire::Order>,
}

impl Orders {
    /// Waits for a message, be it empty. Cancel safe.
    async fn hear(&mut self) -> Result<(), EndConnectionError> {
        match self.stream.message().await {
            Ok(Some(message)) => {
                self.read.extend(message.orders);
                Ok(())
            }
            Ok(None) => Err(Lost("it ended the stream".into())),
            Err(status) => Err(Lost(status.message().to_owned())),
        }
    }

    /// The next order of a kind that is known.
    async fn next(&mut self) -> Result<Order, EndConnectionError> {
        loop {
            match self.read.pop_front() {
                Some(wire::Order { order: Some(order) }) => return Ok(order),
                Some(wire::Order { order: None }) => {}
                None => self.hear().await?,
            }
        }
    }
}

/// Does `work`, and sends heartbeats in the meantime.
async fn beating<T>(
    reports: &mpsc::Sender<wire::Reports>,
    work: impl Future<Output = T>,
) -> Result<T, EndConnectionError> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            () = sleep(HEARTBEAT) => send(reports, wire::Reports::default()).await?,
        }
    }
}

async fn send(reports: &mpsc::Sender<wire::Reports>, message: wire::Reports) -> Result<(), EndConnectionError> {
    let ended = |_| Lost("it ended the stream".into());
    reports.send(message).await.map_err(ended)
}

/// An error with its causes: tonic's own text is only "transport error".
fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The protocol's features that this daemon has.
const FEATURES: [&str; 3] = [feature::SIGNED_IDENTITY, feature::PIECE_HASHES, feature::DROP];
/// Of an `https` URL without a port.
const HTTPS_PORT: u16 = 443;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// From the first packet to the welcome. The scheduler gives the hello as long.
const GREETING_MAX: Duration = Duration::from_secs(5);
/// Two heartbeats: wants without leases for so long are taken to the mirror.
const SILENCE: Duration = Duration::from_secs(1);
/// A scheduler that was silent for so long has forgotten this daemon too.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// As long as the scheduler itself waits for a reader that is behind.
const LISTENER_LAG_MAX: Duration = Duration::from_secs(1);
/// Below the TCP timeouts of the site's firewalls. A silence ends the session long before.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
