//! Task of a fill: its I/O. The machine decides what happens next, `body_checks` whether an answer fits.
//!
//! All waiting is in the connections, so that an event never waits for another.

use std::{
    collections::HashMap,
    future::Future,
    ops::Range,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use piecemeal_proto::{PieceMap, PieceSet};
use piecemeal_store::Filling;
use piecemeal_upstream::{BlobAnswer, FillShare, PullError, Served};
use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};
use tracing::{debug, warn};

use super::{
    action::{Action, Failure},
    body_checks::other_size,
    connections::TOTAL_MAX,
    facts::Facts,
    fault::Fault,
    machine::{Answer, Beginning, Ended, Fill},
    patience::FILL_PATIENCE,
    registry_source::{FillSource, RegistrySource},
    room::Room,
    segment::{Body, Segment, SegmentContext, SegmentEnd},
    turn::Turn,
};
use crate::{Right, Transfer, callers::Callers};

/// One fill at work.
pub(super) struct Task<'a> {
    context: SegmentContext<'a>,
    callers: Option<&'a Callers>,
    /// The transfer that upstream's first answer opens.
    opens: Option<&'a Transfer>,
    share: FillShare<'a>,
    room: Option<&'a Room>,
    /// A client waits for the blob.
    is_attended: bool,
    /// Whether the bodies may be read.
    turn: watch::Sender<bool>,
    machine: Fill,
    /// The start of the machine's time.
    started: Instant,
    connections: FuturesUnordered<Pin<Box<dyn Future<Output = Step> + Send + 'a>>>,
    /// Connections whose end is in sight.
    ends: mpsc::Receiver<u64>,
    /// The end of what each connection receives.
    segment_ends: HashMap<u64, SegmentEnd>,
    /// The number of requests for the blob so far.
    requests: u32,
    /// The body that has just begun.
    begun: Option<(Segment, Body)>,
    /// Whether upstream has answered the right.
    served: Served,
    /// Upstream's last error.
    error: Option<PullError>,
}

/// The bytes that a fill is to bring.
pub(super) struct Wanted<'a> {
    pub(super) within: Range<u64>,
    /// How long upstream may send nothing new.
    pub(super) patience: Duration,
    /// The transfer that upstream's first answer opens, if it is not open.
    pub(super) opens: Option<&'a Transfer>,
}

impl Wanted<'_> {
    /// All that is missing of a blob, whose transfer is open.
    pub(super) fn all_of(filling: &Filling) -> Self {
        Self {
            within: 0..filling.map().blob_bytes(),
            patience: FILL_PATIENCE,
            opens: None,
        }
    }
}

/// Progress of a connection.
enum Step {
    Answered {
        segment: Segment,
        /// The right that the request used.
        right: Arc<Right>,
        answer: Result<BlobAnswer, PullError>,
    },
    Ended {
        connection: u64,
        ended: Ended,
        result: Result<(), PullError>,
    },
}

impl<'a> Task<'a> {
    pub(super) fn new(
        blobs: &'a RegistrySource,
        FillSource {
            upstream,
            right,
            callers,
            room,
        }: FillSource<'a>,
        filling: &'a Filling,
        wanted: Wanted<'a>,
    ) -> Self {
        let beginning = Beginning {
            map: filling.map(),
            landed: filling.landed(),
            within: wanted.within,
            patience: wanted.patience,
            opens: wanted.opens.is_some(),
            unstored: filling.is_unstored(),
            has_callers: callers.is_some(),
        };
        let (told, ends) = mpsc::channel(TOTAL_MAX);
        let (turn, of_bodies) = Turn::begin();
        Self {
            context: SegmentContext {
                blobs,
                upstream,
                right: Arc::new(right.clone()),
                filling,
                ends: told,
                turn: of_bodies,
            },
            callers,
            opens: wanted.opens,
            share: upstream
                .concurrency()
                .begin_fill(&right.at, missing_bytes(filling.map(), &beginning.landed)),
            room,
            is_attended: true,
            turn,
            machine: Fill::new(Duration::ZERO, &beginning),
            started: Instant::now(),
            connections: FuturesUnordered::new(),
            ends,
            segment_ends: HashMap::new(),
            requests: 0,
            begun: None,
            served: Served::NotYet,
            error: None,
        }
    }

