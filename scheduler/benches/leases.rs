//! Guards the rate at which one core hands out leases: a warm swarm in process, every lease reported piece by piece and ended.
//!
//! Links are infinitely fast here, so that nothing but decisions is measured.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use piecemeal_proto::{Digest, FillId, NodeId, PieceMap, PieceSet};
use piecemeal_scheduler::brain::{Brain, Command, Event, Lease, Member, MemberId, Outcome, Policy, Role};

const FILL: FillId = FillId(1);

fn main() {
    for (peers, pieces) in [(100, 1024), (1000, 1024), (10_000, 1024)] {
        // So many leases show the rate; the first of them find an empty swarm, as in a real pull.
        let leases_max = 2_000_000.min(u64::from(peers) * u64::from(pieces));
        let (leases, took) = hand_out(peers, pieces, leases_max);
        let rate = leases as f64 / took.as_secs_f64();
        println!("{peers} peers, {pieces} pieces: {rate:.0} leases/s ({leases} leases in {took:.2?})");
    }
}

/// Time passes by a nanosecond a lease, so that no member falls silent.
fn hand_out(peers: u32, pieces: u32, leases_max: u64) -> (u64, Duration) {
    let digest = Digest::of(b"layer");
    let map = PieceMap::new(u64::from(pieces) << 20, 1 << 20).expect("a blob of 1 MiB pieces");
    let mut brain = Brain::new(Policy::default(), 1);
    let mut out = Vec::new();
    for id in 0..=peers {
        let mut node = [0; 16];
        node[..4].copy_from_slice(&id.to_le_bytes());
        let info = Member {
            node: NodeId(node),
            signed: true,
            role: if id == 0 { Role::Mirror } else { Role::Peer },
            pool: "site".into(),
            zone: String::new(),
            may_use_upstream: false,
            features: piecemeal_scheduler::brain::Features::default(),
        };
        let member = MemberId(id);
        brain.handle(Duration::ZERO, Event::Joined { member, info }, &mut out);
    }
    let have = |member, first, hashes| Event::Have {
        member,
        digest,
        map,
        fill: FILL,
        first,
        hashes,
    };
    brain.handle(
        Duration::ZERO,
        have(MemberId(0), 0, vec![Some([1; 32]); pieces as usize]),
        &mut out,
    );
    for id in 1..=peers {
        let want = Event::Want {
            member: MemberId(id),
            digest,
            map,
            fill: FILL,
            have: PieceSet::new(pieces),
            window: None,
        };
        brain.handle(Duration::ZERO, want, &mut out);
    }
    let mut queue: VecDeque<(MemberId, Lease)> = VecDeque::new();
    let mut leases = 0;
    let started = Instant::now();
    loop {
        queue.extend(out.drain(..).filter_map(|command| match command {
            Command::Lease { to, lease } => Some((to, lease)),
            _ => None,
        }));
        let Some((member, lease)) = queue.pop_front().filter(|_| leases < leases_max) else {
            break;
        };
        leases += 1;
        let now = Duration::from_nanos(leases * 100);
        brain.handle(
            now,
            have(member, lease.first, vec![None; lease.count as usize]),
            &mut out,
        );
        let ended = Event::LeaseEnded {
            member,
            lease: lease.id,
            outcome: Outcome::Done,
        };
        brain.handle(now, ended, &mut out);
        if brain.poll_timeout().is_some_and(|at| at <= now) {
            brain.handle_timeout(now, &mut out);
        }
    }
    (leases, started.elapsed())
}
