//! Sites without a mirror, where peers fetch from upstream.

use std::time::Duration;

use crate::{
    link::SECOND,
    plan::{Fault, MIRROR, Plan},
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
        plan.fault(chance.among(0..plan.once_through()), Fault::Crash(MIRROR));
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
    for seed in seeds() {
        let (mut plan, mut chance) = Plan::drawn(seed);
        (plan.wan, plan.loss, plan.clients_are_fed) = (plan.lan / 10, 50, false);
        plan.policy.mirror_grace = Duration::from_secs(5);
        plan.fault(chance.among(0..plan.once_through()), Fault::Crash(MIRROR));
        World::new(plan).run(300 * SECOND);
    }
}

fn another_peer_takes_over(seed: u64) {
    let (mut plan, mut chance) = Plan::drawn(seed);
    (plan.peers, plan.wan, plan.clients_are_fed) = (6, plan.lan / 10, false);
    plan.policy.mirror_grace = Duration::from_secs(5);
    plan.fault(0, Fault::Crash(MIRROR));
    for node in 1..=3 {
        let at = 5 * SECOND + chance.among(0..plan.once_through());
        plan.fault(at, Fault::Crash(node));
        plan.fault(at + 20 * SECOND, Fault::Start(node));
    }
    World::new(plan).run(300 * SECOND);
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
