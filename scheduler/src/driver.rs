//! The task that owns the brain: events in, commands out.
//!
//! Sessions send [`Input`]s through one bounded channel; this task alone hands them to the brain, so that the brain sees one
//! history. It never waits for a session: a daemon whose queue is full is cut off.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use piecemeal_proto::{NodeId, wire};
use tokio::{
    sync::{
        Mutex, OwnedSemaphorePermit,
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    time::{Duration, Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use wire::order::Order as Kind;

use crate::{
    admission::{Admission, Admitted, RefuseHelloError},
    ambient::{self, ClockWatch, unix_seconds},
    brain::{Brain, Command, Event, MemberId, Policy, Role, Source},
    members::{Entry, Members},
    metrics::{Metrics, role_name},
    outbox::Outgoing,
    session_end::SessionEnd,
    status::{Contact, Snapshot},
};

/// What sessions and the admin port send to placement.
pub(crate) enum Input {
    Join(Join),
    /// In the order in which the daemon told them.
    Events {
        member: MemberId,
        events: Vec<Event>,
        /// The events' share of what may wait.
        room: OwnedSemaphorePermit,
    },
    Leave {
        member: MemberId,
    },
    /// A mirror asks the peers of its pool to prefetch content.
    Warm {
        mirror: MemberId,
        warm: Arc<wire::Warm>,
        room: OwnedSemaphorePermit,
    },
    /// The rules of admission have changed.
    Admission,
    Status {
        reply: oneshot::Sender<Snapshot>,
    },
    /// Asks the task for a sign of life.
    Ping {
        reply: oneshot::Sender<()>,
    },
    #[cfg(test)]
    Fail,
}

/// A daemon asks for a place in the table.
pub(crate) struct Join {
    pub(crate) admitted: Admitted,
    pub(crate) outbox: mpsc::Sender<Outgoing>,
    pub(crate) end: oneshot::Sender<SessionEnd>,
    pub(crate) reply: oneshot::Sender<Result<MemberId, RefuseHelloError>>,
}

/// Runs placement until `stop`.
///
/// A brain that fails is replaced by an empty one: every session ends, and what is known comes back as daemons reconnect.
pub(crate) async fn supervise(
    inputs: mpsc::Receiver<Input>,
    admission: Arc<Admission>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let inputs = Arc::new(Mutex::new(inputs));
    let last_member = Arc::new(AtomicU32::new(0));
    loop {
        let driver = Driver::new(Arc::clone(&admission), metrics.clone(), Arc::clone(&last_member));
        let task = tokio::spawn({
            let (inputs, stop) = (Arc::clone(&inputs), stop.clone());
            async move {
                let mut inputs = inputs.lock().await;
                stop.run_until_cancelled(driver.run(&mut inputs)).await;
            }
        });
        match task.await {
            Err(failure) if failure.is_panic() => {
                error!(error = %failure, "placement failed and restarts; all daemons reconnect");
                metrics.brain_restarted();
            }
            _ => return,
        }
    }
}

struct Driver {
    brain: Brain,
    /// Where the brain's time begins.
    started: Instant,
    clock: ClockWatch,
    members: Members,
    admission: Arc<Admission>,
    /// Filled by the brain and emptied by [`Driver::dispatch`].
    commands: Vec<Command>,
    /// Shared with earlier drivers: a late input of one of their sessions must not reach a new session under the same number.
    last_member: Arc<AtomicU32>,
    upstream: Arc<wire::Source>,
    metrics: Metrics,
}

impl Driver {
    fn new(admission: Arc<Admission>, metrics: Metrics, last_member: Arc<AtomicU32>) -> Self {
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

    async fn run(mut self, inputs: &mut mpsc::Receiver<Input>) {
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
                    self.review();
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
            Input::Events { member, events, room } => {
                self.hear(member, events);
                drop(room);
            }
            Input::Leave { member } => self.leave(member, SessionEnd::Left),
            Input::Warm { mirror, warm, room } => {
                self.pass_on(mirror, &warm);
                drop(room);
            }
            Input::Admission => self.review(),
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
            admitted:
                Admitted {
                    member: info,
                    incarnation,
                    by,
                    host_name,
                    release,
                    addresses,
                },
            outbox,
            end,
            reply,
        } = join;
        let placed = self
            .admission
            .still_admits(info.node, by, unix_seconds())
            .and_then(|()| self.make_room(info.node, info.role, info.signed, incarnation));
        if let Ok(member) = placed {
            let kind = match info.role {
                Role::Peer => wire::SourceKind::Peer,
                Role::Mirror => wire::SourceKind::Mirror,
            };
            let source = wire::Source {
                kind: kind.into(),
                node: info.node.0.to_vec(),
                addresses,
            };
            self.members.insert(
                member,
                Entry {
                    node: info.node,
                    role: info.role,
                    pool: info.pool.clone(),
                    incarnation,
                    signed: info.signed,
                    by,
                    host_name,
                    release,
                    source: Arc::new(source),
                    outbox,
                    end,
                    heard: Instant::now(),
                },
            );
            self.metrics.session_began(info.role);
            self.tell_brain(Event::Joined { member, info });
        }
        // A session that has gone meanwhile says so itself.
        let _ = reply.send(placed);
    }

    /// A number for a new session of `node`, whose older one ends; or why the older one stays.
    fn make_room(
        &mut self,
        node: NodeId,
        role: Role,
        signed: bool,
        incarnation: u64,
    ) -> Result<MemberId, RefuseHelloError> {
        let is_peer = role == Role::Peer;
        if is_peer && !signed && self.members.has_signed(&node) {
            return Err(RefuseHelloError::Unsigned);
        }
        let older = self.members.of_node(node);
        if older.is_some_and(|(_, entry)| !entry.yields_to(role, signed, incarnation)) {
            return Err(RefuseHelloError::Superseded);
        }
        let older = older.map(|(member, _)| member);
        let last = self
            .last_member
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| last.checked_add(1))
            .map_err(|_| RefuseHelloError::Exhausted)?;
        // The brain learns it from the new session's `Joined`.
        if let Some(older) = older {
            self.forget(older, SessionEnd::Replaced);
        }
        Ok(MemberId(last + 1))
    }

    /// Ends the sessions of those that are let in no longer, and of all when the clock was set.
    fn review(&mut self) {
        let now = unix_seconds();
        let admission = Arc::clone(&self.admission);
        let is_out = |entry: &Entry| admission.still_admits(entry.node, entry.by, now).is_err();
        self.end_sessions(SessionEnd::Revoked, is_out);
        if self.clock.was_set(std::time::Instant::now(), now) {
            warn!("this host's clock was set: all daemons connect again, since they judge tickets by it");
            self.end_sessions(SessionEnd::ClockSet, |_| true);
        }
    }

    fn end_sessions(&mut self, cause: SessionEnd, is_concerned: impl Fn(&Entry) -> bool) {
        let members = self.members.iter();
        let out: Vec<MemberId> = members
            .filter(|(_, entry)| is_concerned(entry))
            .map(|(member, _)| member)
            .collect();
        for member in out {
            self.leave(member, cause);
        }
    }

    fn hear(&mut self, member: MemberId, events: Vec<Event>) {
        let Some(entry) = self.members.get_mut(member) else {
            return;
        };
        entry.heard = Instant::now();
        for event in events {
            if let Event::LeaseEnded { outcome, .. } = &event {
                self.metrics.lease_ended(outcome);
            }
            self.tell_brain(event);
        }
    }

    /// Placement learns of it by the wants that follow. A peer whose queue is full does not get the request, since nothing depends
    /// on it.
    fn pass_on(&self, mirror: MemberId, warm: &Arc<wire::Warm>) {
        let Some(pool) = self.members.get(mirror).map(|entry| &entry.pool) else {
            return;
        };
        let peers = self.members.iter().map(|(_, entry)| entry);
        let (mut told, mut missed) = (0, 0);
        for peer in peers.filter(|entry| entry.role == Role::Peer && entry.pool == *pool) {
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
        if self.forget(member, cause) {
            self.tell_brain(Event::Left { member });
        }
    }

    fn tell_brain(&mut self, event: Event) {
        let begun = Instant::now();
        self.brain.handle(begun - self.started, event, &mut self.commands);
        self.metrics.event_took(begun.elapsed());
        self.dispatch();
    }

    /// Queues every command for its member, and cuts off those that have no room, until nothing is left to say.
    fn dispatch(&mut self) {
        while !self.commands.is_empty() {
            let mut lost = Vec::new();
            for command in std::mem::take(&mut self.commands) {
                let (to, outgoing) = self.outgoing(command);
                let (Some(entry), Some(outgoing)) = (self.members.get(to), outgoing) else {
                    continue;
                };
                match entry.outbox.try_send(outgoing) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => lost.push((to, SessionEnd::Behind)),
                    // Its session has ended and is about to say so.
                    Err(TrySendError::Closed(_)) => lost.push((to, SessionEnd::Left)),
                }
            }
            self.tell_convictions();
            for (member, cause) in lost {
                if self.forget(member, cause) {
                    let now = self.started.elapsed();
                    self.brain.handle(now, Event::Left { member }, &mut self.commands);
                }
            }
        }
    }

    fn tell_convictions(&mut self) {
        for conviction in self.brain.take_convictions() {
            let (node, digest, piece) = (conviction.node, conviction.digest, conviction.piece);
            self.metrics.refused("false_hash");
            warn!(node = %node, blob.digest = %digest, "peer {node} stated another hash for piece {piece} of {digest} than the mirror; no more of the blob is fetched from it, and its statements are ignored (check that node)");
        }
    }

    fn outgoing(&self, command: Command) -> (MemberId, Option<Outgoing>) {
        match command {
            Command::Lease { to, lease } => {
                let source = match lease.source {
                    Source::Upstream => Some((&self.upstream, "upstream")),
                    Source::Member(member) => self
                        .members
                        .get(member)
                        .map(|entry| (&entry.source, role_name(entry.role))),
                };
                let Some((source, kind)) = source else {
                    // It left within this very dispatch, and the brain is about to hear of it.
                    return (to, None);
                };
                self.metrics.leased(kind);
                let source = Arc::clone(source);
                (to, Some(Outgoing::Lease { lease, source }))
            }
            Command::Cancel { to, lease } => (to, order(Kind::Cancel(wire::Cancel { lease: lease.0 }))),
            Command::Revoked { to, digest, fill } => {
                let revoked = wire::Revoked {
                    digest: digest.to_string(),
                    fill: fill.0,
                };
                (to, order(Kind::Revoked(revoked)))
            }
            Command::Drop {
                to,
                digest,
                fill,
                pieces,
            } => {
                let pieces = pieces.iter().map(|range| wire::PieceRange {
                    first: range.start,
                    count: range.end - range.start,
                });
                let drop = wire::Drop {
                    digest: digest.to_string(),
                    fill: fill.0,
                    pieces: pieces.collect(),
                };
                (to, order(Kind::Drop(drop)))
            }
            Command::PieceHashes { to, list } => (to, Some(Outgoing::PieceHashes(list))),
            Command::Describe { to, digest } => {
                let describe = wire::Describe {
                    digest: digest.to_string(),
                };
                (to, order(Kind::Describe(describe)))
            }
        }
    }

    /// Takes a member out of the table, which ends its session; says whether it was there.
    fn forget(&mut self, member: MemberId, cause: SessionEnd) -> bool {
        let Some(entry) = self.members.remove(member) else {
            return false;
        };
        self.metrics.session_ended(entry.role);
        match cause {
            SessionEnd::Behind => {
                warn!(node = %entry.node, "{} {} does not read its orders; disconnected", role_name(entry.role), entry.node);
            }
            SessionEnd::Revoked => {
                warn!(node = %entry.node, "{} {} is no longer admitted; disconnected", role_name(entry.role), entry.node);
            }
            SessionEnd::Replaced => {
                info!(node = %entry.node, "{} {} has connected again", role_name(entry.role), entry.node);
            }
            _ => {}
        }
        // The session may have ended by itself.
        let _ = entry.end.send(cause);
        true
    }

    fn snapshot(&self) -> Snapshot {
        let contact = |entry: &Entry| Contact {
            source: Arc::clone(&entry.source),
            heard: entry.heard.elapsed(),
            signed: entry.signed,
            host_name: entry.host_name.clone(),
            release: entry.release.clone(),
        };
        Snapshot {
            status: self.brain.status(),
            contacts: self
                .members
                .iter()
                .map(|(member, entry)| (member, contact(entry)))
                .collect(),
        }
    }
}

fn order(kind: Kind) -> Option<Outgoing> {
    Some(Outgoing::Order(kind))
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Inputs between two looks at the clock.
const INPUTS_AT_ONCE: usize = 64;
/// How old the gauges may be: a survey costs as much as a status.
const SURVEY_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use piecemeal_proto::{AuthorityKey, Digest, FillId, PieceMap, PieceSet};
    use tokio::sync::{Semaphore, mpsc::error::TryRecvError};

    use super::*;
    use crate::{admission::AdmittedBy, brain::Member};

    const BLOB: Digest = Digest::Sha256([7; 32]);

    struct Seat {
        member: MemberId,
        queue: mpsc::Receiver<Outgoing>,
        ended: oneshot::Receiver<SessionEnd>,
    }

    async fn join(inputs: &mpsc::Sender<Input>, node: u8, role: Role, room: usize) -> Seat {
        join_pool(inputs, node, role, room, "").await
    }

    async fn join_pool(inputs: &mpsc::Sender<Input>, node: u8, role: Role, room: usize, pool: &str) -> Seat {
        let (outbox, queue) = mpsc::channel(room);
        let (end, ended) = oneshot::channel();
        let (reply, placed) = oneshot::channel();
        let member = Member {
            node: NodeId([node; 16]),
            signed: true,
            role,
            pool: pool.to_owned(),
            zone: String::new(),
            may_use_upstream: false,
            features: crate::brain::Features::default(),
        };
        let admitted = Admitted {
            member,
            incarnation: 1,
            by: AdmittedBy::JoinKey(0),
            host_name: String::new(),
            release: String::new(),
            addresses: Vec::new(),
        };
        let join = Join {
            admitted,
            outbox,
            end,
            reply,
        };
        inputs.send(Input::Join(join)).await.ok().unwrap();
        let member = placed.await.unwrap().unwrap();
        Seat { member, queue, ended }
    }

    async fn tell(inputs: &mpsc::Sender<Input>, member: MemberId, event: Event) {
        let room = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let events = vec![event];
        inputs.send(Input::Events { member, events, room }).await.ok().unwrap();
    }

    async fn members(inputs: &mpsc::Sender<Input>) -> Vec<MemberId> {
        let (reply, answer) = oneshot::channel();
        inputs.send(Input::Status { reply }).await.ok().unwrap();
        let snapshot = answer.await.unwrap();
        assert_eq!(snapshot.contacts.len(), snapshot.status.members.len());
        snapshot.status.members.iter().map(|member| member.member).collect()
    }

    fn start() -> (mpsc::Sender<Input>, Metrics) {
        let (inputs, received) = mpsc::channel(8);
        let metrics = Metrics::new();
        let admission = Arc::new(Admission::new(&AuthorityKey::from_seed([3; 32]), HashSet::new()));
        tokio::spawn(supervise(
            received,
            admission,
            metrics.clone(),
            CancellationToken::new(),
        ));
        (inputs, metrics)
    }

    #[tokio::test]
    async fn a_warm_goes_to_every_peer_of_the_mirrors_pool_and_costs_no_session() {
        let (inputs, _) = start();
        let mut mirror = join_pool(&inputs, 9, Role::Mirror, 10, "a").await;
        let mut near = join_pool(&inputs, 1, Role::Peer, 10, "a").await;
        let full = join_pool(&inputs, 2, Role::Peer, 1, "a").await;
        let mut far = join_pool(&inputs, 3, Role::Peer, 10, "b").await;
        for _ in 0..2 {
            let room = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
            let (mirror, warm) = (mirror.member, Arc::default());
            inputs.send(Input::Warm { mirror, warm, room }).await.ok().unwrap();
        }
        assert_eq!(members(&inputs).await.len(), 4);
        for _ in 0..2 {
            assert!(matches!(near.queue.try_recv(), Ok(Outgoing::Warm(_))));
        }
        assert_eq!(full.queue.len(), 1);
        for other in [&mut mirror, &mut far] {
            assert!(matches!(other.queue.try_recv(), Err(TryRecvError::Empty)));
        }
    }

    #[tokio::test]
    async fn a_member_whose_queue_is_full_leaves() {
        let (inputs, _) = start();
        let mirror = join(&inputs, 9, Role::Mirror, 100).await;
        let peer = join(&inputs, 1, Role::Peer, 1).await;
        let map = PieceMap::new(64 << 20, 1 << 20).unwrap();
        let want = Event::Want {
            member: peer.member,
            digest: BLOB,
            map,
            fill: FillId(7),
            have: PieceSet::new(map.count()),
            window: None,
        };
        let have = Event::Have {
            member: mirror.member,
            digest: BLOB,
            map,
            fill: FillId(7),
            first: 0,
            hashes: vec![Some([0; 32]); 64],
        };
        tell(&inputs, peer.member, want).await;
        tell(&inputs, mirror.member, have).await;
        assert_eq!(peer.ended.await, Ok(SessionEnd::Behind));
        assert_eq!(members(&inputs).await, [mirror.member]);
    }

    #[tokio::test]
    async fn a_brain_that_fails_ends_every_session_and_restarts() {
        let (inputs, metrics) = start();
        let mut before = join(&inputs, 1, Role::Peer, 1).await;
        inputs.send(Input::Fail).await.ok().unwrap();
        assert!(before.ended.await.is_err());
        assert_eq!(before.queue.try_recv().unwrap_err(), TryRecvError::Disconnected);

        let after = join(&inputs, 1, Role::Peer, 1).await;
        assert_ne!(after.member, before.member);
        tell(&inputs, before.member, Event::Heard { member: before.member }).await;
        inputs.send(Input::Leave { member: before.member }).await.ok().unwrap();
        assert_eq!(members(&inputs).await, [after.member]);
        let mut registry = prometheus_client::registry::Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("piecemeal_scheduler_brain_restarts_total 1"), "{text}");
        assert!(
            text.contains(r#"piecemeal_scheduler_sessions{role="peer"} 1"#),
            "{text}"
        );
    }
}
