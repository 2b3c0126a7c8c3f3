//! Members and pools.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
};

use lru::LruCache;
use piecemeal_proto::Digest;

use super::{
    LeaseId, Member, MemberId, Policy, Role, Time,
    aside::{Asides, Backoff},
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
    pub(super) watched: bool,
    /// As a source it took far longer than others of late: it gets one lease at a time, so that little waits behind it.
    pub(super) slow: bool,
    /// Of a mirror: how many leases may name it as the source now.
    window: usize,
    /// Leases out to it.
    pub(super) fetching: Vec<LeaseId>,
    /// Leases that name it as the source.
    pub(super) serving: Vec<LeaseId>,
    /// Of `serving`, those whose receiver has stalled: they take no place.
    pub(super) stalled_serving: usize,
    /// As a receiver: when a piece of its leases last landed, or the first of them was given.
    pub(super) landed_at: Time,
    /// What a lease usually takes it.
    pub(super) usual: Option<Time>,
    /// It lands what it is leased in good time.
    pub(super) proven: bool,
    /// It has landed nothing for a while.
    pub(super) stalled: bool,
    /// Times that it did, since a piece last landed in good time.
    pub(super) stalls: u32,
    /// Leases that it may have at once: one after a stall, twice as many with each piece that lands in time.
    pub(super) allowance: usize,
    /// Times in a row that it lost its leases, and leases in a row that it gave up.
    pub(super) lapses: u32,
    pub(super) gave_up: u32,
    /// Until then it gets no lease.
    pub(super) taking: Backoff,
    /// A timer for its stalling is set.
    pub(super) taking_watched: bool,
    /// Seat by swarm.
    pub(super) seats: BTreeMap<u32, u32>,
    /// Those of its swarms that somebody wants and in which it has been seen; others may linger.
    pub(super) live: BTreeSet<u32>,
    /// The swarm that it served last; the next has the next turn.
    pub(super) turn: u32,
    pub(super) wants: usize,
    /// Pieces of the blobs for which it has bitmaps.
    pub(super) pieces: u64,
    pub(super) asides: Asides,
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
            watched: false,
            slow: false,
            window: policy.mirror_uploads_min as usize,
            fetching: Vec::new(),
            serving: Vec::new(),
            stalled_serving: 0,
            landed_at: Time::ZERO,
            usual: None,
            proven: false,
            stalled: false,
            stalls: 0,
            allowance: policy.leases_max as usize,
            lapses: 0,
            gave_up: 0,
            taking: Backoff::default(),
            taking_watched: false,
            seats: BTreeMap::new(),
            live: BTreeSet::new(),
            turn: 0,
            wants: 0,
            pieces: 0,
            asides: Asides::default(),
            accusations: LruCache::sparse(ACCUSED_BLOBS_MAX),
        }
    }

    pub(super) fn is_mirror(&self) -> bool {
        self.info.role == Role::Mirror
    }

    /// Whether one more lease may name it as the source.
    pub(super) fn has_room(&self, policy: &Policy, urgent: bool) -> bool {
        let max = match self.info.role {
            Role::Peer if self.slow => 1,
            Role::Mirror if !urgent => self.window,
            _ => self.serving_max(policy),
        };
        self.places_taken() < max && self.serving.len() < self.serving_max(policy) * STALLED_FACTOR
    }

    /// As a receiver it has landed nothing of what it was last leased: others come first, whatever they hold.
    pub(super) fn is_doubtful(&self) -> bool {
        self.stalls > 0 || self.lapses > 0 || self.gave_up > 0
    }

    /// Leases that name it as the source and whose receivers land pieces.
    fn places_taken(&self) -> usize {
        self.serving.len() - self.stalled_serving
    }

    /// Whether one more lease to a receiver that has not shown that it lands any would leave a mirror a place for one that has.
    pub(super) fn has_room_to_try(&self) -> bool {
        self.info.role == Role::Peer || self.places_taken() + 1 < self.window
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
    pub(super) fn note_pace(&mut self, took: Time, usual: Time, policy: &Policy) {
        match self.info.role {
            Role::Peer => self.slow = took > usual * policy.straggler_factor,
            Role::Mirror if took < usual * 5 / 4 => self.window = (self.window + 1).min(self.serving_max(policy)),
            Role::Mirror => self.window = (self.window - 1).max(policy.mirror_uploads_min as usize),
        }
    }
}

/// With those to stalled receivers a source has at most so many times its leases.
pub(super) const STALLED_FACTOR: usize = 2;

/// Members that can reach each other.
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) members: usize,
    /// Mirrors that are connected and not silent.
    pub(super) mirrors: usize,
    /// When a mirror last came or went.
    pub(super) mirrors_changed: Time,
    /// When one last brought anything new of a blob.
    pub(super) progress_at: Time,
    /// Since when somebody has had to do without a mirror.
    pub(super) lost_since: Option<Time>,
}

impl Pool {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            members: 0,
            mirrors: 0,
            mirrors_changed: Time::ZERO,
            progress_at: Time::ZERO,
            lost_since: None,
        }
    }

    /// A mirror came (back).
    pub(super) fn gain_mirror(&mut self, now: Time) {
        self.mirrors += 1;
        self.mirrors_changed = now;
        self.lost_since = None;
    }

    /// A mirror left or fell silent.
    pub(super) fn lose_mirror(&mut self, now: Time) {
        self.mirrors -= 1;
        self.mirrors_changed = now;
        self.miss_mirror(now);
    }

    /// Starts the grace if there is no mirror and it has not started yet.
    pub(super) fn miss_mirror(&mut self, now: Time) {
        if self.mirrors == 0 {
            self.lost_since.get_or_insert(now);
        }
    }

    /// No mirror, for longer than streams wait for one.
    pub(super) fn is_on_its_own(&self, now: Time, grace: Time) -> bool {
        self.lost_since.is_some_and(|since| now >= since + grace)
    }
}

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
        let usual = Time::from_millis(100);
        let policy = site.brain.policy.clone();
        let slot = site.brain.ids[&testing::MIRROR];
        let mirror = &mut site.brain.members[slot];
        for _ in 0..200 {
            mirror.note_pace(usual, usual, &policy);
        }
        assert_eq!(mirror.window, policy.mirror_uploads_max as usize);
        for _ in 0..200 {
            mirror.note_pace(usual * 2, usual, &policy);
        }
        assert_eq!(mirror.window, policy.mirror_uploads_min as usize);
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
