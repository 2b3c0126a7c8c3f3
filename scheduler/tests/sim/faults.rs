//! Faults at a simulated site, each of which the site recovers from.

use crate::{
    link::{Chance, MILLISECOND, SECOND},
    plan::{Fault, MIRROR, OPENED, Plan},
    seeds,
    world::World,
};

fn every_peer_finishes(plan: Plan) -> World {
    let mut world = World::new(plan);
    world.run(300 * SECOND);
    world
}

#[test]
fn every_peer_finishes_whatever_the_size_and_rates() {
    for seed in seeds() {
        let (mut plan, _) = Plan::drawn(seed);
        plan.head_start = seed % 3 == 0;
        every_peer_finishes(plan);
    }
}

#[test]
fn every_peer_finishes_although_some_lie() {
    for seed in seeds() {
        let (mut plan, mut chance) = Plan::drawn(seed);
        plan.liars = chance.index(1..plan.peers);
        every_peer_finishes(plan);
    }
}

#[test]
fn every_peer_finishes_although_pieces_are_lost_and_reports_come_twice_and_late() {
    for seed in seeds() {
        let (mut plan, _) = Plan::drawn(seed);
        (plan.loss, plan.duplicates) = (20, 300);
        plan.clients_are_fed = false;
        every_peer_finishes(plan);
    }
}

/// Such a peer was served by no other until its next connection to the scheduler.
#[test]
fn wants_that_are_refused_for_their_old_grants_cost_seconds() {
    for seed in seeds() {
        let (mut plan, _) = Plan::drawn(seed);
        plan.clients_are_fed = false;
        let usual = World::new(plan.clone()).run(300 * SECOND);
        plan.old_grants = 500;
        let refused = World::new(plan).run(300 * SECOND);
        assert!(refused < usual + 3 * SECOND, "seed {seed}: {refused} after {usual}");
    }
}

#[test]
fn every_peer_finishes_although_peers_crash_and_start_again() {
    for seed in seeds() {
        let (mut plan, mut chance) = Plan::drawn(seed);
        let span = plan.once_through().max(10 * MILLISECOND);
        for _ in 0..plan.peers {
            let node = chance.index(1..plan.peers + 1);
            let at = chance.among(0..span * 2);
            plan.fault(at, Fault::Crash(node));
            plan.fault(at + chance.among(0..3 * SECOND), Fault::Start(node));
        }
        plan.clients_are_fed = false;
        every_peer_finishes(plan);
    }
}

fn every_other_peer_finishes_in_time(seed: u64) {
    let (mut plan, mut chance) = Plan::drawn(seed);
    plan.peers += 1;
    let frozen = chance.index(1..plan.peers);
    let from = chance.among(0..plan.once_through());
    plan.fault(from, Fault::Freeze(frozen));
    plan.fault(from + 20 * SECOND, Fault::Thaw(frozen));
    plan.clients_are_fed = false;
    let world = every_peer_finishes(plan);
    let latest = (1..=world.plan.peers)
        .filter(|&node| node != frozen)
        .filter_map(|node| world.nodes[node].finished_at)
        .max();
    let allowed = world.plan.once_through() * 4 + 8 * SECOND;
    assert!(latest < Some(allowed), "seed {seed}: {latest:?} of {allowed}");
}

#[test]
fn every_other_peer_finishes_in_time_although_a_peer_freezes() {
    seeds().for_each(every_other_peer_finishes_in_time);
}

/// Its leases were stolen over and over, since others were so much faster.
#[test]
fn the_last_receiver_keeps_its_leases_although_its_own_link_is_slow() {
    every_other_peer_finishes_in_time(109);
}

