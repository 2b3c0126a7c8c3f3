//! The scheduler over real connections: which daemons are admitted, what each is told, and how misbehaving ones are treated.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use piecemeal_proto::{
    AuthorityKey, Digest, FillId, Grant, NodeId, NodeKey, PieceMap, RoleKey, Ticket,
    wire::{self, HashAlgorithm, Role, feature, order::Order, report::Report, scheduler_client::SchedulerClient},
};
use piecemeal_scheduler::{Scheduler, SchedulerConfig, StartSchedulerError};
use prometheus_client::{encoding::text::encode, registry::Registry};
use proptest::prelude::*;
use prost::Message as _;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Endpoint};

const MIRROR: NodeId = NodeId([9; 16]);
const PEER: NodeId = NodeId([1; 16]);
const FILL: FillId = FillId(7);
const PIECE_BYTES: u64 = 256 * 1024;
const PIECES: u32 = 4;
/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_peer_of_another_site_is_refused_and_told_what_to_do() {
    let site = Site::start().await;
    let stranger = AuthorityKey::from_seed([8; 32]).join_key().peer_role();
    let mut line = site.dial().await;
    line.hello(PEER, Role::Peer, &stranger, |_| {}).await;
    let reason = line.refusal().await;
    assert!(reason.contains("join.key") && reason.contains("keygen"), "{reason}");
    assert!(site.metrics().contains(r#"refused_total{reason="proof"} 1"#));
}

#[tokio::test]
async fn a_mirrors_role_cannot_be_taken_with_a_join_key() {
    let site = Site::start().await;
    let mut line = site.dial().await;
    line.hello(MIRROR, Role::Mirror, &site.peer_key(), |_| {}).await;
    let reason = line.refusal().await;
    assert!(reason.contains("authority.key"), "{reason}");

    // Nor with a proof that was made for a peer.
    let mut line = site.dial().await;
    line.hello(MIRROR, Role::Peer, &site.peer_key(), |hello| {
        hello.role = Role::Mirror.into()
    })
    .await;
    line.refusal().await;
}

#[tokio::test]
async fn an_overheard_proof_is_refused_on_another_connection() {
    let site = Site::start().await;
    let (first, mut second) = (site.dial().await, site.dial().await);
    assert_ne!(first.nonce, second.nonce);
    let heard = signed_hello(PEER, Role::Peer, &site.peer_key(), &first.nonce);
    second.tell(Report::Hello(heard)).await;
    second.refusal().await;
}

#[tokio::test]
async fn a_version_that_is_not_spoken_is_refused() {
    let site = Site::start().await;
    for (min, max) in [(0, 0), (2, 3), (2, 0)] {
        let mut line = site.dial().await;
        line.hello(PEER, Role::Peer, &site.peer_key(), |hello| {
            (hello.version_min, hello.version_max) = (min, max);
        })
        .await;
        let reason = line.refusal().await;
        assert!(reason.contains("version 1") && reason.contains("upgrade"), "{reason}");
    }
}

#[tokio::test]
async fn a_connection_that_does_not_begin_with_a_hello_is_refused() {
    let site = Site::start().await;
    let mut line = site.dial().await;
    line.tell(Report::Unwant(wire::Unwant::default())).await;
    assert!(line.refusal().await.contains("hello"));

    let mut silent = site.dial().await;
    assert!(silent.refusal().await.contains("no hello"));
}

#[tokio::test]
async fn an_impossible_hello_is_refused() {
    let site = Site::start().await;
    let wrong: [fn(&mut wire::Hello); 4] = [
        |hello| hello.node.truncate(15),
        |hello| hello.role = 77,
        |hello| hello.piece_port = 0,
        |hello| hello.pool = "p".repeat(1000),
    ];
    for spoil in wrong {
        let mut line = site.dial().await;
        let mut hello = wire::Hello {
            node: PEER.0.to_vec(),
            role: Role::Peer.into(),
            incarnation: 1,
            version_min: 1,
            version_max: 1,
            piece_port: 1,
            ..wire::Hello::default()
        };
        spoil(&mut hello);
        hello.proof = site.peer_key().prove(&hello.claim(&line.nonce)).to_vec();
        line.tell(Report::Hello(hello)).await;
        line.refusal().await;
    }
}

#[tokio::test]
async fn a_welcome_tells_the_clock_and_the_address() {
    let site = Site::start().await;
    let mut line = site.dial().await;
    line.hello(PEER, Role::Peer, &site.peer_key(), |_| {}).await;
    let Order::Welcome(welcome) = line.next().await.unwrap() else {
        panic!("no welcome");
    };
    assert_eq!(
        (welcome.version, &welcome.observed_ip[..]),
        (wire::VERSION, "127.0.0.1")
    );
    assert!(welcome.unix_seconds.abs_diff(now()) < 5);
}

#[tokio::test]
async fn a_want_is_refused_unless_its_grant_is_for_this_node_and_blob_and_time() {
    let site = Site::start().await;
    let mut peer = site.peer(PEER).await;
    let blob = Digest::of(b"blob");
    let granted = |change: fn(&mut Grant)| {
        let mut grant = grant(PEER, blob);
        change(&mut grant);
        grant
    };
    let stranger = AuthorityKey::from_seed([8; 32]);
    let ticket = Ticket {
        node: PEER,
        digest: blob,
        expires: now() + 60,
    };
    let wrong = [
        (granted(|grant| grant.node = MIRROR).sign(&site.key), "another node"),
        (
            granted(|grant| grant.digest = Digest::of(b"other")).sign(&site.key),
            "another blob",
        ),
        (granted(|grant| grant.expires = now()).sign(&site.key), "expired"),
        (granted(|_| {}).sign(&stranger), "not signed"),
        (ticket.sign(&site.key), "malformed"),
        (String::new(), "not signed"),
        ("!".into(), "malformed"),
    ];
    for (text, expected) in wrong {
        peer.tell(Report::Want(want(&blob, text.into_bytes()))).await;
        let Order::WantRefused(refused) = peer.next().await.unwrap() else {
            panic!("not refused: {expected}");
        };
        assert_eq!(refused.digest, blob.to_string());
        assert!(refused.reason.contains(expected), "{}", refused.reason);
    }
    assert_eq!(site.scheduler.status().await["swarms"], serde_json::json!([]));
    assert!(site.metrics().contains(r#"refused_total{reason="want"} 7"#));
}

#[tokio::test]
async fn a_lease_carries_ticket_hashes_and_addresses() {
    let site = Site::start().await;
    let mut mirror = site.mirror(MIRROR).await;
    let mut peer = site.peer(PEER).await;
    let blob = Digest::of(b"blob");
    peer.tell(Report::Want(want(&blob, grant(PEER, blob).sign(&site.key).into())))
        .await;
    mirror.tell(Report::Have(have(&blob))).await;

    let mut tickets = Vec::new();
    let mut landed = 0;
    while landed < PIECES {
        let Order::Lease(lease) = peer.next().await.unwrap() else {
            continue;
        };
        assert_eq!((&lease.digest, lease.fill), (&blob.to_string(), FILL.0));
        assert_eq!(lease.hash_algorithm(), HashAlgorithm::Sha256);
        let hashes: Vec<u8> = (lease.first..lease.first + lease.count).flat_map(piece_hash).collect();
        assert_eq!(lease.hashes, hashes);
        let source = lease.source.unwrap();
        assert_eq!(
            (source.kind(), source.node_id()),
            (wire::SourceKind::Mirror, Some(MIRROR))
        );
        let address = wire::Address {
            ip: "127.0.0.1".into(),
            port: 65_002,
        };
        assert_eq!(source.addresses, [address]);
        tickets.push(lease.ticket);
        landed += lease.count;
        peer.tell(Report::LeaseEnded(wire::LeaseEnded {
            lease: lease.lease,
            outcome: wire::Outcome::Done.into(),
            piece: 0,
        }))
        .await;
    }
    tickets.dedup();
    let [ticket] = &tickets[..] else {
        panic!("one ticket serves all leases of a blob");
    };
    let ticket = Ticket::check(str::from_utf8(ticket).unwrap(), &site.key.public(), now()).unwrap();
    assert_eq!((ticket.node, ticket.digest), (PEER, blob));
    assert!((12 * 60..=15 * 60).contains(&(ticket.expires - now())));

    site.eventually(|metrics| metrics.contains(r#"leases_ended_total{outcome="done"}"#))
        .await;
    let metrics = site.metrics();
    assert!(
        metrics.contains(r#"piecemeal_scheduler_leases_total{source="mirror"}"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"piecemeal_scheduler_sessions{role="mirror"} 1"#),
        "{metrics}"
    );
    let status = site.scheduler.status().await;
    assert_eq!(status["swarms"][0]["completion_percent"], 100, "{status:#}");
    assert_eq!(status["swarms"][0]["blob_bytes"], PIECE_BYTES * u64::from(PIECES));
    assert_eq!(status["members"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn what_comes_along_with_the_hello_counts() {
    let site = Site::start().await;
    let mut mirror = site.mirror(MIRROR).await;
    let blob = Digest::of(b"blob");
    mirror.tell(Report::Have(have(&blob))).await;
    let mut line = site.dial().await;
    let hello = signed_hello(PEER, Role::Peer, &site.peer_key(), &line.nonce);
    let want = want(&blob, grant(PEER, blob).sign(&site.key).into());
    line.send(vec![Report::Hello(hello), Report::Want(want)]).await;
    assert!(matches!(line.next().await, Ok(Order::Welcome(_))));
    while !matches!(line.next().await.unwrap(), Order::Lease(_)) {}
}

#[tokio::test]
async fn only_a_mirror_is_heard_on_whole_fills() {
    let site = Site::start().await;
    let mut peer = site.peer(PEER).await;
    let digest = Digest::of(b"blob").to_string();
    peer.tell(Report::Proven(wire::Proven { digest, fill: 7 })).await;
    site.eventually(|metrics| metrics.contains(r#"refused_total{reason="mirrors_only"} 1"#))
        .await;
}

#[tokio::test]
async fn a_node_that_connects_again_ends_its_older_session() {
    let site = Site::start().await;
    let mut older = site.peer(PEER).await;
    let mut newer = site.dial().await;
    newer
        .hello(PEER, Role::Peer, &site.peer_key(), |hello| hello.incarnation = 2)
        .await;
    assert!(matches!(newer.next().await, Ok(Order::Welcome(_))));
    assert_eq!(older.end().await.unwrap_err().code(), Code::Aborted);

    let mut oldest = site.peer_line(PEER).await;
    assert!(oldest.refusal().await.contains("incarnation"));
    assert_eq!(site.members().await, 1);
    assert!(site.metrics().contains(r#"sessions{role="peer"} 1"#));
}

#[tokio::test]
async fn a_peer_cannot_put_the_mirror_out_by_its_node_id() {
    let site = Site::start().await;
    let _mirror = site.mirror(MIRROR).await;
    let mut peer = site.dial().await;
    peer.hello(MIRROR, Role::Peer, &site.peer_key(), |hello| {
        hello.incarnation = u64::MAX
    })
    .await;
    peer.refusal().await;
    assert_eq!(site.scheduler.status().await["members"][0]["role"], "mirror");
}

#[tokio::test]
async fn a_node_that_signs_cannot_be_put_out_or_replaced_by_its_id_alone() {
    let site = Site::start().await;
    let key = NodeKey::from_seed([1; 32]);
    let mut node = site.signed_peer(&key, 1).await;
    let reason = site.claimed_line(key.id(), u64::MAX).await.refusal().await;
    assert!(reason.contains("signed"), "{reason}");
    // Nor by a signature of another key, an old one, or half of one.
    let other = NodeKey::from_seed([2; 32]);
    type Change = fn(&mut wire::Hello);
    let changes: [Change; 4] = [
        |hello| hello.public_key = NodeKey::from_seed([2; 32]).public().as_bytes().to_vec(),
        |hello| hello.sign(&NodeKey::from_seed([1; 32]), b"another nonce"),
        |hello| hello.signature.clear(),
        |hello| hello.public_key.clear(),
    ];
    for change in changes {
        let reason = site.signed_line(&key, 9, change).await.refusal().await;
        assert!(reason.contains("not signed by the node"), "{reason}");
    }
    let as_victim = |hello: &mut wire::Hello| hello.node = NodeKey::from_seed([1; 32]).id().0.to_vec();
    let reason = site.signed_line(&other, 9, as_victim).await.refusal().await;
    assert!(reason.contains("join.key"), "the proof names the node too: {reason}");

    // It is heard all the while, and its own reconnection counts as before.
    node.tell(Report::Want(want(&Digest::of(b"blob"), Vec::new()))).await;
    while !matches!(node.next().await.unwrap(), Order::WantRefused(_)) {}
    let mut again = site.signed_peer(&key, 2).await;
    assert_eq!(node.end().await.unwrap_err().code(), Code::Aborted);
    let status = site.scheduler.status().await;
    let member = &status["members"][0];
    assert_eq!(
        (&member["signed"], &member["host_name"], &member["release"]),
        (&true.into(), &"board-7".into(), &"0.2.0".into())
    );

    // While it is away its id is not to be had.
    drop(again.reports);
    while again.orders.message().await.is_ok_and(|message| message.is_some()) {}
    site.eventually(|metrics| metrics.contains(r#"sessions{role="peer"} 0"#))
        .await;
    let reason = site.claimed_line(key.id(), u64::MAX).await.refusal().await;
    assert!(reason.contains("signed"), "{reason}");
    site.signed_peer(&key, 3).await;
}

#[tokio::test]
async fn a_node_that_signs_puts_out_a_session_that_only_says_its_id() {
    let site = Site::start().await;
    let key = NodeKey::from_seed([1; 32]);
    // The scheduler has been restarted, and the thief was faster.
    let mut claimed = site.claimed_line(key.id(), u64::MAX).await;
    assert!(matches!(claimed.next().await, Ok(Order::Welcome(_))));
    site.signed_peer(&key, 1).await;
    assert_eq!(claimed.end().await.unwrap_err().code(), Code::Aborted);
    assert_eq!(site.members().await, 1);
}

#[tokio::test]
async fn a_signed_peer_cannot_put_the_mirror_out_and_a_mirror_needs_no_signature() {
    let site = Site::start().await;
    let key = NodeKey::from_seed([1; 32]);
    let _mirror = site.mirror(key.id()).await;
    site.signed_line(&key, u64::MAX, |_| {}).await.refusal().await;
    assert_eq!(site.scheduler.status().await["members"][0]["role"], "mirror");
}

#[tokio::test]
async fn a_daemon_of_the_last_release_is_let_in_beside_those_that_sign() {
    let site = Site::start().await;
    let mut line = site.dial().await;
    let features = [
        feature::SIGNED_IDENTITY,
        feature::PIECE_HASHES,
        feature::DROP,
        feature::CLIENT_STATE,
    ];
    assert_eq!(line.features, features);
    // What the last release wrote, proven for this challenge.
    let golden = include_bytes!("../../tests/golden/v1/hello.bin");
    let golden = wire::Reports::decode(&golden[..]).unwrap();
    let Some(Report::Hello(mut hello)) = golden.reports[0].report.clone() else {
        panic!("no hello");
    };
    hello.proof = site.peer_key().prove(&hello.claim(&line.nonce)).to_vec();
    line.tell(Report::Hello(hello)).await;
    assert!(matches!(line.next().await, Ok(Order::Welcome(_))));
    let _signed = site.signed_peer(&NodeKey::from_seed([1; 32]), 1).await;
    assert_eq!(site.members().await, 2);
}

#[tokio::test]
async fn a_node_that_is_shut_out_loses_its_session_and_gets_no_other_until_it_is_let_in_again() {
    let site = Site::start().await;
    let (key, other) = (NodeKey::from_seed([1; 32]), NodeKey::from_seed([2; 32]));
    let mut node = site.signed_peer(&key, 1).await;
    let mut bystander = site.signed_peer(&other, 1).await;
    let mut unsigned = site.peer(PEER).await;
    site.apply(&site.key, [key.id(), PEER]);
    for line in [&mut node, &mut unsigned] {
        assert_eq!(line.end().await.unwrap_err().code(), Code::PermissionDenied);
    }
    let reason = site.signed_line(&key, 2, |_| {}).await.refusal().await;
    assert!(reason.contains("shut out") && reason.contains("--revoke"), "{reason}");
    assert!(site.claimed_line(PEER, 9).await.refusal().await.contains("shut out"));
    assert!(site.metrics().contains(r#"refused_total{reason="revoked"} 2"#));
    bystander
        .tell(Report::Want(want(&Digest::of(b"blob"), Vec::new())))
        .await;
    while !matches!(bystander.next().await.unwrap(), Order::WantRefused(_)) {}

    site.apply(&site.key, []);
    site.eventually_admits(&key).await;
}

#[tokio::test]
async fn a_rotated_join_key_ends_what_the_one_before_admitted_when_its_time_is_over() {
    let site = Site::start().await;
    let (old_role, key) = (site.peer_key(), NodeKey::from_seed([1; 32]));
    let mut old = site.signed_peer(&key, 1).await;
    let mirror = site.mirror(MIRROR).await;
    let rotated = Arc::new(site.key.rotate_join(now() + 3).unwrap());
    site.apply(&rotated, []);
    // Both are let in for a while.
    let mut line = site.dial().await;
    line.hello(NodeId([2; 16]), Role::Peer, &rotated.join_key().peer_role(), |_| {})
        .await;
    assert!(matches!(line.next().await, Ok(Order::Welcome(_))));
    let mut late = site.peer(NodeId([3; 16])).await;
    let beating = tokio::spawn({
        let senders = [&old, &late, &line, &mirror].map(|line| line.reports.clone());
        async move {
            loop {
                for sender in &senders {
                    let _ = sender.send(wire::Reports::default()).await;
                }
                tokio::time::sleep(wire::HEARTBEAT).await;
            }
        }
    });
    for line in [&mut old, &mut late] {
        assert_eq!(line.end().await.unwrap_err().code(), Code::PermissionDenied);
    }
    let mut again = site.dial().await;
    again.hello(NodeId([3; 16]), Role::Peer, &old_role, |_| {}).await;
    assert!(again.refusal().await.contains("newest join.key"));
    assert_eq!(site.members().await, 2, "the mirror, and the peer with the new key");

    // Another site's key is no rotation of this one's.
    let foreign = Arc::new(AuthorityKey::from_seed([8; 32]));
    site.apply(&foreign, []);
    let mut stranger = site.dial().await;
    stranger
        .hello(NodeId([4; 16]), Role::Peer, &foreign.join_key().peer_role(), |_| {})
        .await;
    stranger.refusal().await;
    beating.abort();
}

#[tokio::test]
async fn a_daemon_that_does_not_read_is_cut_off_while_others_go_on() {
    let site = Site::start().await;
    let mut other = site.peer(NodeId([2; 16])).await;
    let deaf = site.peer(PEER).await;
    let reports = deaf.reports.clone();
    let flood = tokio::spawn(async move {
        let want = want(&Digest::of(b"blob"), b"no grant".to_vec());
        loop {
            let message = message(vec![Report::Want(want.clone()); 500]);
            if reports.send(message).await.is_err() {
                return;
            }
        }
    });
    let begun = Instant::now();
    while site.members().await != 1 {
        assert!(begun.elapsed() < PATIENCE, "it was not cut off");
        other.send(vec![]).await;
        assert_eq!(other.message().await.unwrap().orders, []);
    }
    assert!(site.metrics().contains(r#"sessions_ended_total{cause="behind"} 1"#));
    flood.abort();
}

#[tokio::test]
async fn a_daemon_that_falls_silent_is_forgotten() {
    let site = Site::start().await;
    let mut peer = site.peer(PEER).await;
    assert_eq!(peer.end().await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(site.members().await, 0);
}

#[tokio::test]
async fn an_idle_stream_has_a_heartbeat() {
    let site = Site::start().await;
    let mut peer = site.peer(PEER).await;
    let begun = Instant::now();
    for _ in 0..3 {
        assert_eq!(peer.message().await.unwrap(), wire::Orders::default());
    }
    assert!(begun.elapsed() >= 2 * wire::HEARTBEAT);
}

#[tokio::test]
async fn a_message_of_too_many_reports_ends_the_session() {
    let site = Site::start().await;
    let mut peer = site.peer(PEER).await;
    peer.send(vec![Report::Unwant(wire::Unwant::default()); 5000]).await;
    assert_eq!(peer.end().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_daemon_that_hangs_up_is_gone_from_the_status() {
    let site = Site::start().await;
    let peer = site.peer(PEER).await;
    assert_eq!(site.scheduler.status().await["members"][0]["node"], PEER.to_string());
    drop(peer);
    site.eventually(|metrics| metrics.contains(r#"sessions{role="peer"} 0"#))
        .await;
}

#[tokio::test]
async fn shutdown_ends_every_stream_and_frees_the_port() {
    let site = Site::start().await;
    let (mut peer, mut stranger) = (site.peer(PEER).await, site.dial().await);
    let address = site.scheduler.local_addr();
    site.scheduler.shutdown().await;
    assert_eq!(peer.end().await.unwrap_err().code(), Code::Unavailable);
    assert!(stranger.end().await.is_err());
    Site::listen(address, site.key).await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let site = Site::start().await;
    let address = site.scheduler.local_addr();
    let error = Site::listen(address, site.key).await.err().unwrap();
    assert!(matches!(error, StartSchedulerError::AddressInUse { .. }));
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn a_running_scheduler_is_ready() {
    let site = Site::start().await;
    let readiness = site.scheduler.readiness().await;
    assert!(readiness.iter().all(|(_, problem)| problem.is_none()), "{readiness:?}");
}

#[test]
fn nothing_that_an_admitted_daemon_says_stops_the_scheduler() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = runtime.block_on(Site::start());
    let reports = prop::collection::vec(prop::collection::vec(any_report(), 0..20), 1..10);
    proptest!(ProptestConfig::with_cases(64), |(mirror in any::<bool>(), messages in reports)| {
        runtime.block_on(async {
            let mut line = if mirror { site.mirror(MIRROR).await } else { site.peer(PEER).await };
            for reports in messages {
                let grants = reports.into_iter().map(|report| site.grant_some(report));
                line.send(grants.collect()).await;
            }
            // Still there, and heard: one more want is answered.
            line.tell(Report::Want(wire::Want { have: vec![1], ..want(&Digest::of(b"last"), vec![0xff]) })).await;
            if !mirror {
                while !matches!(line.next().await, Ok(Order::WantRefused(refused)) if refused.digest == Digest::of(b"last").to_string()) {}
            }
            drop(line);
            site.eventually(|metrics| metrics.contains(r#"sessions{role="mirror"} 0"#) && metrics.contains(r#"sessions{role="peer"} 0"#)).await;
        });
        prop_assert!(site.metrics().contains("brain_restarts_total 0"));
    });
}

#[test]
fn no_hello_stops_the_scheduler() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let site = runtime.block_on(Site::start());
    proptest!(ProptestConfig::with_cases(64), |(mut hello in any_hello(), proven in any::<bool>())| {
        runtime.block_on(async {
            let mut line = site.dial().await;
            if proven {
                hello.proof = site.peer_key().prove(&hello.claim(&line.nonce)).to_vec();
            }
            line.tell(Report::Hello(hello)).await;
            assert!(matches!(line.next().await, Ok(Order::Welcome(_) | Order::Refused(_))));
        });
        prop_assert!(site.metrics().contains("brain_restarts_total 0"));
    });
}

/// A scheduler on loopback.
struct Site {
    key: Arc<AuthorityKey>,
    scheduler: Scheduler,
    registry: Registry,
}

impl Site {
    async fn start() -> Self {
        let key = Arc::new(AuthorityKey::from_seed([3; 32]));
        let scheduler = Self::listen(([127, 0, 0, 1], 0).into(), Arc::clone(&key))
            .await
            .unwrap();
        let mut registry = Registry::default();
        scheduler.register_metrics(&mut registry);
        Self {
            key,
            scheduler,
            registry,
        }
    }

    async fn listen(
        listen: std::net::SocketAddr,
        authority_key: Arc<AuthorityKey>,
    ) -> Result<Scheduler, StartSchedulerError> {
        Scheduler::start(SchedulerConfig {
            listen,
            address_share: piecemeal_http::Share::default(),
            authority_key,
            revoked: HashSet::new(),
        })
        .await
    }

    fn peer_key(&self) -> RoleKey {
        self.key.join_key().peer_role()
    }

    /// A connection whose challenge has been read. Its windows are small, so that a daemon that does not read is found out.
    async fn dial(&self) -> Line {
        let channel = Endpoint::from_shared(format!("http://{}", self.scheduler.local_addr()))
            .unwrap()
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(65_535)
            .connect()
            .await
            .unwrap();
        let (reports, outgoing) = mpsc::channel(4);
        let orders = SchedulerClient::new(channel)
            .session(ReceiverStream::new(outgoing))
            .await
            .unwrap();
        let mut line = Line {
            reports,
            orders: orders.into_inner(),
            unread: Vec::new(),
            nonce: Vec::new(),
            features: Vec::new(),
        };
        let Order::Challenge(challenge) = line.next().await.unwrap() else {
            panic!("the scheduler speaks first");
        };
        assert_eq!(challenge.nonce.len(), 32);
        line.nonce = challenge.nonce;
        line.features = challenge.features;
        line
    }

    async fn peer_line(&self, node: NodeId) -> Line {
        let mut line = self.dial().await;
        line.hello(node, Role::Peer, &self.peer_key(), |_| {}).await;
        line
    }

    async fn peer(&self, node: NodeId) -> Line {
        let mut line = self.peer_line(node).await;
        assert!(matches!(line.next().await, Ok(Order::Welcome(_))));
        line
    }

    /// As a daemon of this release says hello, changed by `change` after it was signed.
    async fn signed_line(&self, key: &NodeKey, incarnation: u64, change: impl FnOnce(&mut wire::Hello)) -> Line {
        let mut line = self.dial().await;
        let mut hello = wire::Hello {
            incarnation,
            host_name: "board-7".into(),
            release: "0.2.0".into(),
            ..signed_hello(key.id(), Role::Peer, &self.peer_key(), &line.nonce)
        };
        hello.proof = self.peer_key().prove(&hello.claim(&line.nonce)).to_vec();
        hello.sign(key, &line.nonce);
        change(&mut hello);
        line.tell(Report::Hello(hello)).await;
        line
    }

    async fn signed_peer(&self, key: &NodeKey, incarnation: u64) -> Line {
        let mut line = self.signed_line(key, incarnation, |_| {}).await;
        assert!(matches!(line.next().await, Ok(Order::Welcome(_))));
        line
    }

    /// As any holder of the join.key may say it of any node.
    async fn claimed_line(&self, node: NodeId, incarnation: u64) -> Line {
        let mut line = self.dial().await;
        line.hello(node, Role::Peer, &self.peer_key(), |hello| {
            hello.incarnation = incarnation
        })
        .await;
        line
    }

    fn apply(&self, key: &Arc<AuthorityKey>, revoked: impl IntoIterator<Item = NodeId>) {
        self.scheduler.apply(&SchedulerConfig {
            address_share: piecemeal_http::Share::default(),
            listen: self.scheduler.local_addr(),
            authority_key: Arc::clone(key),
            revoked: revoked.into_iter().collect(),
        });
    }

    async fn mirror(&self, node: NodeId) -> Line {
        let mut line = self.dial().await;
        line.hello(node, Role::Mirror, &self.key.mirror_role(), |_| {}).await;
        assert!(matches!(line.next().await, Ok(Order::Welcome(_))));
        line
    }

    /// Replaces the grant of every other want by one that holds.
    fn grant_some(&self, report: Report) -> Report {
        match report {
            Report::Want(want) if want.grant.len() % 2 == 0 => {
                let digest = want.digest.parse().unwrap_or(Digest::of(b""));
                let map = PieceMap::new(want.blob_bytes, want.piece_bytes).unwrap_or(PieceMap::for_blob(1000).unwrap());
                let grant = Grant {
                    map,
                    fill: FillId(want.fill),
                    ..grant(PEER, digest)
                };
                Report::Want(wire::Want {
                    grant: grant.sign(&self.key).into(),
                    ..want
                })
            }
            other => other,
        }
    }

    async fn members(&self) -> usize {
        self.scheduler.status().await["members"].as_array().unwrap().len()
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }

    async fn eventually_admits(&self, key: &NodeKey) {
        let begun = Instant::now();
        loop {
            let mut line = self.signed_line(key, 9, |_| {}).await;
            if matches!(line.next().await, Ok(Order::Welcome(_))) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "it is still not admitted");
        }
    }

    async fn eventually(&self, condition: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        while !condition(&self.metrics()) {
            assert!(begun.elapsed() < PATIENCE, "{}", self.metrics());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A daemon's end of a session.
struct Line {
    reports: mpsc::Sender<wire::Reports>,
    orders: Streaming<wire::Orders>,
    unread: Vec<Order>,
    nonce: Vec<u8>,
    features: Vec<String>,
}

impl Line {
    async fn tell(&mut self, report: Report) {
        self.send(vec![report]).await;
    }

    async fn send(&mut self, reports: Vec<Report>) {
        self.reports.send(message(reports)).await.unwrap();
    }

    /// Says hello with a proof by `key`, changed by `change` after it was proven.
    async fn hello(&mut self, node: NodeId, role: Role, key: &RoleKey, change: impl FnOnce(&mut wire::Hello)) {
        let mut hello = signed_hello(node, role, key, &self.nonce);
        let incarnation = hello.incarnation;
        change(&mut hello);
        if hello.incarnation != incarnation {
            hello.proof = key.prove(&hello.claim(&self.nonce)).to_vec();
        }
        self.tell(Report::Hello(hello)).await;
    }

    async fn message(&mut self) -> Result<wire::Orders, Status> {
        let message = timeout(PATIENCE, self.orders.message())
            .await
            .expect("the scheduler is silent")?;
        message.ok_or_else(|| Status::ok("the stream ended"))
    }

    /// The next order; heartbeats are passed over.
    async fn next(&mut self) -> Result<Order, Status> {
        while self.unread.is_empty() {
            let orders = self.message().await?.orders;
            self.unread = orders.into_iter().rev().filter_map(|order| order.order).collect();
        }
        Ok(self.unread.pop().unwrap())
    }

    /// How the stream ends, whatever comes before.
    async fn end(&mut self) -> Result<(), Status> {
        loop {
            self.next().await?;
        }
    }

    /// The reason of a refusal, after which the stream ends.
    async fn refusal(&mut self) -> String {
        let order = self.next().await.unwrap();
        let Order::Refused(refused) = order else {
            panic!("{order:?}");
        };
        assert_eq!(self.end().await.unwrap_err().code(), Code::Ok);
        refused.reason
    }
}

fn signed_hello(node: NodeId, role: Role, key: &RoleKey, nonce: &[u8]) -> wire::Hello {
    let mut hello = wire::Hello {
        version_min: wire::VERSION,
        version_max: wire::VERSION + 1,
        role: role.into(),
        node: node.0.to_vec(),
        incarnation: 1,
        pool: "pool".into(),
        piece_port: 65_002,
        ..wire::Hello::default()
    };
    hello.proof = key.prove(&hello.claim(nonce)).to_vec();
    hello
}

fn message(reports: Vec<Report>) -> wire::Reports {
    let reports = reports.into_iter().map(|report| wire::Report { report: Some(report) });
    wire::Reports {
        reports: reports.collect(),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn grant(node: NodeId, digest: Digest) -> Grant {
    Grant {
        node,
        digest,
        map: PieceMap::new(PIECE_BYTES * u64::from(PIECES), PIECE_BYTES).unwrap(),
        fill: FILL,
        expires: now() + 60,
    }
}

fn want(digest: &Digest, grant: Vec<u8>) -> wire::Want {
    wire::Want {
        digest: digest.to_string(),
        grant,
        fill: FILL.0,
        blob_bytes: PIECE_BYTES * u64::from(PIECES),
        piece_bytes: PIECE_BYTES,
        have: Vec::new(),
        ..wire::Want::default()
    }
}

fn have(digest: &Digest) -> wire::Have {
    wire::Have {
        digest: digest.to_string(),
        fill: FILL.0,
        blob_bytes: PIECE_BYTES * u64::from(PIECES),
        piece_bytes: PIECE_BYTES,
        first: 0,
        count: PIECES,
        hash_algorithm: HashAlgorithm::Sha256.into(),
        hashes: (0..PIECES).flat_map(piece_hash).collect(),
    }
}

fn piece_hash(piece: u32) -> [u8; 32] {
    let Digest::Sha256(hash) = Digest::of(&piece.to_be_bytes()) else {
        unreachable!("the canonical digest");
    };
    hash
}

/// Few enough blobs that reports meet each other, and some that are none.
fn any_digest() -> impl Strategy<Value = String> {
    let blob = (0_u8..3).prop_map(|blob| Digest::of(&[blob]).to_string());
    let long = Just(Digest::Sha512([7; 64]).to_string());
    prop_oneof![8 => blob, 1 => long, 1 => ".{0,80}"]
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..140)
}

fn any_count() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0_u32..9, 1 => 0_u32..40_000, 1 => any::<u32>()]
}

fn any_size() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(1000), 4 => Just(100), 1 => 0_u64..5000, 1 => any::<u64>()]
}

fn any_fill() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0_u64..3, 1 => any::<u64>()]
}

fn any_report() -> impl Strategy<Value = Report> {
    let want = (
        any_digest(),
        any_bytes(),
        any_fill(),
        any_size(),
        any_size(),
        any_bytes(),
        any::<(u32, u32)>(),
    );
    let want = want.prop_map(
        |(digest, grant, fill, blob_bytes, piece_bytes, have, (window_first, window_count))| {
            Report::Want(wire::Want {
                digest,
                grant,
                fill,
                blob_bytes,
                piece_bytes,
                have: if have.len() > 70 { Vec::new() } else { have },
                window_first,
                window_count,
                ..wire::Want::default()
            })
        },
    );
    let have = (
        any_digest(),
        any_fill(),
        any_size(),
        any_size(),
        any_count(),
        any_count(),
        0_i32..3,
        any::<bool>(),
    );
    let have = have.prop_map(
        |(digest, fill, blob_bytes, piece_bytes, first, count, hash_algorithm, hashed)| {
            let hashes = if hashed { count.min(20_000) as usize * 32 } else { 0 };
            Report::Have(wire::Have {
                digest,
                fill,
                blob_bytes,
                piece_bytes,
                first,
                count,
                hash_algorithm,
                hashes: vec![5; hashes],
            })
        },
    );
    let ended = (any::<u64>(), 0_i32..9, any_count());
    let ended =
        ended.prop_map(|(lease, outcome, piece)| Report::LeaseEnded(wire::LeaseEnded { lease, outcome, piece }));
    let inventory = (prop::collection::vec(any_digest(), 0..9), any::<bool>());
    prop_oneof![
        4 => want,
        4 => have,
        1 => ended,
        1 => any_hello().prop_map(Report::Hello),
        1 => any_digest().prop_map(|digest| Report::Unwant(wire::Unwant { digest })),
        1 => any_digest().prop_map(|digest| Report::Lost(wire::Lost { digest })),
        1 => any_digest().prop_map(|digest| Report::Complete(wire::Complete { digest })),
        1 => (any_digest(), any_fill()).prop_map(|(digest, fill)| Report::Proven(wire::Proven { digest, fill })),
        1 => (any_digest(), any_fill()).prop_map(|(digest, fill)| Report::Revoke(wire::Revoke { digest, fill })),
        1 => (any_digest(), any_count()).prop_map(|(digest, piece)| Report::Waiting(wire::Waiting { digest, piece })),
        1 => inventory.prop_map(|(complete, last)| Report::Inventory(wire::Inventory { complete, last })),
    ]
}

fn any_hello() -> impl Strategy<Value = wire::Hello> {
    let node = prop_oneof![4 => Just(PEER.0.to_vec()), 1 => any_bytes()];
    let addresses = prop::collection::vec((prop_oneof![Just("::".into()), ".{0,20}"], any_count()), 0..20);
    let who = (0_u32..3, 0_u32..3, 0_i32..4, node, any::<u64>());
    let place = (".{0,9}", ".{0,9}", addresses, any_count(), any_bytes());
    (who, place).prop_map(|((version_min, version_max, role, node, incarnation), place)| {
        let (pool, zone, addresses, piece_port, proof) = place;
        wire::Hello {
            version_min,
            version_max,
            features: vec![pool.clone()],
            role,
            node,
            incarnation,
            pool,
            zone,
            addresses: addresses
                .into_iter()
                .map(|(ip, port)| wire::Address { ip, port })
                .collect(),
            piece_port,
            proof,
            may_use_upstream: true,
            ..wire::Hello::default()
        }
    })
}
