//! Sessions when they are nearly all taken: one host's identities, however many, leave some to other hosts.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::{net::IpAddr, sync::Arc, time::Duration};

use piecemeal_http::Share;
use piecemeal_proto::{
    AuthorityKey, NodeId,
    wire::{self, Role, order::Order, report::Report, scheduler_client::SchedulerClient},
};
use piecemeal_scheduler::{Scheduler, SchedulerConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Endpoint};

/// By these a scheduler takes 96 sessions, and shares count from 84 on.
const DESCRIPTORS: u64 = 160;
const SESSIONS: usize = 96;
const NEAR: usize = 84;
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn many_identities_of_one_host_leave_sessions_to_others() {
    let limit = getrlimit(Resource::Nofile);
    let low = Rlimit {
        current: Some(DESCRIPTORS),
        ..limit
    };
    setrlimit(Resource::Nofile, low).unwrap();
    let key = Arc::new(AuthorityKey::from_seed([1; 32]));
    let config = SchedulerConfig {
        revoked: std::collections::HashSet::new(),
        listen: "0.0.0.0:0".parse().unwrap(),
        address_share: Share::default(),
        authority_key: Arc::clone(&key),
    };
    let scheduler = Scheduler::start(config).await.unwrap();
    // Both ends of each connection are in this process.
    setrlimit(Resource::Nofile, limit).unwrap();
    let port = scheduler.local_addr().port();

    let mut crowd = Vec::new();
    for node in 0..SESSIONS {
        if let Ok(orders) = join(&key, port, "127.0.1.1", node).await {
            crowd.push(orders);
        }
    }
    assert_eq!(crowd.len(), NEAR);
    // More than are free: the crowd's are ended for them, the longest first.
    let mut others = Vec::new();
    for node in 0..SESSIONS - NEAR + 4 {
        let host = format!("127.0.1.{}", node + 2);
        others.push(join(&key, port, &host, 1000 + node).await.unwrap());
    }
    let ended = timeout(PATIENCE, end_of(&mut crowd[0])).await.unwrap();
    assert_eq!(ended.code(), Code::ResourceExhausted);
    let refused = join(&key, port, "127.0.1.1", 2000).await.unwrap_err();
    assert!(refused.message().contains("--address-share"), "{refused}");
}

/// Why a session ends; heartbeats may come before.
async fn end_of(orders: &mut Streaming<wire::Orders>) -> Status {
    loop {
        match orders.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a reason"),
            Err(ended) => return ended,
        }
    }
}

/// A peer with a session in force, which it keeps up.
async fn join(key: &AuthorityKey, port: u16, from: &str, node: usize) -> Result<Streaming<wire::Orders>, Status> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    let from: IpAddr = from.parse().unwrap();
    let channel = endpoint.local_address(Some(from)).connect().await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let (reports, outgoing) = mpsc::channel(4);
    let session = SchedulerClient::new(channel)
        .session(ReceiverStream::new(outgoing))
        .await;
    let mut orders = session?.into_inner();
    let Some(Order::Challenge(challenge)) = next(&mut orders).await? else {
        panic!("no challenge");
    };
    let mut id = [0; 16];
    id[..8].copy_from_slice(&node.to_be_bytes());
    let mut hello = wire::Hello {
        version_min: wire::VERSION,
        version_max: wire::VERSION,
        role: Role::Peer.into(),
        node: NodeId(id).0.to_vec(),
        incarnation: 1,
        piece_port: 65_002,
        ..wire::Hello::default()
    };
    let proof = key.join_key().peer_role().prove(&hello.claim(&challenge.nonce));
    hello.proof = proof.to_vec();
    let hello = wire::Report {
        report: Some(Report::Hello(hello)),
    };
    let _ = reports.send(wire::Reports { reports: vec![hello] }).await;
    tokio::spawn(async move {
        while reports.send(wire::Reports::default()).await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    match next(&mut orders).await? {
        Some(Order::Welcome(_)) => Ok(orders),
        other => panic!("no welcome: {other:?}"),
    }
}

async fn next(orders: &mut Streaming<wire::Orders>) -> Result<Option<Order>, Status> {
    let message = timeout(PATIENCE, orders.message()).await;
    let message = message.map_err(|_| Status::deadline_exceeded("no order"))??;
    Ok(message.and_then(|message| message.orders.into_iter().next()?.order))
}
