//! Driver of placement: the task that owns the brain and the table of members.
//!
//! Invariant: the brain sees one history, since this task alone hands it events. The task never waits for a session: a daemon
//! whose queue is full is cut off.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use piecemeal_proto::wire;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::{Duration, Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{info, warn};

use crate::{
    admission::{Admission, Admitted, RefuseHelloError},
    ambient::{self, ClockWatch, unix_seconds},
    brain::{Brain, Command, Event, Lease, MemberId, Policy, Role, Source},
    input::{Input, Join},
    members::{ConnectedMember, Members},
    metrics::{Metrics, role_name},
    orders,
    outbox::Outgoing,
    session_end::SessionEnd,
    status::{Contact, Snapshot},
};

pub(crate) struct Driver {
    brain: Brain,
    /// Start of the brain's time.
    started: Instant,
    clock: ClockWatch,
    members: Members,
    admission: Arc<Admission>,
    /// Commands of the brain that [`Driver::dispatch`] has not queued yet.
    commands: Vec<Command>,
    /// Id of the latest member, shared with earlier drivers: a late input of one of their sessions must not reach a new session
    /// under the same id.
    last_member: Arc<AtomicU32>,
    /// The source that leases from upstream name.
    upstream: Arc<wire::Source>,
    metrics: Metrics,
}

impl Driver {
    pub(crate) fn new(admission: Arc<Admission>, metrics: Metrics, last_member: Arc<AtomicU32>) -> Self {
        metrics.reset_sessions();
        let upstream = wire::Source {
            kind: wire::SourceKind::Upstream.into(),
            ..wire::Source::default()
        };
        Self {
            brain: Brain::new(Policy::default(), u64::from_be_bytes(ambient::random())),
            started: Instant::now(),
            clock: ClockWatch::new(std::time::Instant::now(), unix_seconds()),
            members: Members::default(),
            admission,
            commands: Vec::new(),
            last_member,
            upstream: Arc::new(upstream),
            metrics,
        }
    }

