//! Brain: its tables, and the two functions through which events and time go in.
//!
//! Invariant: between two calls no member waits to be matched but those that a tick will try again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    num::NonZeroUsize,
};

use lru::LruCache;
use piecemeal_proto::{Digest, NodeId};

use super::{
    Command, Conviction, Event, MemberId, Policy, Time, holdings::Holdings, lease_table::Leases, member::MemberState,
    pool::Pool, rng::Rng, slab::Slab, swarm::Swarm,
};

/// The placement brain: decides which member fetches which pieces from which source.
///
/// Call [`Brain::handle`] with each event as it happens, and [`Brain::handle_timeout`] when [`Brain::poll_timeout`] has come.
/// Time never runs backwards. Deliver the commands in their order; commands that cannot be delivered are lost with their member
/// ([`Event::Left`]).
pub struct Brain {
    pub(super) policy: Policy,
    pub(super) now: Time,
    /// When the brain itself was last late: a member's silence before that may be the brain's own fault.
    pub(super) awake_since: Time,
    pub(super) rng: Rng,
    pub(super) members: Slab<MemberState>,
    pub(super) ids: BTreeMap<MemberId, u32>,
    pub(super) nodes: BTreeMap<NodeId, MemberId>,
    pub(super) pools: Slab<Pool>,
    pub(super) pool_names: BTreeMap<String, u32>,
    pub(super) swarms: Slab<Swarm>,
    pub(super) digests: BTreeMap<(u32, Digest), u32>,
    /// Holders of blobs that no member wants.
    pub(super) holdings: Holdings,
    pub(super) leases: Leases,
    /// Nodes that stated wrong hashes, with whether they had signed: their claims are not used again, even after they
    /// reconnect.
    pub(super) convicted: LruCache<(NodeId, bool), ()>,
    /// Convictions that [`Brain::take_convictions`] has not yielded yet.
    pub(super) convictions: Vec<Conviction>,
    pub(super) timers: BTreeSet<(Time, Timer)>,
    /// Sources to be matched before this event is done: slot, and the swarm to begin with.
    pub(super) pending_sources: VecDeque<(u32, u32)>,
    /// Receivers to be matched before this event is done: swarm and index.
    pub(super) pending_receivers: VecDeque<(u32, u32)>,
    /// Blobs of which mirrors are to be told before this event is done: pool, digest, and whether a client is connected.
    pub(super) pending_clients: Vec<(u32, Digest, bool)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A member may have fallen silent.
    Silence(MemberId),
    /// A receiver may have stalled.
    Stall(MemberId),
    /// A swarm, by its slot, tries again what the samples missed.
    Tick(u32),
}

