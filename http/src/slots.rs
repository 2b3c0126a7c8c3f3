//! Slot table of one port: which newcomer gets a slot, which connection gives one up, and which is late.
//!
//! Invariant: there are never more connections than slots. Pure: time comes in as an argument, and no decision takes more than
//! O(log n). A connection is *busy* while it is answered or has a session, and *idle* otherwise. Three rules:
//!
//! - While a slot is free and the port is not nearly full, every newcomer gets one. Since an idle connection costs memory, too, an
//!   address that has its share gives up an idle connection of its own for it once many are idle.
//! - Once the port is nearly full, an address that has its share gets a slot only for one of its own idle connections.
//! - Once the port is full, an idle connection is closed: the longest idle one of the address or node furthest over its share, else
//!   the longest idle of all; for a newcomer whose address has its share, else the longest idle of its own address. A busy connection
//!   is closed only for a newcomer of another address that does not have its share, and only if its own address or node is over its
//!   share.
//!
//! A node that has proven itself counts by its identity, so that many nodes behind one address have a share each. Since a host
//! with `join.key` can make any number of identities, the address counts again where only busy connections are left.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use piecemeal_proto::NodeId;

use crate::{
    AddressBlock, SlotPolicy,
    parties::{Crowds, Group, Party, SlotId, oldest},
};

/// A newcomer that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AdmittedConnection {
    pub(crate) id: SlotId,
    /// The connection whose slot it has: no longer in the table, and to be closed.
    pub(crate) evicted: Option<SlotId>,
}

/// A deadline that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    /// No longer in the table, and to be closed.
    Late(SlotId),
    /// To be closed if its receiver takes nothing; asked again after `take_max`.
    Check(SlotId),
}

/// The table. `now` counts from any fixed point and never goes back.
#[derive(Debug)]
pub(crate) struct Slots {
    policy: SlotPolicy,
    share: usize,
    last: u64,
    connections: HashMap<SlotId, Connection>,
    parties: HashMap<Party, Group>,
    all: Group,
    crowds: Crowds,
    deadlines: BTreeSet<(Duration, SlotId)>,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    holder: Party,
    origin: AddressBlock,
    stage: Stage,
    /// When it came, or its latest request began or ended.
    since: Duration,
    deadline: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Greeting,
    Silent,
    Head,
    Idle,
    Busy,
}

impl Slots {
    pub(crate) fn new(policy: SlotPolicy) -> Self {
        Self {
            policy,
            share: policy.share.of(policy.slots),
            last: 0,
            connections: HashMap::new(),
            parties: HashMap::new(),
            all: Group::default(),
            crowds: Crowds::default(),
            deadlines: BTreeSet::new(),
        }
    }

