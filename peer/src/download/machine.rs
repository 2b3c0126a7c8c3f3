//! State machine of one download: which source sends which piece, and when the download asks, waits or ends.
//!
//! Each piece is wanted, in flight or landed, exactly one of them; a lease is tracked once; at most four requests without a lease are in
//! flight at the mirror, and one for a client that waits. No I/O and no clock: time and facts are arguments, randomness is a seed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use piecemeal_proto::{
    FillId, PieceMap, PieceSet, SignedPieceHashes,
    wire::{Lease, Outcome, WAITING_MAX},
};

use super::{
    action::{Action, Failure},
    ended::Ended,
    mode::{Facts, Sources},
    order::Order,
    pieces::Pieces,
};

/// How often the facts are checked when nothing happens.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// A client without a byte for this long is reported, so that its piece comes before rarer ones.
pub(super) const WAITING_AFTER: Duration = Duration::from_secs(1);
/// The most pieces that are reported of one client that has jumped: it reads on from there.
const JUMP_PIECES_MAX: usize = 8;
/// Between questions to a mirror that does not answer.
pub(super) const REOPEN_DELAY: Duration = Duration::from_millis(500);
/// Between a want that the scheduler has refused and the next one, with a new grant: doubling from the first to the last.
pub(super) const WANT_DELAY_MIN: Duration = REOPEN_DELAY;
pub(super) const WANT_DELAY_MAX: Duration = Duration::from_secs(30);
/// How long a mirror that is there may answer with errors before a download without new pieces ends.
pub(super) const REFUSED_PATIENCE: Duration = Duration::from_secs(10);
/// How long, beyond the mirror's grace, a download may go without a new piece.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(30);
/// The spread in time of peers that go upstream for themselves, in milliseconds.
const UPSTREAM_JITTER_MAX_MS: u64 = 2000;
/// How often the scheduler is told that a window has moved while it moves by its own length.
const WINDOW_STEPS: u32 = 16;

/// The decisions of one download.
///
/// The task hands in each event by a `handle_` method, then calls [`Download::poll_action`] and carries each action out until there is none,
/// then waits for the next event or until [`Download::poll_timeout`]. Time is counted from any start and never runs backwards.
#[derive(Debug)]
pub struct Download {
    fill: u64,
    map: PieceMap,
    sources: Sources,
    pieces: Pieces,
    /// Actions that the task has not taken yet.
    actions: VecDeque<Action>,
    /// The last action is decided: no event changes anything.
    is_over: bool,
    next_tick: Duration,
    last_landed: Duration,
    last_waiting: Option<Duration>,
    /// When each piece that a client waits for out of its order was last reported.
    jumps: BTreeMap<u32, Duration>,
    last_reopened: Duration,
    /// The mirror is being asked again, or is to be at the next tick.
    reopening: bool,
    reopen_now: bool,
    /// The scheduler has refused the want: with a new grant it is sent again, but not before `want_after`.
    want_refused: bool,
    want_after: Duration,
    want_delay: Duration,
    /// A piece that arrived damaged: the mirror is asked to verify its own copy.
    suspect: Option<u32>,
    upstream_running: bool,
    /// Since when the mirror answers, but with errors only.
    refused_since: Option<Duration>,
    /// No request without a lease before then: the last one failed.
    direct_after: Duration,
    /// The window that the scheduler was told of.
    told: Option<Range<u32>>,
    /// When the download last had a reader.
    read_at: Duration,
    /// What the scheduler was last told: whether a client waits for the blob.
    told_attended: bool,
    /// The authority's word for the hashes of all pieces.
    list: Option<Arc<SignedPieceHashes>>,
}

/// What a download begins with.
#[derive(Clone, Debug)]
pub struct Beginning {
    pub fill: FillId,
    pub map: PieceMap,
    /// Pieces that an earlier download has left.
    pub landed: PieceSet,
    pub mirror_configured: bool,
    pub may_use_upstream: bool,
    /// Seed of the delay with which this download goes upstream.
    pub seed: u64,
}

/// The mirror's answer to a question for the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reopened {
    /// The mirror has the same fill, and has given a new grant.
    Renewed,
    OtherFill,
    /// The mirror does not answer. It may come back, and meanwhile the swarm may have the pieces.
    Lost,
    /// The mirror refuses this caller.
    Refused,
    /// The mirror is there, but its own fill fails.
    Failed,
}

