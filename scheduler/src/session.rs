//! Session of one daemon: its stream from the challenge to the end.
//!
//! Invariant: placement sees only reports that the session has checked, and the session signs the tickets of placement's
//! leases. So the one task that places does neither.

use std::{net::IpAddr, sync::Arc};

use piecemeal_proto::{AuthorityKey, AuthorityPublic, wire};
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::coop::consume_budget,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tracing::{debug, info, warn};
use wire::{feature, order::Order as OrderKind, report::Report as ReportKind};

use crate::{
    admission::{Admission, Admitted, RefuseHelloError},
    ambient::{self, unix_seconds},
    brain::{Event, MemberId},
    event_batch::EventBatch,
    input::{Input, Join},
    limits::{HELLO_WAIT, StreamSlots},
    metrics::{Metrics, role_name},
    outbox::{ORDERS_QUEUED_MAX, OrderSender, Outgoing, write},
    report::ReportReader,
    report_fields::ReadReportError,
    session_end::{REPORTS_MAX, SILENCE_MAX, SessionEnd},
    tickets::Tickets,
};

/// The state that all sessions share.
pub(crate) struct Sessions {
    pub(crate) admission: Arc<Admission>,
    pub(crate) authority_key: Arc<AuthorityKey>,
    pub(crate) authority: AuthorityPublic,
    pub(crate) inputs: mpsc::Sender<Input>,
    /// Bytes of events that may still wait for placement.
    pub(crate) event_budget: Arc<Semaphore>,
    pub(crate) metrics: Metrics,
    pub(crate) stop: CancellationToken,
}

