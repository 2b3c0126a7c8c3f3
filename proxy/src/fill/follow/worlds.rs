//! A transfer behind leaders in random worlds on a virtual clock, by seed.
//!
//! Leaders are private, silent or slow, lie, stall or fail; this upstream refuses, fails, lies or does not answer; places are taken.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    action::{Action, End, Leader, Reason, Reply, Rival},
    comparison::{PROBE_BYTES, SAMPLE_BYTES},
    machine::{Following, LEADER_PATIENCE, LEADER_WAITS_MAX, OWN_PATIENCE},
};
use crate::fill::patience::PLACE_PATIENCE;

const SEEDS: u64 = 600;
const BLOB_BYTES: u64 = 4 * 1024 * 1024;
const SECOND: Duration = Duration::from_secs(1);
/// How long a leader may bring nothing until its own fill gives up.
const FILL_PATIENCE: Duration = Duration::from_secs(30);
/// Long after any of these transfers is to have ended.
const LAST: Duration = Duration::from_secs(3600);

/// Another upstream's transfer.
#[derive(Clone, Debug)]
struct Other {
    is_public: bool,
    /// It sends other bytes than the blob's.
    lies: bool,
    /// They are not among those that are compared.
    hides: bool,
    begins: Duration,
    /// In bytes a second.
    rate: u64,
    /// When it sends its last byte.
    stops: Duration,
}

/// This upstream: how many of a hundred of its answers have each fault.
#[derive(Debug)]
struct Own {
    latency: Duration,
    rate: u64,
    lies: bool,
    fails: u32,
    is_late: u32,
    refuses: u32,
}

/// What ends a request or a wait.
#[derive(Clone, Copy, Debug)]
enum Event {
    FirstBytes(bool),
    Replied(Reply),
    Done,
    Failed,
    Wrong,
}

struct World {
    random: StdRng,
    machine: Following,
    now: Duration,
    /// In the order in which they began: the first one leads.
    others: VecDeque<Other>,
    own: Own,
    /// How many of a hundred steps of a fill apart find no place in time.
    is_crowded: u32,
    work: Option<(Duration, Event)>,
    found_at: Duration,
    /// The leader that was found last.
    leader: Option<Other>,
    asked: u32,
    /// The last question was a comparison.
    compares: bool,
    /// This upstream has shown the leader's bytes.
    matched: bool,
    follows: bool,
    /// Why the leader may be left, if it may.
    may_leave: bool,
    /// What the leader had when the place was taken.
    had: Option<u64>,
    /// The fill apart begins with what the leader has.
    takes_over: bool,
    proven: bool,
    failed: bool,
    steps: u32,
}

impl Other {
    fn random(random: &mut StdRng) -> Self {
        let begins = [Duration::ZERO, SECOND / 2, 7 * SECOND / 2, LAST][random.random_range(0..4)];
        let lasts = Duration::from_millis(random.random_range(0..60_000));
        Self {
            is_public: random.random_ratio(4, 5),
            lies: random.random_ratio(1, 4),
            hides: random.random_ratio(1, 2),
            begins,
            rate: 3000 << random.random_range(0..10),
            stops: if random.random() { LAST } else { begins + lasts },
        }
    }

    fn arrived(&self, now: Duration) -> u64 {
        let sends = now.min(self.stops).saturating_sub(self.begins).as_millis();
        u64::try_from(sends)
            .unwrap()
            .saturating_mul(self.rate)
            .div_ceil(1000)
            .min(BLOB_BYTES)
    }

    /// When it ends: it has all, or has sent nothing for too long.
    fn ends(&self) -> Duration {
        let all = self.begins + Duration::from_millis(BLOB_BYTES * 1000 / self.rate + 1);
        let silent = if self.begins == LAST {
            Duration::ZERO
        } else {
            self.stops
        };
        all.min(silent + FILL_PATIENCE)
    }

    fn arrives(&self) -> bool {
        self.arrived(self.ends()) == BLOB_BYTES && !self.lies
    }

