//! One download on a virtual clock, with the store and the sources around it, for its stories and worlds.
//!
//! Checked on every action: no piece is asked for while it is here or in flight, one question and one fetch of the rest at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use piecemeal_proto::{
    FillId, PieceMap, PieceSet,
    wire::{Lease, Outcome},
};

use super::{Action, Beginning, Download, Ended, Facts, Failure, Order, Reopened, mode::DIRECT_WINDOW};

pub(super) const PIECES: u32 = 40;
pub(super) const FILL: u64 = 7;
pub(super) const GRACE: Duration = Duration::from_secs(5);
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// A download, the store and the sources around it.
pub(super) struct Story {
    pub(super) machine: Download,
    pub(super) now: Duration,
    pub(super) facts: Facts,
    pub(super) store: PieceSet,
    /// What the store had when the machine was last told.
    told: PieceSet,
    /// When the store last had a new piece.
    pub(super) landed_at: Duration,
    /// The pieces that each lease's fetch brings.
    pub(super) leases: BTreeMap<u64, Vec<u32>>,
    /// Leases whose fetch has ended by itself.
    pub(super) fetched: BTreeSet<u64>,
    pub(super) direct: Vec<u32>,
    /// Pieces that differ from the signed list when they are next compared.
    pub(super) differing: Vec<u32>,
    pub(super) reopening: bool,
    pub(super) rest: bool,
    /// Every action that was carried out, in order.
    pub(super) actions: Vec<Action>,
    pub(super) end: Option<Result<(), Failure>>,
}

impl Story {
    pub(super) fn begin(change: impl FnOnce(&mut Beginning, &mut Facts)) -> Self {
        let map = PieceMap::new(u64::from(PIECES) * 1000, 1000).unwrap();
        let mut beginning = Beginning {
            fill: FillId(FILL),
            map,
            landed: PieceSet::new(PIECES),
            mirror_configured: true,
            may_use_upstream: true,
            seed: 500,
        };
        let mut facts = Facts {
            scheduler_up: true,
            mirror_lost: None,
            mirror_grace: GRACE,
            waited_for: Vec::new(),
            longest_wait: None,
            has_readers: true,
            is_attended: true,
            window: None,
            fill_failed: false,
        };
        change(&mut beginning, &mut facts);
        let mut story = Self {
            store: beginning.landed.clone(),
            told: beginning.landed.clone(),
            landed_at: Duration::ZERO,
            machine: Download::new(Duration::ZERO, beginning),
            now: Duration::ZERO,
            facts,
            leases: BTreeMap::new(),
            fetched: BTreeSet::new(),
            direct: Vec::new(),
            differing: Vec::new(),
            reopening: false,
            rest: false,
            actions: Vec::new(),
            end: None,
        };
        story.settle();
        story
    }

    /// Carries out what the machine decides, as its task does.
    pub(super) fn settle(&mut self) {
        self.note_stored();
        while self.end.is_none() {
            let Some(action) = self.machine.poll_action(self.now, &self.facts) else {
                return;
            };
            match &action {
                Action::FetchLease { lease, pieces } => {
                    self.assert_wanted(pieces);
                    assert!(self.leases.insert(lease.lease, pieces.clone()).is_none());
                }
                Action::AbortLease(lease) => {
                    assert!(self.leases.remove(lease).is_some() || self.fetched.remove(lease));
                }
                Action::FetchPiece(piece) => {
                    self.assert_wanted(&[*piece]);
                    self.direct.push(*piece);
                    assert!(self.direct.len() <= DIRECT_WINDOW + 1);
                }
                Action::FetchRest => assert!(!std::mem::replace(&mut self.rest, true), "one fetch of the rest"),
                Action::Reopen { .. } => {
                    assert!(!std::mem::replace(&mut self.reopening, true), "one question at a time");
                }
                Action::TakeBack(pieces) => {
                    pieces.iter().for_each(|piece| _ = self.store.remove(*piece));
                    self.note_stored();
                }
                Action::Publish(_) => {
                    assert!(self.store.is_full(), "only a whole blob is published");
                    self.end = Some(Ok(()));
                }
                Action::Fail(failure) => self.end = Some(Err(*failure)),
                Action::Compare(_) => {
                    let mut differing = std::mem::take(&mut self.differing);
                    differing.retain(|piece| self.store.contains(*piece));
                    self.machine.handle_compared(differing);
                }
                _ => {}
            }
            self.actions.push(action);
        }
    }