#[test]
fn every_peer_finishes_although_the_mirror_restarts() {
    for seed in seeds() {
        let (mut plan, mut chance) = Plan::drawn(seed);
        let at = chance.among(0..plan.once_through());
        plan.fault(at, Fault::Crash(MIRROR));
        plan.fault(at + chance.among(0..5 * SECOND), Fault::Start(MIRROR));
        plan.clients_are_fed = false;
        let world = every_peer_finishes(plan);
        let pieces = u64::from(world.plan.pieces) * world.plan.blobs as u64;
        assert!(
            world.plan.wan == 0 || world.upstream_pieces <= pieces + 1,
            "seed {seed}: one copy over the WAN"
        );
    }
}

#[test]
fn every_peer_finishes_although_the_scheduler_restarts() {
    for seed in seeds() {
        let (mut plan, mut chance) = Plan::drawn(seed);
        for _ in 0..2 {
            plan.fault(chance.among(0..plan.once_through() * 2), Fault::RestartScheduler);
        }
        plan.duplicates = 100;
        plan.clients_are_fed = false;
        every_peer_finishes(plan);
    }
}

#[test]
fn a_pause_of_the_scheduler_costs_little_more_than_it_lasts() {
    for seed in seeds() {
        let (mut plan, mut chance) = Plan::drawn(seed);
        plan.clients_are_fed = false;
        let usual = World::new(plan.clone()).run(300 * SECOND);
        let at = chance.among(0..plan.once_through());
        plan.fault(at, Fault::PauseScheduler(5 * SECOND));
        let paused = World::new(plan).run(300 * SECOND);
        assert!(paused < usual + 7 * SECOND, "seed {seed}: {paused} after {usual}");
    }
}

#[test]
fn a_fill_that_is_revoked_at_nine_tenths_is_forgotten_everywhere() {
    for seed in seeds() {
        let (mut plan, _) = Plan::drawn(seed);
        plan.wan = plan.lan / 5;
        plan.revoked_at = Some(plan.pieces * 9 / 10);
        plan.clients_are_fed = false;
        every_peer_finishes(plan);
    }
}

#[test]
fn those_who_come_late_are_served_too() {
    for seed in seeds() {
        let (mut plan, mut chance) = Plan::drawn(seed);
        plan.arrivals = chance.among(0..10 * SECOND);
        every_peer_finishes(plan);
    }
}

#[test]
fn every_peer_finishes_after_all_faults_at_once() {
    for seed in seeds() {
        let (mut plan, mut chance) = Plan::drawn(seed);
        (plan.loss, plan.duplicates, plan.liars) = (10, 200, plan.peers / 3);
        plan.arrivals = chance.among(0..3 * SECOND);
        for _ in 0..8 {
            let node = chance.index(0..plan.peers + 1);
            let (at, end) = (chance.among(0..6 * SECOND), chance.among(0..6 * SECOND));
            let (fault, heal) = match chance.among(0..3) {
                0 => (Fault::Crash(node), Fault::Start(node)),
                1 => (Fault::Freeze(node), Fault::Thaw(node)),
                _ => (Fault::RestartScheduler, Fault::RestartScheduler),
            };
            plan.fault(at, fault);
            plan.fault(at + end, heal);
        }
        plan.clients_are_fed = false;
        every_peer_finishes(plan);
    }
}

#[test]
fn no_honest_stater_is_convicted_by_a_download_that_the_mirror_revokes() {
    for seed in seeds() {
        let (mut plan, mut chance) = Plan::drawn(seed);
        plan.wan = plan.lan / 10;
        plan.policy.mirror_grace = std::time::Duration::from_secs(5);
        plan.revoked_at = Some(plan.pieces * 9 / 10);
        plan.clients_are_fed = false;
        plan.fault(OPENED, Fault::Crash(MIRROR));
        plan.fault(chance.among(6 * SECOND..9 * SECOND), Fault::Start(MIRROR));
        let world = every_peer_finishes(plan);
        assert!(world.convicted.is_empty(), "seed {seed}: {:?}", world.convicted);
    }
}

