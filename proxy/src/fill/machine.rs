//! State machine of one fill: which bytes are asked of upstream, over how many connections, and when the fill asks again or ends.
//!
//! Each missing piece is unassigned or assigned to a connection, exactly one of them unless upstream knows no ranges; when the fill is over
//! nothing is assigned. No I/O and no clock: time and facts are arguments.

use std::{collections::VecDeque, ops::Range, time::Duration};

use piecemeal_proto::{PieceMap, PieceSet};

use super::{
    action::{Action, Failure},
    connections::{Connections, Left, MovedEnd},
    facts::Facts,
    fault::Fault,
    patience::Patience,
    plan::Plan,
};

/// How often the facts are checked when nothing happens: a client may wait for a piece that no connection brings yet.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// How long an unstored fill may go without readers.
pub(super) const UNREAD_MAX: Duration = Duration::from_secs(30);

/// The decisions of one fill.
///
/// The task hands in each event by a `handle_` method, then calls [`Fill::poll_action`] and carries each action out until there is none,
/// then waits for the next event or until [`Fill::poll_timeout`]. Time is counted from any start and never runs backwards. A connection is
/// named by the number that its [`Action::Request`] or [`Action::Receive`] gives it; an event of one that has ended is ignored.
#[derive(Debug)]
pub struct Fill {
    connections: Connections,
    patience: Patience,
    phase: Phase,
    unstored: bool,
    has_callers: bool,
    /// The number of the right that requests are made with.
    right: u32,
    /// A body has begun.
    began: bool,
    /// The refusal of the current right, while the task looks for another.
    refused: Option<Fault>,
    /// Actions that the task has not taken yet.
    actions: VecDeque<Action>,
    next_tick: Duration,
    /// When the fill last had a reader.
    read_at: Duration,
    /// The number of pieces in the store.
    landed: u32,
}

/// What a fill begins with.
#[derive(Clone, Debug)]
pub struct Beginning {
    pub map: PieceMap,
    /// Pieces that an earlier fill has left.
    pub landed: PieceSet,
    /// The bytes that the fill is to bring. They begin and end with a piece.
    pub within: Range<u64>,
    /// How long upstream may send nothing new.
    pub patience: Duration,
    /// Readers wait for upstream's first answer. If there is none the fill ends at once.
    pub opens: bool,
    /// The blob is not kept: its pieces have room in their order only, and only while it has readers.
    pub unstored: bool,
    /// The fill may go on with the rights of other callers.
    pub has_callers: bool,
}

/// Upstream's answer to a request, before its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A body with the bytes that were asked for.
    Part,
    /// A body with the whole blob.
    Whole,
    Failed(Fault),
}

/// How a body has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Something has come that was not here before, and not too slowly.
    pub progressed: bool,
    /// Why it has ended early.
    pub fault: Option<Fault>,
}

impl Ended {
    /// Upstream has closed a body that was left unread: no failure of its.
    pub(super) const CLOSED: Self = Self {
        progressed: true,
        fault: None,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first requests are made.
    Opening,
    /// One of the first requests has failed; another may be answered better.
    Awaiting,
    Running,
    /// The last action is decided: no event changes anything.
    Over,
}

impl Fill {
    pub fn new(now: Duration, beginning: &Beginning) -> Self {
        let plan = Plan::new(beginning.map, &beginning.landed, &beginning.within);
        Self {
            connections: Connections::new(plan),
            patience: Patience::new(now, beginning.patience),
            phase: match beginning.opens {
                true => Phase::Opening,
                false => Phase::Running,
            },
            unstored: beginning.unstored,
            has_callers: beginning.has_callers,
            right: 0,
            began: false,
            refused: None,
            actions: VecDeque::new(),
            next_tick: now + TICK,
            read_at: now,
            landed: beginning.landed.count(),
        }
    }

    /// The whole blob was asked for before its fill began, and its body has begun.
    pub fn handle_first_body(&mut self, now: Duration) {
        if let Some((connection, bytes)) = self.connections.receive_all(now, self.right) {
            self.receive(connection, bytes);
        }
    }

    /// A request is answered. `landed`: the pieces that are in the store now.
    pub fn handle_answered(&mut self, now: Duration, connection: u64, answer: Answer, landed: &PieceSet) {
        if self.phase == Phase::Over {
            return;
        }
        self.note_landed(now, landed);
        match answer {
            Answer::Failed(fault) => self.request_failed(now, connection, fault, landed),
            Answer::Whole if !self.connections.asks_for_all(connection) => {
                self.act(Action::NoteNoRanges);
                // One connection takes from such a body what it can.
                if self.connections.receiving() > 0 {
                    self.connections.takes_one();
                    self.release(connection, landed);
                    return self.act(Action::Close(connection));
                }
                if let Some(bytes) = self.connections.receive_rest(connection) {
                    self.open(now);
                    self.receive(connection, bytes);
                }
            }
            Answer::Part | Answer::Whole => {
                if let Some(bytes) = self.connections.receive(now, connection) {
                    self.open(now);
                    self.receive(connection, bytes);
                }
            }
        }
    }

    /// The rest of a body takes less time than an answer to another request: see [`super::Flow`].
    pub fn handle_end_in_sight(&mut self, connection: u64) {
        self.connections.end_in_sight(connection);
    }

    /// A body has ended. `landed`: the pieces that are in the store now.
    pub fn handle_ended(&mut self, now: Duration, connection: u64, ended: Ended, landed: &PieceSet) {
        if self.phase == Phase::Over || self.release(connection, landed).is_none() {
            return;
        }
        self.note_landed(now, landed);
        self.patience.body_ended(now, ended.progressed);
        if let Some(fault) = ended.fault {
            self.failed(now, fault);
        }
    }