    /// Until `inputs` ends.
    pub(crate) async fn run(mut self, inputs: &mut mpsc::Receiver<Input>) {
        let mut batch = Vec::with_capacity(INPUTS_AT_ONCE);
        let mut survey = interval(SURVEY_EVERY);
        survey.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                received = inputs.recv_many(&mut batch, INPUTS_AT_ONCE) => if received == 0 {
                    return;
                },
                () = until(self.brain.poll_timeout().map(|at| self.started + at)) => {}
                _ = survey.tick() => {
                    self.metrics.surveyed(&self.brain.status());
                    // The time of a join.key may be over.
                    self.recheck_admission();
                }
            }
            for input in batch.drain(..) {
                self.handle_input(input);
            }
            let now = self.started.elapsed();
            if self.brain.poll_timeout().is_some_and(|at| at <= now) {
                self.brain.handle_timeout(now, &mut self.commands);
                self.dispatch();
            }
        }
    }

    fn handle_input(&mut self, input: Input) {
        match input {
            Input::Join(join) => self.join(join),
            Input::Events { member, events, budget } => {
                self.handle_events(member, events);
                drop(budget);
            }
            Input::Leave { member } => self.leave(member, SessionEnd::Left),
            Input::Warm { mirror, warm, budget } => {
                self.send_warm(mirror, &warm);
                drop(budget);
            }
            Input::Admission => self.recheck_admission(),
            Input::Status { reply } => {
                // The caller may have gone.
                let _ = reply.send(self.snapshot());
            }
            Input::Ping { reply } => {
                let _ = reply.send(());
            }
            #[cfg(test)]
            Input::Fail => panic!("as the test asked"),
        }
    }

    fn join(&mut self, join: Join) {
        let Join {
            admitted,
            outbox,
            end,
            reply,
        } = join;
        let joined = self
            .admission
            .still_admits(admitted.member.node, admitted.by, unix_seconds())
            .and_then(|()| self.replace_older(&admitted));
        if let Ok(member) = joined {
            let info = admitted.member.clone();
            self.members.insert(member, ConnectedMember::new(admitted, outbox, end));
            self.metrics.session_began(info.role);
            self.tell_brain(Event::Joined { member, info });
        }
        // A session that has gone meanwhile says so itself.
        let _ = reply.send(joined);
    }

    /// The id of a new session, for which the older session of the same node ends; or why the older one stays.
    fn replace_older(&mut self, admitted: &Admitted) -> Result<MemberId, RefuseHelloError> {
        let new = &admitted.member;
        if new.role == Role::Peer && !new.signed && self.members.has_signed(&new.node) {
            return Err(RefuseHelloError::Unsigned);
        }
        let older = self.members.of_node(new.node);
        if older.is_some_and(|(_, older)| !older.yields_to(new.role, new.signed, admitted.incarnation)) {
            return Err(RefuseHelloError::Superseded);
        }
        let older = older.map(|(member, _)| member);
        let last = self
            .last_member
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| last.checked_add(1))
            .map_err(|_| RefuseHelloError::Exhausted)?;
        // The brain learns it from the new session's `Joined`.
        if let Some(older) = older {
            self.disconnect(older, SessionEnd::Replaced);
        }
        Ok(MemberId(last + 1))
    }

    /// Ends the sessions of daemons that are not admitted any more, and of all daemons when the clock was set.
    fn recheck_admission(&mut self) {
        let now = unix_seconds();
        let admission = Arc::clone(&self.admission);
        let is_out = |member: &ConnectedMember| admission.still_admits(member.node, member.by, now).is_err();
        self.end_sessions(SessionEnd::Revoked, is_out);
        if self.clock.was_set(std::time::Instant::now(), now) {
            warn!("this host's clock was set: all daemons connect again, since they judge tickets by it");
            self.end_sessions(SessionEnd::ClockSet, |_| true);
        }
    }

    fn end_sessions(&mut self, cause: SessionEnd, is_concerned: impl Fn(&ConnectedMember) -> bool) {
        let members = self.members.iter();
        let out: Vec<MemberId> = members
            .filter(|(_, connected)| is_concerned(connected))
            .map(|(member, _)| member)
            .collect();
        for member in out {
            self.leave(member, cause);
        }
    }

    fn handle_events(&mut self, member: MemberId, events: Vec<Event>) {
        let Some(connected) = self.members.get_mut(member) else {
            return;
        };
        connected.heard = Instant::now();
        for event in events {
            if let Event::LeaseEnded { outcome, .. } = &event {
                self.metrics.lease_ended(outcome);
            }
            self.tell_brain(event);
        }
    }

    /// Passes a prefetch request on to the peers of the mirror's pool. The brain learns of it by the wants that follow. A peer
    /// whose queue is full does not get the request, since nothing depends on it.
    fn send_warm(&self, mirror: MemberId, warm: &Arc<wire::Warm>) {
        let Some(pool) = self.members.get(mirror).map(|mirror| &mirror.pool) else {
            return;
        };
        let peers = self.members.iter().map(|(_, connected)| connected);
        let (mut told, mut missed) = (0, 0);
        for peer in peers.filter(|peer| peer.role == Role::Peer && peer.pool == *pool) {
            match peer.outbox.try_send(Outgoing::Warm(Arc::clone(warm))) {
                Ok(()) => told += 1,
                Err(_) => missed += 1,
            }
        }
        let (upstream, repository) = (&warm.upstream, &warm.repository);
        info!(
            pool,
            upstream, repository, told, missed, "told {told} peers to fetch {upstream}/{repository} ahead"
        );
    }

    fn leave(&mut self, member: MemberId, cause: SessionEnd) {
        if self.disconnect(member, cause) {
            self.tell_brain(Event::Left { member });
        }
    }

    fn tell_brain(&mut self, event: Event) {
        let begun = Instant::now();
        self.brain.handle(begun - self.started, event, &mut self.commands);
        self.metrics.event_took(begun.elapsed());
        self.dispatch();
    }

    /// Queues every command for its member, and cuts off members whose queue is full, until no command is left.
    fn dispatch(&mut self) {
        while !self.commands.is_empty() {
            let mut lost = Vec::new();
            for command in std::mem::take(&mut self.commands) {
                let to = command.to();
                let (Some(connected), Some(outgoing)) = (self.members.get(to), self.outgoing(command)) else {
                    continue;
                };
                match connected.outbox.try_send(outgoing) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => lost.push((to, SessionEnd::Behind)),
                    // Its session has ended and is about to say so.
                    Err(TrySendError::Closed(_)) => lost.push((to, SessionEnd::Left)),
                }
            }
            self.log_convictions();
            for (member, cause) in lost {
                if self.disconnect(member, cause) {
                    let now = self.started.elapsed();
                    self.brain.handle(now, Event::Left { member }, &mut self.commands);
                }
            }
        }
    }

    fn log_convictions(&mut self) {
        for conviction in self.brain.take_convictions() {
            let (node, digest, piece) = (conviction.node, conviction.digest, conviction.piece);
            self.metrics.refused("false_hash");
            warn!(node = %node, blob.digest = %digest, "peer {node} stated another hash for piece {piece} of {digest} than the mirror; no more of the blob is fetched from it, and its statements are ignored (check that node)");
        }
    }

    fn outgoing(&self, command: Command) -> Option<Outgoing> {
        let order = match command {
            Command::Lease { lease, .. } => return self.outgoing_lease(lease),
            Command::PieceHashes { list, .. } => return Some(Outgoing::PieceHashes(list)),
            Command::Cancel { lease, .. } => orders::cancel(lease),
            Command::Revoked { digest, fill, .. } => orders::revoked(digest, fill),
            Command::Describe { digest, .. } => orders::describe(digest),
            Command::Clients {
                digest,
                connected,
                waiting,
                ..
            } => orders::clients(digest, connected, waiting),
            Command::Drop {
                digest, fill, pieces, ..
            } => orders::drop_pieces(digest, fill, &pieces),
        };
        Some(Outgoing::Order(order))
    }

    /// `None`: the source left within this very dispatch, and the brain is about to hear of it.
    fn outgoing_lease(&self, lease: Lease) -> Option<Outgoing> {
        let (source, kind) = match lease.source {
            Source::Upstream => (&self.upstream, "upstream"),
            Source::Member(member) => {
                let connected = self.members.get(member)?;
                (&connected.source, role_name(connected.role))
            }
        };
        self.metrics.leased(kind);
        let source = Arc::clone(source);
        Some(Outgoing::Lease { lease, source })
    }

    /// Takes a member out of the table, which ends its session; says whether it was there.
    fn disconnect(&mut self, member: MemberId, cause: SessionEnd) -> bool {
        let Some(connected) = self.members.remove(member) else {
            return false;
        };
        self.metrics.session_ended(connected.role);
        match cause {
            SessionEnd::Behind => {
                warn!(node = %connected.node, "{} {} does not read its orders; disconnected", role_name(connected.role), connected.node);
            }
            SessionEnd::Revoked => {
                warn!(node = %connected.node, "{} {} is no longer admitted; disconnected", role_name(connected.role), connected.node);
            }
            SessionEnd::Replaced => {
                info!(node = %connected.node, "{} {} has connected again", role_name(connected.role), connected.node);
            }
            _ => {}
        }
        // The session may have ended by itself.
        let _ = connected.end.send(cause);
        true
    }

    fn snapshot(&self) -> Snapshot {
        let contact = |connected: &ConnectedMember| Contact {
            source: Arc::clone(&connected.source),
            heard: connected.heard.elapsed(),
            signed: connected.signed,
            host_name: connected.host_name.clone(),
            release: connected.release.clone(),
        };
        Snapshot {
            status: self.brain.status(),
            contacts: self
                .members
                .iter()
                .map(|(member, connected)| (member, contact(connected)))
                .collect(),
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Inputs between two looks at the clock.
const INPUTS_AT_ONCE: usize = 64;
/// The interval between two surveys for the gauges: a survey costs as much as a status.
const SURVEY_EVERY: Duration = Duration::from_secs(5);
