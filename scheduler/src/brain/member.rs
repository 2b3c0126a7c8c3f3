//! Members and pools.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
};

use lru::LruCache;
use piecemeal_proto::Digest;

use super::{
    LeaseId, Member, MemberId, Policy, Role, Time,
    backoff::{Backoff, SourceBackoff},
    receiver_class::ReceiverClass,
};

pub(super) struct MemberState {
    pub(super) id: MemberId,
    pub(super) info: Member,
    pub(super) pool: u32,
    /// A hash of the zone's name: only a preference hangs on it.
    pub(super) zone: u64,
    pub(super) heard: Time,
    /// Had leases and said nothing: not used until it is heard again.
    pub(super) silent: bool,
    /// A timer for its silence is set.
    pub(super) silence_watched: bool,
    /// Its latest leases as a source took far longer than others': it gets one lease at a time, so that little waits behind it.
    pub(super) slow: bool,
    /// Of a mirror: how many leases may name it as the source now.
    concurrency: usize,
    /// Leases out to it.
    pub(super) fetching: Vec<LeaseId>,
    /// Leases that name it as the source.
    pub(super) serving: Vec<LeaseId>,
    /// Of `serving`, how many are of which standing.
    serving_by_class: [usize; ReceiverClass::COUNT],
    /// As a receiver: when a piece of its leases last landed, or the first of them was given.
    pub(super) landed_at: Time,
    /// What a lease usually takes it.
    pub(super) lease_time: Option<Time>,
    /// It lands what it is leased in good time.
    pub(super) prompt: bool,
    /// A piece of its leases has landed since it joined, or last lost its leases for landing nothing. Until then it is a newcomer.
    pub(super) landed: bool,
    /// It has landed nothing for a while.
    pub(super) stalled: bool,
    /// Times that it did, since a piece last landed in good time.
    pub(super) stalls: u32,
    /// Leases that it may have at once: one after a stall, twice as many with each piece that lands in time.
    pub(super) allowance: usize,
    /// Times in a row that it lost its leases, and leases in a row that it gave up.
    pub(super) expiries: u32,
    pub(super) gave_up: u32,
    /// Until then it gets no lease.
    pub(super) lease_backoff: Backoff,
    /// A timer for its stalling is set.
    pub(super) stall_watched: bool,
    /// SwarmMember by swarm.
    pub(super) swarms: BTreeMap<u32, u32>,
    /// Those of its swarms that a member wants and in which it has been seen; others may linger.
    pub(super) live_swarms: BTreeSet<u32>,
    /// The swarm that it served last; the next has the next turn.
    pub(super) last_swarm: u32,
    pub(super) wants: usize,
    /// Pieces of the blobs for which it has bitmaps.
    pub(super) pieces: u64,
    pub(super) source_backoff: SourceBackoff,
    /// Sources that it got banned, by blob.
    pub(super) accusations: LruCache<Digest, u32>,
}

impl MemberState {
    pub(super) fn new(id: MemberId, info: Member, pool: u32, now: Time, policy: &Policy) -> Self {
        Self {
            id,
            zone: fnv1a(&info.zone),
            info,
            pool,
            heard: now,
            silent: false,
            silence_watched: false,
            slow: false,
            concurrency: policy.mirror_uploads_min as usize,
            fetching: Vec::new(),
            serving: Vec::new(),
            serving_by_class: [0; ReceiverClass::COUNT],
            landed_at: Time::ZERO,
            lease_time: None,
            prompt: false,
            landed: false,
            stalled: false,
            stalls: 0,
            allowance: policy.leases_max as usize,
            expiries: 0,
            gave_up: 0,
            lease_backoff: Backoff::default(),
            stall_watched: false,
            swarms: BTreeMap::new(),
            live_swarms: BTreeSet::new(),
            last_swarm: 0,
            wants: 0,
            pieces: 0,
            source_backoff: SourceBackoff::default(),
            accusations: LruCache::sparse(ACCUSED_BLOBS_MAX),
        }
    }

    pub(super) fn is_mirror(&self) -> bool {
        self.info.role == Role::Mirror
    }

    /// Whether one more lease may name it as the source.
    pub(super) fn has_room(&self, policy: &Policy, urgent: bool) -> bool {
        self.allocated(policy) < self.capacity(policy, urgent)
            && (!self.is_full(policy) || self.count(ReceiverClass::Idle) > 0)
    }

    /// Whether it has as many leases as it may have at all: one more takes the place of an idle newcomer's.
    pub(super) fn is_full(&self, policy: &Policy) -> bool {
        self.serving.len() >= self.serving_max(policy) * STALLED_FACTOR
    }

    /// Leases of receivers that land pieces that it may have at once.
    fn capacity(&self, policy: &Policy, urgent: bool) -> usize {
        match self.info.role {
            Role::Peer if self.slow => 1,
            Role::Mirror if !urgent => self.concurrency,
            _ => self.serving_max(policy),
        }
    }

