//! Concurrency of the fills from one upstream: how many connections each may use, found by measuring.
//!
//! A fill may use one to eight; all fills together 32, unless there are more fills than that.
//!
//! Over a long path one connection is slow: it begins with a few packets and doubles them once a round trip, and each loss
//! sets it back. Several in parallel make up for that. Over a short path one is enough, and more only cost.
//!
//! Fills for which no client waits share one lane: one connection of one of them, the oldest. It is closed while other fills are under way,
//! but for one second in [`LANE_TURNS`].
//!
//! A connection takes seconds to grow into the bandwidth that another leaves when it ends. So each layer of an image gets
//! connections in proportion to its missing bytes, which lets the layers end together.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use piecemeal_store::Repository;

use crate::fill_limit::FillLimit;

/// The most connections for bodies from one upstream, unless there are more fills than that.
const CONNECTIONS_MAX: usize = 32;
/// The time for which a number of connections is tried before it is judged.
const TRIAL: Duration = Duration::from_secs(1);

/// While clients wait, the lane of the fills without one is open in one of so many seconds, so that these fills go on.
const LANE_TURNS: u64 = 8;

/// The connections of one upstream. Reads the clock for `Measured`, which decides.
pub struct Concurrency(Mutex<Measured>);

/// Fills of one upstream and what was measured of them. Times are passed in.
struct Measured {
    limit: FillLimit,
    latency: Option<Duration>,
    fills: HashMap<u64, Load>,
    next: u64,
    window: RateWindow,
    received_at: Option<Instant>,
    /// The start of the lane's turns.
    began: Instant,
}

/// One running fill.
struct Load {
    image: Repository,
    missing_bytes: u64,
    /// Its connections now.
    busy: usize,
    /// A client waits for the blob.
    is_attended: bool,
}

/// The bytes received since the last judgement.
struct RateWindow {
    since: Instant,
    bytes: u64,
    /// Of the window before this one; 0 in the first.
    connection_rate: u64,
}

impl RateWindow {
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
        Self(Mutex::new(Measured::new(Instant::now())))
    }
}

impl Concurrency {
    /// Records how long an answer took to its status line. The shortest recent time counts: it has the least of upstream's own
    /// work in it.
    pub fn answered_after(&self, took: Duration) {
        self.0.lock().answered_after(took);
    }

    /// The shortest recent time of an answer to its status line; zero before the first.
    pub fn latency(&self) -> Duration {
        self.0.lock().latency.unwrap_or_default()
    }

    /// Upstream answered 429, or sends a whole blob when asked for a range.
    pub fn calm_down(&self) {
        self.0.lock().limit.calm_down(Instant::now());
    }

    /// Bytes of a body have come.
    pub fn received(&self, bytes: usize) {
        self.0.lock().received(bytes as u64, Instant::now());
    }

    /// Whether bytes of a body have come within this time.
    pub fn received_within(&self, time: Duration) -> bool {
        self.0.lock().received_within(time, Instant::now())
    }

    /// A fill begins; it ends when the share is dropped.
    pub fn begin_fill(&self, image: &Repository, missing_bytes: u64) -> FillShare<'_> {
        let id = self.0.lock().begin_fill(image, missing_bytes, Instant::now());
        FillShare { concurrency: self, id }
    }
}

/// A fill's share of the connections to its upstream.
pub struct FillShare<'a> {
    concurrency: &'a Concurrency,
    id: u64,
}

impl FillShare<'_> {
    /// The most connections that the fill may use while it lacks `missing_bytes` and uses `busy`. None: no client waits for it, and it is
    /// not its turn.
    pub fn connections(&self, missing_bytes: u64, busy: usize, is_attended: bool) -> usize {
        let mut measured = self.concurrency.0.lock();
        measured.share(self.id, missing_bytes, busy, is_attended, Instant::now())
    }

    /// The rate of one connection, in bytes a second; 0 while it is unknown.
    pub fn connection_rate(&self) -> u64 {
        self.concurrency.0.lock().window.connection_rate
    }
}