    /// What it fills at this time.
    fn fills(&self, now: Duration) -> Option<u64> {
        (self.begins <= now && now < self.ends()).then(|| self.arrived(now))
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let others = (0..random.random_range(1..4))
            .map(|_| Other::random(&mut random))
            .collect();
        let often = |random: &mut StdRng| [0, 0, 0, 20, 100][random.random_range(0..5)];
        Self {
            machine: Following::new(),
            now: Duration::ZERO,
            others,
            own: Own {
                latency: Duration::from_millis(random.random_range(1..1500)),
                rate: 3000 << random.random_range(0..10),
                lies: random.random_ratio(1, 6),
                fails: often(&mut random),
                is_late: often(&mut random),
                refuses: [0, 0, 0, 0, 10][random.random_range(0..5)],
            },
            is_crowded: [0, 0, 0, 20][random.random_range(0..4)],
            work: None,
            found_at: Duration::ZERO,
            leader: None,
            asked: 0,
            compares: false,
            matched: false,
            follows: false,
            may_leave: false,
            had: None,
            takes_over: false,
            proven: false,
            failed: false,
            steps: 0,
            random,
        }
    }

    fn run(mut self) -> End {
        loop {
            while let Some(action) = self.machine.poll_action() {
                if let Action::End(end) = action {
                    self.check(end);
                    return end;
                }
                self.act(action);
            }
            let leader_ends = self
                .leader
                .as_ref()
                .filter(|_| self.machine.awaits_end())
                .map(Other::ends);
            let timeout = self.machine.poll_timeout();
            let work = self.work.map(|(at, _)| at);
            let next = leader_ends.into_iter().chain(work).chain(timeout).min();
            self.now = self.now.max(next.expect("it waits for something"));
            assert!(self.now < LAST, "it does not end");
            let worked = self.work.take().filter(|(at, _)| *at <= self.now);
            if leader_ends.is_some_and(|at| at <= self.now) {
                let arrives = self.leader().arrives();
                self.machine.handle_leader_ended(arrives);
            } else if let Some((_, event)) = worked {
                self.handle(event);
            } else {
                let arrived = self.leader().arrived(self.now);
                if self.asked == LEADER_WAITS_MAX && !self.follows {
                    self.may_leave = true;
                }
                self.machine.handle_timeout(self.now, arrived, arrived == BLOB_BYTES);
            }
        }
    }

    fn leader(&self) -> &Other {
        self.leader.as_ref().expect("there is a leader")
    }