impl Brain {
    /// `seed` decides every sample; equal seeds and events give equal commands.
    pub fn new(policy: Policy, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            policy,
            now: Time::ZERO,
            awake_since: Time::ZERO,
            leases: Leases::new(rng.next()),
            rng,
            members: Slab::new(),
            ids: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pools: Slab::new(),
            pool_names: BTreeMap::new(),
            swarms: Slab::new(),
            digests: BTreeMap::new(),
            holdings: Holdings::default(),
            convicted: LruCache::new(NonZeroUsize::new(CONVICTED_MAX).expect("it is not 0")),
            convictions: Vec::new(),
            timers: BTreeSet::new(),
            pending_sources: VecDeque::new(),
            pending_receivers: VecDeque::new(),
            pending_clients: Vec::new(),
        }
    }

    /// Takes one event and appends the commands that follow from it. Events of unknown members, and events that do not fit what
    /// is known of the blob, change nothing.
    pub fn handle(&mut self, now: Time, event: Event, out: &mut Vec<Command>) {
        self.advance_clock(now);
        match event {
            Event::Joined { member, info } => self.join(member, info, out),
            Event::Left { member } => self.leave(member, out),
            Event::Heard { member } => {
                self.note_heard(member);
            }
            Event::Want {
                member,
                digest,
                map,
                fill,
                have,
                window,
            } => self.want(member, digest, (map, fill), &have, window, out),
            Event::Client {
                member,
                digest,
                connected,
            } => self.client(member, &digest, connected),
            Event::Unwant { member, digest } => self.unwant(member, &digest, out),
            Event::Have {
                member,
                digest,
                map,
                fill,
                first,
                hashes,
            } => self.have(member, digest, (fill, map), first, &hashes, out),
            Event::Complete { member, digest } => self.complete(member, digest, out),
            Event::Lost { member, digest } => self.lost(member, &digest, out),
            Event::Proven { member, digest, fill } => self.proven(member, &digest, fill, out),
            Event::Revoke { member, digest, fill } => self.revoke(member, &digest, fill, out),
            Event::Doubt { member, digest, fill } => self.doubt(member, &digest, fill, out),
            Event::PieceHashes { member, list } => self.piece_hashes(member, &list, out),
            Event::LeaseEnded { member, lease, outcome } => self.ended(member, lease, outcome, out),
            Event::Waiting { member, digest, piece } => self.wait(member, &digest, piece, out),
        }
        self.match_pending(out);
    }

    /// When [`Brain::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// Handles every deadline at or before `now`.
    pub fn handle_timeout(&mut self, now: Time, out: &mut Vec<Command>) {
        self.advance_clock(now);
        while let Some(&(at, timer)) = self.timers.first()
            && at <= self.now
        {
            self.timers.pop_first();
            match timer {
                Timer::Silence(member) => self.check_silence(member, out),
                Timer::Stall(member) => self.check_stall(member, out),
                Timer::Tick(swarm) => self.tick(swarm, out),
            }
            self.match_pending(out);
        }
    }

    /// Moves the brain's time on. A deadline long past says that the brain was not called in time: then silence, and long
    /// leases, are its own fault.
    fn advance_clock(&mut self, now: Time) {
        self.now = self.now.max(now);
        let due = self.poll_timeout();
        if due.is_some_and(|due| self.now >= due + self.policy.silent_after / 4) {
            self.awake_since = self.now;
        }
    }

    /// Matches the members that gained room or pieces, receivers first.
    fn match_pending(&mut self, out: &mut Vec<Command>) {
        self.tell_clients(out);
        loop {
            if let Some((swarm, index)) = self.pending_receivers.pop_front() {
                self.find_sources(swarm, index, out);
                self.schedule_tick(swarm);
            } else if let Some((slot, swarm)) = self.pending_sources.pop_front() {
                self.find_receivers(slot, swarm, out);
            } else {
                break;
            }
        }
    }

    /// Makes sure that a busy swarm has a tick ahead.
    pub(super) fn schedule_tick(&mut self, swarm: u32) {
        let at = self.now + self.policy.rematch_every;
        if let Some(state) = self.swarms.get_mut(swarm)
            && state.tick_at.is_none()
            && state.is_busy()
        {
            state.tick_at = Some(at);
            self.timers.insert((at, Timer::Tick(swarm)));
        }
    }

    /// Tries again what the samples may have missed, what time alone has made possible, and what takes too long.
    fn tick(&mut self, swarm: u32, out: &mut Vec<Command>) {
        self.swarms[swarm].tick_at = None;
        if self.swarms[swarm].is_live() {
            self.add_holders(swarm);
        }
        self.describe(swarm, out);
        self.steal(swarm, out);
        let (mut receivers, mut unproven) = (Vec::new(), Vec::new());
        self.sample(swarm, |state| &state.waiting_receivers, &mut receivers);
        if self.swarms[swarm].idle_receivers.is_empty() {
            self.sample(swarm, |state| &state.receivers, &mut receivers);
        } else {
            self.sample(swarm, |state| &state.landing_receivers, &mut receivers);
            self.sample(swarm, |state| &state.new_receivers, &mut receivers);
            self.sample(swarm, |state| &state.idle_receivers, &mut receivers);
        }
        self.sample(swarm, |state| &state.unproven, &mut unproven);
        for index in unproven {
            self.compare(swarm, index, out);
        }
        self.pending_receivers
            .extend(receivers.into_iter().map(|index| (swarm, index)));
        self.schedule_tick(swarm);
    }

    /// The swarm of the blob and the member's index there, if it is in that swarm.
    pub(super) fn find_swarm_member(&self, slot: u32, digest: &Digest) -> Option<(u32, u32)> {
        let member = &self.members[slot];
        let &swarm = self.digests.get(&(member.pool, *digest))?;
        Some((swarm, *member.swarms.get(&swarm)?))
    }

    /// After a member of a swarm has changed: updates its sets, and queues it to be matched.
    pub(super) fn requeue(&mut self, swarm: u32, index: u32) {
        let state = &mut self.swarms[swarm];
        state.update_sets(index, self.policy.leases_deep);
        if state.is_live() {
            let slot = state.members[index].slot;
            self.members[slot].live_swarms.insert(swarm);
            if state.sources.contains(index) {
                self.pending_sources.push_back((slot, swarm));
            }
            if state.receivers.contains(index) || state.waiting_receivers.contains(index) {
                self.pending_receivers.push_back((swarm, index));
            }
        }
    }
}

/// Convicted nodes that are remembered. Beyond it the node that was convicted first is forgotten.
const CONVICTED_MAX: usize = 4096;