impl Drop for FillShare<'_> {
    fn drop(&mut self) {
        self.concurrency.0.lock().fills.remove(&self.id);
    }
}

impl Measured {
    fn new(now: Instant) -> Self {
        Self {
            limit: FillLimit::default(),
            latency: None,
            fills: HashMap::new(),
            next: 0,
            window: RateWindow::begin(now),
            received_at: None,
            began: now,
        }
    }

    fn answered_after(&mut self, took: Duration) {
        let latency = self.latency.map_or(took, |latency| took.min(latency + latency / 20));
        self.latency = Some(latency);
        if self.fills.is_empty() {
            self.limit.expect(latency);
        }
    }

    fn received_within(&self, time: Duration, now: Instant) -> bool {
        self.received_at
            .is_some_and(|at| now.saturating_duration_since(at) < time)
    }

    /// Returns the fill's number.
    fn begin_fill(&mut self, image: &Repository, missing_bytes: u64, now: Instant) -> u64 {
        if self.fills.is_empty() {
            self.window = RateWindow::begin(now);
        }
        self.next += 1;
        let load = Load {
            image: image.clone(),
            missing_bytes,
            busy: 0,
            is_attended: true,
        };
        self.fills.insert(self.next, load);
        self.next
    }

    fn share(&mut self, id: u64, missing_bytes: u64, busy: usize, is_attended: bool, now: Instant) -> usize {
        let Some(own) = self.fills.get_mut(&id) else {
            return 1;
        };
        (own.missing_bytes, own.busy, own.is_attended) = (missing_bytes, busy, is_attended);
        let image = own.image.clone();
        if !is_attended {
            return usize::from(self.has_lane(id, now));
        }
        let limit = self.limit();
        // Slow start is crossed by numbers: all begin with all that they may have, and shrink as their segments end.
        if self.window.connection_rate == 0 {
            return limit;
        }
        let largest = self
            .fills
            .values()
            .filter(|fill| fill.is_attended && fill.image == image)
            .map(|fill| fill.missing_bytes)
            .max()
            .unwrap_or_default();
        proportion(limit, missing_bytes, largest)
    }

    /// Whether the lane is this fill's, and open.
    fn has_lane(&self, id: u64, now: Instant) -> bool {
        let unattended = self.fills.iter().filter(|(_, fill)| !fill.is_attended);
        let is_first = unattended.map(|(id, _)| *id).min() == Some(id);
        let is_turn = now
            .saturating_duration_since(self.began)
            .as_secs()
            .is_multiple_of(LANE_TURNS);
        is_first && (is_turn || self.fills.values().all(|fill| !fill.is_attended))
    }

    /// The most connections of one attended fill now.
    fn limit(&self) -> usize {
        let attended = self.fills.values().filter(|fill| fill.is_attended);
        let each = CONNECTIONS_MAX / attended.count().max(1);
        self.limit.connections.min(each).max(1)
    }

