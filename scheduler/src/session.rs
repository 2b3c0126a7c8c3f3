//! One daemon's stream, from the challenge to its end.
//!
//! The session checks everything that its daemon says before placement sees it, and signs what placement says, so that the
//! one task that places does neither.

use std::{net::IpAddr, sync::Arc};

use piecemeal_proto::{AuthorityKey, AuthorityPublic, wire};
use prost::Message as _;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::coop::consume_budget,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tracing::{debug, info, warn};
use wire::{feature, order::Order as Kind, report::Report as ReportKind};

use crate::{
    admission::{Admission, Admitted, RefuseHelloError},
    ambient::{self, unix_seconds},
    brain::{Event, MemberId},
    driver::{Input, Join},
    limits::{HELLO_WAIT, Places},
    metrics::{Metrics, role_name},
    outbox::{ORDERS_QUEUED_MAX, OrderSender, Outgoing, Tickets, write},
    report::{ReadReportError, ReportReader},
    session_end::{REPORTS_MAX, SILENCE_MAX, SessionEnd},
};

/// What all sessions share.
pub(crate) struct Sessions {
    pub(crate) admission: Arc<Admission>,
    pub(crate) authority_key: Arc<AuthorityKey>,
    pub(crate) authority: AuthorityPublic,
    pub(crate) inputs: mpsc::Sender<Input>,
    /// Bounds the bytes of events that wait for placement.
    pub(crate) room: Arc<Semaphore>,
    pub(crate) metrics: Metrics,
    pub(crate) stop: CancellationToken,
}

/// Why the daemon was not admitted.
enum GreetError {
    Refused(RefuseHelloError),
    /// The connection ended first.
    Gone,
}

impl From<RefuseHelloError> for GreetError {
    fn from(error: RefuseHelloError) -> Self {
        Self::Refused(error)
    }
}

impl Sessions {
    /// Runs the session of the daemon at `observed` to its end.
    pub(crate) async fn run(
        self: Arc<Self>,
        observed: IpAddr,
        places: Places,
        mut reports: Streaming<wire::Reports>,
        orders: OrderSender,
    ) {
        let session = async {
            let greeting = self.greet(observed, &mut reports, &orders);
            let greeted = places.session.closed().run_until_cancelled(greeting).await;
            match greeted.unwrap_or(Err(GreetError::Gone)) {
                Ok((admitted, rest)) => {
                    let attended = self.attend(admitted, observed, &places, rest, reports, &orders);
                    attended.await
                }
                Err(GreetError::Refused(refusal)) => {
                    self.refuse(refusal, observed, &orders).await;
                    SessionEnd::Left
                }
                Err(GreetError::Gone) => SessionEnd::Left,
            }
        };
        // Placement hears of it from its own stop; the member table goes with it.
        let end = self
            .stop
            .run_until_cancelled(session)
            .await
            .unwrap_or(SessionEnd::Stopping);
        self.metrics.session_ended_by(end.label());
        if let Some(status) = end.status() {
            // Best effort: a daemon that does not read misses the reason, and learns of the end from the connection.
            let _ = orders.try_send(Err(status));
        }
    }

    /// Challenges the daemon and checks its hello; yields what came with the hello in one message, too.
    async fn greet(
        &self,
        observed: IpAddr,
        reports: &mut Streaming<wire::Reports>,
        orders: &OrderSender,
    ) -> Result<(Admitted, Vec<wire::Report>), GreetError> {
        let nonce: [u8; 32] = ambient::random();
        let challenge = wire::Challenge {
            nonce: nonce.to_vec(),
            version_min: wire::VERSION,
            version_max: wire::VERSION,
            features: FEATURES.map(str::to_owned).to_vec(),
        };
        send(orders, Kind::Challenge(challenge)).await?;
        let first = timeout(HELLO_WAIT, first_reports(reports));
        let mut first = first.await.map_err(|_| RefuseHelloError::Late)??.into_iter();
        let Some(ReportKind::Hello(hello)) = first.next().and_then(|report| report.report) else {
            return Err(RefuseHelloError::NoHello.into());
        };
        let admitted = self.admission.check(hello, &nonce, observed, unix_seconds())?;
        Ok((admitted, first.collect()))
    }

