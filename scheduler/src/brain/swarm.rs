//! Swarm: the members of one blob in one pool, and which of them are receivers, waiting, or sources.
//!
//! Invariant: the sets and counts follow from the members: a function that changes a member calls [`Swarm::update_sets`] before
//! anything is matched.

use std::{collections::VecDeque, sync::Arc};

use piecemeal_proto::{Digest, FillId, PieceSet, SignedPieceHashes};

use super::{LeaseId, Time, fill::Fill, run::Run, sample_set::SampleSet, slab::Slab, swarm_member::SwarmMember};

pub(super) struct Swarm {
    pub(super) pool: u32,
    pub(super) digest: Digest,
    /// The fill in force; known whenever a member wants the blob.
    pub(super) fill: Option<Fill>,
    pub(super) revoked: VecDeque<FillId>,
    pub(super) members: Slab<SwarmMember>,
    /// Members that lack pieces and have room for a lease.
    pub(super) receivers: SampleSet,
    /// Receivers that land pieces, those that did nothing with their leases, and the others: each receiver is in one of the
    /// three.
    pub(super) landing_receivers: SampleSet,
    pub(super) idle_receivers: SampleSet,
    pub(super) new_receivers: SampleSet,
    /// Members whose client waits for a missing piece.
    pub(super) waiting_receivers: SampleSet,
    /// Members from which pieces may be leased, mirrors included.
    pub(super) sources: SampleSet,
    /// Members whose pieces are still to be compared with the authority's hashes.
    pub(super) unproven: SampleSet,
    pub(super) mirrors: Vec<u32>,
    pub(super) wanting: u32,
    /// Of them, those whose client is connected.
    pub(super) attending: u32,
    /// Peers that hold the whole blob, without banned and disputed ones.
    pub(super) complete_peers: u32,
    /// Leases to its members.
    pub(super) outstanding: u32,
    /// Leases in the order in which they were issued, ended ones among them until they come to the front.
    pub(super) issued: VecDeque<LeaseId>,
    /// Smoothed time of a lease from a peer; `None` before the first.
    pub(super) lease_time: Option<Time>,
    /// The one member that fetches from upstream.
    pub(super) upstream: Option<u32>,
    /// The one peer whose claims for hashes are used, where the authority has stated none.
    pub(super) hash_source: Option<u32>,
    /// The hash source was asked, and has stated nothing since.
    pub(super) hash_source_owes: bool,
    /// The list of the hashes of all pieces that the authority signed.
    pub(super) list: Option<Arc<SignedPieceHashes>>,
    /// Pieces that the mirrors were told of, since a client waits for them, and when; the latest last, at most `TOLD_MAX`.
    pub(super) told: VecDeque<(u32, Time)>,
    /// When a member began to want the blob.
    pub(super) live_since: Time,
    /// When a mirror last brought a new piece or hash of the blob.
    pub(super) progress_at: Time,
    pub(super) described_at: Option<Time>,
    pub(super) tick_at: Option<Time>,
}

impl Swarm {
    pub(super) fn new(pool: u32, digest: Digest) -> Self {
        Self {
            pool,
            digest,
            fill: None,
            revoked: VecDeque::new(),
            members: Slab::new(),
            receivers: SampleSet::default(),
            landing_receivers: SampleSet::default(),
            idle_receivers: SampleSet::default(),
            new_receivers: SampleSet::default(),
            waiting_receivers: SampleSet::default(),
            sources: SampleSet::default(),
            unproven: SampleSet::default(),
            mirrors: Vec::new(),
            wanting: 0,
            attending: 0,
            complete_peers: 0,
            outstanding: 0,
            issued: VecDeque::new(),
            lease_time: None,
            upstream: None,
            hash_source: None,
            hash_source_owes: false,
            list: None,
            told: VecDeque::new(),
            live_since: Time::ZERO,
            progress_at: Time::ZERO,
            described_at: None,
            tick_at: None,
        }
    }

