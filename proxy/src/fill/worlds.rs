//! A fill in random worlds on a virtual clock, by seed.
//!
//! Upstreams break off, refuse, ignore ranges, drip, answer late or with 429; readers come and go; stores fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use piecemeal_proto::{PieceMap, PieceSet};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    Action, Answer, Beginning, Ended, Facts, Failure, Fault, Fill, Flow, Flowing,
    connections::READERS_MAX,
    machine::{TICK, UNREAD_MAX},
    patience::{BARREN_MAX, RETRY_DELAY_MAX},
};

const SEEDS: u64 = 600;
const PIECE_BYTES: u64 = 256 * 1024;
const CHUNK_BYTES: u64 = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
/// A request without an answer has failed after this time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Long after any of these fills is to have ended.
const END: Duration = Duration::from_secs(3600);

/// How an upstream behaves: how many of a hundred of its answers or bodies have each fault.
#[derive(Debug, Default)]
struct Upstream {
    latency: Duration,
    /// In bytes a second.
    rate: u64,
    fails: u32,
    is_late: u32,
    is_busy: u32,
    ignores_ranges: u32,
    breaks_off: u32,
    drips: u32,
    /// From when on it refuses each right; no right is left after the last.
    refuses_from: Vec<Duration>,
}

/// A request, or its body.
struct Connection {
    bytes: Range<u64>,
    /// The end of what was asked for.
    asked_to: u64,
    /// The number of the right that it was made with.
    right: usize,
    /// The first byte that is not in the store.
    wanted_from: u64,
    body: Option<Body>,
}

struct Body {
    flow: Flow,
    /// The offset of its next byte.
    offset: u64,
    breaks_off_at: Option<u64>,
    drips: bool,
    is_ending: bool,
}

