//!
//! Member: state of one connected daemon, over all swarms.
//!
//! Invariant: a source never has more leases than [`MemberState::serving_max`] times [`STALLED_FACTOR`].

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
    /// Slot of its pool.
    pub(super) pool: u32,
    /// Hash of the zone's name. It decides a preference only.
    pub(super) zone: u64,
    /// When its latest message came.
    pub(super) heard: Time,
    /// It had leases and sent nothing: it is not used until it is heard again.
    pub(super) silent: bool,
    /// A timer for its silence is set.
    pub(super) silence_watched: bool,
    /// As a source: its latest lease took far longer than usual. It gets one lease at a time, so that little waits behind it.
    pub(super) slow: bool,
    /// Of a mirror: leases that may name it as the source now.
    concurrency: usize,
    /// Leases to it.
    pub(super) fetching: Vec<LeaseId>,
    /// Leases that name it as the source.
    pub(super) serving: Vec<LeaseId>,
    /// Number of leases in `serving` by the class of their receiver.
    serving_by_class: [usize; ReceiverClass::COUNT],
    /// As a receiver: when a piece of its leases last landed, or the first of its leases was issued.
    pub(super) landed_at: Time,
    /// As a receiver: its own lease time, smoothed.
    pub(super) lease_time: Option<Time>,
    /// As a receiver: it lands its pieces in good time.
    pub(super) prompt: bool,
    /// As a receiver: a piece of its leases has landed since it joined, or since its leases last expired. Until then it is a
    /// newcomer.
    pub(super) landed: bool,
    /// As a receiver: it has landed nothing for a while.
    pub(super) stalled: bool,
    /// Stalls since a piece last landed in good time.
    pub(super) stalls: u32,
    /// Leases that it may have at once: one after a stall, twice as many with each piece that lands in good time.
    pub(super) allowance: usize,
    /// Times in a row that its leases expired.
    pub(super) expiries: u32,
    /// Leases in a row that it gave up.
    pub(super) gave_up: u32,
    /// While it is active, the member gets no lease.
    pub(super) lease_backoff: Backoff,
    /// A timer for its stall is set.
    pub(super) stall_watched: bool,
    /// Its index in each swarm, by the slot of the swarm.
    pub(super) swarms: BTreeMap<u32, u32>,
    /// Swarms in which it was queued while a member wanted the blob; swarms that it has left may linger.
    pub(super) live_swarms: BTreeSet<u32>,
    /// As a source: the swarm that it last looked at. The next one has the next turn.
    pub(super) last_swarm: u32,
    /// Blobs that it wants.
    pub(super) wants: usize,
    /// Pieces of the blobs for which it has bitmaps.
    pub(super) pieces: u64,
    pub(super) source_backoff: SourceBackoff,
    /// Its reports of corrupt sources that were believed, by blob.
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

    /// Whether it has as many leases as it may have at all. Then one more takes the place of an idle receiver's.
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

    /// Whether one more lease of an idle receiver fits beside those of all that land pieces.
    pub(super) fn has_room_for_idle(&self, policy: &Policy) -> bool {
        self.count(ReceiverClass::Idle) < self.serving_max(policy) && !self.is_full(policy)
    }

    /// Leases to receivers of this class that name it as the source.
    pub(super) fn count(&self, class: ReceiverClass) -> usize {
        self.serving_by_class[class as usize]
    }

    pub(super) fn count_mut(&mut self, class: ReceiverClass) -> &mut usize {
        &mut self.serving_by_class[class as usize]
    }

    /// The class by which its leases count at their sources.
    pub(super) fn receiver_class(&self) -> ReceiverClass {
        match (self.landed, self.stalled) {
            (true, false) => ReceiverClass::Landing,
            (true, true) => ReceiverClass::Stalled,
            (false, true) => ReceiverClass::Idle,
            (false, false) if self.stalls > 0 || self.expiries > 0 => ReceiverClass::Idle,
            (false, false) => ReceiverClass::New,
        }
    }

    /// As a receiver it has landed nothing of its latest leases: other receivers come first, whatever they hold.
    pub(super) fn is_doubtful(&self) -> bool {
        self.stalls > 0 || self.expiries > 0 || self.gave_up > 0
    }

    /// Leases that name it as the source and take a place. While it has idle receivers, the new ones take half of the places at
    /// most, and share the room of the idle ones, since most of them will be idle, too.
    fn allocated(&self, policy: &Policy) -> usize {
        let new = self.count(ReceiverClass::New);
        let new = match self.count(ReceiverClass::Idle) {
            0 => new,
            _ => new.min((self.capacity(policy, false) / 2).max(1)),
        };
        self.count(ReceiverClass::Landing) + new
    }

    /// Whether a lease to a receiver that has not shown that it lands pieces would leave a mirror a place for one that has.
    pub(super) fn has_room_to_try(&self, policy: &Policy) -> bool {
        self.info.role == Role::Peer || self.allocated(policy) + 1 < self.concurrency
    }

    /// The most leases that may ever name it as the source and take a place.
    pub(super) fn serving_max(&self, policy: &Policy) -> usize {
        let uploads = match self.info.role {
            Role::Peer => policy.uploads_max + policy.queued_max,
            Role::Mirror => policy.mirror_uploads_max,
        };
        uploads as usize
    }

    /// One of its uploads took `took`, where the swarm's lease time is `lease_time`. A mirror gets more leases at once while it
    /// is no slower than peers are, and fewer when it is slower: its link may be much faster than theirs, or the only one that
    /// is full.
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

/// With its leases to stalled receivers a source has at most so many times `serving_max`.
pub(super) const STALLED_FACTOR: usize = 2;

/// FNV-1a, 64 bits.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Blobs for which a member's reports are counted: more than it may want at once for long.
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
