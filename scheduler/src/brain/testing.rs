//!
//! Test site: one blob of 1 MiB pieces, a mirror, and peers that do what the test says.
//!
//! Invariant: the brain's invariants hold after every event.

use piecemeal_proto::{Digest, FillId, NodeId, PieceMap, PieceSet};

use super::{Brain, Command, Event, Lease, LeaseId, Member, MemberId, Outcome, Policy, Role, Source, Time};

pub(super) struct Site {
    pub(super) brain: Brain,
    pub(super) now: Time,
    pub(super) map: PieceMap,
    pub(super) digest: Digest,
    pub(super) fill: FillId,
    /// Commands of the last call.
    pub(super) out: Vec<Command>,
}

pub(super) const MIRROR: MemberId = MemberId(0);

/// Member `number` of the site's peers.
pub(super) fn peer(number: u32) -> MemberId {
    MemberId(number)
}

impl Site {
    /// A mirror, which holds nothing yet, and `peers` peers, which want nothing yet.
    pub(super) fn new(pieces: u32, peers: u32) -> Self {
        let mut site = Self::without_mirror(pieces, peers);
        site.brain.policy = Policy::default();
        site.join(MIRROR, 0, Role::Mirror);
        site
    }

    /// Peers whose own claims for hashes count at once.
    pub(super) fn without_mirror(pieces: u32, peers: u32) -> Self {
        let mut site = Self {
            brain: Brain::new(trusting(), 7),
            now: Time::from_secs(1),
            map: PieceMap::new(u64::from(pieces) << 20, 1 << 20).unwrap(),
            digest: Digest::of(b"layer"),
            fill: FillId(1),
            out: Vec::new(),
        };
        for number in 1..=peers {
            site.join(peer(number), number, Role::Peer);
        }
        site
    }

    pub(super) fn join(&mut self, member: MemberId, node: u32, role: Role) {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&node.to_le_bytes());
        let info = Member {
            node: NodeId(id),
            signed: true,
            role,
            pool: "site".into(),
            zone: "rack".into(),
            may_use_upstream: true,
            features: super::Features {
                clients: true,
                ..super::Features::default()
            },
        };
        self.event(Event::Joined { member, info });
    }

    pub(super) fn event(&mut self, event: Event) {
        self.out.clear();
        self.brain.handle(self.now, event, &mut self.out);
        self.brain.check_invariants();
    }

    /// Lets time pass. Every member but the `silent` is heard every 100 ms.
    pub(super) fn pass(&mut self, time: Time, silent: &[MemberId]) {
        let end = self.now + time;
        let mut out = Vec::new();
        while self.now < end {
            self.now = end.min(self.now + Time::from_millis(10));
            if self.now.subsec_millis().is_multiple_of(100) {
                let members: Vec<MemberId> = self.brain.ids.keys().copied().collect();
                for member in members.into_iter().filter(|member| !silent.contains(member)) {
                    self.brain.handle(self.now, Event::Heard { member }, &mut out);
                }
            }
            self.brain.handle_timeout(self.now, &mut out);
            self.brain.check_invariants();
        }
        self.out = out;
    }

    pub(super) fn set(&self, pieces: impl IntoIterator<Item = u32>) -> PieceSet {
        let mut set = PieceSet::new(self.map.count());
        for piece in pieces {
            set.insert(piece);
        }
        set
    }

    pub(super) fn want(&mut self, member: MemberId, have: impl IntoIterator<Item = u32>) {
        let have = self.set(have);
        self.event(Event::Want {
            member,
            digest: self.digest,
            map: self.map,
            fill: self.fill,
            have,
            window: None,
        });
    }

    /// `member` holds `pieces`, and states their hashes.
    pub(super) fn have(&mut self, member: MemberId, pieces: std::ops::Range<u32>) {
        self.event(Event::Have {
            member,
            digest: self.digest,
            map: self.map,
            fill: self.fill,
            first: pieces.start,
            hashes: vec![Some([1; 32]); pieces.len()],
        });
    }

    pub(super) fn complete(&mut self, member: MemberId) {
        let digest = self.digest;
        self.event(Event::Complete { member, digest });
    }

    pub(super) fn end(&mut self, member: MemberId, lease: LeaseId, outcome: Outcome) {
        self.event(Event::LeaseEnded { member, lease, outcome });
    }

    /// Leases in the last commands.
    pub(super) fn leases(&self) -> Vec<(MemberId, Lease)> {
        let leases = self.out.iter().filter_map(|command| match command {
            Command::Lease { to, lease } => Some((*to, lease.clone())),
            _ => None,
        });
        leases.collect()
    }

    /// The only lease in the last commands.
    pub(super) fn lease(&self) -> (MemberId, Lease) {
        let leases = self.leases();
        assert_eq!(leases.len(), 1, "{leases:?}");
        leases[0].clone()
    }

    pub(super) fn cancelled(&self) -> Vec<LeaseId> {
        let cancelled = self.out.iter().filter_map(|command| match command {
            Command::Cancel { lease, .. } => Some(*lease),
            _ => None,
        });
        cancelled.collect()
    }

    pub(super) fn described(&self) -> Vec<MemberId> {
        let described = self.out.iter().filter_map(|command| match command {
            Command::Describe { to, .. } => Some(*to),
            _ => None,
        });
        described.collect()
    }
}

pub(super) fn trusting() -> Policy {
    Policy {
        claim_patience: Time::ZERO,
        ..Policy::default()
    }
}

pub(super) fn is_from(lease: &Lease, member: MemberId) -> bool {
    lease.source == Source::Member(member)
}