    /// Whether one more lease of an idle newcomer fits beside all that land pieces.
    pub(super) fn has_room_for_idle(&self, policy: &Policy) -> bool {
        self.count(ReceiverClass::Idle) < self.serving_max(policy) && !self.is_full(policy)
    }

    /// Leases of this standing that name it as the source.
    pub(super) fn count(&self, class: ReceiverClass) -> usize {
        self.serving_by_class[class as usize]
    }

    pub(super) fn count_mut(&mut self, class: ReceiverClass) -> &mut usize {
        &mut self.serving_by_class[class as usize]
    }

    /// How its leases count at their sources.
    pub(super) fn receiver_class(&self) -> ReceiverClass {
        match (self.landed, self.stalled) {
            (true, false) => ReceiverClass::Landing,
            (true, true) => ReceiverClass::Stalled,
            (false, true) => ReceiverClass::Idle,
            (false, false) if self.stalls > 0 || self.expiries > 0 => ReceiverClass::Idle,
            (false, false) => ReceiverClass::New,
        }
    }

    /// As a receiver it has landed nothing of what it was last leased: others come first, whatever they hold.
    pub(super) fn is_doubtful(&self) -> bool {
        self.stalls > 0 || self.expiries > 0 || self.gave_up > 0
    }

    /// Leases that name it as the source and take a place. While there are idle newcomers among its receivers, the other newcomers
    /// take half of the places at most, and share the room of the idle ones: most of them will be idle too.
    fn allocated(&self, policy: &Policy) -> usize {
        let new = self.count(ReceiverClass::New);
        let new = match self.count(ReceiverClass::Idle) {
            0 => new,
            _ => new.min((self.capacity(policy, false) / 2).max(1)),
        };
        self.count(ReceiverClass::Landing) + new
    }

    /// Whether one more lease to a receiver that has not shown that it lands any would leave a mirror a place for one that has.
    pub(super) fn has_room_to_try(&self, policy: &Policy) -> bool {
        self.info.role == Role::Peer || self.allocated(policy) + 1 < self.concurrency
    }

    /// The most leases that may ever name it as the source at once.
    pub(super) fn serving_max(&self, policy: &Policy) -> usize {
        let uploads = match self.info.role {
            Role::Peer => policy.uploads_max + policy.queued_max,
            Role::Mirror => policy.mirror_uploads_max,
        };
        uploads as usize
    }

    /// One of its uploads took `took`, where `usual` is usual among peers. A mirror gets more leases at once while it is no slower
    /// than peers are, fewer when it is: its link may be much faster than theirs, or the only one that is full.
    pub(super) fn note_pace(&mut self, took: Time, lease_time: Time, policy: &Policy) {
        match self.info.role {
            Role::Peer => self.slow = took > lease_time * policy.straggler_factor,
            Role::Mirror if took < lease_time * 5 / 4 => {
                self.concurrency = (self.concurrency + 1).min(self.serving_max(policy))
            }
            Role::Mirror => self.concurrency = (self.concurrency - 1).max(policy.mirror_uploads_min as usize),
        }
    }
}

/// With those to stalled receivers a source has at most so many times its leases.
pub(super) const STALLED_FACTOR: usize = 2;

/// FNV-1a, 64 bits.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Blobs of which a member's accusations are counted: more than it may want at once for long.
const ACCUSED_BLOBS_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not 0");

#[cfg(test)]
mod tests {
    use super::super::{Outcome, Time, testing};

    #[test]
    fn a_mirror_that_keeps_up_with_peers_gets_more_to_do() {
        let mut site = testing::Site::new(1, 1);
        let lease_time = Time::from_millis(100);
        let policy = site.brain.policy.clone();
        let slot = site.brain.ids[&testing::MIRROR];
        let mirror = &mut site.brain.members[slot];
        for _ in 0..200 {
            mirror.note_pace(lease_time, lease_time, &policy);
        }
        assert_eq!(mirror.concurrency, policy.mirror_uploads_max as usize);
        for _ in 0..200 {
            mirror.note_pace(lease_time * 2, lease_time, &policy);
        }
        assert_eq!(mirror.concurrency, policy.mirror_uploads_min as usize);
    }

    #[test]
    fn a_slow_peer_gets_one_lease_at_a_time_until_it_is_fast_again() {
        let mut site = testing::Site::without_mirror(8, 2);
        let (source, receiver) = (testing::peer(1), testing::peer(2));
        site.complete(source);
        site.want(receiver, []);
        site.have(source, 0..8);
        let leases = site.leases();
        assert_eq!(leases.len(), 3);
        for (_, lease) in &leases[..2] {
            site.pass(Time::from_millis(100), &[]);
            site.end(receiver, lease.id, Outcome::Done);
        }
        let slot = site.brain.ids[&source];
        assert!(!site.brain.members[slot].slow);
        site.pass(Time::from_millis(700), &[]);
        site.end(receiver, leases[2].1.id, Outcome::Done);
        assert!(site.brain.members[slot].slow && site.leases().is_empty());
    }
}
