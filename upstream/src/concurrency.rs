//! Concurrency of the fills from one upstream: how many connections each may use, found by measuring.
//!
//! A fill may use one to eight; all fills together 32, unless there are more fills than that.
//!
//! Over a long path one connection is slow: it begins with a few packets and doubles them once a round trip, and each loss
//! sets it back. Several in parallel make up for that. Over a short path one is enough, and more only cost.
//!
//! A connection takes seconds to grow into the bandwidth that another leaves when it ends. So each layer of an image gets
//! connections in proportion to its missing bytes, which lets the layers end together.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use piecemeal_store::Repository;

/// The most connections of one fill.
pub const FILL_CONNECTIONS_MAX: usize = 8;
/// The most connections for bodies from one upstream, unless there are more fills than that.
const CONNECTIONS_MAX: usize = 32;
/// One more connection for each such time to the first byte, up to [`EXPECTED_MAX`].
const LATENCY_PER_CONNECTION: Duration = Duration::from_millis(16);
/// Beyond this number only a measured gain adds connections: all that they have under way at the end arrives at once.
const EXPECTED_MAX: usize = 6;
/// How long a number of connections is tried before it is judged.
const TRIAL: Duration = Duration::from_secs(1);
/// The minimum gain of one more connection, in percent.
const GAIN_MIN: u64 = 8;
/// The pause after a trial without a gain; it doubles with each.
const HOLD: Duration = Duration::from_secs(10);
const HOLD_MAX: Duration = Duration::from_secs(600);
/// The pause after upstream answered 429, or would not send ranges.
const CALM: Duration = Duration::from_secs(60);

/// The connections of one upstream, shared by its fills.
pub struct Concurrency(Mutex<State>);

struct State {
    limit: FillLimit,
    latency: Option<Duration>,
    fills: HashMap<u64, Load>,
    next: u64,
    window: Window,
    received_at: Option<Instant>,
}

/// One running fill.
struct Load {
    image: Repository,
    missing_bytes: u64,
    /// Its connections now.
    busy: usize,
}

/// The bytes received since the last judgement.
struct Window {
    since: Instant,
    bytes: u64,
    /// Of the window before this one; 0 in the first.
    connection_rate: u64,
}

impl Window {
    fn begin(now: Instant) -> Self {
        Self {
            since: now,
            bytes: 0,
            connection_rate: 0,
        }
    }
}

impl Default for Concurrency {
    fn default() -> Self {
        Self(Mutex::new(State {
            limit: FillLimit::default(),
            latency: None,
            fills: HashMap::new(),
            next: 0,
            window: Window::begin(Instant::now()),
            received_at: None,
        }))
    }
}

impl Concurrency {
    /// Records how long an answer took to its status line. The shortest recent time counts: it has the least of upstream's own
    /// work in it.
    pub fn answered_after(&self, took: Duration) {
        let mut state = self.0.lock();
        let latency = state.latency.map_or(took, |latency| took.min(latency + latency / 20));
        state.latency = Some(latency);
        if state.fills.is_empty() {
            state.limit.expect(latency);
        }
    }

    /// How long an answer takes.
    pub fn latency(&self) -> Duration {
        self.0.lock().latency.unwrap_or_default()
    }

    /// Upstream answered 429, or sends a whole blob when asked for a range.
    pub fn calm_down(&self) {
        self.0.lock().limit.calm_down(Instant::now());
    }

    /// Bytes of a body have come.
    pub fn received(&self, bytes: usize) {
        let (mut state, now) = (self.0.lock(), Instant::now());
        state.received_at = Some(now);
        state.received(bytes as u64, now);
    }

    /// Whether bytes of a body have come within this time.
    pub fn received_within(&self, time: Duration) -> bool {
        self.0.lock().received_at.is_some_and(|at| at.elapsed() < time)
    }

    /// A fill begins; it ends when its share is dropped.
    pub fn begin_fill(&self, image: &Repository, missing_bytes: u64) -> Share<'_> {
        let mut state = self.0.lock();
        if state.fills.is_empty() {
            state.window = Window::begin(Instant::now());
        }
        state.next += 1;
        let id = state.next;
        let load = Load {
            image: image.clone(),
            missing_bytes,
            busy: 0,
        };
        state.fills.insert(id, load);
        Share { concurrency: self, id }
    }
}

/// A fill's share of its upstream's connections, until it is dropped.
pub struct Share<'a> {
    concurrency: &'a Concurrency,
    id: u64,
}

impl Share<'_> {
    /// How many connections the fill may use while it lacks `missing_bytes` and uses `busy`.
    pub fn connections(&self, missing_bytes: u64, busy: usize) -> usize {
        let mut state = self.concurrency.0.lock();
        if let Some(load) = state.fills.get_mut(&self.id) {
            (load.missing_bytes, load.busy) = (missing_bytes, busy);
        }
        state.share(self.id)
    }

    /// The rate of one connection, in bytes a second; 0 while it is unknown.
    pub fn connection_rate(&self) -> u64 {
        self.concurrency.0.lock().window.connection_rate
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.concurrency.0.lock().fills.remove(&self.id);
    }
}