/// Why a daemon was not admitted.
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
        slots: StreamSlots,
        mut reports: Streaming<wire::Reports>,
        orders: OrderSender,
    ) {
        let session = async {
            let greeting = self.greet(observed, &mut reports, &orders);
            let greeted = slots.session.closed().run_until_cancelled(greeting).await;
            match greeted.unwrap_or(Err(GreetError::Gone)) {
                Ok((admitted, rest)) => {
                    let served = self.serve(admitted, observed, &slots, rest, reports, &orders);
                    served.await
                }
                Err(GreetError::Refused(refusal)) => {
                    self.refuse(refusal, observed, &orders).await;
                    SessionEnd::Left
                }
                Err(GreetError::Gone) => SessionEnd::Left,
            }
        };
        // Placement needs no word of it: the same `stop` ends it, and the table of members goes with it.
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

    /// Challenges the daemon and checks its hello. Yields also the reports that came in one message with the hello.
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
        send(orders, OrderKind::Challenge(challenge)).await?;
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
        // A daemon that does not wait for the answer misses the reason; the log has it.
        let _ = timeout(HELLO_WAIT, send(orders, OrderKind::Refused(refused))).await;
    }

    /// Runs the session of an admitted daemon. `rest`: the reports that came with its hello.
    async fn serve(
        &self,
        admitted: Admitted,
        observed: IpAddr,
        slots: &StreamSlots,
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
        let _guard = slots.begin_session(node);
        info!(node = %node, host.name = host_name, signed, "{} {node} connected from {observed}", role_name(role));
        let reader = ReportReader {
            member,
            node,
            role,
            authority: self.authority,
        };
        let end = tokio::select! {
            end = self.talk(&reader, observed, rest, reports, (outbox, queue), orders) => end,
            end = ended => end.unwrap_or(SessionEnd::Stopping),
            () = slots.session.closed().cancelled() => SessionEnd::Crowded,
        };
        info!(node = %node, "{} {node} disconnected: {}", role_name(role), end.label());
        // A placement that is gone has forgotten it already.
        let _ = self.inputs.send(Input::Leave { member }).await;
        end
    }

    /// Welcomes the daemon, then reads its reports and writes its orders.
    async fn talk(
        &self,
        reader: &ReportReader,
        observed: IpAddr,
        rest: Vec<wire::Report>,
        reports: Streaming<wire::Reports>,
        (outbox, queue): (mpsc::Sender<Outgoing>, mpsc::Receiver<Outgoing>),
        orders: &OrderSender,
    ) -> SessionEnd {
        let welcome = wire::Welcome {
            version: wire::VERSION,
            unix_seconds: unix_seconds(),
            observed_ip: observed.to_string(),
            ..wire::Welcome::default()
        };
        if send(orders, OrderKind::Welcome(welcome)).await.is_err() {
            return SessionEnd::Left;
        }
        let tickets = Tickets::new(Arc::clone(&self.authority_key), reader.node);
        tokio::select! {
            end = self.read(reader, rest, reports, &outbox) => end,
            end = write(queue, tickets, orders) => end,
        }
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

    /// Passes on the reports of the daemon, beginning with those that came with its hello.
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

    /// Checks one message's reports and sends their events to placement, in batches, since a short report can make many events.
    async fn pass_on(
        &self,
        reader: &ReportReader,
        reports: Vec<wire::Report>,
        outbox: &mpsc::Sender<Outgoing>,
    ) -> Result<(), SessionEnd> {
        let mut batch = EventBatch::default();
        let mut sent = false;
        for report in reports {
            // Checking a grant's signature takes a while: other sessions have their turn in between.
            consume_budget().await;
            let warm = match &report.report {
                Some(ReportKind::Warm(warm)) => Some(Arc::new(warm.clone())),
                _ => None,
            };
            match (reader.read(report, unix_seconds(), &mut batch.events), warm) {
                (Err(error), _) => self.ignore(reader, error, outbox).await?,
                (Ok(()), Some(warm)) => self.send_warm(reader.member, warm).await?,
                (Ok(()), None) => {}
            }
            batch.weigh();
            if batch.is_full() {
                self.send_events(reader.member, std::mem::take(&mut batch)).await?;
                sent = true;
            }
        }
        if batch.events.is_empty() && !sent {
            batch.events.push(Event::Heard { member: reader.member });
        }
        if batch.events.is_empty() {
            return Ok(());
        }
        self.send_events(reader.member, batch).await
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
        // Waits for a place in the queue: while a daemon does not read its refusals, its reports are not read either, and it is
        // soon cut off.
        let order = Outgoing::Order(OrderKind::WantRefused(refused));
        outbox.send(order).await.map_err(|_| SessionEnd::Stopping)
    }

    async fn send_warm(&self, mirror: MemberId, warm: Arc<wire::Warm>) -> Result<(), SessionEnd> {
        let budget = self.reserve(warm.encoded_len()).await?;
        let input = Input::Warm { mirror, warm, budget };
        self.inputs.send(input).await.map_err(|_| SessionEnd::Stopping)
    }

    async fn send_events(&self, member: MemberId, batch: EventBatch) -> Result<(), SessionEnd> {
        let budget = self.reserve(batch.bytes()).await?;
        let events = batch.events;
        let input = Input::Events { member, events, budget };
        self.inputs.send(input).await.map_err(|_| SessionEnd::Stopping)
    }

    /// Waits until `bytes` more may wait for placement.
    async fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, SessionEnd> {
        let permits = u32::try_from(bytes.min(EVENT_BYTES_MAX)).expect("EVENT_BYTES_MAX is a u32");
        let budget = Arc::clone(&self.event_budget).acquire_many_owned(permits).await;
        budget.map_err(|_| SessionEnd::Stopping)
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

async fn send(orders: &OrderSender, order: OrderKind) -> Result<(), GreetError> {
    let order = wire::Order { order: Some(order) };
    let message = wire::Orders { orders: vec![order] };
    orders.send(Ok(message)).await.map_err(|_| GreetError::Gone)
}

/// The optional features of the protocol that this scheduler supports.
const FEATURES: [&str; 4] = [
    feature::SIGNED_IDENTITY,
    feature::PIECE_HASHES,
    feature::DROP,
    feature::CLIENT_STATE,
];
/// Bytes of events that may wait for placement at once, from all sessions, on top of one message each.
pub(crate) const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024;