struct World {
    random: StdRng,
    machine: Fill,
    now: Duration,
    beginning: Beginning,
    facts: Facts,
    /// At how many of a hundred events the last reader of an unstored blob leaves.
    readers_leave: u32,
    read_at: Duration,
    upstream: Upstream,
    store: PieceSet,
    /// Of ten thousand pieces, how many the store fails to write.
    store_fails: u32,
    /// The beginnings of pieces in the store, in bytes.
    partial: BTreeMap<u32, u64>,
    /// Pieces that a body without ranges carries along.
    carried: PieceSet,
    connections: BTreeMap<u64, Connection>,
    /// When each connection is answered or has its next bytes.
    due: BTreeSet<(Duration, u64)>,
    right: usize,
    opened: bool,
    last_new: Duration,
    last_fault: Option<Fault>,
    barren: u32,
    /// Since when no connection is open.
    idle_since: Option<Duration>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let map = PieceMap::new(random.random_range(1..100 * CHUNK_BYTES), PIECE_BYTES).unwrap();
        let mut landed = PieceSet::new(map.count());
        if random.random_ratio(1, 3) {
            (0..map.count()).for_each(|piece| _ = random.random::<bool>() && landed.insert(piece));
        }
        let upstream = Upstream::random(&mut random);
        let lease = random.random_ratio(1, 8);
        let first = random.random_range(0..map.count());
        let last = random.random_range(first..map.count());
        let unstored = random.random_ratio(1, 4);
        let beginning = Beginning {
            map,
            landed: landed.clone(),
            within: match lease {
                true => map.range(first).start..map.range(last).end,
                false => 0..map.blob_bytes(),
            },
            patience: if lease { Duration::ZERO } else { PATIENCE },
            opens: random.random(),
            unstored,
            has_callers: upstream.refuses_from.len() > 1,
        };
        Self {
            machine: Fill::new(Duration::ZERO, &beginning),
            now: Duration::ZERO,
            facts: Facts {
                share: random.random_range(1..=8),
                connection_rate: 0,
                waited_for: Vec::new(),
                has_readers: true,
                landed: landed.clone(),
            },
            readers_leave: if unstored { random.random_range(0..3) } else { 0 },
            read_at: Duration::ZERO,
            upstream,
            carried: PieceSet::new(map.count()),
            store: landed,
            store_fails: if random.random_ratio(1, 8) { 50 } else { 0 },
            partial: BTreeMap::new(),
            connections: BTreeMap::new(),
            due: BTreeSet::new(),
            right: 0,
            opened: !beginning.opens,
            last_new: Duration::ZERO,
            last_fault: None,
            barren: 0,
            idle_since: None,
            beginning,
            random,
        }
    }

    fn run(mut self) -> Result<(), Failure> {
        // A body of the whole blob may have begun before its fill.
        if !self.beginning.opens && self.beginning.within.start == 0 && self.random.random_ratio(1, 8) {
            self.machine.handle_first_body(self.now);
        }
        loop {
            self.change_facts();
            if let Some(end) = self.settle() {
                return self.check(end);
            }
            let due = self.due.first().copied();
            let timeout = self.machine.poll_timeout();
            let next = due.map(|(at, _)| at).into_iter().chain(timeout).min();
            self.now = self.now.max(next.expect("it waits for something"));
            assert!(self.now < END, "it does not end");
            match due.filter(|(at, _)| *at <= self.now) {
                Some(due) => {
                    self.due.remove(&due);
                    self.go_on(due.1);
                }
                None => self.machine.handle_timeout(self.now, &self.facts),
            }
        }
    }

    fn chance(&mut self, of_a_hundred: u32) -> bool {
        self.random.random_ratio(of_a_hundred, 100)
    }

    /// Readers move, come and go, and the share of the fill changes.
    fn change_facts(&mut self) {
        // They take longer to come back.
        let changes = if self.facts.has_readers { 100 } else { 10_000 };
        if self.random.random_ratio(self.readers_leave, changes) {
            self.facts.has_readers = !self.facts.has_readers;
        }
        if self.facts.has_readers {
            self.read_at = self.now;
        }
        if self.chance(5) {
            let at = self.random.random_range(0..self.beginning.map.count());
            let readers = self.random.random_range(0..4);
            let wanted = self.store.missing().filter(|piece| *piece >= at);
            let wanted: Vec<u32> = wanted.step_by(3).take(readers).collect();
            let to = |piece: u32, random: &mut StdRng| piece + random.random_range(1..5);
            self.facts.waited_for = wanted
                .into_iter()
                .map(|piece| piece..to(piece, &mut self.random))
                .collect();
            self.facts.share = self.random.random_range(1..=8);
            self.facts.connection_rate = [0, self.upstream.rate][usize::from(self.random.random::<bool>())];
        }
    }

    /// Carries out what the machine decides, as its task does.
    fn settle(&mut self) -> Option<Result<(), Failure>> {
        loop {
            self.facts.landed.clone_from(&self.store);
            let Some(action) = self.machine.poll_action(self.now, &self.facts) else {
                break;
            };
            match action {
                Action::MoveEnd { connection, end } => {
                    let moved = self.connections.get_mut(&connection).expect("it is open");
                    let body = moved.body.as_ref().expect("it is received");
                    assert!(body.offset < end, "it has come further");
                    assert!(end <= moved.asked_to, "that was not asked for");
                    moved.bytes.end = end;
                }
                Action::Request { connection, bytes } => self.request(connection, bytes),
                Action::Receive { connection, bytes } => self.receive(connection, bytes),
                Action::Close(connection) => assert!(self.connections.remove(&connection).is_some()),
                Action::NextRight => {
                    let found = self.right + 1 < self.upstream.refuses_from.len();
                    self.right += usize::from(found);
                    self.machine.handle_next_right(self.now, found);
                }
                Action::Open => assert!(!std::mem::replace(&mut self.opened, true), "it opens once"),
                Action::NoteTooManyRequests | Action::NoteNoRanges => {}
                Action::Finish => return Some(Ok(())),
                Action::Fail(failure) => return Some(Err(failure)),
            }
        }
        let idle_since = *self.idle_since.get_or_insert(self.now);
        match self.connections.is_empty() {
            true => assert!(self.now <= idle_since + RETRY_DELAY_MAX + TICK, "it asks for nothing"),
            false => self.idle_since = None,
        }
        None
    }

    fn pieces(&self, bytes: &Range<u64>) -> Range<u32> {
        let piece_at = |offset| self.beginning.map.piece_at(offset).expect("it lies within the blob");
        piece_at(bytes.start)..piece_at(bytes.end - 1) + 1
    }

    fn wanted_from(&self, bytes: &Range<u64>) -> u64 {
        let stored = self.partial.get(&self.pieces(bytes).start).copied();
        bytes.start + stored.unwrap_or_default()
    }

    fn request(&mut self, connection: u64, bytes: Range<u64>) {
        let pieces = self.pieces(&bytes);
        for piece in pieces.clone() {
            assert!(!self.store.contains(piece), "piece {piece} is here");
        }
        for other in self.connections.values() {
            let other = self.pieces(&other.bytes);
            assert!(
                other.end <= pieces.start || pieces.end <= other.start,
                "{pieces:?} and {other:?}"
            );
        }
        let share = if self.beginning.unstored { 1 } else { self.facts.share };
        let is_busy = |connection: &&Connection| !connection.body.as_ref().is_some_and(|body| body.is_ending);
        let busy = self.connections.values().filter(is_busy).count();
        assert!(busy < share + READERS_MAX, "{busy} in use of {share}");
        let is_wanted = self
            .facts
            .waited_for
            .iter()
            .any(|wanted| pieces.contains(&wanted.start));
        assert!(busy < share || is_wanted, "{busy} in use of {share} for no reader");
        let wanted_from = self.wanted_from(&bytes);
        let asked = Connection {
            asked_to: bytes.end,
            bytes,
            right: self.right,
            wanted_from,
            body: None,
        };
        self.connections.insert(connection, asked);
        let waits = match self.chance(self.upstream.is_late) {
            true => self.random.random_range(SECOND..2 * ANSWER_TIMEOUT),
            false => self.upstream.latency,
        };
        self.due.insert((self.now + waits.min(ANSWER_TIMEOUT), connection));
        // A late answer that does not come in time is a failure: the next event of the connection.
        if waits > ANSWER_TIMEOUT {
            self.connections.get_mut(&connection).unwrap().right = usize::MAX;
        }
    }

    fn go_on(&mut self, connection: u64) {
        let Some(mut going) = self.connections.remove(&connection) else {
            return;
        };
        if going.body.is_some() {
            match self.chunk(connection, &mut going) {
                None => _ = self.connections.insert(connection, going),
                Some(ended) => self.ended(connection, ended),
            }
        } else {
            let answer = self.answer(&going);
            if let Answer::Failed(fault) = answer {
                self.last_fault = Some(fault);
            } else {
                self.connections.insert(connection, going);
            }
            self.machine.handle_answered(self.now, connection, answer, &self.store);
        }
    }

    fn answer(&mut self, asked: &Connection) -> Answer {
        if asked.right == usize::MAX || self.chance(self.upstream.fails) {
            return Answer::Failed(Fault::Passing);
        }
        if self.chance(self.upstream.is_busy) {
            return Answer::Failed(Fault::TooManyRequests);
        }
        if self.upstream.refuses_from[asked.right] <= self.now {
            return Answer::Failed(Fault::Refused);
        }
        let all = asked.bytes == (0..self.beginning.map.blob_bytes());
        match (all && asked.wanted_from == 0) || self.chance(self.upstream.ignores_ranges) {
            true => Answer::Whole,
            false => Answer::Part,
        }
    }

    fn receive(&mut self, connection: u64, bytes: Range<u64>) {
        let wanted_from = self.wanted_from(&bytes);
        let asked = self.connections.remove(&connection);
        let carries_rest = asked.as_ref().is_none_or(|asked| asked.bytes != bytes);
        let offset = match &asked {
            Some(asked) if !carries_rest => asked.wanted_from,
            _ => 0,
        };
        if carries_rest {
            self.pieces(&bytes).for_each(|piece| _ = self.carried.insert(piece));
        }
        let breaks_off_at = match self.chance(self.upstream.breaks_off) {
            true => Some(self.random.random_range(offset..bytes.end)),
            false => None,
        };
        let body = Body {
            flow: Flow::new(self.now, offset),
            offset,
            breaks_off_at,
            drips: self.chance(self.upstream.drips),
            is_ending: false,
        };
        let receiving = Connection {
            asked_to: bytes.end,
            right: self.right,
            wanted_from,
            body: Some(body),
            bytes,
        };
        self.connections.insert(connection, receiving);
        self.due.insert((self.now, connection));
    }

    /// The next bytes of a body come, or it ends.
    fn chunk(&mut self, connection: u64, going: &mut Connection) -> Option<Ended> {
        let body = going.body.as_mut()?;
        let from = body.offset;
        let end = body.breaks_off_at.unwrap_or(going.bytes.end).min(going.bytes.end);
        let (most, every) = match body.drips {
            true => (300, SECOND),
            false => (
                CHUNK_BYTES,
                Duration::from_micros(CHUNK_BYTES * 1_000_000 / self.upstream.rate),
            ),
        };
        let bytes = most.min(end - body.offset);
        let mut too_slow = false;
        if bytes > 0 {
            match body
                .flow
                .received(self.now, bytes, going.bytes.end, self.upstream.latency)
            {
                Flowing::On => {}
                Flowing::EndInSight => {
                    body.is_ending = true;
                    self.machine.handle_end_in_sight(connection);
                }
                Flowing::TooSlow => too_slow = true,
            }
        }
        body.offset += if too_slow { 0 } else { bytes };
        let (offset, is_whole) = (body.offset, body.offset == going.bytes.end);
        let store_fault = self.land(going, from..offset);
        if !too_slow && offset < end && store_fault.is_none() {
            self.due.insert((self.now + every, connection));
            return None;
        }
        let fault = store_fault.or((!is_whole).then_some(Fault::Passing));
        Some(Ended {
            progressed: offset > going.wanted_from && !too_slow,
            fault,
        })
    }

    /// What has come of a body is in the store.
    fn land(&mut self, going: &Connection, came: Range<u64>) -> Option<Fault> {
        let offset = came.end;
        for piece in self.pieces(&going.bytes) {
            let range = self.beginning.map.range(piece);
            if range.end <= came.start {
                continue;
            }
            if range.end <= offset {
                if self.random.random_ratio(self.store_fails, 10_000) {
                    return Some(Fault::Store);
                }
                self.last_new = self.now;
                let is_new = self.store.insert(piece);
                assert!(is_new || self.carried.contains(piece), "piece {piece} comes twice");
            } else if offset > range.start {
                let bytes = self.partial.entry(piece).or_default();
                *bytes = (*bytes).max(offset - range.start);
            }
        }
        None
    }

    fn ended(&mut self, connection: u64, ended: Ended) {
        match ended.progressed {
            true => (self.last_new, self.barren) = (self.now, 0),
            false => self.barren += 1,
        }
        self.last_fault = ended.fault.or(self.last_fault);
        self.machine.handle_ended(self.now, connection, ended, &self.store);
    }

    /// Whether this end is right.
    fn check(self, end: Result<(), Failure>) -> Result<(), Failure> {
        assert_eq!(self.machine.poll_timeout(), None);
        match end {
            Ok(()) => {
                let mut pieces = self.pieces(&self.beginning.within);
                assert!(pieces.all(|piece| self.store.contains(piece)), "not all has landed");
                assert!(self.opened && self.connections.is_empty());
            }
            Err(Failure::Unanswered) => assert!(self.beginning.opens && !self.opened),
            Err(Failure::Unread) => {
                assert!(self.beginning.unstored && self.now >= self.read_at + UNREAD_MAX);
                assert!(self.now <= self.read_at + UNREAD_MAX + ANSWER_TIMEOUT, "it is late");
            }
            Err(Failure::Upstream) => {
                let is_final = matches!(self.last_fault, Some(Fault::Refused | Fault::Store));
                let idle = self.now - self.last_new + RETRY_DELAY_MAX;
                assert!(self.opened && (is_final || self.barren >= BARREN_MAX || idle > self.beginning.patience));
            }
        }
        end
    }
}

