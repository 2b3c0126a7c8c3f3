//! Without faults: how close the last node comes to the bound, and what the mirror sends.

use crate::{
    link::{Nanos, SECOND},
    plan::{Fault, MIRROR, Plan},
    world::World,
};

/// `(F/u)(1 + lg N / K)`: Source: Mundinger, Weber & Weiss 2008.
fn warm_bound(plan: &Plan) -> f64 {
    let (pieces, doublings) = (f64::from(plan.pieces), plan.peers.ilog2());
    plan.once_through() as f64 * (1.0 + f64::from(doublings) / pieces)
}

fn warm(seed: u64, peers: usize, pieces: u32) -> f64 {
    let mut plan = Plan::new(seed);
    (plan.peers, plan.pieces, plan.checked) = (peers, pieces, false);
    let bound = warm_bound(&plan);
    let mut world = World::new(plan);
    world.run(600 * SECOND) as f64 / bound
}

fn median(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

#[test]
fn a_warm_site_of_64_finishes_close_to_the_bound() {
    let ratio = median((0..1).map(|seed| warm(seed, 64, 256)).collect());
    println!("warm, 64 peers, 256 pieces: {ratio:.3} of the bound");
    assert!(ratio < 1.25, "{ratio}");
}

#[test]
#[ignore = "takes minutes unoptimised: cargo test --release -- --ignored --nocapture"]
fn a_warm_site_of_1000_finishes_close_to_the_bound() {
    let ratio = warm(0, 1000, 1024);
    println!("warm, 1000 peers, 1024 pieces: {ratio:.3} of the bound");
    assert!(ratio < 1.25, "{ratio}");
}

fn cold(seed: u64, peers: usize) -> (World, Nanos) {
    let mut plan = Plan::new(seed);
    (plan.peers, plan.pieces, plan.wan, plan.checked) = (peers, 128, plan.lan / 10, peers < 10);
    let mut world = World::new(plan);
    let took = world.run(600 * SECOND);
    (world, took)
}

#[test]
fn a_cold_site_takes_what_the_wan_takes_and_the_mirror_sends_each_piece_about_once() {
    for (seed, peers) in [(0, 1), (1, 2), (2, 5), (3, 32)] {
        let (world, took) = cold(seed, peers);
        let ratio = took as f64 / world.plan.once_through() as f64;
        let copies = world.nodes[MIRROR].sent as f64 / f64::from(world.plan.pieces);
        println!("cold, {peers} peers: {ratio:.3} of the WAN's time, {copies:.2} copies out of the mirror");
        assert_eq!(
            world.upstream_pieces,
            u64::from(world.plan.pieces),
            "one copy over the WAN"
        );
        assert!(ratio < 1.10, "{peers} peers: {ratio}");
        assert!(copies <= 1.2, "{peers} peers: {copies}");
    }
}

#[test]
fn slow_uplinks_do_not_hold_the_others_up() {
    let mut plan = Plan::new(1);
    (plan.peers, plan.slow, plan.pieces, plan.checked) = (20, 4, 128, false);
    let bound = warm_bound(&plan);
    let mut world = World::new(plan);
    let ratio = world.run(600 * SECOND) as f64 / bound;
    println!("a fifth of the uplinks ten times slower: {ratio:.3} of the bound");
    assert!(ratio < 1.5, "{ratio}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let (world, took) = cold(7, 9);
        (
            took,
            world.leases,
            world.nodes.iter().map(|node| node.sent).collect::<Vec<_>>(),
        )
    };
    assert_eq!(run(), run());
}

/// What a pull straight from the mirror takes when a cap on both directions summed is the limit: no peer may make it slower.
#[test]
fn a_capped_site_is_hardly_slower_than_pulling_from_the_mirror() {
    for peers in [1, 2, 5] {
        let mut plan = Plan::new(1);
        (plan.peers, plan.pieces, plan.summed, plan.checked) = (peers, 256, true, false);
        (plan.lan, plan.mirror_up, plan.wan, plan.clients_are_fed) = (5 << 20, 119 << 20, 12 << 20, false);
        let direct = plan.once_through();
        let ratio = World::new(plan).run(600 * SECOND) as f64 / direct as f64;
        println!("{peers} capped peers: {ratio:.3} of what the mirror alone takes");
        assert!(ratio < 1.10, "{peers} peers: {ratio}");
    }
}

/// When the piece in the middle of the blob, to which the first peer's client jumps, is there; as a share of the time that the WAN takes for
/// the blob.
fn jump(seed: u32, change: impl FnOnce(&mut Plan)) -> f64 {
    let mut plan = Plan::new(seed.into());
    (plan.peers, plan.pieces, plan.wan) = (1 + seed as usize % 6, 128, plan.lan / 10);
    (plan.jump, plan.connections) = (Some(100 - seed), 2 + seed as usize % 4);
    change(&mut plan);
    let (piece, once) = (plan.jump.expect("a piece"), plan.once_through());
    let mut world = World::new(plan);
    world.run(600 * SECOND);
    assert_eq!(
        world.upstream_pieces,
        u64::from(world.plan.pieces),
        "seed {seed}: one copy"
    );
    world.nodes[1].blobs[0].stored_at[piece as usize] as f64 / once as f64
}

#[test]
fn a_piece_to_which_a_client_jumps_comes_next_over_the_wan_and_nothing_comes_twice() {
    for seed in 0..20 {
        let share = jump(seed, |_| {});
        assert!(share < 0.2, "seed {seed}: {share:.2} of the WAN's time");
    }
}

#[test]
fn without_a_scheduler_a_piece_to_which_a_client_jumps_comes_next_too() {
    for seed in 0..20 {
        let share = jump(seed, |plan| plan.fault(0, Fault::PauseScheduler(600 * SECOND)));
        assert!(share < 0.3, "seed {seed}: {share:.2} of the WAN's time");
    }
}