    fn chance(&mut self, of_a_hundred: u32) -> bool {
        self.random.random_ratio(of_a_hundred, 100)
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::FindLeader => self.find_leader(),
            Action::AwaitBytes => {
                assert!(self.leader().is_public && !self.follows);
                let (begins, ends) = (self.leader().begins, self.leader().ends());
                let came = Event::FirstBytes(begins < ends && self.now < ends);
                // Its first byte comes with the next millisecond.
                self.work = Some((self.now.max((begins + SECOND / 1000).min(ends)), came));
            }
            Action::AskUpstream => {
                self.asked += 1;
                let waited = self.now - self.found_at;
                assert!(waited >= self.asked * LEADER_PATIENCE && self.asked <= LEADER_WAITS_MAX);
                self.compares = false;
                let reply = self.reply(Reply::Has, Duration::ZERO);
                self.work = Some(reply);
            }
            Action::Compare(bytes) => {
                assert!(self.leader().is_public && (self.follows || bytes == SAMPLE_BYTES as u64));
                self.compares = true;
                let is_same = (!self.leader().lies || self.leader().hides) && !self.own.lies;
                let took = Duration::from_millis(bytes * 1000 / self.own.rate);
                let reply = self.reply(if is_same { Reply::Has } else { Reply::Other }, took);
                self.work = Some(reply);
            }
            Action::Follow => {
                assert!(self.matched && !self.follows, "its bytes are shown unmatched");
                self.follows = true;
            }
            Action::StartOver => assert!(std::mem::take(&mut self.follows), "no reader waits"),
            Action::TakePlace => {
                assert!(self.may_leave, "{:?} is left without a reason", self.leader);
                let waits = self.now - self.found_at;
                let rounds = LEADER_WAITS_MAX * (LEADER_PATIENCE + OWN_PATIENCE);
                assert!(self.follows || self.leader().begins < LAST || waits <= rounds);
                self.takes_over = self.machine.takes_over();
                self.step(0, PLACE_PATIENCE);
            }
            Action::OpenBody => {
                self.takes_over = false;
                self.step(1, SECOND);
            }
            Action::TakeRoom => {
                self.steps = self.steps.max(if self.takes_over { 2 } else { 0 });
                self.step(2, PLACE_PATIENCE);
            }
            Action::Receive => {
                assert!(!self.takes_over);
                self.step(3, Duration::from_millis(BLOB_BYTES * 1000 / self.own.rate));
            }
            Action::TakeOver => {
                assert!(self.takes_over && self.follows, "its bytes are shown unmatched");
                let missing = BLOB_BYTES - self.leader().arrived(self.now);
                self.step(3, Duration::from_millis(missing * 1000 / self.own.rate));
            }
            Action::Judge => {
                let leader = self.leader().clone();
                self.judge(Some(&leader));
            }
            Action::JudgeNext => {
                self.others.retain(|other| self.now < other.ends());
                self.leader = self.others.front().cloned();
                let leader = self.leader.clone();
                self.judge(leader.as_ref());
            }
            Action::EndLeader(reason) => self.end_leader(reason),
            Action::End(_) => unreachable!(),
        }
    }

    fn find_leader(&mut self) {
        assert!(!self.follows && !self.proven);
        self.others.retain(|other| self.now < other.ends());
        self.leader = self.others.front().cloned();
        (self.found_at, self.asked, self.matched) = (self.now, 0, false);
        let leader = match &self.leader {
            None => Leader::Own,
            Some(other) if other.is_public => Leader::Public,
            Some(_) => Leader::Private,
        };
        self.may_leave = leader == Leader::Private;
        self.machine.handle_leader(self.now, leader);
    }

    fn reply(&mut self, good: Reply, took: Duration) -> (Duration, Event) {
        let reply = match (self.chance(self.own.refuses), self.chance(self.own.fails)) {
            (true, _) => Reply::Refuses,
            (_, true) => Reply::Fails,
            _ => good,
        };
        let late = if self.chance(self.own.is_late) {
            LAST
        } else {
            Duration::ZERO
        };
        // A request has a time limit of its own.
        let took = (self.own.latency + took + late).min(30 * SECOND);
        let reply = if late > Duration::ZERO { Reply::Fails } else { reply };
        (self.now + took, Event::Replied(reply))
    }

    /// A step of the fill apart. `longest`: the time that it takes at most, if there is a place.
    fn step(&mut self, step: u32, longest: Duration) {
        assert_eq!(
            std::mem::replace(&mut self.steps, step + 1),
            step,
            "each step is done once"
        );
        let is_crowded = self.chance(self.is_crowded);
        let takes = if step == 3 {
            longest
        } else {
            longest.mul_f64(self.random.random_range(0.0..0.9))
        };
        self.work = match (step, is_crowded) {
            (0 | 2, true) => None,
            (1, _) if self.chance(self.own.fails / 2) => Some((self.now + takes, Event::Failed)),
            (3, _) if self.own.lies || (self.takes_over && self.leader().lies) => {
                Some((self.now + takes, Event::Wrong))
            }
            _ => Some((self.now + takes, Event::Done)),
        };
        if is_crowded && step == 3 {
            self.machine.handle_crowded();
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::FirstBytes(came) => self.machine.handle_first_bytes(came),
            Event::Replied(reply) => {
                self.failed = matches!(reply, Reply::Refuses | Reply::Fails);
                self.matched |= self.compares && reply == Reply::Has;
                self.may_leave = match reply {
                    Reply::Has if self.follows => self.is_several_times_faster(),
                    Reply::Has | Reply::Other => true,
                    Reply::Fails => self.asked == LEADER_WAITS_MAX,
                    Reply::Refuses => false,
                };
                let arrived = self.leader().arrived(self.now);
                self.machine.handle_reply(self.now, reply, arrived);
            }
            Event::Done => {
                if self.steps == 1 {
                    self.had = self.leader().fills(self.now);
                }
                self.proven = self.steps == 4;
                let had = self.leader().fills(self.now);
                self.machine.handle_done(self.now, had);
            }
            Event::Failed => {
                self.failed = true;
                self.machine.handle_failed();
            }
            Event::Wrong => {
                self.failed = true;
                // Alone, this upstream proves the blob or is what is wrong.
                self.steps = if self.takes_over { 1 } else { 4 };
                self.machine.handle_wrong();
            }
        }
    }

    /// Whether this upstream has sent the bytes of a comparison four times as fast as the leader sends, but for what rounding costs.
    fn is_several_times_faster(&self) -> bool {
        let took = self.own.latency + Duration::from_millis(PROBE_BYTES * 1000 / self.own.rate);
        let own_rate = u128::from(PROBE_BYTES) * 1100 / took.as_millis();
        let leader = self.leader();
        self.now > leader.stops || own_rate > u128::from(leader.rate) * 4
    }

    fn judge(&mut self, leader: Option<&Other>) {
        assert!(self.proven, "only the proven blob judges");
        let rival = leader.map(|leader| Rival {
            arrived: leader.fills(self.now),
            agrees: !leader.lies || leader.fills(self.now).unwrap_or_default() == 0,
            lacks: leader.fills(self.now).is_some_and(|fills| fills < BLOB_BYTES),
        });
        self.machine.handle_rival(rival);
    }

    fn end_leader(&mut self, reason: Reason) {
        assert!(self.proven, "a leader ends only once the blob is proven");
        let fills = self.leader().fills(self.now);
        match reason {
            Reason::OtherBytes => assert!(self.leader().lies && fills > Some(0), "it is proven wrong"),
            Reason::Silent => assert!(fills.is_none() || fills == self.had, "it stands still"),
            Reason::Slow => assert!(self.takes_over && fills < Some(BLOB_BYTES), "it was taken over from"),
        }
        if self.now < self.leader().ends() {
            self.others.pop_front();
        }
    }

    /// Whether this end is right.
    fn check(&mut self, end: End) {
        assert_eq!(self.machine.poll_timeout(), None);
        self.others.retain(|other| self.now < other.ends());
        match end {
            End::Lead => assert!(self.others.is_empty() && !self.follows),
            End::Followed => assert!(self.leader().arrives() && self.now >= self.leader().ends()),
            End::Apart => {
                assert!(self.proven && !self.own.lies);
                let fills = self.leader().fills(self.now).unwrap_or_default();
                assert!(
                    !self.leader().lies || fills == 0,
                    "a leader that is proven wrong goes on"
                );
            }
            End::Keep => assert!(self.proven && self.others.is_empty()),
            End::Crowded => assert!(!self.proven && self.is_crowded > 0 && self.steps > 0),
            End::Failed => assert!(!self.proven && self.failed),
        }
    }
}

#[test]
fn in_every_world_a_transfer_ends_and_harms_no_leader_that_is_neither_wrong_nor_silent() {
    let mut ends = BTreeMap::new();
    for seed in 0..SEEDS {
        let end = std::panic::catch_unwind(|| World::new(seed).run());
        let end = end.unwrap_or_else(|_| panic!("seed {seed}"));
        *ends.entry(format!("{end:?}")).or_insert(0) += 1;
    }
    println!("{ends:?}");
    assert_eq!(ends.len(), 6, "each end is seen: {ends:?}");
}