    fn note_stored(&mut self) {
        if self.store.iter().any(|piece| !self.told.contains(piece)) {
            self.landed_at = self.now;
        }
        self.told = self.store.clone();
        self.machine.handle_stored(self.now, self.store.clone(), &self.store);
    }

    /// A piece is asked for only while no other fetch brings it, and the store does not have it.
    fn assert_wanted(&self, pieces: &[u32]) {
        let in_flight = || self.direct.iter().chain(self.leases.values().flatten());
        for piece in pieces {
            assert!(!self.store.contains(*piece), "piece {piece} is here");
            assert!(in_flight().all(|other| other != piece), "piece {piece} is in flight");
        }
    }

    pub(super) fn after(&mut self, time: Duration) {
        let until = self.now + time;
        while self.end.is_none() {
            let Some(timeout) = self.machine.poll_timeout().filter(|timeout| *timeout <= until) else {
                break;
            };
            let waited = timeout.saturating_sub(self.now);
            self.now = self.now.max(timeout);
            for time in [
                self.facts.mirror_lost.as_mut(),
                self.facts.longest_wait.as_mut().map(|(_, time)| time),
            ] {
                time.into_iter().for_each(|time| *time += waited);
            }
            self.machine.handle_timeout(self.now, &self.facts);
            self.settle();
        }
        if self.end.is_none() {
            self.now = until;
        }
    }

    pub(super) fn order(&mut self, order: Order) {
        self.machine.handle_order(order);
        self.settle();
    }

    pub(super) fn lease(&mut self, lease: u64, first: u32, count: u32) {
        self.order(Order::Lease(Lease {
            lease,
            fill: FILL,
            first,
            count,
            ..Lease::default()
        }));
    }

    /// A lease's fetch ends, with so many of its pieces.
    pub(super) fn end_lease(&mut self, lease: u64, outcome: Outcome, landed: usize) {
        let pieces = self.leases.remove(&lease).expect("it is under way");
        self.fetched.insert(lease);
        pieces
            .iter()
            .take(landed)
            .for_each(|piece| _ = self.store.insert(*piece));
        let piece = pieces.get(landed).copied().unwrap_or_default();
        let have = self.store.clone();
        self.machine.handle_lease_ended(lease, Ended { outcome, piece }, &have);
        self.settle();
    }

    /// A piece has come, of a fetch that goes on.
    pub(super) fn land(&mut self, piece: u32) {
        self.store.insert(piece);
        self.settle();
    }

    pub(super) fn end_piece(&mut self, piece: u32, outcome: Outcome) {
        self.direct.retain(|direct| *direct != piece);
        if outcome == Outcome::Done {
            self.store.insert(piece);
        }
        let have = self.store.clone();
        self.machine
            .handle_piece(self.now, piece, Ended { outcome, piece }, &have);
        self.settle();
    }

    pub(super) fn reopened(&mut self, reopened: Reopened) {
        assert!(std::mem::take(&mut self.reopening), "the mirror was asked");
        self.machine.handle_reopened(self.now, reopened);
        self.settle();
    }

    pub(super) fn end_rest(&mut self) {
        self.rest = false;
        self.store = PieceSet::full(PIECES);
        self.machine.handle_rest_ended(true);
        self.settle();
    }

    pub(super) fn fail_rest(&mut self) {
        self.rest = false;
        self.machine.handle_rest_ended(false);
        self.settle();
    }

    pub(super) fn count(&self, is: impl Fn(&Action) -> bool) -> usize {
        self.actions.iter().filter(|action| is(action)).count()
    }

    pub(super) fn last_lease_end(&self) -> Option<(u64, Outcome)> {
        self.actions.iter().rev().find_map(|action| match action {
            Action::EndLease { lease, ended } => Some((*lease, ended.outcome)),
            _ => None,
        })
    }
}

pub(super) fn drop_pieces(pieces: &Range<u32>) -> Order {
    Order::Drop {
        fill: FILL,
        pieces: std::iter::once(pieces.clone()).collect(),
    }
}
