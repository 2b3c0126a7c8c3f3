//! The session with the scheduler, against a scheduler that the test plays itself.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use piecemeal_proto::{
    AuthorityKey, Digest, NodeKey,
    wire::{
        self, HAVE_PIECES_MAX, INVENTORY_CHUNK_MAX, feature,
        order::Order,
        report::Report,
        scheduler_server::{Scheduler, SchedulerServer},
    },
};
use piecemeal_swarm::{AuthorityClock, Inventory, Limiter, Session, SessionConfig, SessionEvent};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming, transport::Server};

const NONCE: &[u8] = b"nonce";
const NOW: u64 = 4_000_000_000;

type Orders = mpsc::Sender<Result<wire::Orders, Status>>;

struct Fake(mpsc::Sender<FakeSession>);

/// One stream, seen from the scheduler.
struct FakeSession {
    reports: Streaming<wire::Reports>,
    orders: Orders,
}

#[async_trait]
impl Scheduler for Fake {
    type SessionStream = ReceiverStream<Result<wire::Orders, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::Reports>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (orders, received) = mpsc::channel(1);
        let reports = request.into_inner();
        self.0.send(FakeSession { reports, orders }).await.unwrap();
        Ok(Response::new(ReceiverStream::new(received)))
    }
}

impl FakeSession {
    async fn order(&self, orders: impl IntoIterator<Item = Order>) {
        let orders = orders.into_iter().map(|order| wire::Order { order: Some(order) });
        let orders = orders.collect();
        self.orders.send(Ok(wire::Orders { orders })).await.unwrap();
    }

    async fn message(&mut self) -> Option<Vec<Report>> {
        let message = soon(self.reports.message()).await.ok()??;
        Some(
            message
                .reports
                .into_iter()
                .map(|report| report.report.unwrap())
                .collect(),
        )
    }

    /// The next message that says something.
    async fn reports(&mut self) -> Vec<Report> {
        loop {
            let reports = self.message().await.unwrap();
            if !reports.is_empty() {
                return reports;
            }
        }
    }

    /// As a scheduler of the last release asks for it.
    async fn hello(&mut self) -> wire::Hello {
        self.hello_with(Vec::new()).await
    }

    async fn hello_with(&mut self, features: Vec<String>) -> wire::Hello {
        let challenge = wire::Challenge {
            nonce: NONCE.to_vec(),
            version_min: 1,
            version_max: 1,
            features,
        };
        self.order([Order::Challenge(challenge)]).await;
        match self.reports().await.remove(0) {
            Report::Hello(hello) => hello,
            other => panic!("a hello was expected, not {other:?}"),
        }
    }

    async fn welcome(&mut self) -> wire::Hello {
        let hello = self.hello().await;
        let welcome = wire::Welcome {
            version: 1,
            unix_seconds: NOW,
            observed_ip: "127.0.0.1".into(),
            ..wire::Welcome::default()
        };
        self.order([Order::Welcome(welcome)]).await;
        hello
    }

    /// Reads to the end of the inventory.
    async fn inventory(&mut self) -> Vec<wire::Inventory> {
        let mut chunks = Vec::new();
        loop {
            for report in self.reports().await {
                let Report::Inventory(chunk) = report else {
                    panic!("an inventory was expected, not {report:?}");
                };
                let last = chunk.last;
                chunks.push(chunk);
                if last {
                    return chunks;
                }
            }
        }
    }
}

#[derive(Default)]
struct FakeInventory {
    complete: Vec<Digest>,
    live: Mutex<Vec<Report>>,
}

#[async_trait]
impl Inventory for FakeInventory {
    async fn complete(&self) -> Vec<Digest> {
        self.complete.clone()
    }

    async fn live(&self) -> Vec<Report> {
        self.live.lock().clone()
    }
}

struct World {
    sessions: mpsc::Receiver<FakeSession>,
    session: Session,
    events: mpsc::Receiver<SessionEvent>,
    clock: AuthorityClock,
    limiter: Limiter,
    _stop: DropGuard,
}

