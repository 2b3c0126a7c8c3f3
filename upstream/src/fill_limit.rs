//! Number of connections of one fill, found by trying one more.
//!
//! It grows only while one more brings a measured gain. Times are passed in.

use std::time::{Duration, Instant};

/// The most connections of one fill.
pub const FILL_CONNECTIONS_MAX: usize = 8;
/// One more connection for each such time to the first byte, up to [`EXPECTED_MAX`].
const LATENCY_PER_CONNECTION: Duration = Duration::from_millis(16);
/// Beyond this number only a measured gain adds connections: all that they have under way at the end arrives at once.
pub(crate) const EXPECTED_MAX: usize = 6;
/// The minimum gain of one more connection, in percent.
const GAIN_MIN: u64 = 8;
/// The pause after a trial without a gain; it doubles with each.
const HOLD: Duration = Duration::from_secs(10);
const HOLD_MAX: Duration = Duration::from_secs(600);
/// The pause after upstream answered 429, or would not send ranges.
const CALM: Duration = Duration::from_secs(60);

/// The number of connections of one fill, climbing while that brings something.
pub(crate) struct FillLimit {
    pub(crate) connections: usize,
    /// The rate before the last connection was added, in bytes a second.
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
    /// The starting limit, before anything has been measured.
    pub(crate) fn expect(&mut self, latency: Duration) {
        if self.hold_until.is_none() {
            let connections = latency.as_micros().div_ceil(LATENCY_PER_CONNECTION.as_micros());
            self.connections = usize::try_from(connections)
                .unwrap_or(EXPECTED_MAX)
                .clamp(1, EXPECTED_MAX);
            self.trial = None;
        }
    }

    /// `rate`: the rate of the last window, in bytes a second. `used`: a fill has had use for all of its connections; without that, one more is
    /// neither tried nor judged.
    pub(crate) fn judge(&mut self, rate: u64, used: bool, now: Instant) {
        if !used {
            self.trial = self.trial.map(|_| rate);
            return;
        }
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

    pub(crate) fn calm_down(&mut self, now: Instant) {
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
                limit.judge(carried(connections), true, begin + Duration::from_secs(second));
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
    fn a_connection_that_no_fill_has_used_is_judged_once_one_has() {
        let mut limit = FillLimit::default();
        let now = Instant::now();
        limit.judge(100, true, now);
        for rate in [100, 90, 70] {
            limit.judge(rate, false, now);
            assert_eq!(limit.connections, 2, "it stays on offer");
        }
        limit.judge(80, true, now);
        assert_eq!(limit.connections, 3, "more than before it was used");
        limit.judge(80, true, now);
        assert_eq!(limit.connections, 2, "that was no gain");
    }

    #[test]
    fn a_long_way_begins_with_many() {
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
        limit.judge(1, true, now + CALM / 2);
        assert_eq!(limit.connections, 1);
        limit.judge(1, true, now + CALM);
        assert_eq!(limit.connections, 2);
    }
}