    /// Whether a member wants the blob.
    pub(super) fn is_live(&self) -> bool {
        self.wanting > 0
    }

    pub(super) fn pieces(&self) -> u32 {
        self.fill.as_ref().map_or(0, |fill| fill.map.count())
    }

    /// Whether a tick could change anything.
    pub(super) fn is_busy(&self) -> bool {
        !self.receivers.is_empty() || !self.waiting_receivers.is_empty() || self.outstanding > 0
    }

    pub(super) fn insert(&mut self, member: SwarmMember) -> u32 {
        let mirror = member.mirror;
        let index = self.members.insert(member);
        if mirror {
            self.mirrors.push(index);
        }
        index
    }

    /// Removes a member whose leases are over and whose claims are forgotten.
    pub(super) fn remove(&mut self, index: u32) {
        self.members.remove(index);
        self.mirrors.retain(|&mirror| mirror != index);
        self.hash_source = self.hash_source.filter(|&hash_source| hash_source != index);
        for set in [
            &mut self.receivers,
            &mut self.landing_receivers,
            &mut self.idle_receivers,
            &mut self.new_receivers,
            &mut self.waiting_receivers,
            &mut self.sources,
            &mut self.unproven,
        ] {
            set.set(index, false);
        }
    }

    /// Puts a member that has changed into the sets where it belongs.
    pub(super) fn update_sets(&mut self, index: u32, leases_deep: u32) {
        let pieces = self.pieces();
        let member = &mut self.members[index];
        let lacking = member.wants && member.is_lacking(pieces);
        member.taken = member.taken.max(member.accounted());
        let (wants, have) = (member.wants, &member.have);
        member.waiting.retain(|&piece| wants && !have.contains(piece));
        let waits = member.waiting.iter().any(|&piece| member.lacks(piece));
        let waiting = lacking && member.leases <= leases_deep && waits;
        self.waiting_receivers.set(index, waiting);
        self.unproven.set(index, !member.unproven.is_empty());
        let is_receiver = lacking && member.leases < leases_deep;
        self.receivers.set(index, is_receiver);
        let lands = member.landed || member.is_known;
        self.landing_receivers.set(index, is_receiver && !member.idle && lands);
        self.idle_receivers.set(index, is_receiver && member.idle);
        self.new_receivers.set(index, is_receiver && !member.idle && !lands);
        self.sources.set(
            index,
            member.is_believed() && (member.complete || !member.have.is_empty()),
        );
    }

    /// A missing or leased piece becomes have; says whether it was news.
    pub(super) fn gain(&mut self, index: u32, piece: u32, now: Time) -> bool {
        let member = &mut self.members[index];
        let news = member.have.insert(piece);
        let was_leased = news && member.leased.remove(piece);
        if was_leased {
            (member.landed, member.idle) = (true, false);
        }
        if news && !was_leased && member.counts() {
            self.fill.as_mut().expect(FILLED).rarity.add_copy(piece, now);
        }
        news
    }

    /// The member brought a piece along and has not stated its hash.
    pub(super) fn note_unproven(&mut self, index: u32, piece: u32) {
        let pieces = self.pieces();
        let member = &mut self.members[index];
        if member.unproven.capacity() != pieces {
            member.unproven = PieceSet::new(pieces);
        }
        member.unproven.insert(piece);
    }

    /// A piece that the member has becomes missing, or leased when one of its leases covers it.
    pub(super) fn lose(&mut self, index: u32, piece: u32, covered: bool) {
        let member = &mut self.members[index];
        if !member.have.remove(piece) {
            return;
        }
        member.unproven.remove(piece);
        if covered {
            member.leased.insert(piece);
        } else if member.counts() {
            self.fill.as_mut().expect(FILLED).rarity.remove_copy(piece);
        }
    }

