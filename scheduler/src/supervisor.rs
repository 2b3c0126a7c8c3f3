//! Supervisor of placement: runs a driver, and starts another with an empty brain when it fails.
//!
//! Invariant: after a failure every session ends, and the new brain learns everything again as daemons reconnect.

use std::sync::{Arc, atomic::AtomicU32};

use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::{admission::Admission, driver::Driver, input::Input, metrics::Metrics};

/// Runs placement until `stop`.
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use piecemeal_proto::{AuthorityKey, Digest, FillId, NodeId, PieceMap, PieceSet};
    use tokio::sync::{Semaphore, mpsc::error::TryRecvError, oneshot};

    use super::*;
    use crate::{
        admission::{Admitted, AdmittedBy},
        brain::{Event, Member, MemberId, Role},
        input::Join,
        outbox::Outgoing,
        session_end::SessionEnd,
    };

    const BLOB: Digest = Digest::Sha256([7; 32]);

    struct TestSession {
        member: MemberId,
        queue: mpsc::Receiver<Outgoing>,
        ended: oneshot::Receiver<SessionEnd>,
    }

    async fn join(inputs: &mpsc::Sender<Input>, node: u8, role: Role, queued_max: usize) -> TestSession {
        join_pool(inputs, node, role, queued_max, "").await
    }

    async fn join_pool(
        inputs: &mpsc::Sender<Input>,
        node: u8,
        role: Role,
        queued_max: usize,
        pool: &str,
    ) -> TestSession {
        let (outbox, queue) = mpsc::channel(queued_max);
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
        TestSession { member, queue, ended }
    }

    async fn tell(inputs: &mpsc::Sender<Input>, member: MemberId, event: Event) {
        let budget = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let events = vec![event];
        inputs
            .send(Input::Events { member, events, budget })
            .await
            .ok()
            .unwrap();
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
            let budget = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
            let (mirror, warm) = (mirror.member, Arc::default());
            inputs.send(Input::Warm { mirror, warm, budget }).await.ok().unwrap();
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
