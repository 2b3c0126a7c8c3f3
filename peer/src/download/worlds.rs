//! Downloads in worlds that a seed draws: sources that fail, orders of every kind, readers that leave, a window that moves.
//!
//! Checked in every world: each end has its reason, what must end a download does so in time, and where nothing ends it the blob comes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use piecemeal_proto::{AuthorityKey, Digest, PieceMap, SignedPieceHashes, wire::Outcome};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    Action, Failure, Order, Reopened,
    machine::{IDLE_MAX, REFUSED_PATIENCE, TICK, WANT_DELAY_MAX},
    story::{FILL, GRACE, PIECES, SECOND, Story, drop_pieces},
};

const SEEDS: u64 = 2000;
const WINDOW: u32 = 32;
/// The part of a window by which it may move before the scheduler is told.
const WINDOW_STEP: u32 = WINDOW / 16;

struct World {
    story: Story,
    random: StdRng,
    lease: u64,
    /// When pieces were last ordered to be dropped. Until they are, they seem to have landed just now.
    dropped_at: Duration,
    /// Since when there has been no reader.
    unread_since: Option<Duration>,
    /// Since when the mirror's answers have been errors.
    failed_since: Option<Duration>,
    /// When the scheduler refused a want that was not sent again since.
    want_refused_at: Option<Duration>,
    /// The start of the window that the scheduler was told of.
    told: u32,
    has_list: bool,
    /// What has just happened that ends every download.
    must_fail: Option<Failure>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let has_window = random.random_ratio(1, 3);
        let story = Story::begin(|beginning, facts| {
            beginning.seed = seed;
            facts.scheduler_up = seed.is_multiple_of(2);
            facts.window = has_window.then_some(0..WINDOW);
        });
        Self {
            story,
            random,
            lease: 0,
            dropped_at: Duration::ZERO,
            unread_since: None,
            failed_since: None,
            want_refused_at: None,
            told: 0,
            has_list: false,
            must_fail: None,
        }
    }

    fn run(mut self) -> Result<(), Failure> {
        for _ in 0..self.random.random_range(20..300) {
            self.step(Self::happen);
        }
        // Mirror and readers are back, the scheduler is not.
        let facts = &mut self.story.facts;
        (facts.scheduler_up, facts.mirror_lost, facts.has_readers) = (false, None, true);
        self.unread_since = None;
        for _ in 0..200 {
            self.step(Self::recover);
        }
        self.story.end.expect("the blob comes once its sources are back")
    }

    fn step(&mut self, step: impl FnOnce(&mut Self)) {
        if self.story.end.is_some() {
            return;
        }
        let wants = self.wants();
        step(self);
        if self.wants() > wants {
            self.told = self.window_start();
        }
        self.check();
    }

    fn happen(&mut self) {
        match self.random.random_range(0..24) {
            0..4 => {
                self.lease += 1;
                let (first, count) = (self.random.random_range(0..PIECES), self.random.random_range(1..12));
                self.story.lease(self.lease, first, count);
            }
            4 => self
                .story
                .order(Order::Cancel(self.random.random_range(0..=self.lease))),
            5 | 6 => self.end_lease(),
            7 | 8 => self.end_piece(),
            9 => self.land_a_piece(),
            10 => self.story.facts.scheduler_up = self.random.random(),
            11 => self.story.facts.mirror_lost = self.random.random::<bool>().then_some(SECOND),
            12..16 => self.order(),
            16 => self.reader(),
            17 => self.window(),
            18 if self.story.rest => self.end_rest(),
            18 if self.random.random_ratio(1, 40) => self.fill_fails(),
            19 if self.random.random_ratio(1, 5) => self.pass(45_000),
            _ => self.pass(700),
        }
        if self.story.reopening && self.story.end.is_none() && self.random.random() {
            self.answer();
        }
    }

    fn recover(&mut self) {
        if self.story.reopening {
            self.story.reopened(Reopened::Renewed);
        }
        if let Some(id) = self.story.leases.keys().next().copied() {
            self.story.end_lease(id, Outcome::Done, usize::MAX);
        }
        if let Some(piece) = self.story.direct.first().copied() {
            self.story.end_piece(piece, Outcome::Done);
        }
        if self.story.rest {
            self.story.end_rest();
        }
        self.story.after(TICK);
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.random.random_range(0..all.len())]
    }

    fn end_lease(&mut self) {
        if let Some(id) = self.story.leases.keys().next().copied() {
            let outcome = self.one_of(&[
                Outcome::Done,
                Outcome::Corrupt,
                Outcome::Unreachable,
                Outcome::Cancelled,
            ]);
            self.story.end_lease(id, outcome, self.random.random_range(0..12));
        }
    }

    fn end_piece(&mut self) {
        if let Some(piece) = self.story.direct.first().copied() {
            let outcome = self.one_of(&[Outcome::Done, Outcome::Corrupt, Outcome::Unreachable]);
            self.story.end_piece(piece, outcome);
        }
    }

    /// A piece of a lease whose fetch goes on.
    fn land_a_piece(&mut self) {
        let pieces = self.story.leases.values().flatten().copied();
        let pieces: Vec<u32> = pieces.filter(|piece| !self.story.store.contains(*piece)).collect();
        if !pieces.is_empty() {
            let piece = self.one_of(&pieces);
            self.story.land(piece);
        }
    }

    /// An order besides those about leases.
    fn order(&mut self) {
        match self.random.random_range(0..6) {
            0 => {
                let first = self.random.random_range(0..PIECES);
                self.dropped_at = self.story.now;
                self.story.order(drop_pieces(&(first..first + 3)));
            }
            1 => {
                self.want_refused_at.get_or_insert(self.story.now);
                self.story.order(Order::WantRefused("the grant is old".to_owned()));
            }
            2 => {
                let wants = self.wants();
                self.story.order(Order::Up);
                assert!(self.wants() > wants, "the want is sent once more");
            }
            3 => {
                self.has_list = true;
                let piece_bytes = self.one_of(&[1000, 500]);
                self.story.differing = (0..PIECES).filter(|_| self.random.random_ratio(1, 10)).collect();
                self.story.order(Order::PieceHashes(list(piece_bytes)));
            }
            4 => self.story.order(Order::Revoked(FILL + 1)),
            _ if self.random.random_ratio(1, 32) => {
                self.must_fail = Some(Failure::Revoked);
                self.story.order(Order::Revoked(FILL));
            }
            _ => {}
        }
    }

    fn answer(&mut self) {
        let (now, wants) = (self.story.now, self.wants());
        let answer = match self.random.random_range(0..80) {
            0 => Reopened::OtherFill,
            1 => Reopened::Refused,
            2..30 => Reopened::Renewed,
            30..50 => Reopened::Lost,
            _ => Reopened::Failed,
        };
        match answer {
            Reopened::Renewed => self.failed_since = None,
            Reopened::OtherFill => self.must_fail = Some(Failure::OtherFill),
            Reopened::Refused => self.must_fail = Some(Failure::Mirror),
            Reopened::Lost => {}
            Reopened::Failed => {
                let since = *self.failed_since.get_or_insert(now);
                if (now - since).min(self.idle_at_least()) >= REFUSED_PATIENCE {
                    self.must_fail = Some(Failure::Mirror);
                }
            }
        }
        self.story.reopened(answer);
        if answer == Reopened::Renewed && self.want_refused_at.is_some() {
            let is_due = self.want_refused_at.is_some_and(|at| now - at >= WANT_DELAY_MAX);
            assert!(
                !is_due || self.wants() > wants,
                "a refused want is sent with a new grant"
            );
            if self.wants() > wants {
                self.want_refused_at = None;
            }
        }
    }

    fn reader(&mut self) {
        let has_readers = self.random.random();
        self.story.facts.has_readers = has_readers;
        self.unread_since = match has_readers {
            true => None,
            false => self.unread_since.or(Some(self.story.now)),
        };
        let missing = self.story.store.missing().next().filter(|_| has_readers);
        // Clients read on, and one may have jumped ahead.
        let jump = self.story.store.missing().nth(self.random.random_range(0..8));
        self.story.facts.waited_for = missing
            .into_iter()
            .chain(jump.filter(|_| has_readers))
            .map(|piece| piece..PIECES)
            .collect();
        self.story.facts.waited_for.dedup();
        self.story.facts.longest_wait = missing.map(|piece| (piece, Duration::ZERO));
        // A reader stays for long enough to be seen.
        self.story.after(TICK);
    }

    fn window(&mut self) {
        if let Some(window) = &mut self.story.facts.window {
            let start = (window.start + self.random.random_range(0..4)).min(PIECES - WINDOW);
            *window = start..start + WINDOW;
            self.story.settle();
        }
    }

    fn end_rest(&mut self) {
        if self.random.random() {
            return self.story.end_rest();
        }
        self.must_fail = Some(Failure::Upstream);
        self.story.fail_rest();
    }

    fn fill_fails(&mut self) {
        self.must_fail = Some(Failure::Fill);
        self.story.facts.fill_failed = true;
        self.story.settle();
    }

    fn pass(&mut self, milliseconds_max: u64) {
        let time = self.random.random_range(0..milliseconds_max);
        self.story.after(Duration::from_millis(time));
    }

    fn wants(&self) -> usize {
        self.story.count(|action| matches!(action, Action::SendWant))
    }

    fn idle_at_least(&self) -> Duration {
        self.story.now - self.story.landed_at.max(self.dropped_at)
    }

    fn window_start(&self) -> u32 {
        self.story.facts.window.as_ref().map_or(0, |window| window.start)
    }

    /// Whether it is right that the download has ended so, or that it goes on.
    fn check(&self) {
        let now = self.story.now;
        let unread = self.unread_since.map_or(Duration::ZERO, |since| now - since);
        let failed = self.failed_since.map_or(Duration::ZERO, |since| now - since);
        let idle = now - self.story.landed_at;
        match self.story.end {
            None => {
                assert_eq!(self.must_fail, None, "it goes on");
                assert!(unread <= IDLE_MAX + TICK, "it goes on without readers");
                let idle_max = GRACE + IDLE_MAX + TICK;
                assert!(
                    self.story.rest || self.idle_at_least() <= idle_max,
                    "it goes on without pieces"
                );
                let window = self.window_start();
                assert!(window < self.told + WINDOW_STEP, "the window {window} is told late");
            }
            Some(Ok(())) => {
                let Some(Action::Publish(list)) = self.story.actions.last() else {
                    panic!("it is published");
                };
                assert_eq!(list.is_some(), self.has_list);
            }
            Some(Err(failure)) if self.must_fail.is_some() => assert_eq!(Some(failure), self.must_fail),
            Some(Err(Failure::Unread)) => assert!(unread + TICK >= IDLE_MAX, "{unread:?}"),
            Some(Err(Failure::Idle { .. })) => assert!(!self.story.rest && idle >= GRACE + IDLE_MAX, "{idle:?}"),
            Some(Err(Failure::Mirror)) => assert!(failed.min(idle) >= REFUSED_PATIENCE, "{failed:?} {idle:?}"),
            Some(Err(failure)) => panic!("{failure:?} has no reason"),
        }
    }
}

fn list(piece_bytes: u64) -> Arc<SignedPieceHashes> {
    let map = PieceMap::new(u64::from(PIECES) * 1000, piece_bytes).unwrap();
    let (key, digest) = (AuthorityKey::from_seed([1; 32]), Digest::of(b"a blob"));
    let hashes = vec![[0; 32]; map.count() as usize];
    Arc::new(SignedPieceHashes::sign(&key, digest, map, hashes).unwrap())
}

#[test]
fn in_every_world_a_download_ends_with_its_blob_or_for_a_good_reason_and_in_time() {
    let mut ends = BTreeMap::new();
    for seed in 0..SEEDS {
        let end = std::panic::catch_unwind(|| World::new(seed).run());
        let end = match end.unwrap_or_else(|_| panic!("seed {seed}")) {
            Err(Failure::Idle { .. }) => "Err(Idle)".to_owned(),
            end => format!("{end:?}"),
        };
        *ends.entry(end).or_insert(0) += 1;
    }
    println!("{ends:?}");
    assert_eq!(ends.len(), 8, "each end is seen: {ends:?}");
    assert!(
        ends["Ok(())"] > SEEDS / 3,
        "more than a third have their blob: {ends:?}"
    );
}
