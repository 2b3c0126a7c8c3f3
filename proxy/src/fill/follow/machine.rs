//! State machine of a transfer that another upstream's transfer of the same digest leads: whether it follows the leader, fills apart or leads
//! itself, and whether the leader ends.
//!
//! Its readers get the leader's bytes only once its own upstream has shown the same. A leader that is several times slower is taken over from:
//! what it has is used, and this upstream brings the rest; if the whole is wrong then, this upstream has to prove the blob alone. A leader ends
//! only once the blob is proven and the leader has other pieces, stands still or was taken over from. No I/O and no clock: time and facts are arguments.

use std::{collections::VecDeque, time::Duration};

use super::{
    action::{Action, End, Leader, Reason, Reply, Rival},
    comparison::{Comparison, LOOK_EVERY, PROBE_BYTES, Probe, SAMPLE_BYTES},
};
use crate::fill::patience::PLACE_PATIENCE;

/// How long a leader may bring nothing before this upstream is asked whether it would.
pub(super) const LEADER_PATIENCE: Duration = Duration::from_secs(1);
/// How long that answer may take; an upstream that does not answer would bring nothing either.
pub(super) const OWN_PATIENCE: Duration = Duration::from_secs(2);
/// How often a leader that brings nothing is waited for.
pub(super) const LEADER_WAITS_MAX: u32 = 10;

/// The decisions of one transfer about its leaders.
///
/// The task calls [`Following::poll_action`] and carries each action out until there is none, then waits for an event or until
/// [`Following::poll_timeout`], and hands it in by a `handle_` method. Each event ends the request or the wait that was under way. Time is
/// counted from any start and never runs backwards.
#[derive(Debug)]
pub(super) struct Following {
    phase: Phase,
    /// The end of the phase, if it has one.
    until: Option<Duration>,
    /// How often this leader was waited for.
    waits: u32,
    comparison: Comparison,
    /// What the leader had filled when this transfer began to fill apart, in bytes.
    had: Option<u64>,
    /// The leader has shown this upstream's bytes: the fill apart begins with what it has.
    takes_over: bool,
    /// Actions that the task has not taken yet.
    actions: VecDeque<Action>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The task looks which transfer leads.
    Looking,
    /// The leader has sent nothing yet.
    Awaiting,
    /// The same, and this upstream is asked whether it would.
    Asking,
    /// The leader has failed without a byte, and is about to end.
    Failing,
    /// The first sample is compared.
    Sampling,
    /// Readers read what the leader fills, until the next look.
    Following,
    /// The same, while bytes are compared since this time.
    Probing(Duration),
    Apart(Step),
    /// The blob is proven, and a leader is compared with it.
    Judging {
        is_next: bool,
    },
    /// The last action is decided: no event changes anything.
    Over,
}

/// Steps of a fill apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Queuing,
    Opening,
    MakingRoom,
    Receiving,
}