    async fn refuse(&self, refusal: RefuseHelloError, observed: IpAddr, orders: &OrderSender) {
        self.metrics.refused(refusal.label());
        warn!(peer.ip = %observed, "refused a daemon at {observed}: {refusal}");
        let refused = wire::Refused {
            reason: refusal.to_string(),
        };
        // For a daemon that does not wait for the answer, our log has it.
        let _ = timeout(HELLO_WAIT, send(orders, Kind::Refused(refused))).await;
    }

    /// From the welcome to the end.
    async fn attend(
        &self,
        admitted: Admitted,
        observed: IpAddr,
        places: &Places,
        rest: Vec<wire::Report>,
        reports: Streaming<wire::Reports>,
        orders: &OrderSender,
    ) -> SessionEnd {
        let (node, role) = (admitted.member.node, admitted.member.role);
        let (host_name, signed) = (admitted.host_name.clone(), admitted.member.signed);
        let (outbox, queue) = mpsc::channel(ORDERS_QUEUED_MAX);
        let (end, ended) = oneshot::channel();
        let member = match self.join(admitted, outbox.clone(), end).await {
            Some(Ok(member)) => member,
            Some(Err(refusal)) => {
                self.refuse(refusal, observed, orders).await;
                return SessionEnd::Left;
            }
            None => return SessionEnd::Stopping,
        };
        let _seated = places.seat(node);
        info!(node = %node, host.name = host_name, signed, "{} {node} connected from {observed}", role_name(role));
        let welcome = wire::Welcome {
            version: wire::VERSION,
            unix_seconds: unix_seconds(),
            observed_ip: observed.to_string(),
            ..wire::Welcome::default()
        };
        let reader = ReportReader {
            member,
            node,
            role,
            authority: self.authority,
        };
        let tickets = Tickets::new(Arc::clone(&self.authority_key), node);
        let talk = async {
            if send(orders, Kind::Welcome(welcome)).await.is_err() {
                return SessionEnd::Left;
            }
            tokio::select! {
                end = self.read(&reader, rest, reports, &outbox) => end,
                end = write(queue, tickets, orders) => end,
            }
        };
        let end = tokio::select! {
            end = talk => end,
            end = ended => end.unwrap_or(SessionEnd::Stopping),
            () = places.session.closed().cancelled() => SessionEnd::Crowded,
        };
        info!(node = %node, "{} {node} disconnected: {}", role_name(role), end.label());
        // A placement that is gone has forgotten it already.
        let _ = self.inputs.send(Input::Leave { member }).await;
        end
    }

    /// `None` when placement has stopped.
    async fn join(
        &self,
        admitted: Admitted,
        outbox: mpsc::Sender<Outgoing>,
        end: oneshot::Sender<SessionEnd>,
    ) -> Option<Result<MemberId, RefuseHelloError>> {
        let (reply, placed) = oneshot::channel();
        let join = Join {
            admitted,
            outbox,
            end,
            reply,
        };
        self.inputs.send(Input::Join(join)).await.ok()?;
        placed.await.ok()
    }

    /// Passes on what the daemon reports, beginning with what came along with its hello.
    async fn read(
        &self,
        reader: &ReportReader,
        rest: Vec<wire::Report>,
        mut reports: Streaming<wire::Reports>,
        outbox: &mpsc::Sender<Outgoing>,
    ) -> SessionEnd {
        let mut message = rest;
        loop {
            if message.len() > REPORTS_MAX {
                return SessionEnd::Excessive;
            }
            if let Err(end) = self.pass_on(reader, message, outbox).await {
                return end;
            }
            message = match timeout(SILENCE_MAX, reports.message()).await {
                Ok(Ok(Some(next))) => next.reports,
                Ok(Ok(None)) => return SessionEnd::Left,
                Ok(Err(status)) => {
                    debug!(node = %reader.node, "the stream of {} broke: {}", reader.node, status.message());
                    return SessionEnd::Left;
                }
                Err(_silent) => return SessionEnd::Silent,
            };
        }
    }