impl Upstream {
    /// An upstream with up to three faults.
    fn random(random: &mut StdRng) -> Self {
        let mut upstream = Self {
            latency: Duration::from_millis(random.random_range(1..400)),
            rate: 30_000 << random.random_range(0..10),
            refuses_from: vec![END],
            ..Self::default()
        };
        for _ in 0..random.random_range(0..4) {
            let often = [5, 30, 80][random.random_range(0..3)];
            match random.random_range(0..8) {
                0 => upstream.fails = often,
                1 => upstream.is_late = often,
                2 => upstream.is_busy = often,
                3 => upstream.ignores_ranges = 100,
                4 => upstream.ignores_ranges = often,
                5 => upstream.breaks_off = often,
                6 => upstream.drips = often / 4,
                _ => {
                    let rights = random.random_range(1..5);
                    let until = |_| Duration::from_millis(random.random_range(0..3000));
                    upstream.refuses_from = (0..rights).map(until).collect();
                    upstream.refuses_from.push(END);
                    upstream.refuses_from.truncate(4);
                }
            }
        }
        upstream
    }
}

#[test]
fn in_every_world_a_fill_ends_with_its_bytes_or_for_a_good_reason_and_in_time() {
    let mut ends = BTreeMap::new();
    for seed in 0..SEEDS {
        let end = std::panic::catch_unwind(|| World::new(seed).run());
        let end = end.unwrap_or_else(|_| panic!("seed {seed}"));
        *ends.entry(format!("{end:?}")).or_insert(0) += 1;
    }
    println!("{ends:?}");
    assert_eq!(ends.len(), 4, "each end is seen: {ends:?}");
    assert!(ends["Ok(())"] > SEEDS / 2, "most have their bytes: {ends:?}");
}