    /// Goes on with the body of a blob that was asked for as a whole.
    pub(super) async fn begin_with(&mut self, body: Body) {
        let filling = self.context.filling;
        let segment = Segment::new(filling, 0, 0..filling.map().blob_bytes()).await;
        self.served = Served::Before;
        self.requests += 1;
        self.begun = Some((segment, body));
        self.machine.handle_first_body(self.now());
    }

    /// Runs until all bytes have landed.
    ///
    /// # Errors
    /// Why there is no sense in going on.
    pub(super) async fn run(mut self) -> Result<(), PullError> {
        let ended = self.follow().await;
        self.context.upstream.note_blob_requests(self.requests);
        debug!(blob.digest = %self.context.filling.digest(), requests = self.requests, "the fill of {} has made {} requests", self.context.filling.digest(), self.requests);
        ended
    }

    async fn follow(&mut self) -> Result<(), PullError> {
        loop {
            self.take_turn();
            if self.act().await? {
                return Ok(());
            }
            let timeout = self.machine.poll_timeout();
            tokio::select! {
                Some(step) = self.connections.next(), if !self.connections.is_empty() => self.step(step),
                Some(connection) = self.ends.recv() => self.machine.handle_end_in_sight(connection),
                () = sleep_until((self.started + timeout.unwrap_or_default()).into()), if timeout.is_some() => {
                    self.machine.handle_timeout(self.now(), &self.facts());
                }
            }
        }
    }

    /// Looks whether a client waits for the blob. One that has jumped here from a node waits, too, although it reads from elsewhere.
    fn take_turn(&mut self) {
        let SegmentContext {
            blobs,
            upstream,
            right,
            filling,
            ..
        } = &self.context;
        let is_waited_for = || !filling.waited_for().is_empty();
        self.is_attended = self.callers.is_none() || blobs.transfers.is_attended(filling.digest()) || is_waited_for();
        if let Some(room) = self.room.filter(|_| !self.is_attended) {
            room.leave(|| upstream.limits().unattended(&right.caller));
        }
        let is_turn = self.connections_max(&filling.landed()) > 0;
        self.turn
            .send_if_modified(|turn| std::mem::replace(turn, is_turn) != is_turn);
    }

    /// The connections that it may use now.
    fn connections_max(&self, landed: &PieceSet) -> usize {
        let missing_bytes = missing_bytes(self.context.filling.map(), landed);
        let busy = self.machine.busy();
        self.share.connections(missing_bytes, busy, self.is_attended)
    }

    fn step(&mut self, step: Step) {
        let (now, landed) = (self.now(), self.context.filling.landed());
        match step {
            Step::Answered { segment, right, answer } => {
                let connection = segment.connection;
                let answer = self.answer(segment, &right, answer);
                self.machine.handle_answered(now, connection, answer, &landed);
            }
            Step::Ended {
                connection,
                ended,
                result,
            } => {
                self.segment_ends.remove(&connection);
                self.error = result.err().or(self.error.take());
                self.machine.handle_ended(now, connection, ended, &landed);
            }
        }
    }

    /// What an answer says. Its body is kept until the machine has decided.
    fn answer(&mut self, segment: Segment, right: &Arc<Right>, answer: Result<BlobAnswer, PullError>) -> Answer {
        if answer.is_ok() && Arc::ptr_eq(right, &self.context.right) {
            self.served = Served::Before;
        }
        match answer.and_then(|answer| self.of_stated_size(answer)) {
            Ok(answer) => {
                let is_part = answer.is_part;
                self.begun = Some((segment, Body::Answer(answer)));
                match is_part {
                    true => Answer::Part,
                    false => Answer::Whole,
                }
            }
            Err(error) => {
                let fault = Fault::from(&error);
                self.error = Some(error);
                Answer::Failed(fault)
            }
        }
    }

    fn of_stated_size(&self, answer: BlobAnswer) -> Result<BlobAnswer, PullError> {
        let (upstream, digest) = (&self.context.right.at.upstream, self.context.filling.digest());
        let blob_bytes = self.context.filling.map().blob_bytes();
        match other_size(answer.blob_bytes, blob_bytes) {
            Some(stated) => Err(PullError::BadGateway(format!(
                "{upstream} states {stated} bytes for {digest}, but its manifest or an earlier answer said {blob_bytes}"
            ))),
            None => Ok(answer),
        }
    }