fn with_forgers(seed: u64) -> (Plan, Chance) {
    let (mut plan, mut chance) = Plan::drawn(seed);
    plan.peers += 2;
    plan.forgers = chance.index(1..3);
    plan.forgers_are_complete = chance.happens(500);
    plan.wan = plan.lan / 10;
    plan.clients_are_fed = false;
    (plan, chance)
}

#[test]
fn what_forgers_state_while_the_mirror_fills_is_not_used() {
    for seed in seeds() {
        let (mut plan, _) = with_forgers(seed);
        // Nor does any blob wait for longer than streams do until it is its turn.
        if plan.once_through() > 25 * SECOND {
            plan.blobs = 1;
        }
        let world = every_peer_finishes(plan);
        let failed: u32 = world.peers().map(|node| node.failed).sum();
        assert_eq!(
            (failed, world.convicted.len()),
            (0, 0),
            "seed {seed}: no word of theirs was used"
        );
    }
}

#[test]
fn what_forgers_state_before_the_mirror_has_a_piece_is_dropped_once_it_speaks() {
    let mut convicted = 0;
    for seed in seeds() {
        let (mut plan, mut chance) = with_forgers(seed);
        plan.fault(OPENED, Fault::Crash(MIRROR));
        plan.fault(chance.among(4 * SECOND..12 * SECOND), Fault::Start(MIRROR));
        convicted += every_peer_finishes(plan).convicted.len();
    }
    assert!(
        seeds().count() < 16 || convicted > 0,
        "forgers were believed, and found out"
    );
}

#[test]
fn what_forgers_state_while_the_mirror_restarts_is_dropped_once_it_speaks() {
    for seed in seeds() {
        let (mut plan, mut chance) = with_forgers(seed);
        let at = chance.among(0..plan.once_through());
        let wiped = chance.happens(300);
        plan.fault(
            at,
            if wiped {
                Fault::Wipe(MIRROR)
            } else {
                Fault::Crash(MIRROR)
            },
        );
        plan.fault(at + chance.among(0..12 * SECOND), Fault::Start(MIRROR));
        every_peer_finishes(plan);
    }
}

#[test]
fn what_forgers_state_after_the_scheduler_has_restarted_is_dropped_once_the_mirror_speaks() {
    for seed in seeds() {
        let (mut plan, mut chance) = with_forgers(seed);
        let at = chance.among(0..plan.once_through());
        plan.fault(at, Fault::Crash(MIRROR));
        let back = at + chance.among(0..20 * SECOND);
        plan.fault(back, Fault::Start(MIRROR));
        for _ in 0..2 {
            plan.fault(at + chance.among(0..20 * SECOND), Fault::RestartScheduler);
        }
        every_peer_finishes(plan);
    }
}

/// The forgers among them are not believed meanwhile.
#[test]
fn holders_serve_at_the_lans_speed_by_the_signed_list_when_the_mirror_has_lost_its_disk() {
    for seed in seeds() {
        let (mut plan, _) = with_forgers(seed);
        (plan.lan, plan.wan, plan.forgers, plan.blobs) = (100 << 20, 1 << 19, 1, 1);
        let late = plan.peers;
        // Long after the others have finished and the mirror has proven the blobs.
        let from = plan.once_through() * 5 / 4 + 20 * SECOND;
        plan.fault(2 * MILLISECOND, Fault::Crash(late));
        plan.fault(from, Fault::Wipe(MIRROR));
        plan.fault(from + SECOND, Fault::Start(MIRROR));
        plan.fault(from + SECOND, Fault::RestartScheduler);
        plan.fault(from + 3 * SECOND, Fault::Start(late));
        let took = {
            let mut world = World::new(plan.clone());
            world.run(from + 200 * SECOND) - from
        };
        let by_wan = plan.once_through();
        let allowed = 10 * SECOND + by_wan / 20;
        assert!(
            took < allowed,
            "seed {seed}: {took} of {allowed}, and {by_wan} over the WAN"
        );
    }
}