    fn received(&mut self, bytes: u64, now: Instant) {
        self.received_at = Some(now);
        self.window.bytes += bytes;
        let took = now.saturating_duration_since(self.window.since);
        if took < TRIAL {
            return;
        }
        let attended = self.fills.values().filter(|fill| fill.is_attended);
        let busy: usize = attended.map(|fill| fill.busy).sum();
        let rate = u64::try_from(u128::from(self.window.bytes) * 1000 / took.as_millis().max(1)).unwrap_or(u64::MAX);
        let limit = self.limit();
        let used = self.fills.values().any(|fill| fill.is_attended && fill.busy >= limit);
        self.limit.judge(rate, used, now);
        self.window = RateWindow {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fill_limit::EXPECTED_MAX;

    fn image(name: &str) -> Repository {
        Repository {
            upstream: "a.io".to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn layers_of_an_image_begin_with_all_connections_and_share_them_once_a_rate_is_known() {
        let now = Instant::now();
        let mut state = Measured::new(now);
        state.answered_after(Duration::from_secs(1));
        let [large, small] = [30, 10].map(|missing| state.begin_fill(&image("app"), missing, now));
        let other = state.begin_fill(&image("other"), 10, now);
        let shares = |state: &mut Measured| {
            [(large, 30), (small, 10), (other, 10)].map(|(id, missing)| state.share(id, missing, 1, true, now))
        };
        assert_eq!(shares(&mut state), [EXPECTED_MAX; 3], "nothing is measured");
        state.received(3000, now + TRIAL);
        assert_eq!(state.window.connection_rate, 1000, "of three connections");
        let [large, small, other] = shares(&mut state);
        assert_eq!((large, small), (other, large.div_ceil(3)));
        state.fills.clear();
        assert_eq!(state.share(1, 30, 1, true, now), 1, "it has ended");
    }

    #[test]
    fn fills_without_a_client_share_one_lane_which_is_closed_while_clients_wait() {
        let began = Instant::now();
        let mut state = Measured::new(began);
        state.answered_after(Duration::from_secs(1));
        let ids = [1, 2, 3].map(|_| state.begin_fill(&image("left"), 30, began));
        let lane = |state: &mut Measured, at: Instant| ids.map(|id| state.share(id, 30, 1, false, at));
        let closed = began + Duration::from_secs(1);
        lane(&mut state, closed);
        assert_eq!(lane(&mut state, closed), [1, 0, 0], "the oldest");
        let waited_for = state.begin_fill(&image("app"), 30, closed);
        assert_eq!(lane(&mut state, closed), [0, 0, 0]);
        assert_eq!(
            state.share(waited_for, 30, 1, true, closed),
            EXPECTED_MAX,
            "as if it were alone"
        );
        let turn = began + Duration::from_secs(LANE_TURNS);
        assert_eq!(lane(&mut state, turn), [1, 0, 0], "they go on, slowly");
        state.fills.remove(&waited_for);
        state.fills.remove(&ids[0]);
        assert_eq!(lane(&mut state, closed)[1..], [1, 0], "the next one's turn");
        assert_eq!(
            state.share(ids[2], 30, 0, true, closed),
            EXPECTED_MAX,
            "its client is back"
        );
    }

    #[test]
    fn a_rate_is_taken_over_a_second_and_begins_with_the_first_fill() {
        let now = Instant::now();
        let mut state = Measured::new(now);
        let begun = now + TRIAL * 100;
        let id = state.begin_fill(&image("app"), 30, begun);
        state.share(id, 30, 1, true, begun);
        state.received(1000, begun + TRIAL / 2);
        assert_eq!(state.window.connection_rate, 0, "too short");
        state.received(1000, begun + TRIAL * 2);
        assert_eq!(state.window.connection_rate, 1000);
        state.fills.clear();
        state.begin_fill(&image("app"), 30, begun + TRIAL * 9);
        assert_eq!(state.window.connection_rate, 0, "what the last fill measured is old");
    }

    #[test]
    fn bytes_show_for_a_time_that_the_link_is_there() {
        let now = Instant::now();
        let mut state = Measured::new(now);
        assert!(!state.received_within(TRIAL, now), "none has come");
        state.received(1, now);
        assert!(state.received_within(TRIAL, now + TRIAL / 2));
        assert!(!state.received_within(TRIAL, now + TRIAL));
    }

    #[test]
    fn the_shortest_recent_answer_is_the_latency() {
        let mut state = Measured::new(Instant::now());
        let latency = |state: &Measured| state.latency.unwrap_or_default().as_millis();
        for (took, expected) in [(100, 100), (40, 40), (400, 42)] {
            state.answered_after(Duration::from_millis(took));
            assert_eq!(latency(&state), expected);
        }
    }

    #[test]
    fn layers_share_by_what_they_lack() {
        assert_eq!([30, 20, 14].map(|lacks| proportion(8, lacks, 30)), [8, 6, 4]);
        assert_eq!([0, 1, 30].map(|lacks| proportion(8, lacks, 30)), [1, 1, 8]);
        assert_eq!(proportion(1, 5, 5), 1);
        assert_eq!(proportion(8, 0, 0), 1);
    }
}