    /// Checks one message's reports and sends their events to placement; in parts, since a few bytes can tell of much.
    async fn pass_on(
        &self,
        reader: &ReportReader,
        reports: Vec<wire::Report>,
        outbox: &mpsc::Sender<Outgoing>,
    ) -> Result<(), SessionEnd> {
        let mut part = Part::default();
        let mut heard = false;
        for report in reports {
            // Checking a grant's signature takes a while: others have their turn in between.
            consume_budget().await;
            let warm = match &report.report {
                Some(ReportKind::Warm(warm)) => Some(Arc::new(warm.clone())),
                _ => None,
            };
            match (reader.read(report, unix_seconds(), &mut part.events), warm) {
                (Err(error), _) => self.ignore(reader, error, outbox).await?,
                (Ok(()), Some(warm)) => self.send_warm(reader.member, warm).await?,
                (Ok(()), None) => {}
            }
            part.weigh();
            if part.bytes >= PART_BYTES {
                self.send_events(reader.member, std::mem::take(&mut part)).await?;
                heard = true;
            }
        }
        if part.events.is_empty() && !heard {
            part.events.push(Event::Heard { member: reader.member });
        }
        if part.events.is_empty() {
            return Ok(());
        }
        self.send_events(reader.member, part).await
    }

    async fn ignore(
        &self,
        reader: &ReportReader,
        error: ReadReportError,
        outbox: &mpsc::Sender<Outgoing>,
    ) -> Result<(), SessionEnd> {
        self.metrics.refused(error.label());
        debug!(node = %reader.node, "ignored a report of {} {}: {error}", role_name(reader.role), reader.node);
        let ReadReportError::Want { digest, reason } = error else {
            return Ok(());
        };
        let refused = wire::WantRefused {
            digest: digest.to_string(),
            reason,
        };
        // Waits for room: a daemon that does not read its refusals is not read from either, and is soon cut off.
        let order = Outgoing::Order(Kind::WantRefused(refused));
        outbox.send(order).await.map_err(|_| SessionEnd::Stopping)
    }

    async fn send_warm(&self, mirror: MemberId, warm: Arc<wire::Warm>) -> Result<(), SessionEnd> {
        let permits = u32::try_from(warm.encoded_len().min(ROOM_BYTES)).expect("ROOM_BYTES is a u32");
        let room = Arc::clone(&self.room).acquire_many_owned(permits).await;
        let room = room.map_err(|_| SessionEnd::Stopping)?;
        let input = Input::Warm { mirror, warm, room };
        self.inputs.send(input).await.map_err(|_| SessionEnd::Stopping)
    }

    async fn send_events(&self, member: MemberId, part: Part) -> Result<(), SessionEnd> {
        let permits = u32::try_from(part.bytes.min(ROOM_BYTES)).expect("ROOM_BYTES is a u32");
        let room = Arc::clone(&self.room).acquire_many_owned(permits).await;
        let input = Input::Events {
            member,
            events: part.events,
            room: room.map_err(|_| SessionEnd::Stopping)?,
        };
        self.inputs.send(input).await.map_err(|_| SessionEnd::Stopping)
    }
}

/// Events that go to placement together.
#[derive(Default)]
struct Part {
    events: Vec<Event>,
    weighed: usize,
    bytes: usize,
}

impl Part {
    /// Counts the events that have come since it was last called.
    fn weigh(&mut self) {
        for event in &self.events[self.weighed..] {
            self.bytes += size_of::<Event>()
                + match event {
                    Event::Have { hashes, .. } => size_of_val(&hashes[..]),
                    Event::Want { have, .. } => size_of_val(have.words()),
                    Event::PieceHashes { list, .. } => size_of_val(list.hashes()),
                    _ => 0,
                };
        }
        self.weighed = self.events.len();
    }
}

/// The first message that is not a heartbeat.
async fn first_reports(reports: &mut Streaming<wire::Reports>) -> Result<Vec<wire::Report>, GreetError> {
    loop {
        match reports.message().await {
            Ok(Some(message)) if message.reports.is_empty() => {}
            Ok(Some(message)) => return Ok(message.reports),
            Ok(None) | Err(_) => return Err(GreetError::Gone),
        }
    }
}

async fn send(orders: &OrderSender, order: Kind) -> Result<(), GreetError> {
    let order = wire::Order { order: Some(order) };
    let message = wire::Orders { orders: vec![order] };
    orders.send(Ok(message)).await.map_err(|_| GreetError::Gone)
}

/// The protocol's optional features that this scheduler supports.
const FEATURES: [&str; 3] = [feature::SIGNED_IDENTITY, feature::PIECE_HASHES, feature::DROP];
/// Events are passed on when they take so much memory: little enough that no daemon holds up the others.
const PART_BYTES: usize = 256 * 1024;
/// What may wait for placement at once, from all sessions, on top of a message each.
pub(crate) const ROOM_BYTES: usize = 64 * 1024 * 1024;