impl Download {
    pub fn new(now: Duration, beginning: Beginning) -> Self {
        let sources = Sources {
            mirror_configured: beginning.mirror_configured,
            may_use_upstream: beginning.may_use_upstream,
            jitter: Duration::from_millis(beginning.seed % UPSTREAM_JITTER_MAX_MS),
        };
        Self {
            fill: beginning.fill.0,
            map: beginning.map,
            sources,
            pieces: Pieces::new(beginning.landed),
            actions: VecDeque::new(),
            is_over: false,
            next_tick: now,
            last_landed: now,
            last_waiting: None,
            jumps: BTreeMap::new(),
            last_reopened: now,
            reopening: false,
            reopen_now: false,
            want_refused: false,
            want_after: now,
            want_delay: WANT_DELAY_MIN,
            suspect: None,
            upstream_running: false,
            refused_since: None,
            direct_after: now,
            told: None,
            read_at: now,
            told_attended: true,
            list: None,
        }
    }

    /// The scheduler has sent an order.
    pub fn handle_order(&mut self, order: Order) {
        if self.is_over {
            return;
        }
        match order {
            Order::Lease(lease) => self.begin_lease(lease),
            Order::Cancel(lease) => {
                if self.pieces.end_lease(lease).is_some() {
                    self.act(Action::AbortLease(lease));
                    self.end_settled(&self.pieces.landed().clone());
                }
            }
            Order::Revoked(fill) if fill == self.fill => {
                self.act(Action::Abandon);
                self.fail(Failure::Revoked);
            }
            Order::Drop { fill, pieces } if fill == self.fill => {
                let count = self.map.count();
                let ranges = pieces.into_iter();
                let pieces = ranges.flat_map(|range| range.start.min(count)..range.end.min(count));
                self.take_back(pieces.collect());
            }
            Order::Revoked(_) | Order::Drop { .. } => {}
            Order::PieceHashes(list) => {
                self.list = Some(list);
                if let Some(list) = self.comparable_list() {
                    self.act(Action::Compare(list));
                }
            }
            Order::Up => self.act(Action::SendWant),
            Order::WantRefused(_) => self.want_refused = true,
        }
    }

    /// The pieces that are in the store now. `have`: those that can be read from it.
    pub fn handle_stored(&mut self, now: Duration, landed: PieceSet, have: &PieceSet) {
        if self.pieces.update(landed) {
            self.last_landed = now;
            self.end_settled(have);
        }
    }

    /// The request for a piece without a lease has ended: it has landed, came damaged, or did not come. `have`: the pieces that can be
    /// read from the store now.
    pub fn handle_piece(&mut self, now: Duration, piece: u32, ended: Ended, have: &PieceSet) {
        self.note_corrupt(ended);
        self.pieces.end_request(piece);
        self.end_settled(have);
        if self.is_over || ended.outcome == Outcome::Done {
            return;
        }
        self.direct_after = now + TICK;
        if ended.outcome == Outcome::Unreachable && self.sources.mirror_configured {
            self.act(Action::NoteMirrorLost);
        }
        // The mirror may have restarted, or begun another fill: asked again, it fills the blob.
        self.reopen_now = true;
    }

    /// A lease's fetch has ended. `have`: the pieces that can be read from the store now.
    pub fn handle_lease_ended(&mut self, lease: u64, ended: Ended, have: &PieceSet) {
        if self.is_over {
            return;
        }
        self.note_corrupt(ended);
        let is_tracked = match ended.outcome {
            Outcome::Done => self.pieces.end_fetch(lease),
            _ => {
                self.pieces.end_lease(lease);
                false
            }
        };
        if !is_tracked {
            self.act(Action::EndLease { lease, ended });
        }
        self.end_settled(have);
    }

    /// The stored pieces were compared with the signed list: these differ from it.
    pub fn handle_compared(&mut self, differing: Vec<u32>) {
        if self.is_over {
            return;
        }
        if !differing.is_empty() {
            self.take_back(differing);
        } else if self.pieces.have_all() {
            self.publish();
        }
    }

    /// The mirror, asked again, has answered or not.
    pub fn handle_reopened(&mut self, now: Duration, reopened: Reopened) {
        if self.is_over {
            return;
        }
        (self.reopening, self.last_reopened) = (false, now);
        match reopened {
            Reopened::Renewed => {
                self.refused_since = None;
                self.renew_want(now);
            }
            Reopened::OtherFill => self.fail(Failure::OtherFill),
            Reopened::Refused => self.fail(Failure::Mirror),
            Reopened::Lost => {}
            // While pieces still land from elsewhere, a fill that fails at the mirror is no reason to stop.
            Reopened::Failed => {
                let refused = now.saturating_sub(*self.refused_since.get_or_insert(now));
                if refused.min(self.idle(now)) >= REFUSED_PATIENCE {
                    self.fail(Failure::Mirror);
                }
            }
        }
    }

