//! Sites without a mirror, where peers fetch from upstream.

use std::time::Duration;

use crate::{
    link::SECOND,
    node::may_use_upstream,
    plan::{Fault, MIRROR, OPENED, Plan},
    seeds,
    world::World,
};

#[test]
fn one_copy_comes_from_upstream_when_the_mirror_stays_away() {
    for seed in seeds() {
        let (mut plan, mut chance) = Plan::drawn(seed);
        plan.wan = plan.lan / 10;
        plan.policy.mirror_grace = Duration::from_secs(5);
        plan.clients_are_fed = false;
        plan.fault(OPENED + chance.among(0..plan.once_through()), Fault::Crash(MIRROR));
        let mut world = World::new(plan);
        world.run(300 * SECOND);
        let pieces = u64::from(world.plan.pieces) * world.plan.blobs as u64;
        let again = world.upstream_pieces.saturating_sub(pieces);
        let held_by_the_mirror: u64 = world.nodes[MIRROR]
            .blobs
            .iter()
            .map(|blob| u64::from(blob.have.count()))
            .sum();
        assert!(again <= held_by_the_mirror, "seed {seed}: {again} pieces twice");
    }
}

/// A lease of upstream ends with its first failure, and the scheduler leases again.
#[test]
fn every_peer_finishes_although_upstream_breaks_off_while_the_mirror_stays_away() {
    let mut failures = 0;
    for seed in seeds() {
        let (mut plan, mut chance) = Plan::drawn(seed);
        (plan.wan, plan.loss, plan.clients_are_fed) = (plan.lan / 10, 50, false);
        plan.policy.mirror_grace = Duration::from_secs(5);
        plan.fault(OPENED + chance.among(0..plan.once_through()), Fault::Crash(MIRROR));
        let mut world = World::new(plan);
        world.run(300 * SECOND);
        failures += world.upstream_failures;
    }
    assert!(seeds().count() < 16 || failures > 0, "leases of upstream have failed");
}

fn another_peer_takes_over(seed: u64) {
    let (mut plan, mut chance) = Plan::drawn(seed);
    (plan.peers, plan.wan, plan.clients_are_fed) = (6, plan.lan / 10, false);
    plan.policy.mirror_grace = Duration::from_secs(5);
    plan.fault(OPENED, Fault::Crash(MIRROR));
    let mut last = 0;
    for node in 1..=3 {
        let at = 5 * SECOND + chance.among(0..plan.once_through());
        plan.fault(at, Fault::Crash(node));
        plan.fault(at + 20 * SECOND, Fault::Start(node));
        last = last.max(at + 20 * SECOND);
    }
    // One of them may not use upstream, and opens the blob at the mirror.
    plan.fault(last - SECOND, Fault::Start(MIRROR));
    // Those that come back before fetch copies of their own, all over one WAN.
    World::new(plan).run(900 * SECOND);
}

#[test]
fn another_peer_takes_over_when_the_one_that_asks_upstream_dies() {
    seeds().for_each(another_peer_takes_over);
}

/// Its leases were stolen over and over, since it came back when all others had finished at leisure.
#[test]
fn who_comes_back_last_keeps_its_leases() {
    another_peer_takes_over(1149);
}

/// Peers that come while the mirror is lost have no grant: each fetches from upstream by itself, where that is allowed.
#[test]
fn who_comes_while_the_mirror_is_lost_goes_upstream_after_its_grace_or_waits_for_the_mirror() {
    for seed in seeds() {
        let (mut plan, mut chance) = Plan::drawn(seed);
        (plan.peers, plan.wan, plan.clients_are_fed) = (6, plan.lan, false);
        plan.policy.mirror_grace = Duration::from_secs(5);
        plan.fault(0, Fault::Crash(MIRROR));
        let back = chance.among(10 * SECOND..60 * SECOND);
        plan.fault(back, Fault::Start(MIRROR));
        let mut world = World::new(plan);
        world.run(300 * SECOND);
        for node in 1..=world.plan.peers {
            let finished = world.nodes[node].finished_at;
            assert!(finished >= Some(5 * SECOND), "seed {seed}: node {node} at {finished:?}");
            if !may_use_upstream(&world.plan, node) {
                assert!(finished > Some(back), "seed {seed}: node {node} had no grant");
            }
        }
    }
}