impl State {
    fn share(&self, id: u64) -> usize {
        let Some(own) = self.fills.get(&id) else {
            return 1;
        };
        let limit = self.limit.connections.min(CONNECTIONS_MAX / self.fills.len()).max(1);
        // Slow start is crossed by numbers: all begin with all that they may have, and shrink as their segments end.
        if self.window.connection_rate == 0 {
            return limit;
        }
        let largest = self
            .fills
            .values()
            .filter(|fill| fill.image == own.image)
            .map(|fill| fill.missing_bytes)
            .max()
            .unwrap_or_default();
        proportion(limit, own.missing_bytes, largest)
    }

    fn received(&mut self, bytes: u64, now: Instant) {
        self.window.bytes += bytes;
        let took = now.saturating_duration_since(self.window.since);
        if took < TRIAL {
            return;
        }
        let busy: usize = self.fills.values().map(|fill| fill.busy).sum();
        let rate = u64::try_from(u128::from(self.window.bytes) * 1000 / took.as_millis().max(1)).unwrap_or(u64::MAX);
        self.limit.judge(rate, now);
        self.window = Window {
            since: now,
            bytes: 0,
            connection_rate: rate / busy.max(1) as u64,
        };
    }
}

/// `limit` scaled by what a fill lacks of what the largest of its image lacks: at least 1.
fn proportion(limit: usize, missing_bytes: u64, largest: u64) -> usize {
    let scaled = (limit as u128 * u128::from(missing_bytes)).div_ceil(u128::from(largest.max(1)));
    usize::try_from(scaled).unwrap_or(limit).clamp(1, limit)
}

/// The number of connections of one fill, climbing while that brings something.
struct FillLimit {
    connections: usize,
    /// What came in a second before the last connection was added.
    trial: Option<u64>,
    hold: Duration,
    hold_until: Option<Instant>,
}

impl Default for FillLimit {
    fn default() -> Self {
        Self {
            connections: 1,
            trial: None,
            hold: HOLD,
            hold_until: None,
        }
    }
}

impl FillLimit {
    /// The starting number, before anything has been measured.
    fn expect(&mut self, latency: Duration) {
        if self.hold_until.is_none() {
            let connections = latency.as_micros().div_ceil(LATENCY_PER_CONNECTION.as_micros());
            self.connections = usize::try_from(connections)
                .unwrap_or(EXPECTED_MAX)
                .clamp(1, EXPECTED_MAX);
            self.trial = None;
        }
    }

    /// `rate`: the rate of the last window, in bytes a second.
    fn judge(&mut self, rate: u64, now: Instant) {
        if let Some(before) = self.trial.take()
            && u128::from(rate) * 100 < u128::from(before) * u128::from(100 + GAIN_MIN)
        {
            self.connections -= 1;
            self.hold_until = Some(now + self.hold);
            self.hold = (self.hold * 2).min(HOLD_MAX);
        }
        if self.connections < FILL_CONNECTIONS_MAX && self.hold_until.is_none_or(|until| now >= until) {
            self.trial = Some(rate);
            self.connections += 1;
        }
    }

    fn calm_down(&mut self, now: Instant) {
        (self.connections, self.trial) = (1, None);
        self.hold_until = Some(now + CALM);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Judges once a second what `carried` says of so many connections; returns how many there were.
    fn climb(start: Duration, seconds: u64, carried: impl Fn(usize) -> u64) -> Vec<usize> {
        let mut limit = FillLimit::default();
        limit.expect(start);
        let begin = Instant::now();
        (0..seconds)
            .map(|second| {
                let connections = limit.connections;
                limit.judge(carried(connections), begin + Duration::from_secs(second));
                connections
            })
            .collect()
    }

    #[test]
    fn a_link_that_one_connection_fills_keeps_one() {
        let connections = climb(Duration::from_millis(1), 100, |_| 12_000_000);
        let tried = connections.iter().filter(|&&connections| connections > 1).count();
        assert!(
            connections.iter().all(|&connections| connections <= 2) && tried <= 5,
            "{connections:?}"
        );
    }

    #[test]
    fn a_link_that_slows_each_connection_down_gets_all() {
        for start in [1, 100] {
            let connections = climb(Duration::from_millis(start), 10, |connections| {
                200_000 * connections as u64
            });
            assert_eq!(connections.last(), Some(&FILL_CONNECTIONS_MAX));
        }
    }

    #[test]
    fn a_long_path_begins_with_many() {
        for (latency, connections) in [
            (0, 1),
            (16, 1),
            (17, 2),
            (40, 3),
            (100, EXPECTED_MAX),
            (900, EXPECTED_MAX),
        ] {
            assert_eq!(
                climb(Duration::from_millis(latency), 1, |_| 1),
                [connections],
                "{latency} ms"
            );
        }
    }

    #[test]
    fn who_is_asked_to_calm_down_does() {
        let mut limit = FillLimit::default();
        limit.expect(Duration::from_secs(1));
        let now = Instant::now();
        limit.calm_down(now);
        limit.expect(Duration::from_secs(1));
        limit.judge(1, now + CALM / 2);
        assert_eq!(limit.connections, 1);
        limit.judge(1, now + CALM);
        assert_eq!(limit.connections, 2);
    }

    #[test]
    fn layers_share_by_what_they_lack() {
        assert_eq!([30, 20, 14].map(|lacks| proportion(8, lacks, 30)), [8, 6, 4]);
        assert_eq!([0, 1, 30].map(|lacks| proportion(8, lacks, 30)), [1, 1, 8]);
        assert_eq!(proportion(1, 5, 5), 1);
        assert_eq!(proportion(8, 0, 0), 1);
    }
}