    /// The fetch of all missing pieces from upstream has ended.
    pub fn handle_rest_ended(&mut self, succeeded: bool) {
        self.upstream_running = false;
        if !self.is_over && !succeeded {
            self.fail(Failure::Upstream);
        }
    }

    /// Once a tick: reports a waiting client to the scheduler, and whether there is one at all, asks the mirror again, goes upstream, gives up.
    pub fn handle_timeout(&mut self, now: Duration, facts: &Facts) {
        if self.is_over || now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        self.report_waiting(now, facts);
        if facts.is_attended != self.told_attended {
            self.told_attended = facts.is_attended;
            self.act(Action::SendWant);
        }
        if facts.has_readers {
            self.read_at = now;
        } else if now.saturating_sub(self.read_at) >= IDLE_MAX {
            return self.fail(Failure::Unread);
        }
        let idle = self.idle(now);
        let mode = self.sources.mode(facts, idle);
        if mode.upstream && !self.upstream_running {
            self.upstream_running = true;
            self.act(Action::FetchRest);
        }
        let renew = self.want_refused && now >= self.want_after;
        if (mode.reopen || self.reopen_now || renew) && !self.reopening {
            self.reopen(now);
        }
        if idle >= facts.mirror_grace.saturating_add(IDLE_MAX) && !self.upstream_running {
            let seconds = idle.as_secs();
            self.fail(Failure::Idle { seconds });
        }
    }

    /// The task of the download ends: gives every lease back. `kept`: the blob is published. `unstored`: its pieces go with it.
    pub fn handle_closed(&mut self, kept: bool, unstored: bool) {
        self.is_over = true;
        self.actions.clear();
        for lease in self.pieces.leases() {
            self.pieces.end_lease(lease);
            let ended = Outcome::Cancelled.into();
            self.act(Action::EndLease { lease, ended });
        }
        if !kept {
            self.act(Action::SendUnwant);
        }
        if unstored {
            self.act(Action::SendLost);
        }
    }

    /// The next action. The task carries it out before it asks for another.
    pub fn poll_action(&mut self, now: Duration, facts: &Facts) -> Option<Action> {
        if self.actions.is_empty() && !self.is_over {
            self.decide(now, facts);
        }
        if cfg!(debug_assertions) {
            self.pieces.assert_invariants();
        }
        self.actions.pop_front()
    }

    /// When to call [`Download::handle_timeout`]. `None`: the download is over.
    pub fn poll_timeout(&self) -> Option<Duration> {
        (!self.is_over).then_some(self.next_tick)
    }

    /// What follows from the state, whatever has led to it: the end, the window's progress, a request without a lease.
    fn decide(&mut self, now: Duration, facts: &Facts) {
        if self.pieces.have_all() {
            return match self.comparable_list() {
                Some(list) => self.act(Action::Compare(list)),
                None => self.publish(),
            };
        }
        if facts.fill_failed {
            return self.fail(Failure::Fill);
        }
        if let Some(window) = &facts.window {
            self.follow_window(window);
        }
        if now >= self.direct_after {
            let size = self.sources.mode(facts, self.idle(now)).direct_window;
            let waited_for: Vec<u32> = facts.waited_for.iter().map(|pieces| pieces.start).collect();
            if let Some(piece) = self.pieces.begin_request(size, &waited_for) {
                self.act(Action::FetchPiece(piece));
            }
        }
    }

    /// Tells the scheduler which pieces of an unstored blob there is room for.
    fn follow_window(&mut self, window: &Range<u32>) {
        if let Some(told) = &self.told {
            let step = (window.end - window.start).div_ceil(WINDOW_STEPS);
            // No piece of the reported window is missing: the scheduler has no lease to give.
            let is_done = || told.clone().all(|piece| self.pieces.has(piece));
            if window.start < told.start + step && (window.start <= told.start || !is_done()) {
                return;
            }
        } else {
            // The store has just run out of room: what comes from behind its window would wait, and hold its lease.
            self.give_back_from(window.end);
        }
        self.told = Some(window.clone());
        self.act(Action::SendWant);
    }

    fn give_back_from(&mut self, piece: u32) {
        for lease in self.pieces.leases_from(piece) {
            self.pieces.end_lease(lease);
            self.act(Action::AbortLease(lease));
            let ended = Outcome::Cancelled.into();
            self.act(Action::EndLease { lease, ended });
        }
    }

