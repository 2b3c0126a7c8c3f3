//! The virtual clock and network around a real brain. Everything that happens is in one ordered queue; the seed draws the rest.
//!
//! Checked on every step: the brain's invariants, and that every piece which a node accepts is what its fill holds there.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use piecemeal_proto::{FillId, NodeId, PieceMap};
use piecemeal_scheduler::brain::{Brain, Command, Event, Lease, MemberId};

use crate::{
    download::{Step, nanos},
    fetch::Transit,
    fill::{FillStep, Filling},
    link::{Chance, Link, MILLISECOND, Nanos, SECOND},
    node::{Holding, Node, genuine, signed_list},
    opening::OpenStep,
    plan::{Fault, MIRROR, Plan},
};

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) map: PieceMap,
    pub(crate) now: Nanos,
    pub(crate) chance: Chance,
    pub(crate) nodes: Vec<Node>,
    pub(crate) wan: Link,
    /// Pieces that came from upstream, to the mirror or a peer.
    pub(crate) upstream_pieces: u64,
    /// Fetches of peers from upstream that have failed.
    pub(crate) upstream_failures: u64,
    pub(crate) leases: u64,
    pub(crate) members: BTreeMap<MemberId, usize>,
    /// The mirror's present fill; odd ones hold bad bytes.
    pub(crate) fill: FillId,
    brain: Brain,
    pub(crate) scheduler_life: u32,
    pub(crate) paused_since: Nanos,
    pub(crate) paused_until: Nanos,
    pub(crate) members_ever: u32,
    /// By blob and piece: when a mirror's hash reached the scheduler that is there now.
    pub(crate) spoken: Vec<Vec<Option<Nanos>>>,
    /// By blob and piece: fetches whose requests wait at the mirror.
    pub(crate) awaited: BTreeMap<(usize, u32), Vec<(usize, u64)>>,
    /// Pieces that the mirror has heard of that clients wait for, by blob.
    pub(crate) waits_elsewhere: BTreeSet<(usize, u32)>,
    /// Fills under way, by serial number.
    pub(crate) fills: BTreeMap<u64, Filling>,
    /// Downloads, fetches and fills that have ever begun.
    pub(crate) serials: u64,
    /// Nodes that were convicted.
    pub(crate) convicted: BTreeSet<NodeId>,
    queue: BTreeMap<(Nanos, u64), Happening>,
    queued: u64,
    timer_at: Option<Nanos>,
}