    /// Connections with a slot.
    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether a newcomer could get only the slot of another connection.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.policy.slots
    }

    /// Lets a newcomer from `remote` in; `None`: it is to be closed.
    pub(crate) fn admit(&mut self, now: Duration, remote: IpAddr) -> Option<AdmittedConnection> {
        let origin = AddressBlock::of(remote);
        let own = Party::Address(origin);
        let evicted = if self.is_nearly_full() && self.has_share(own) {
            Some(self.own_victim(own)?)
        } else if self.is_full() {
            Some(self.victim(origin)?)
        } else if self.all.idle.len() >= self.policy.slots / IDLE_PART && self.has_share(own) {
            oldest(&self.parties[&own].idle)
        } else {
            None
        };
        if let Some(evicted) = evicted {
            self.leave(evicted);
        }
        self.last += 1;
        let id = SlotId(self.last);
        let connection = Connection {
            holder: Party::Address(origin),
            origin,
            stage: Stage::Greeting,
            since: now,
            deadline: now + self.policy.greet_max,
        };
        self.put(id, connection);
        Some(AdmittedConnection { id, evicted })
    }

    /// The handshake before the protocol is over.
    pub(crate) fn greeted(&mut self, id: SlotId, now: Duration) {
        let deadline = now + self.policy.first_byte_max;
        self.change(id, |connection| {
            (connection.stage, connection.deadline) = (Stage::Silent, deadline);
        });
    }

    /// A byte came: a request's first, unless one is on its way already. A connection is as idle as before: only requests count.
    pub(crate) fn heard(&mut self, id: SlotId, now: Duration) {
        let deadline = now + self.policy.head_max;
        self.change(id, |connection| {
            if matches!(connection.stage, Stage::Silent | Stage::Idle) {
                (connection.stage, connection.deadline) = (Stage::Head, deadline);
            }
        });
    }

    /// A request's head is here, or a session begins.
    pub(crate) fn began(&mut self, id: SlotId, now: Duration) {
        self.turn(id, now, Stage::Busy, self.policy.take_max);
    }

    /// The answer has gone out, or the session has ended.
    pub(crate) fn ended(&mut self, id: SlotId, now: Duration) {
        self.turn(id, now, Stage::Idle, self.policy.idle_max);
    }

    /// `node` has proven that the connection is its own.
    pub(crate) fn belongs_to(&mut self, id: SlotId, node: NodeId) {
        self.change(id, |connection| connection.holder = Party::Node(node));
    }

    /// The connection has ended.
    pub(crate) fn leave(&mut self, id: SlotId) {
        self.take(id);
    }

    /// The next deadline that has come at `now`; call it until `None`.
    pub(crate) fn poll_expired(&mut self, now: Duration) -> Option<Expired> {
        let &(_, id) = self.deadlines.first().filter(|(deadline, _)| *deadline <= now)?;
        if self.connections.get(&id)?.stage != Stage::Busy {
            self.leave(id);
            return Some(Expired::Late(id));
        }
        let deadline = now + self.policy.take_max;
        self.change(id, |connection| connection.deadline = deadline);
        Some(Expired::Check(id))
    }

    fn is_nearly_full(&self) -> bool {
        self.len() >= self.policy.slots - self.policy.slots / NEAR_PART
    }

    /// Whether `party` has all that it may have of a port that others want too.
    fn has_share(&self, party: Party) -> bool {
        let has_share = |group: &Group| group.len() >= self.share;
        self.share < self.policy.slots && self.parties.get(&party).is_some_and(has_share)
    }

    fn own_victim(&self, party: Party) -> Option<SlotId> {
        let group = self.parties.get(&party)?;
        let busy = || oldest(&group.busy).filter(|_| self.policy.busy_give_way);
        oldest(&group.idle).or_else(busy)
    }

    fn victim(&self, newcomer: AddressBlock) -> Option<SlotId> {
        let largest = |crowd: &BTreeSet<(usize, Party)>| crowd.last().map(|(_, party)| &self.parties[party]);
        let busy_of = |crowd| {
            let id = oldest(&largest(crowd)?.busy)?;
            (self.connections[&id].origin != newcomer).then_some(id)
        };
        let last_resort = || oldest(&self.all.busy).filter(|_| self.policy.busy_give_way);
        let idle = largest(&self.crowds.idle).and_then(|group| oldest(&group.idle));
        if self.has_share(Party::Origin(newcomer)) {
            return idle.or_else(|| self.own_victim(Party::Origin(newcomer)));
        }
        idle.or_else(|| oldest(&self.all.idle))
            .or_else(|| busy_of(&self.crowds.busy))
            .or_else(|| busy_of(&self.crowds.origins))
            .or_else(last_resort)
    }

    fn turn(&mut self, id: SlotId, now: Duration, stage: Stage, wait: Duration) {
        self.change(id, |connection| {
            (connection.stage, connection.since, connection.deadline) = (stage, now, now + wait);
        });
    }

    /// Does nothing for a connection that was evicted and is not closed yet.
    fn change(&mut self, id: SlotId, change: impl FnOnce(&mut Connection)) {
        if let Some(mut connection) = self.take(id) {
            change(&mut connection);
            self.put(id, connection);
        }
    }

    fn put(&mut self, id: SlotId, connection: Connection) {
        self.deadlines.insert((connection.deadline, id));
        self.all
            .of(connection.stage == Stage::Busy)
            .insert((connection.since, id));
        for party in [connection.holder, Party::Origin(connection.origin)] {
            let group = self.parties.entry(party).or_default();
            self.crowds.forget(party, group.len());
            group.of(connection.stage == Stage::Busy).insert((connection.since, id));
            self.crowds.note(party, group, self.share);
        }
        self.connections.insert(id, connection);
    }

    fn take(&mut self, id: SlotId) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        self.deadlines.remove(&(connection.deadline, id));
        self.all
            .of(connection.stage == Stage::Busy)
            .remove(&(connection.since, id));
        for party in [connection.holder, Party::Origin(connection.origin)] {
            let group = self
                .parties
                .get_mut(&party)
                .expect("a connection is in its parties' groups");
            self.crowds.forget(party, group.len());
            group
                .of(connection.stage == Stage::Busy)
                .remove(&(connection.since, id));
            self.crowds.note(party, group, self.share);
            if group.len() == 0 {
                self.parties.remove(&party);
            }
        }
        Some(connection)
    }
}