impl World {
    async fn new(inventory: FakeInventory) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (made, sessions) = mpsc::channel(8);
        let stop = CancellationToken::new();
        let server = Server::builder()
            .add_service(SchedulerServer::new(Fake(made)).max_decoding_message_size(wire::MESSAGE_BYTES_MAX))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
        tokio::spawn(server);
        let clock = AuthorityClock::new();
        let config = config(address);
        let limiter = config.limiter.clone();
        let (session, events) = Session::spawn(config, Arc::new(inventory), clock.clone(), stop.clone());
        Self {
            sessions,
            session,
            events,
            clock,
            limiter,
            _stop: stop.drop_guard(),
        }
    }

    async fn accept(&mut self) -> FakeSession {
        soon(self.sessions.recv()).await.unwrap()
    }

    async fn event(&mut self) -> SessionEvent {
        soon(self.events.recv()).await.unwrap()
    }
}

fn node_key() -> NodeKey {
    NodeKey::from_seed([9; 32])
}

fn key() -> AuthorityKey {
    AuthorityKey::from_seed([1; 32])
}

fn config(address: SocketAddr) -> SessionConfig {
    SessionConfig {
        scheduler: format!("http://{address}"),
        authority: key().public(),
        role: wire::Role::Peer,
        role_key: key().join_key().peer_role(),
        node_key: Arc::new(node_key()),
        host_name: "board-7".into(),
        pool: "pool".into(),
        zone: "zone".into(),
        addresses: vec!["[fd00::1]:65002".parse().unwrap()],
        piece_port: 65002,
        may_use_upstream: true,
        limiter: Limiter::new(None),
        incarnation: 40,
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), future)
        .await
        .expect("it never happens")
}

fn have(digest: &Digest, first: u32, count: u32) -> Report {
    Report::Have(wire::Have {
        digest: digest.to_string(),
        fill: 7,
        blob_bytes: 1 << 30,
        piece_bytes: 1 << 20,
        first,
        count,
        hash_algorithm: wire::HashAlgorithm::Sha256.into(),
        hashes: vec![5; 32 * usize::try_from(count).unwrap()],
    })
}

fn want(digest: &Digest) -> Report {
    Report::Want(wire::Want {
        digest: digest.to_string(),
        ..wire::Want::default()
    })
}

#[tokio::test]
async fn a_daemon_proves_itself_and_tells_what_it_has() {
    let complete: Vec<Digest> = (0..INVENTORY_CHUNK_MAX + 4)
        .map(|number| Digest::of(&number.to_le_bytes()))
        .collect();
    let live = vec![want(&Digest::of(b"live")), have(&Digest::of(b"live"), 0, 3)];
    let mut world = World::new(FakeInventory {
        complete: complete.clone(),
        live: Mutex::new(live.clone()),
    })
    .await;
    assert!(!world.session.is_up());
    let mut scheduler = world.accept().await;
    let hello = scheduler.welcome().await;
    assert!(key().join_key().peer_role().verify(&hello.claim(NONCE), &hello.proof));
    assert_eq!(hello.node, node_key().id().0);
    assert_eq!(hello.addresses[0].ip, "fd00::1");
    assert_eq!(hello.incarnation, 40);

    let chunks = scheduler.inventory().await;
    assert_eq!(
        chunks.iter().map(|chunk| chunk.complete.len()).collect::<Vec<_>>(),
        [INVENTORY_CHUNK_MAX, 4]
    );
    assert_eq!(chunks[0].complete[1], complete[1].to_string());
    assert_eq!(scheduler.reports().await, live);

    assert_eq!(world.event().await, SessionEvent::Up);
    assert!(world.session.is_up());
    assert!((NOW..NOW + 10).contains(&world.clock.now()));
}

#[tokio::test]
async fn a_hello_is_signed_where_the_scheduler_states_that_it_reads_it_and_is_the_old_one_elsewhere() {
    let mut world = World::new(FakeInventory::default()).await;
    let mut scheduler = world.accept().await;
    let hello = scheduler
        .hello_with(vec![feature::SIGNED_IDENTITY.into(), "another".into()])
        .await;
    assert!(hello.is_signed(NONCE) && !hello.is_signed(b"another nonce"));
    assert!(key().join_key().peer_role().verify(&hello.claim(NONCE), &hello.proof));
    assert_eq!(hello.public_key, node_key().public().as_bytes());
    assert_eq!(
        (&hello.host_name[..], &hello.release[..]),
        ("board-7", env!("CARGO_PKG_VERSION"))
    );
    drop(scheduler);

    let mut old = world.accept().await;
    let hello = old.hello().await;
    assert_eq!(hello.node, node_key().id().0, "one id for every scheduler");
    assert_eq!((hello.public_key, hello.signature), (Vec::new(), Vec::new()));
    assert_eq!((hello.host_name, hello.release), (String::new(), String::new()));
}