    fn begin_lease(&mut self, lease: Lease) {
        let (id, count) = (lease.lease, self.map.count());
        if lease.fill != self.fill {
            let ended = Outcome::Cancelled.into();
            return self.act(Action::EndLease { lease: id, ended });
        }
        let range = lease.first.min(count)..lease.first.saturating_add(lease.count).min(count);
        // The scheduler has accepted the want.
        self.want_delay = WANT_DELAY_MIN;
        if let Some(pieces) = self.pieces.begin_lease(id, range) {
            self.act(Action::FetchLease { lease, pieces });
        }
    }

    /// Ends leases that have nothing to wait for any more. Their fetches left out the pieces that were on their way already: a lease that
    /// was given back for these would count as one that the peer does not use. Only pieces that are here may be reported as done: the
    /// scheduler offers them to others.
    fn end_settled(&mut self, have: &PieceSet) {
        if self.is_over {
            return;
        }
        for (lease, mut range) in self.pieces.end_settled(have) {
            let outcome = match range.all(|piece| have.contains(piece)) {
                true => Outcome::Done,
                false => Outcome::Cancelled,
            };
            let ended = outcome.into();
            self.act(Action::EndLease { lease, ended });
        }
    }

    /// The list, if it is about pieces of this size.
    fn comparable_list(&self) -> Option<Arc<SignedPieceHashes>> {
        self.list.clone().filter(|list| list.map() == self.map)
    }

    /// Drops pieces, and reports again what is here: an earlier report may have crossed the order.
    fn take_back(&mut self, pieces: Vec<u32>) {
        for &piece in &pieces {
            self.pieces.drop_piece(piece);
        }
        self.act(Action::TakeBack(pieces));
        self.act(Action::SendWant);
    }

    fn note_corrupt(&mut self, ended: Ended) {
        if ended.outcome == Outcome::Corrupt {
            (self.suspect, self.reopen_now) = (Some(ended.piece), true);
        }
    }

    fn report_waiting(&mut self, now: Duration, facts: &Facts) {
        self.report_jumps(now, facts);
        let is_due = |at| now.saturating_sub(at) >= WAITING_AFTER;
        if let Some((piece, waited)) = facts.longest_wait
            && waited >= WAITING_AFTER
            && self.last_waiting.is_none_or(is_due)
        {
            self.last_waiting = Some(now);
            self.act(Action::SendWaiting(piece));
        }
    }

    /// The first piece that is missing comes next in any case, and the mirror fills in order. A client that waits for a later one has
    /// jumped there: it is reported at once, since all that lies before it would come first.
    fn report_jumps(&mut self, now: Duration, facts: &Facts) {
        let Some(next) = self.pieces.first_missing() else {
            return;
        };
        let jumps = facts.waited_for.iter().filter(|pieces| pieces.start > next);
        let ahead = |pieces: &Range<u32>| pieces.clone().take(JUMP_PIECES_MAX);
        let missing = |piece: &u32| *piece < self.map.count() && !self.pieces.has(*piece);
        let jumps: BTreeSet<u32> = jumps.flat_map(ahead).filter(missing).collect();
        let jumps: Vec<u32> = jumps.into_iter().take(WAITING_MAX).collect();
        self.jumps.retain(|piece, _| jumps.contains(piece));
        let is_due = |at: &Duration| now.saturating_sub(*at) >= WAITING_AFTER;
        for piece in jumps {
            if self.jumps.get(&piece).is_none_or(is_due) {
                self.jumps.insert(piece, now);
                self.act(Action::SendWaiting(piece));
            }
        }
    }

    /// A mirror that has restarted fills again what it is asked for, and its grants are new.
    fn reopen(&mut self, now: Duration) {
        if !self.sources.mirror_configured || now.saturating_sub(self.last_reopened) < REOPEN_DELAY {
            return;
        }
        (self.reopening, self.reopen_now, self.last_reopened) = (true, false, now);
        let suspect = self.suspect.take();
        self.act(Action::Reopen { suspect });
    }

    /// There is a new grant. A want that was refused for its old one is sent again: the scheduler has forgotten it.
    fn renew_want(&mut self, now: Duration) {
        if !self.want_refused || now < self.want_after {
            return self.act(Action::RenewWant);
        }
        (self.want_refused, self.want_after) = (false, now + self.want_delay);
        self.want_delay = (self.want_delay * 2).min(WANT_DELAY_MAX);
        self.act(Action::SendWant);
    }

    fn publish(&mut self) {
        let list = self.list.take();
        self.act(Action::Publish(list));
        self.is_over = true;
    }

    fn fail(&mut self, failure: Failure) {
        self.act(Action::Fail(failure));
        self.is_over = true;
    }

    fn idle(&self, now: Duration) -> Duration {
        now.saturating_sub(self.last_landed)
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }
}