pub(crate) enum Happening {
    /// A message reaches the scheduler that it was sent to.
    Said {
        life: u32,
        event: Event,
    },
    /// A message reaches the daemon that it was sent to.
    Told {
        node: usize,
        member: MemberId,
        command: Command,
    },
    Timer,
    Beat {
        node: usize,
        life: u32,
    },
    Connect {
        node: usize,
        life: u32,
    },
    Fault(Fault),
    /// Something happens to a fill.
    Fill(u64, FillStep),
    /// Something happens to the opening of a blob, in one of the node's lives.
    Open((usize, usize, u32), OpenStep),
    /// Something happens to a node's download of a blob.
    Download((usize, usize, u64), Step),
    /// A node's fetch begins.
    Fetch(usize, u64),
    /// Something happens to the piece that a node's fetch has asked for.
    Transit((usize, u64), u32, Transit),
    /// The scheduler speaks again after it was silent for long.
    Spoken,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let map = PieceMap::new(u64::from(plan.pieces) * plan.piece_bytes, plan.piece_bytes).expect("a small blob");
        let mut world = Self {
            map,
            now: 0,
            chance: Chance::new(plan.seed),
            nodes: Vec::new(),
            wan: Link::new(plan.wan.max(1)),
            upstream_pieces: 0,
            upstream_failures: 0,
            leases: 0,
            members: BTreeMap::new(),
            fill: FillId(if plan.revoked_at.is_some() { 1 } else { 2 }),
            brain: Brain::new(plan.policy.clone(), plan.seed),
            scheduler_life: 0,
            paused_since: 0,
            paused_until: 0,
            members_ever: 0,
            spoken: vec![vec![None; plan.pieces as usize]; plan.blobs],
            awaited: BTreeMap::new(),
            waits_elsewhere: BTreeSet::new(),
            fills: BTreeMap::new(),
            serials: 0,
            convicted: BTreeSet::new(),
            queue: BTreeMap::new(),
            queued: 0,
            timer_at: None,
            plan,
        };
        for node in 0..=world.plan.peers {
            world.add_node(node);
        }
        for (at, fault) in world.plan.faults.clone() {
            world.at(at, Happening::Fault(fault));
        }
        world
    }

    fn add_node(&mut self, node: usize) {
        let plan = &self.plan;
        let mirror = node == MIRROR;
        let slow = node + plan.slow > plan.peers;
        let seeder = !mirror && node <= plan.seeders;
        let idle = node + plan.idle > plan.peers;
        let mut blobs: Vec<Holding> = (0..plan.blobs).map(|_| Holding::new(self.map)).collect();
        for (index, blob) in blobs.iter_mut().enumerate() {
            let is_earlier = !mirror && plan.seed.is_multiple_of(2);
            blob.fill = if is_earlier { EARLIER_FILL } else { self.fill };
            if (mirror && plan.wan == 0) || seeder {
                for piece in 0..plan.pieces {
                    blob.store(piece, genuine(index, piece), 0);
                }
                blob.complete = true;
                blob.list = seeder.then(|| signed_list(index, self.map));
            }
        }
        self.nodes.push(Node {
            mirror,
            liar: !mirror && node <= plan.liars,
            forger: !mirror && (plan.liars + 1..=plan.liars + plan.forgers).contains(&node),
            idle,
            up: Link::new(if mirror {
                plan.mirror_up
            } else if slow {
                plan.lan / 10
            } else {
                plan.lan
            }),
            down: Link::new(plan.lan),
            member: None,
            running: false,
            frozen: false,
            life: 0,
            said_until: 0,
            told_until: 0,
            blobs,
            fetches: BTreeMap::new(),
            mirror_lost_since: None,
            finished_at: seeder.then_some(0),
            connected_at: 0,
            failed: 0,
            sent: 0,
        });
        let at = match node {
            MIRROR => 0,
            _ if seeder || idle => MILLISECOND,
            _ => MILLISECOND + plan.idle_for + plan.arrivals * node as u64 / plan.peers as u64,
        };
        self.at(at, Happening::Fault(Fault::Start(node)));
    }

    pub(crate) fn at(&mut self, time: Nanos, happening: Happening) {
        self.queued += 1;
        self.queue.insert((time.max(self.now), self.queued), happening);
    }

    /// One way over the network.
    pub(crate) fn hop(&mut self) -> Nanos {
        self.plan.delay + self.chance.among(0..self.plan.jitter + 1)
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = &Node> {
        self.nodes[1..].iter().filter(|node| !node.forger && !node.idle)
    }

    pub(crate) fn all_finished(&self) -> bool {
        self.peers().all(|node| node.finished_at.is_some())
    }

    /// Demands that every peer finishes before `end`; says when the last did.
    pub(crate) fn run(&mut self, end: Nanos) -> Nanos {
        while !self.all_finished() {
            assert!(
                self.now < end,
                "seed {}: not done at {} s\n{}",
                self.plan.seed,
                end / SECOND,
                self.report()
            );
            self.step();
        }
        self.peers().filter_map(|node| node.finished_at).max().unwrap_or(0)
    }

    fn report(&self) -> String {
        let nodes = self.nodes.iter().enumerate().map(|(index, node)| {
            let held: Vec<u32> = node.blobs.iter().map(|blob| blob.have.count()).collect();
            format!(
                "node {index} running {} frozen {} held {held:?}\n",
                node.running, node.frozen
            )
        });
        format!("{}{:#?}", nodes.collect::<String>(), self.brain.status())
    }

    fn step(&mut self) {
        let ((time, _), happening) = self.queue.pop_first().expect("heartbeats never end");
        self.now = time;
        match happening {
            paused @ (Happening::Said { .. } | Happening::Timer) if self.now < self.paused_until => {
                self.at(self.paused_until, paused);
            }
            Happening::Said { life, event } => {
                if life == self.scheduler_life {
                    self.note_spoken(&event);
                    self.think(Some(event));
                }
            }
            Happening::Timer => {
                self.timer_at = None;
                self.think(None);
            }
            Happening::Fault(fault) => self.suffer(fault),
            Happening::Connect { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].running && self.nodes[node].member.is_none() {
                    self.connect(node);
                }
            }
            Happening::Told { node, member, command } => self.told(node, member, command),
            Happening::Beat { node, life } => self.beat(node, life),
            Happening::Fill(fill, step) => self.step_fill(fill, step),
            Happening::Open((node, blob, life), step) => {
                if self.nodes[node].life == life {
                    self.step_opening(node, blob, step);
                }
            }
            Happening::Download(download, step) => self.step_download(download, step),
            Happening::Fetch(node, fetch) => self.advance(node, fetch),
            Happening::Transit(to, piece, transit) => self.step_fetch(to, piece, transit),
            Happening::Spoken => (1..self.nodes.len()).for_each(|node| self.come_up(node)),
        }
    }

    /// Gives the brain an event, or the time, and sends what it commands.
    fn think(&mut self, event: Option<Event>) {
        let now = Duration::from_nanos(self.now);
        let mut commands = Vec::new();
        match event {
            Some(event) => self.brain.handle(now, event, &mut commands),
            None => self.brain.handle_timeout(now, &mut commands),
        }
        if self.plan.checked {
            self.brain.check_invariants();
        }
        let convictions = self.brain.take_convictions();
        self.convicted
            .extend(convictions.iter().map(|conviction| conviction.node));
        for command in commands {
            if let Command::Lease { lease, .. } = &command {
                self.leases += 1;
                check_lease(lease);
            }
            let member = command.to();
            let Some(&node) = self.members.get(&member) else {
                continue;
            };
            let at = (self.now + self.hop()).max(self.nodes[node].told_until);
            self.nodes[node].told_until = at;
            self.at(at, Happening::Told { node, member, command });
        }
        let next = self.brain.poll_timeout().map(nanos);
        if let Some(next) = next.filter(|&next| self.timer_at.is_none_or(|set| next < set)) {
            self.timer_at = Some(next);
            self.at(next, Happening::Timer);
        }
    }

    /// Sends an event, in order with the node's others.
    pub(crate) fn say(&mut self, node: usize, event: Event) {
        let at = (self.now + self.hop()).max(self.nodes[node].said_until);
        self.nodes[node].said_until = at;
        let life = self.scheduler_life;
        if matches!(event, Event::LeaseEnded { .. }) && self.chance.happens(self.plan.duplicates) {
            let late = at + self.chance.among(0..SECOND);
            self.at(
                late,
                Happening::Said {
                    life,
                    event: event.clone(),
                },
            );
        }
        self.at(at, Happening::Said { life, event });
    }

    fn suffer(&mut self, fault: Fault) {
        match fault {
            Fault::Start(node) => self.start(node),
            Fault::Crash(node) => {
                self.disconnect(node);
                let state = &mut self.nodes[node];
                (state.running, state.frozen, state.mirror_lost_since) = (false, false, None);
                state.life += 1;
                state.fetches.clear();
                let blobs = state.blobs.iter_mut();
                blobs.for_each(|blob| (blob.download, blob.opening) = (None, None));
                self.drop_fills(node);
                if node == MIRROR {
                    self.break_awaited();
                }
            }
            Fault::Wipe(node) => {
                self.suffer(Fault::Crash(node));
                if node == MIRROR {
                    self.fill = FillId(self.fill.0 + 2);
                }
                for blob in &mut self.nodes[node].blobs {
                    blob.restart(if node == MIRROR { self.fill } else { EARLIER_FILL });
                    (blob.complete, blob.list) = (false, None);
                }
            }
            Fault::Freeze(node) => self.nodes[node].frozen = true,
            Fault::Thaw(node) => self.nodes[node].frozen = false,
            Fault::PauseScheduler(time) => {
                (self.paused_since, self.paused_until) = (self.now, self.now + time);
                self.at(self.paused_until, Happening::Spoken);
            }
            Fault::RestartScheduler => {
                self.scheduler_life += 1;
                self.brain = Brain::new(self.plan.policy.clone(), self.chance.draw());
                self.timer_at = None;
                self.spoken = vec![vec![None; self.plan.pieces as usize]; self.plan.blobs];
                for node in 0..self.nodes.len() {
                    self.disconnect(node);
                    let at = self.now + self.chance.among(0..SECOND);
                    let life = self.nodes[node].life;
                    self.at(at, Happening::Connect { node, life });
                }
            }
        }
    }
}

/// The fill that peers heard of before the mirror has lost its disk.
const EARLIER_FILL: FillId = FillId(1 << 40);

fn check_lease(lease: &Lease) {
    assert!(lease.count > 0 && lease.hashes.len() == lease.count as usize);
    assert!(lease.first + lease.count <= lease.map.count());
    let member = matches!(lease.source, piecemeal_scheduler::brain::Source::Member(_));
    assert!(
        !member || lease.hashes.iter().all(Option::is_some),
        "a member's lease has its hashes"
    );
}