    /// Carries out what the machine has decided. `true`: all bytes have landed.
    async fn act(&mut self) -> Result<bool, PullError> {
        if self.context.filling.is_unstored() {
            let landed = self.context.filling.landed();
            self.machine.handle_overflow(self.now(), &landed);
        }
        while let Some(action) = self.machine.poll_action(self.now(), &self.facts()) {
            match action {
                Action::Request { connection, bytes } => self.request(connection, bytes).await,
                Action::Receive { connection, bytes } => self.receive(connection, bytes),
                Action::MoveEnd { connection, end } => {
                    if let Some(segment_end) = self.segment_ends.get(&connection) {
                        segment_end.move_to(end);
                    }
                }
                Action::Close(_) => self.begun = None,
                Action::CloseAll => {
                    self.begun = None;
                    self.connections.clear();
                }
                Action::NoteTooManyRequests => self.context.upstream.concurrency().calm_down(),
                Action::NoteNoRanges => self.note_no_ranges(),
                Action::NextRight => self.next_right(),
                Action::Open => self.open(),
                Action::Finish => return Ok(true),
                Action::Fail(failure) => return Err(self.fail(failure)),
            }
        }
        Ok(false)
    }

    async fn request(&mut self, connection: u64, bytes: Range<u64>) {
        let segment = Segment::new(self.context.filling, connection, bytes).await;
        let (context, served) = (self.context.clone(), self.served);
        self.requests += 1;
        self.connections.push(Box::pin(async move {
            let answer = segment.request(&context, served).await;
            let right = context.right;
            Step::Answered { segment, right, answer }
        }));
    }

    fn receive(&mut self, connection: u64, bytes: Range<u64>) {
        let Some((mut segment, body)) = self.begun.take() else {
            return self.receive_nothing(connection);
        };
        segment.connection = connection;
        segment.end.move_to(bytes.end);
        self.segment_ends.insert(connection, segment.end.clone());
        let context = self.context.clone();
        self.connections.push(Box::pin(async move {
            let (ended, result) = segment.receive(&context, body).await;
            Step::Ended {
                connection,
                ended,
                result,
            }
        }));
    }

    /// Ends a connection without a body, so that the machine does not wait for it.
    fn receive_nothing(&mut self, connection: u64) {
        let error = PullError::Unavailable("upstream's body is gone".to_owned());
        let ended = Ended {
            progressed: false,
            fault: Some(Fault::from(&error)),
        };
        self.step(Step::Ended {
            connection,
            ended,
            result: Err(error),
        });
    }

    fn note_no_ranges(&self) {
        let upstream = &self.context.right.at.upstream;
        debug!(upstream, "{upstream} does not support ranges");
        self.context.upstream.concurrency().calm_down();
    }

    fn next_right(&mut self) {
        let (callers, error) = (self.callers, self.error.as_ref());
        let next = callers
            .zip(error)
            .and_then(|(callers, error)| callers.refused(&self.context.right, error).ok());
        if let (Some(next), Some(error)) = (&next, error) {
            debug!(blob.digest = %self.context.filling.digest(), %error, "the fill of {} continues with another caller's credential", self.context.filling.digest());
            self.context.right = Arc::new(next.clone());
            self.served = Served::NotYet;
        }
        self.machine.handle_next_right(self.now(), next.is_some());
    }

    fn open(&self) {
        if let Some(transfer) = self.opens {
            let SegmentContext {
                blobs, right, filling, ..
            } = &self.context;
            blobs.opened(right, filling, transfer);
        }
    }

    fn fail(&mut self, failure: Failure) -> PullError {
        let unknown = || PullError::Unavailable("upstream failed without a reason".to_owned());
        match failure {
            Failure::Unread => {
                PullError::Unavailable("the blob does not fit into the cache, and its last reader has left".to_owned())
            }
            Failure::Unanswered => self.error.take().unwrap_or_else(unknown),
            Failure::Upstream => {
                let error = self.error.take().unwrap_or_else(unknown);
                let digest = self.context.filling.digest();
                warn!(blob.digest = %digest, upstream = self.context.right.at.upstream, %error, "the fill of {digest} stops: {error}");
                error
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn facts(&self) -> Facts {
        let filling = self.context.filling;
        let landed = filling.landed();
        Facts {
            share: self.connections_max(&landed),
            connection_rate: self.share.connection_rate(),
            waited_for: filling.waited_for(),
            has_readers: filling.has_readers(),
            landed,
        }
    }
}

/// The size of the missing pieces, each counted as a whole piece.
fn missing_bytes(map: PieceMap, landed: &PieceSet) -> u64 {
    u64::from(landed.capacity() - landed.count()) * map.piece_bytes()
}
