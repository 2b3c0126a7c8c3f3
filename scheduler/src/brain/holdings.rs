//! Table of the holders of whole blobs that no member wants: a few bytes for each, not a swarm.
//!
//! A claim costs about [`CLAIM_BYTES`]; all claims stay below [`HOLDINGS_BYTES_MAX`]. A member has at most as many as a store
//! may hold. Where the table is full, the member with the most claims loses some, so that a member that claims a million takes
//! from itself.
//!
//! Invariant: both sets have the same claims, and `counts` counts them.

use std::collections::{BTreeMap, BTreeSet};

use piecemeal_proto::Digest;

/// A pool's blob, by the first bytes of its digest. A claim that fits by chance is found out like any other false claim.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(u64);

impl Key {
    pub(super) fn new(pool: u32, digest: &Digest) -> Self {
        let bytes = match digest {
            Digest::Sha256(hash) => &hash[..8],
            Digest::Sha512(hash) => &hash[..8],
        };
        let prefix = u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
        Self(prefix ^ u64::from(pool).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

#[derive(Default)]
pub(super) struct Holdings {
    /// Key, whether the holder is a peer, and its slot: mirrors come first.
    by_blob: BTreeSet<(Key, bool, u32)>,
    by_member: BTreeSet<(u32, Key)>,
    counts: BTreeMap<u32, Count>,
    blobs: usize,
}

#[derive(Clone, Copy)]
struct Count {
    peer: bool,
    claims: usize,
}

impl Holdings {
    /// Blobs that some member claims to hold.
    pub(super) fn blobs(&self) -> usize {
        self.blobs
    }

    pub(super) fn claims_of(&self, slot: u32) -> usize {
        self.counts.get(&slot).map_or(0, |count| count.claims)
    }

    /// Notes that a member holds a blob; does nothing when the member has claimed as many as it may.
    pub(super) fn insert(&mut self, slot: u32, peer: bool, key: Key, (member_max, all_max): (usize, usize)) {
        if self.claims_of(slot) >= member_max {
            return;
        }
        if self.by_member.len() >= all_max {
            let largest = self.counts.iter().max_by_key(|(_, count)| count.claims);
            match largest.map(|(&largest, _)| largest) {
                Some(largest) if largest != slot => self.shrink(largest),
                _ => return,
            }
        }
        let is_new = !self.is_held(key);
        if self.by_member.insert((slot, key)) {
            self.by_blob.insert((key, peer, slot));
            self.counts.entry(slot).or_insert(Count { peer, claims: 0 }).claims += 1;
            self.blobs += usize::from(is_new);
        }
    }

    pub(super) fn remove(&mut self, slot: u32, key: Key) {
        if !self.by_member.remove(&(slot, key)) {
            return;
        }
        let count = self.counts.get_mut(&slot).expect("claims are counted");
        self.by_blob.remove(&(key, count.peer, slot));
        count.claims -= 1;
        if count.claims == 0 {
            self.counts.remove(&slot);
        }
        self.blobs -= usize::from(!self.is_held(key));
    }

    /// Removes a member that has left, with its claims.
    pub(super) fn remove_member(&mut self, slot: u32) {
        self.remove_some(slot, usize::MAX);
    }

    fn shrink(&mut self, slot: u32) {
        self.remove_some(slot, GIVEN_UP_AT_ONCE);
    }

    fn remove_some(&mut self, slot: u32, most: usize) {
        let range = self.by_member.range((slot, Key(0))..=(slot, Key(u64::MAX)));
        let keys: Vec<Key> = range.take(most).map(|&(_, key)| key).collect();
        for key in keys {
            self.remove(slot, key);
        }
    }

    fn is_held(&self, key: Key) -> bool {
        self.holders(key, 0).next().is_some()
    }

    /// Mirrors that hold the blob, then peers from the slot `start` on, and around.
    pub(super) fn holders(&self, key: Key, start: u32) -> impl Iterator<Item = u32> {
        let mirrors = self.by_blob.range((key, false, 0)..=(key, false, u32::MAX));
        let later = self.by_blob.range((key, true, start)..=(key, true, u32::MAX));
        let earlier = self.by_blob.range((key, true, 0)..(key, true, start));
        mirrors.chain(later).chain(earlier).map(|&(_, _, slot)| slot)
    }

    pub(super) fn check(&self) {
        assert_eq!(self.by_blob.len(), self.by_member.len());
        assert_eq!(
            self.counts.values().map(|count| count.claims).sum::<usize>(),
            self.by_blob.len()
        );
        let keys: BTreeSet<Key> = self.by_blob.iter().map(|&(key, ..)| key).collect();
        assert_eq!(keys.len(), self.blobs);
    }
}

/// Memory of one claim, in both sets.
const CLAIM_BYTES: usize = 64;
/// Memory of all claims.
const HOLDINGS_BYTES_MAX: usize = 256 << 20;
/// Claims of all members.
pub(super) const HOLDINGS_ALL_MAX: usize = HOLDINGS_BYTES_MAX / CLAIM_BYTES;
/// Claims that the member with the most loses at once when the table is full, so that it is not searched for with every claim.
const GIVEN_UP_AT_ONCE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::super::{
        Event, Role,
        holders::HOLDERS_ADDED,
        testing::{MIRROR, Site, peer},
    };
    use super::*;

    fn key(number: u64) -> Key {
        Key(number)
    }

    #[test]
    fn a_member_claims_as_many_as_it_may_and_takes_them_along() {
        let mut holdings = Holdings::default();
        for number in 0..100 {
            holdings.insert(1, true, key(number), (50, 1000));
            holdings.insert(2, false, key(number), (1000, 1000));
        }
        holdings.check();
        assert_eq!(
            (holdings.claims_of(1), holdings.claims_of(2), holdings.blobs()),
            (50, 100, 100)
        );
        assert_eq!(holdings.holders(key(3), 0).collect::<Vec<_>>(), [2, 1], "mirrors first");
        holdings.remove_member(2);
        holdings.check();
        assert_eq!(holdings.blobs(), 50);
    }

    #[test]
    fn where_the_table_is_full_the_one_with_the_most_gives_way() {
        let mut holdings = Holdings::default();
        for number in 0..3000 {
            holdings.insert(1, true, key(number), (10_000, 3000));
        }
        for number in 5000..5100 {
            holdings.insert(2, true, key(number), (10_000, 3000));
        }
        holdings.insert(1, true, key(9000), (10_000, 2000));
        holdings.check();
        assert_eq!(
            (holdings.claims_of(2), holdings.claims_of(1)),
            (100, 3000 - GIVEN_UP_AT_ONCE)
        );
    }

    #[test]
    fn a_claim_to_an_unwanted_blob_costs_no_swarm_and_goes_with_its_member() {
        let mut site = Site::new(8, 2);
        for number in 0..20_000_u32 {
            let digest = Digest::of(&number.to_be_bytes());
            let member = peer(1);
            site.brain
                .handle(site.now, Event::Complete { member, digest }, &mut site.out);
        }
        site.brain.check_invariants();
        assert_eq!((site.brain.swarms.len(), site.brain.status().idle_swarms), (0, 20_000));
        site.event(Event::Left { member: peer(1) });
        assert_eq!(site.brain.status().idle_swarms, 0);
        assert!(site.brain.holdings.by_blob.is_empty() && site.brain.holdings.by_member.is_empty());
    }

    #[test]
    fn one_that_claims_a_million_is_cut_off_at_what_a_store_may_hold() {
        let mut site = Site::new(8, 1);
        site.brain.policy.holdings_max = 1000;
        for number in 0..5000_u32 {
            let digest = Digest::of(&number.to_be_bytes());
            let member = peer(1);
            site.brain
                .handle(site.now, Event::Complete { member, digest }, &mut site.out);
        }
        assert_eq!(site.brain.status().idle_swarms, 1000);
    }

    #[test]
    fn holders_are_seated_only_while_a_member_wants_the_blob() {
        let mut site = Site::new(8, 0);
        for number in 1..=200 {
            site.join(peer(number), number, Role::Peer);
            site.complete(peer(number));
        }
        site.complete(MIRROR);
        site.join(peer(500), 500, Role::Peer);
        site.want(peer(500), []);
        assert_eq!(site.described(), [MIRROR], "mirrors are seated first");
        assert_eq!(site.brain.status().swarms[0].complete as usize, HOLDERS_ADDED);
        site.have(MIRROR, 0..8);
        site.pass(std::time::Duration::from_millis(200), &[]);
        assert!(site.brain.status().swarms[0].complete > 100, "and more with each tick");
        let digest = site.digest;
        site.event(Event::Lost {
            member: peer(1),
            digest,
        });
        site.event(Event::Unwant {
            member: peer(500),
            digest,
        });
        assert_eq!((site.brain.swarms.len(), site.brain.holdings.by_blob.len()), (0, 200));
        site.event(Event::Lost {
            member: peer(2),
            digest,
        });
        assert_eq!(site.brain.holdings.by_blob.len(), 199);
    }
}