/// The port is nearly full when no more than this part of its slots is free.
const NEAR_PART: usize = 8;
/// Many are idle when they have this part of the slots.
const IDLE_PART: usize = 4;

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::Share;

    const SLOTS: usize = 80;
    const SHARE: usize = 8;

    fn policy() -> SlotPolicy {
        SlotPolicy {
            slots: SLOTS,
            share: Share::default(),
            greet_max: secs(15),
            first_byte_max: secs(5),
            head_max: secs(10),
            idle_max: secs(60),
            take_max: secs(30),
            busy_give_way: false,
        }
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn host(number: u8) -> IpAddr {
        [10, 0, 0, number].into()
    }

    /// A table in which `number` has `count` connections, the first the longest.
    fn held_by(slots: &mut Slots, number: u8, count: usize, busy: bool) -> Vec<SlotId> {
        let admit = |at| {
            let id = slots.admit(secs(at), host(number))?.id;
            if busy {
                slots.began(id, secs(at));
            }
            Some(id)
        };
        (0..count as u64).filter_map(admit).collect()
    }

    #[test]
    fn an_address_with_nine_tenths_of_the_port_keeps_no_other_out() {
        for seed in 0..100 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut slots = Slots::new(policy());
            held_by(&mut slots, 1, SLOTS * 9 / 10, random.random());
            // Others come, are answered for a while, and stay or go.
            let mut answered = std::collections::VecDeque::new();
            for at in 100..400 {
                let remote = host(random.random_range(2..=255));
                let id = slots.admit(secs(at), remote).expect("a new address gets a slot").id;
                slots.began(id, secs(at));
                answered.push_back(id);
                if answered.len() > SLOTS / 2 {
                    let id = answered.pop_front().unwrap();
                    match random.random() {
                        true => slots.leave(id),
                        false => slots.ended(id, secs(at)),
                    }
                }
                assert!(slots.len() <= SLOTS, "seed {seed}");
            }
        }
    }

    #[test]
    fn shares_do_not_bind_while_slots_are_free() {
        let mut slots = Slots::new(policy());
        let near = SLOTS - SLOTS / NEAR_PART;
        assert_eq!(held_by(&mut slots, 1, near, true).len(), near);
        // From here on one more would have to take an idle one's slot, and there is none.
        assert_eq!(slots.admit(secs(1), host(1)), None);
        assert!(slots.admit(secs(1), host(2)).is_some());
    }

    #[test]
    fn one_address_has_a_quarter_of_the_slots_idle_and_no_more() {
        let mut slots = Slots::new(policy());
        held_by(&mut slots, 1, SLOTS, false);
        assert_eq!(slots.len(), SLOTS / IDLE_PART);
        // Nor is another refused for that, or made to wait.
        for at in 100..130 {
            let id = slots.admit(secs(at), host(2)).unwrap().id;
            slots.began(id, secs(at));
        }
        assert_eq!(slots.len(), SLOTS / IDLE_PART + 30);
    }

    #[test]
    fn the_longest_idle_of_the_address_furthest_over_its_share_goes_first() {
        let mut slots = Slots::new(policy());
        let honest = held_by(&mut slots, 2, SHARE, false);
        let crowd = held_by(&mut slots, 1, SLOTS - SLOTS / NEAR_PART - SHARE, true);
        for (&id, at) in crowd.iter().zip(0..) {
            slots.ended(id, Duration::from_millis(80_000 + at));
        }
        let rest: Vec<_> = (10..20)
            .map(|number| slots.admit(secs(99), host(number)).unwrap())
            .collect();
        assert!(rest.iter().all(|admitted| admitted.evicted.is_none()) && slots.is_full());
        // The first has asked since, which makes the second the longest idle.
        slots.began(crowd[0], secs(200));
        slots.ended(crowd[0], secs(201));
        for evicted in &crowd[1..5] {
            let admitted = slots.admit(secs(300), host(30)).unwrap();
            assert_eq!(admitted.evicted, Some(*evicted));
        }
        assert!(honest.iter().all(|id| slots.connections.contains_key(id)));
    }

    #[test]
    fn a_busy_connection_goes_for_no_newcomer_of_its_own_address() {
        let mut slots = Slots::new(policy());
        held_by(&mut slots, 1, SLOTS - SLOTS / NEAR_PART, true);
        let node = NodeId([7; 16]);
        for at in 0..10 {
            let id = slots.admit(secs(at), host(2)).unwrap().id;
            slots.belongs_to(id, node);
            slots.began(id, secs(at));
        }
        assert!(slots.is_full());
        assert_eq!(slots.admit(secs(100), host(1)), None);
        // A node over its share yields to others, and not to its own address.
        let mut alone = Slots::new(policy());
        for at in 0..SLOTS as u64 {
            let id = alone.admit(secs(at), host(2)).unwrap().id;
            alone.belongs_to(id, node);
            alone.began(id, secs(at));
        }
        assert_eq!(alone.admit(secs(100), host(2)), None);
        assert!(alone.admit(secs(100), host(3)).is_some());
    }

    #[test]
    fn nodes_behind_one_address_have_a_share_each() {
        let mut slots = Slots::new(policy());
        for number in 0..SLOTS {
            let id = slots.admit(secs(1), host(1)).unwrap().id;
            slots.belongs_to(id, NodeId([u8::try_from(number).unwrap(); 16]));
            slots.began(id, secs(1));
            slots.ended(id, secs(1));
        }
        let first = slots.admit(secs(2), host(1)).unwrap();
        assert!(first.evicted.is_some(), "the longest idle of all");
    }

    #[test]
    fn identities_by_the_dozen_do_not_help_their_address() {
        let mut slots = Slots::new(policy());
        for number in 0..SLOTS {
            let id = slots.admit(secs(1), host(1)).unwrap().id;
            slots.belongs_to(id, NodeId([u8::try_from(number).unwrap(); 16]));
            slots.began(id, secs(1));
        }
        assert!(slots.admit(secs(2), host(2)).unwrap().evicted.is_some());
        // Not even the slot of a newcomer that has not asked yet.
        assert_eq!(slots.admit(secs(2), host(1)), None);
    }

    #[test]
    fn one_network_of_ipv6_is_one_address() {
        let mut slots = Slots::new(policy());
        let near = SLOTS - SLOTS / NEAR_PART;
        for host in 0..near {
            let remote = format!("fd00::{host:x}").parse().unwrap();
            let id = slots.admit(secs(1), remote).unwrap().id;
            slots.began(id, secs(1));
        }
        assert_eq!(slots.admit(secs(2), "fd00::ffff:1".parse().unwrap()), None);
        assert!(slots.admit(secs(2), "fd00:0:0:1::1".parse().unwrap()).is_some());
        assert_eq!(
            AddressBlock::of("::ffff:10.0.0.1".parse().unwrap()),
            AddressBlock::of(host(1))
        );
    }

    #[test]
    fn where_all_is_shared_only_age_counts() {
        let mut slots = Slots::new(SlotPolicy {
            share: Share::ALL,
            ..policy()
        });
        let ids = held_by(&mut slots, 1, SLOTS, false);
        for (id, at) in ids.into_iter().zip(100..) {
            assert_eq!(slots.admit(secs(at), host(1)).unwrap().evicted, Some(id));
        }
    }

    #[test]
    fn where_busy_ones_give_way_every_newcomer_gets_a_slot() {
        for share in [Share::default(), Share::ALL] {
            let mut slots = Slots::new(SlotPolicy {
                share,
                busy_give_way: true,
                ..policy()
            });
            for at in 0..1000 {
                let number = if at % 3 == 0 { 2 } else { 1 };
                let id = slots.admit(secs(at), host(number)).expect("a slot").id;
                slots.began(id, secs(at));
            }
        }
    }

    #[test]
    fn each_stage_has_its_own_time() {
        let mut slots = Slots::new(policy());
        let id = slots.admit(secs(0), host(1)).unwrap().id;
        let mut is_late = |change: fn(&mut Slots, SlotId), at: u64, late: u64| {
            change(&mut slots, id);
            let connection = slots.connections[&id];
            assert_eq!(connection.deadline, secs(at + late), "{:?}", connection.stage);
        };
        is_late(|_, _| {}, 0, 15);
        is_late(|slots, id| slots.greeted(id, secs(3)), 3, 5);
        is_late(|slots, id| slots.heard(id, secs(4)), 4, 10);
        // A byte now and then buys no time.
        is_late(|slots, id| slots.heard(id, secs(8)), 4, 10);
        is_late(|slots, id| slots.began(id, secs(9)), 9, 30);
        is_late(|slots, id| slots.heard(id, secs(10)), 9, 30);
        is_late(|slots, id| slots.ended(id, secs(11)), 11, 60);
        is_late(|slots, id| slots.heard(id, secs(20)), 20, 10);
        assert_eq!(slots.poll_expired(secs(29)), None);
        assert_eq!(slots.poll_expired(secs(30)), Some(Expired::Late(id)));
        assert!(slots.len() == 0 && slots.parties.is_empty());
    }

    #[test]
    fn who_is_answered_is_looked_at_now_and_then() {
        let mut slots = Slots::new(policy());
        let id = slots.admit(secs(0), host(1)).unwrap().id;
        slots.began(id, secs(0));
        for at in [30, 60, 90] {
            assert_eq!(slots.poll_expired(secs(at)), Some(Expired::Check(id)));
            assert_eq!(slots.poll_expired(secs(at)), None);
        }
    }

    /// Against a table that is looked through from end to end.
    #[test]
    fn the_indexes_say_what_the_connections_say() {
        for seed in 0..30 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut slots = Slots::new(SlotPolicy {
                slots: 24,
                share: Share::new(20).unwrap(),
                busy_give_way: random.random_ratio(1, 4),
                ..policy()
            });
            let mut ids = Vec::new();
            for step in 0..1000 {
                let now = Duration::from_millis(step * 100);
                if random.random_ratio(1, 3) {
                    let remote = host(random.random_range(1..6));
                    ids.extend(slots.admit(now, remote).map(|admitted| admitted.id));
                } else if !ids.is_empty() {
                    let id = ids[random.random_range(0..ids.len())];
                    match random.random_range(0..6) {
                        0 => slots.greeted(id, now),
                        1 => slots.heard(id, now),
                        2 => slots.began(id, now),
                        3 => slots.ended(id, now),
                        4 => slots.belongs_to(id, NodeId([random.random_range(0..4); 16])),
                        _ => slots.leave(id),
                    }
                }
                while slots.poll_expired(now).is_some() {}
                check(&slots);
                ids.retain(|id| slots.connections.contains_key(id));
            }
        }
    }

    fn check(slots: &Slots) {
        assert!(slots.len() <= slots.policy.slots);
        assert_eq!(slots.deadlines.len(), slots.len());
        assert_eq!(slots.all.len(), slots.len());
        let mut parties: HashMap<Party, [usize; 2]> = HashMap::new();
        for connection in slots.connections.values() {
            for party in [connection.holder, Party::Origin(connection.origin)] {
                parties.entry(party).or_default()[usize::from(connection.stage == Stage::Busy)] += 1;
            }
        }
        assert_eq!(slots.parties.len(), parties.len());
        let mut crowds = Crowds::default();
        for (party, [idle, busy]) in parties {
            let group = &slots.parties[&party];
            assert_eq!((group.idle.len(), group.busy.len()), (idle, busy));
            crowds.note(party, group, slots.share);
        }
        assert_eq!(slots.crowds.idle, crowds.idle);
        assert_eq!(slots.crowds.busy, crowds.busy);
        assert_eq!(slots.crowds.origins, crowds.origins);
    }
}