impl Following {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::Looking,
            until: None,
            waits: 0,
            comparison: Comparison::new(0),
            had: None,
            takes_over: false,
            actions: VecDeque::from([Action::FindLeader]),
        }
    }

    /// The task has looked which transfer leads.
    pub(super) fn handle_leader(&mut self, now: Duration, leader: Leader) {
        if self.phase != Phase::Looking {
            return;
        }
        match leader {
            Leader::Own => self.end(End::Lead),
            Leader::Private => self.leave(now),
            Leader::Public => {
                self.waits = 0;
                self.await_bytes(now);
            }
        }
    }

    /// The leader's first bytes are here, or it has failed before (`came` is false).
    pub(super) fn handle_first_bytes(&mut self, came: bool) {
        match (self.phase, came) {
            (Phase::Awaiting, true) => self.enter(Phase::Sampling, None, Action::Compare(SAMPLE_BYTES as u64)),
            (Phase::Awaiting, false) => (self.phase, self.until) = (Phase::Failing, None),
            _ => {}
        }
    }

    /// This upstream has replied. `arrived`: what has come from the leader, in bytes.
    pub(super) fn handle_reply(&mut self, now: Duration, reply: Reply, arrived: u64) {
        match (self.phase, reply) {
            (Phase::Asking | Phase::Sampling | Phase::Probing(_), Reply::Refuses) => self.end(End::Failed),
            (Phase::Asking, Reply::Has | Reply::Other) => self.leave(now),
            (Phase::Asking, Reply::Fails) => self.asked_in_vain(now),
            (Phase::Sampling, Reply::Has) => self.follow(now, arrived),
            (Phase::Sampling, Reply::Other) => self.leave(now),
            (Phase::Sampling, Reply::Fails) => self.end(End::Failed),
            (Phase::Probing(asked), Reply::Has) => self.probed(now, Probe::Same(now.saturating_sub(asked))),
            (Phase::Probing(_), Reply::Other) => self.probed(now, Probe::Other),
            (Phase::Probing(_), Reply::Fails) => self.probed(now, Probe::Silent),
            _ => {}
        }
    }

    /// The leader has ended; `arrived`: with the blob.
    pub(super) fn handle_leader_ended(&mut self, arrived: bool) {
        if !self.awaits_end() {
            return;
        }
        if arrived {
            return self.end(End::Followed);
        }
        if self.phase != Phase::Failing {
            self.actions.push_back(Action::StartOver);
        }
        self.enter(Phase::Looking, None, Action::FindLeader);
    }

    /// A step of the fill apart is done. `leader_had`: what the leader fills has, in bytes; `None` if it fills nothing.
    pub(super) fn handle_done(&mut self, now: Duration, leader_had: Option<u64>) {
        let Phase::Apart(step) = self.phase else {
            return;
        };
        match step {
            Step::Queuing => {
                self.had = leader_had;
                match self.takes_over {
                    true => self.take_room(now),
                    false => self.open_body(),
                }
            }
            Step::Opening => self.take_room(now),
            Step::MakingRoom => {
                let action = if self.takes_over {
                    Action::TakeOver
                } else {
                    Action::Receive
                };
                self.enter(Phase::Apart(Step::Receiving), None, action);
            }
            Step::Receiving => self.enter(Phase::Judging { is_next: false }, None, Action::Judge),
        }
    }

    /// A step of the fill apart has failed.
    pub(super) fn handle_failed(&mut self) {
        if matches!(self.phase, Phase::Apart(_)) {
            self.end(End::Failed);
        }
    }

    /// What was filled apart is not the blob. With a leader's pieces in it, it does not tell which upstream lies: this one has to prove the blob
    /// alone.
    pub(super) fn handle_wrong(&mut self) {
        match self.phase {
            Phase::Apart(Step::Receiving) if std::mem::take(&mut self.takes_over) => {
                self.actions.push_back(Action::StartOver);
                self.open_body();
            }
            _ => self.handle_failed(),
        }
    }

    /// Whether the fill apart begins with what the leader has.
    pub(super) fn takes_over(&self) -> bool {
        self.takes_over
    }

    /// There is no place to fill apart, or another fill needs the one that was taken.
    pub(super) fn handle_crowded(&mut self) {
        if matches!(self.phase, Phase::Apart(_)) {
            self.end(End::Crowded);
        }
    }

    /// What the leader fills was compared with the proven blob. `None`: no other transfer leads any more.
    pub(super) fn handle_rival(&mut self, rival: Option<Rival>) {
        let Phase::Judging { is_next } = self.phase else {
            return;
        };
        let Some(rival) = rival else {
            return self.end(End::Keep);
        };
        match self.verdict(rival, is_next) {
            // Only the transfer that leads writes into the store.
            None => self.end(End::Apart),
            Some(reason) => {
                self.actions.push_back(Action::EndLeader(reason));
                // Another one may have gone on in the leader's place meanwhile.
                self.enter(Phase::Judging { is_next: true }, None, Action::JudgeNext);
            }
        }
    }

    /// The phase has lasted long enough. `arrived`: what has come from the leader, in bytes; `is_full`: that is all.
    pub(super) fn handle_timeout(&mut self, now: Duration, arrived: u64, is_full: bool) {
        if self.until.is_none_or(|until| now < until) {
            return;
        }
        match self.phase {
            Phase::Awaiting => self.enter(Phase::Asking, Some(now + OWN_PATIENCE), Action::AskUpstream),
            Phase::Asking => self.asked_in_vain(now),
            Phase::Following if self.comparison.look(arrived, is_full) => {
                self.enter(
                    Phase::Probing(now),
                    Some(now + LOOK_EVERY),
                    Action::Compare(PROBE_BYTES),
                );
            }
            Phase::Following => self.look_later(now),
            Phase::Probing(_) => self.probed(now, Probe::Silent),
            Phase::Apart(_) => self.end(End::Crowded),
            Phase::Looking | Phase::Failing | Phase::Sampling | Phase::Judging { .. } | Phase::Over => {}
        }
    }

    /// The next action. The task carries it out before it asks for another.
    pub(super) fn poll_action(&mut self) -> Option<Action> {
        if cfg!(debug_assertions) {
            self.assert_invariants();
        }
        self.actions.pop_front()
    }

    /// When to call [`Following::handle_timeout`]. `None`: only an event goes on.
    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.until
    }

    /// Whether the leader's end is an event.
    pub(super) fn awaits_end(&self) -> bool {
        matches!(self.phase, Phase::Failing | Phase::Following | Phase::Probing(_))
    }

    fn await_bytes(&mut self, now: Duration) {
        self.enter(Phase::Awaiting, Some(now + LEADER_PATIENCE), Action::AwaitBytes);
    }

    /// This upstream would bring nothing either.
    fn asked_in_vain(&mut self, now: Duration) {
        self.waits += 1;
        match self.waits < LEADER_WAITS_MAX {
            true => self.await_bytes(now),
            false => self.leave(now),
        }
    }

    fn follow(&mut self, now: Duration, arrived: u64) {
        self.actions.push_back(Action::Follow);
        self.comparison = Comparison::new(arrived);
        self.look_later(now);
    }

    fn look_later(&mut self, now: Duration) {
        (self.phase, self.until) = (Phase::Following, Some(now + self.comparison.pause()));
    }

    fn probed(&mut self, now: Duration, probe: Probe) {
        match self.comparison.leaves(probe) {
            true => {
                self.takes_over = probe != Probe::Other;
                self.leave(now);
            }
            false => self.look_later(now),
        }
    }

    fn open_body(&mut self) {
        self.enter(Phase::Apart(Step::Opening), None, Action::OpenBody);
    }

    fn take_room(&mut self, now: Duration) {
        let until = now + PLACE_PATIENCE;
        self.enter(Phase::Apart(Step::MakingRoom), Some(until), Action::TakeRoom);
    }

    fn leave(&mut self, now: Duration) {
        self.enter(
            Phase::Apart(Step::Queuing),
            Some(now + PLACE_PATIENCE),
            Action::TakePlace,
        );
    }

    /// Why a leader is to end; `None`: its bytes are the blob's and go on coming. One that began meanwhile has its time.
    fn verdict(&self, rival: Rival, is_next: bool) -> Option<Reason> {
        match rival.arrived {
            Some(_) if !rival.agrees => Some(Reason::OtherBytes),
            Some(_) if self.takes_over && rival.lacks && !is_next => Some(Reason::Slow),
            Some(arrived) if is_next || Some(arrived) > self.had => None,
            None if is_next => None,
            _ => Some(Reason::Silent),
        }
    }

    fn enter(&mut self, phase: Phase, until: Option<Duration>, action: Action) {
        (self.phase, self.until) = (phase, until);
        self.actions.push_back(action);
    }

    fn end(&mut self, end: End) {
        self.enter(Phase::Over, None, Action::End(end));
    }

    fn assert_invariants(&self) {
        let is_over = self.phase == Phase::Over;
        let ends = |action: &Action| matches!(action, Action::End(_));
        assert!(is_over || !self.actions.iter().any(ends), "it ends and goes on");
        assert!(self.waits <= LEADER_WAITS_MAX);
        let waits_by_clock = matches!(
            self.phase,
            Phase::Awaiting
                | Phase::Asking
                | Phase::Following
                | Phase::Probing(_)
                | Phase::Apart(Step::Queuing | Step::MakingRoom)
        );
        assert_eq!(self.until.is_some(), waits_by_clock, "{:?}", self.phase);
    }
}