#[tokio::test]
async fn a_hello_states_the_cap_that_the_daemon_has_then() {
    let mut world = World::new(FakeInventory::default()).await;
    for cap in [None, Some(5_000_000), Some(8_000_000)] {
        world.limiter.set_rate(cap);
        let mut scheduler = world.accept().await;
        let hello = scheduler.hello_with(vec![feature::SIGNED_IDENTITY.into()]).await;
        let stated = hello.rates.map(|rates| (rates.upload, rates.download, rates.total));
        assert_eq!(stated, cap.map(|total| (0, 0, total)));
    }
    world.limiter.set_rate(Some(9_000_000));
    assert_eq!(
        world.accept().await.hello().await.rates,
        None,
        "an old scheduler is told nothing new"
    );
}

#[tokio::test]
async fn a_refused_daemon_does_not_try_again_at_once() {
    let mut world = World::new(FakeInventory::default()).await;
    let mut scheduler = world.accept().await;
    let hello = scheduler.hello().await;
    let other_site = AuthorityKey::from_seed([2; 32]).join_key().peer_role();
    assert!(!other_site.verify(&hello.claim(NONCE), &hello.proof));
    let reason = "the join.key does not fit".into();
    scheduler.order([Order::Refused(wire::Refused { reason })]).await;
    drop(scheduler);
    assert!(timeout(Duration::from_secs(1), world.sessions.recv()).await.is_err());
    assert!(!world.session.is_up());
    assert!(world.events.try_recv().is_err());
}

#[tokio::test]
async fn a_silent_scheduler_is_down_at_once_and_up_when_it_speaks() {
    let mut world = World::new(FakeInventory::default()).await;
    let mut scheduler = world.accept().await;
    scheduler.welcome().await;
    assert_eq!(world.event().await, SessionEvent::Up);
    let spoken = Instant::now();
    assert_eq!(world.event().await, SessionEvent::Down);
    assert!(
        (900..1500).contains(&spoken.elapsed().as_millis()),
        "{:?}",
        spoken.elapsed()
    );
    assert!(!world.session.is_up());

    let revoked = wire::Revoked {
        digest: Digest::of(b"blob").to_string(),
        fill: 3,
    };
    scheduler.order([Order::Revoked(revoked)]).await;
    assert_eq!(world.event().await, SessionEvent::Up);
    assert!(matches!(world.event().await, SessionEvent::Revoked { fill, .. } if fill.0 == 3));
    assert!(world.session.is_up());

    let spoken = Instant::now();
    assert_eq!(world.event().await, SessionEvent::Down);
    let next = world.accept().await;
    assert!(
        (4800..6500).contains(&spoken.elapsed().as_millis()),
        "{:?}",
        spoken.elapsed()
    );
    drop(next);
}

#[tokio::test]
async fn heartbeats_alone_keep_a_session_up_on_both_sides() {
    let mut world = World::new(FakeInventory::default()).await;
    let mut scheduler = world.accept().await;
    scheduler.welcome().await;
    scheduler.inventory().await;
    assert_eq!(world.event().await, SessionEvent::Up);
    let start = Instant::now();
    for _ in 0..5 {
        scheduler.order([]).await;
        assert_eq!(scheduler.message().await, Some(Vec::new()));
    }
    assert!(
        (2300..3000).contains(&start.elapsed().as_millis()),
        "{:?}",
        start.elapsed()
    );
    assert!(world.events.try_recv().is_err());
    assert!(world.session.is_up());
}