    /// The task has looked for the right of another caller. `found`: requests are made with it from now on.
    pub fn handle_next_right(&mut self, now: Duration, found: bool) {
        let Some(fault) = self.refused.take() else {
            return;
        };
        if found {
            self.right += 1;
        } else if self.phase != Phase::Over {
            self.failed(now, fault);
        }
    }

    /// Once a tick: gives up a blob that is not kept and that no client reads.
    pub fn handle_timeout(&mut self, now: Duration, facts: &Facts) {
        if self.phase != Phase::Running || now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        if facts.has_readers {
            self.read_at = now;
        } else if now.saturating_sub(self.read_at) >= UNREAD_MAX {
            self.fail(Failure::Unread);
        }
    }

    /// The next action. The task carries it out before it asks for another.
    pub fn poll_action(&mut self, now: Duration, facts: &Facts) -> Option<Action> {
        self.note_landed(now, &facts.landed);
        if self.actions.is_empty() && self.refused.is_none() {
            self.decide(now, facts);
        }
        if cfg!(debug_assertions) {
            self.assert_invariants();
        }
        self.actions.pop_front()
    }

    /// When to call [`Fill::handle_timeout`]. `None`: the fill is over, or waits for its first answer.
    pub fn poll_timeout(&self) -> Option<Duration> {
        (self.phase == Phase::Running).then_some(self.next_tick)
    }

    /// The number of connections in use: those that are about to end do not count.
    pub fn busy(&self) -> usize {
        self.connections.busy()
    }

    /// Whether a piece is missing and no connection brings it yet.
    pub fn lacks(&self, piece: u32) -> bool {
        self.connections.lacks(piece)
    }

    /// What follows from the state, whatever has led to it: a request, or the end.
    fn decide(&mut self, now: Duration, facts: &Facts) {
        let may_ask = match self.phase {
            Phase::Opening => true,
            Phase::Running => self.patience.is_rested(now),
            Phase::Awaiting | Phase::Over => false,
        };
        if !may_ask {
            return;
        }
        // One that no client waits for asks for nothing until its turn comes; its first answer opens it.
        let has_turn = facts.share > 0 || self.phase == Phase::Opening;
        if !has_turn {
            self.patience.stand_still(now);
        }
        let request = has_turn.then(|| self.connections.request(now, &self.usable(facts), self.right));
        if let Some(requested) = request.flatten() {
            self.move_end(requested.moved);
            self.act(Action::Request {
                connection: requested.connection,
                bytes: requested.bytes,
            });
        } else if self.connections.is_done() {
            self.open(now);
            self.end(Action::Finish);
        }
    }

    /// The facts as far as they concern this fill. The pieces of an unstored one have room in their order only: there is none before for a
    /// piece that a client waits for.
    fn usable(&self, facts: &Facts) -> Facts {
        let mut usable = facts.clone();
        if self.unstored {
            (usable.share, usable.waited_for) = (1, Vec::new());
        }
        usable
    }

    fn request_failed(&mut self, now: Duration, connection: u64, fault: Fault, landed: &PieceSet) {
        let Some(left) = self.release(connection, landed) else {
            return;
        };
        if fault == Fault::TooManyRequests {
            self.connections.takes_one();
            self.act(Action::NoteTooManyRequests);
        }
        if self.phase != Phase::Running {
            // Others of the first requests may be answered better, unless this is a word that stands.
            self.phase = Phase::Awaiting;
            if fault.is_refusal() || self.connections.is_empty() {
                self.fail(Failure::Unanswered);
            }
        } else if !fault.is_refusal() {
            self.failed(now, fault);
        } else if left.moved.is_some() {
            // A body under way brings these bytes: the request was not needed.
            self.connections.takes_one();
        } else if left.right == self.right && self.refused.is_none() {
            // Upstream refuses a right that it has accepted before, while others' bodies come.
            if self.began && self.has_callers {
                self.refused = Some(fault);
                self.act(Action::NextRight);
            } else {
                self.failed(now, fault);
            }
        }
    }

    /// Upstream has answered: readers may begin.
    fn open(&mut self, now: Duration) {
        if self.phase != Phase::Running {
            self.phase = Phase::Running;
            self.next_tick = now + TICK;
            self.act(Action::Open);
        }
    }

    fn receive(&mut self, connection: u64, bytes: Range<u64>) {
        self.began = true;
        self.act(Action::Receive { connection, bytes });
    }

    /// A connection has ended.
    fn release(&mut self, connection: u64, landed: &PieceSet) -> Option<Left> {
        let left = self.connections.end(connection, landed)?;
        self.move_end(left.moved);
        Some(left)
    }

    fn move_end(&mut self, moved: Option<MovedEnd>) {
        if let Some(MovedEnd { connection, end }) = moved {
            self.act(Action::MoveEnd { connection, end });
        }
    }

    fn note_landed(&mut self, now: Duration, landed: &PieceSet) {
        if landed.count() > self.landed {
            self.patience.landed(now);
        }
        self.landed = landed.count();
    }

    fn failed(&mut self, now: Duration, fault: Fault) {
        if fault.is_final() || self.patience.ends_with_failure(now) {
            self.fail(Failure::Upstream);
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.end(Action::Fail(failure));
    }

    fn end(&mut self, last: Action) {
        self.act(last);
        self.phase = Phase::Over;
        self.connections.clear();
    }

    fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    fn assert_invariants(&self) {
        self.connections.assert_invariants();
        let is_over = self.phase == Phase::Over;
        assert!(
            !is_over || self.connections.is_empty(),
            "nothing is assigned when it is over"
        );
    }
}
