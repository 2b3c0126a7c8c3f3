//! A scenario: the nodes that take part, their speeds, and the faults with their times.

use piecemeal_scheduler::brain::Policy;

use crate::link::{Chance, Link, MILLISECOND, Nanos};

#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) policy: Policy,
    pub(crate) peers: usize,
    pub(crate) blobs: usize,
    pub(crate) pieces: u32,
    pub(crate) piece_bytes: u64,
    /// Bytes per second of every peer's and the mirror's uplink and downlink.
    pub(crate) lan: u64,
    pub(crate) mirror_up: u64,
    /// A peer's uplink and downlink are one: a cap on both summed.
    pub(crate) summed: bool,
    /// Peers, the last ones, whose uplink is ten times slower.
    pub(crate) slow: usize,
    /// Bytes per second from upstream; 0: the mirror holds everything at the start.
    pub(crate) wan: u64,
    /// Connections of a node's fills together.
    pub(crate) connections: usize,
    pub(crate) delay: Nanos,
    /// Added to the delay: up to this much.
    pub(crate) jitter: Nanos,
    /// Pieces in a thousand that never arrive; over the WAN their connection breaks off.
    pub(crate) loss: u64,
    /// Peers, the first ones, that send other bytes than they claim.
    pub(crate) liars: usize,
    /// Peers, the ones before the liars, that hold bytes of their own and state hashes of them.
    pub(crate) forgers: usize,
    /// They say that they hold the whole blob.
    pub(crate) forgers_are_complete: bool,
    /// Peers, the first ones, that hold the whole blobs and their signed lists at the start.
    pub(crate) seeders: usize,
    /// Peers, the last ones, that want the blobs, and do nothing with a lease.
    pub(crate) idle: usize,
    /// They say of their first leases that these have landed, and do nothing from then on.
    pub(crate) idle_say_one: bool,
    /// The other peers come so much later than those.
    pub(crate) idle_for: Nanos,
    /// Lease reports in a thousand that come twice, the second time late.
    pub(crate) duplicates: u64,
    /// Downloads in a thousand that begin with an old grant.
    pub(crate) old_grants: u64,
    /// Peers arrive evenly over this time.
    pub(crate) arrivals: Nanos,
    /// Peers hold a random part at the start.
    pub(crate) head_start: bool,
    /// At most this many copies of the mirror's first fill are good: it is revoked there.
    pub(crate) revoked_at: Option<u32>,
    /// The client of the first peer waits for this piece of each blob from the start on.
    pub(crate) jump: Option<u32>,
    /// Asserts that no client starves.
    pub(crate) clients_are_fed: bool,
    pub(crate) faults: Vec<(Nanos, Fault)>,
    /// Recount everything after every step.
    pub(crate) checked: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The connection drops and the process is gone; its disk stays.
    Crash(usize),
    /// Begins again with what is on its disk.
    Start(usize),
    /// As `Crash`, and the disk is lost too: the mirror begins other fills.
    Wipe(usize),
    /// Says and serves nothing, but stays connected.
    Freeze(usize),
    Thaw(usize),
    /// The scheduler does nothing for this long; what arrives waits.
    PauseScheduler(Nanos),
    /// A new brain that knows nothing; every daemon reconnects.
    RestartScheduler,
}

/// By then every peer that starts at once has opened its blobs at the mirror. Without it no download begins.
pub(crate) const OPENED: Nanos = 2 * MILLISECOND;
/// The mirror's place among the nodes; peers follow from 1.
pub(crate) const MIRROR: usize = 0;

impl Plan {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            policy: Policy::default(),
            peers: 8,
            blobs: 1,
            pieces: 32,
            piece_bytes: 1 << 20,
            lan: 100 << 20,
            mirror_up: 100 << 20,
            summed: false,
            slow: 0,
            wan: 0,
            connections: 4,
            delay: 200_000,
            jitter: 0,
            loss: 0,
            liars: 0,
            forgers: 0,
            forgers_are_complete: false,
            seeders: 0,
            idle: 0,
            idle_say_one: false,
            idle_for: 0,
            duplicates: 0,
            old_grants: 0,
            arrivals: 0,
            head_start: false,
            revoked_at: None,
            jump: None,
            clients_are_fed: true,
            faults: Vec::new(),
            checked: true,
        }
    }

    /// A world of which the seed draws size, rates and jitter.
    pub(crate) fn drawn(seed: u64) -> (Self, Chance) {
        let mut chance = Chance::new(seed);
        let mut plan = Self::new(seed);
        plan.peers = chance.index(2..10);
        plan.blobs = chance.index(1..4);
        plan.pieces = u32::try_from(chance.among(1..50)).expect("a small number");
        plan.piece_bytes = 1 << chance.among(18..22);
        plan.lan = chance.among(20..200) << 20;
        plan.mirror_up = chance.among(20..200) << 20;
        plan.wan = if chance.happens(500) { plan.lan / 10 } else { 0 };
        plan.delay = chance.among(50_000..3_000_000);
        plan.jitter = chance.among(1..5_000_000);
        plan.connections = chance.index(1..9);
        (plan, chance)
    }

    pub(crate) fn fault(&mut self, at: Nanos, fault: Fault) {
        self.faults.push((at, fault));
    }

    /// How long the blobs take over the slowest of the links that carry each byte once.
    pub(crate) fn once_through(&self) -> Nanos {
        let bytes = self.blobs as u64 * u64::from(self.pieces) * self.piece_bytes;
        let slowest = self
            .lan
            .min(self.mirror_up)
            .min(if self.wan == 0 { u64::MAX } else { self.wan });
        Link::new(slowest).takes(bytes)
    }
}