#[tokio::test]
async fn a_new_connection_tells_everything_again() {
    let blob = Digest::of(b"blob");
    let inventory = FakeInventory {
        complete: vec![blob],
        live: Mutex::new(vec![want(&blob)]),
    };
    let mut world = World::new(inventory).await;
    for incarnation in 40..43 {
        let mut scheduler = world.accept().await;
        assert_eq!(scheduler.welcome().await.incarnation, incarnation);
        assert_eq!(scheduler.inventory().await[0].complete, [blob.to_string()]);
        assert_eq!(scheduler.reports().await, [want(&blob)]);
        assert_eq!(world.event().await, SessionEvent::Up);
        drop(scheduler);
        assert_eq!(world.event().await, SessionEvent::Down);
        // Dropped: the inventory makes up for it.
        world.session.report(want(&Digest::of(b"lost")));
    }
}

#[tokio::test]
async fn pieces_that_land_together_are_one_report() {
    let mut world = World::new(FakeInventory::default()).await;
    let mut scheduler = world.accept().await;
    scheduler.welcome().await;
    scheduler.inventory().await;
    assert_eq!(world.event().await, SessionEvent::Up);
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
    let start = Instant::now();
    for piece in 0..100 {
        world.session.report(have(&a, piece, 1));
        world.session.report(have(&b, piece * 2, 1));
    }
    let reports = scheduler.reports().await;
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    assert_eq!(reports.len(), 101);
    assert_eq!(reports[0], have(&a, 0, 100));
    assert_eq!(reports[1], have(&b, 0, 1));
}

#[tokio::test]
async fn reports_that_the_scheduler_does_not_read_cost_only_the_connection() {
    let mut world = World::new(FakeInventory::default()).await;
    let mut scheduler = world.accept().await;
    scheduler.welcome().await;
    scheduler.inventory().await;
    assert_eq!(world.event().await, SessionEvent::Up);
    let count = u32::try_from(HAVE_PIECES_MAX).unwrap();
    for index in 0..80 {
        world.session.report(have(&Digest::of(b"a"), index * 2 * count, count));
    }
    assert_eq!(world.event().await, SessionEvent::Down);
    let mut again = world.accept().await;
    assert_eq!(again.welcome().await.incarnation, 41);
    again.inventory().await;
    assert_eq!(world.event().await, SessionEvent::Up);
    world.session.report(want(&Digest::of(b"b")));
    assert_eq!(again.reports().await, [want(&Digest::of(b"b"))]);
}

#[tokio::test]
async fn malformed_orders_are_ignored_and_the_others_carried_out() {
    let mut world = World::new(FakeInventory::default()).await;
    let mut scheduler = world.accept().await;
    scheduler.welcome().await;
    assert_eq!(world.event().await, SessionEvent::Up);
    let digest = Digest::of(b"blob");
    let describe = |digest: String| Order::Describe(wire::Describe { digest });
    let refused = wire::WantRefused {
        digest: digest.to_string(),
        reason: "expired".into(),
    };
    scheduler
        .order([
            describe("sha256:short".into()),
            Order::Lease(wire::Lease::default()),
            describe(digest.to_string()),
            Order::Cancel(wire::Cancel { lease: 5 }),
            Order::WantRefused(refused),
        ])
        .await;
    assert_eq!(world.event().await, SessionEvent::Describe(digest));
    assert_eq!(world.event().await, SessionEvent::Cancel(5));
    let reason = "expired".into();
    assert_eq!(world.event().await, SessionEvent::WantRefused { digest, reason });
    assert!(world.session.is_up());
}

#[tokio::test]
async fn a_listener_that_is_behind_is_disconnected() {
    let mut world = World::new(FakeInventory::default()).await;
    let mut scheduler = world.accept().await;
    scheduler.welcome().await;
    scheduler.inventory().await;
    scheduler
        .order((0..3000).map(|lease| Order::Cancel(wire::Cancel { lease })))
        .await;
    while scheduler.message().await.is_some() {}
    assert!(!world.session.is_up());
    assert_eq!(world.event().await, SessionEvent::Up);
    assert_eq!(world.event().await, SessionEvent::Cancel(0));
}

#[tokio::test]
async fn a_scheduler_of_another_version_is_not_spoken_to() {
    let mut world = World::new(FakeInventory::default()).await;
    let mut scheduler = world.accept().await;
    let challenge = wire::Challenge {
        nonce: NONCE.to_vec(),
        version_min: 2,
        version_max: 3,
        features: Vec::new(),
    };
    scheduler.order([Order::Challenge(challenge)]).await;
    assert_eq!(scheduler.message().await, None);
    assert!(!world.session.is_up());
}
