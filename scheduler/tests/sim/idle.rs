//! Identities that want blobs and do nothing with what they are leased: a host that has the site's key makes as many as it likes.

use piecemeal_scheduler::brain::{Event, Lease, Outcome};

use crate::{
    link::{MILLISECOND, SECOND},
    node::digest,
    plan::{Fault, MIRROR, OPENED, Plan},
    seeds,
    world::World,
};

impl World {
    /// Takes a lease and does nothing with it. What it says of its first one, it has from the lease.
    pub(crate) fn idle(&mut self, node: usize, blob: usize, lease: &Lease) {
        let state = &mut self.nodes[node];
        let Some(member) = state.member.filter(|_| self.plan.idle_say_one && state.sent == 0) else {
            return;
        };
        state.sent += 1;
        let event = Event::Have {
            member,
            digest: digest(blob),
            map: lease.map,
            fill: lease.fill,
            first: lease.first,
            hashes: lease.hashes.clone(),
        };
        self.say(node, event);
        let (lease, outcome) = (lease.id, Outcome::Done);
        self.say(node, Event::LeaseEnded { member, lease, outcome });
    }
}

const HONEST: usize = 32;

/// Two holders, and `idle` identities a second before 32 peers that pull. The mirror is there only while they open the
/// blob.
fn plan(seed: u64, idle: usize, lan: u64) -> Plan {
    let mut plan = Plan::new(seed);
    (plan.seeders, plan.idle, plan.idle_for) = (2, idle, SECOND);
    (plan.peers, plan.pieces, plan.lan) = (2 + HONEST + idle, 128, lan);
    (plan.checked, plan.clients_are_fed) = (false, false);
    plan.fault(OPENED, Fault::Crash(MIRROR));
    plan.fault(plan.idle_for, Fault::Start(MIRROR));
    plan.fault(plan.idle_for + OPENED, Fault::Crash(MIRROR));
    plan
}

/// How long the last of the honest takes.
fn pull(plan: Plan) -> f64 {
    let from = plan.idle_for + MILLISECOND;
    (World::new(plan).run(600 * SECOND) - from) as f64 / SECOND as f64
}

/// With so many of them, at most so many times the pull without them, and so many seconds.
fn assert_hardly_slower(usual: f64, took: f64, (times, seconds): (f64, f64), what: &str) {
    println!("{what}: {took:.2} s, {usual:.2} s without them");
    assert!(
        took <= usual * times + seconds,
        "{what}: {took:.2} s after {usual:.2} s"
    );
}

const FEW: (usize, (f64, f64)) = (150, (1.2, 2.0));
const MANY: (usize, (f64, f64)) = (500, (2.0, 6.0));

#[test]
fn idle_identities_hardly_slow_a_pull_without_a_mirror() {
    for seed in 0..2 {
        for lan in [10 << 20, 100 << 20] {
            let usual = pull(plan(seed, 0, lan));
            for (idle, allowed) in [FEW, MANY] {
                let what = format!("seed {seed}, {} MiB/s, {idle} idle", lan >> 20);
                assert_hardly_slower(usual, pull(plan(seed, idle, lan)), allowed, &what);
            }
        }
    }
}

#[test]
fn nor_do_those_that_say_of_their_first_lease_that_it_has_landed() {
    for lan in [10 << 20, 100 << 20] {
        let usual = pull(plan(2, 0, lan));
        let mut plan = plan(2, FEW.0, lan);
        plan.idle_say_one = true;
        let what = format!("{} MiB/s, {} that lie once", lan >> 20, FEW.0);
        assert_hardly_slower(usual, pull(plan), (1.2, 5.0), &what);
    }
}

#[test]
fn nor_when_the_mirror_goes_in_the_middle_of_the_pull() {
    let goes = |idle| {
        let mut plan = plan(3, idle, 100 << 20);
        plan.faults.clear();
        plan.fault(plan.idle_for + plan.once_through() / 2, Fault::Crash(MIRROR));
        plan
    };
    let usual = pull(goes(0));
    for (idle, allowed) in [FEW, MANY] {
        assert_hardly_slower(usual, pull(goes(idle)), allowed, &format!("{idle} idle"));
    }
}

/// Every invariant on every step, with identities that come and do nothing among peers of all kinds.
#[test]
fn every_peer_finishes_although_some_do_nothing() {
    for seed in seeds() {
        let (mut plan, mut chance) = Plan::drawn(seed);
        plan.idle = chance.index(1..12);
        plan.peers += plan.idle;
        plan.idle_say_one = chance.happens(500);
        plan.idle_for = chance.among(0..3 * SECOND);
        plan.clients_are_fed = false;
        World::new(plan).run(300 * SECOND);
    }
}