    /// A lease of `run` goes out to a member.
    pub(super) fn note_lease(&mut self, index: u32, id: LeaseId, run: Run, from_upstream: bool, now: Time) {
        for piece in run.pieces() {
            self.lease_piece(index, piece, now);
        }
        let member = &mut self.members[index];
        member.leases += 1;
        member.taken += run.count;
        member.fed_at = now;
        if from_upstream {
            self.upstream = Some(index);
        }
        self.outstanding += 1;
        self.issued.push_back(id);
    }

    /// A missing piece becomes leased.
    fn lease_piece(&mut self, index: u32, piece: u32, now: Time) {
        let member = &mut self.members[index];
        if member.leased.insert(piece) && member.counts() {
            self.fill.as_mut().expect(FILLED).rarity.add_copy(piece, now);
        }
    }

    /// A leased piece becomes missing; says whether it was leased.
    pub(super) fn unlease_piece(&mut self, index: u32, piece: u32) -> bool {
        let member = &mut self.members[index];
        let was = member.leased.remove(piece);
        if was && member.counts() {
            self.fill.as_mut().expect(FILLED).rarity.remove_copy(piece);
        }
        was
    }

    /// Forgets all that the member holds. Its leases are over already.
    pub(super) fn forget_claims(&mut self, index: u32) {
        self.uncount(index);
        let pieces = self.pieces();
        let member = &mut self.members[index];
        (member.complete, member.disputed) = (false, false);
        member.have = PieceSet::new(pieces);
        member.unproven = PieceSet::default();
        member.leased = PieceSet::new(pieces);
    }

    /// The member holds the whole blob. Its leases are over already.
    pub(super) fn complete(&mut self, index: u32) {
        self.uncount(index);
        let member = &mut self.members[index];
        member.complete = true;
        member.have = PieceSet::default();
        member.unproven = PieceSet::default();
        member.leased = PieceSet::default();
        if member.counts() {
            self.complete_peers += 1;
        }
    }

    /// The member does not hold the whole blob after all: its pieces are marked one by one.
    pub(super) fn unmark_complete(&mut self, index: u32, now: Time) {
        self.uncount(index);
        let pieces = self.pieces();
        let member = &mut self.members[index];
        member.complete = false;
        member.have = PieceSet::new(pieces);
        member.unproven = PieceSet::default();
        member.leased = PieceSet::new(pieces);
        for piece in 0..pieces {
            self.gain(index, piece, now);
        }
    }

    pub(super) fn ban(&mut self, index: u32) {
        self.uncount(index);
        self.members[index].banned = true;
    }

    /// The member holds the whole blob, and a mirror's unproven download differs.
    pub(super) fn dispute(&mut self, index: u32) {
        self.uncount(index);
        self.members[index].disputed = true;
    }

    /// The member's statements are not disputed any more. Its pieces, unless it holds them all, are forgotten already.
    pub(super) fn clear_dispute(&mut self, index: u32) {
        let member = &mut self.members[index];
        let was_disputed = std::mem::take(&mut member.disputed);
        if was_disputed && member.complete && member.counts() {
            self.complete_peers += 1;
        }
    }

    /// Takes `pieces` from all peers but those that hold the whole blob. Their leases are over already.
    pub(super) fn take_from_all(&mut self, pieces: &PieceSet) {
        for member in self.members.iter_mut().filter(|member| !member.mirror) {
            member.have.subtract(pieces);
            member.unproven.subtract(pieces);
        }
        self.fill.as_mut().expect(FILLED).rarity.remove_copies(pieces);
    }

    /// Takes everything that a member adds to rarity out of the count.
    fn uncount(&mut self, index: u32) {
        let member = &self.members[index];
        if !member.counts() {
            return;
        }
        if member.complete {
            self.complete_peers -= 1;
        } else if let Some(fill) = &mut self.fill {
            for piece in member.have.iter().chain(member.leased.iter()) {
                fill.rarity.remove_copy(piece);
            }
        }
    }
}

const FILLED: &str = "pieces are only counted under a fill";
