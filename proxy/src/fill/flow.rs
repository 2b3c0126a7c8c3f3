//! Flow of one body: whether it comes fast enough, and when its end is in sight. Pure.

use std::time::Duration;

/// The minimum flow of a connection, in bytes: one that brings less would hold its place for ever. Each of a hundred connections
/// at once on a link of 1 Mbit/s brings more.
pub(super) const FLOW_BYTES_MIN: u64 = 32 * 1024;
pub(super) const FLOW_WINDOW: Duration = Duration::from_secs(60);

/// The bytes of a body as they come. Time is counted from any start.
#[derive(Debug)]
pub struct Flow {
    begun: Duration,
    received: u64,
    /// Bytes still to come.
    missing: u64,
    window_begun: Duration,
    window_bytes: u64,
    /// The end has been in sight before.
    is_ending: bool,
}

/// What some bytes of a body show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flowing {
    On,
    /// Less is to come than arrives in one round trip, said once: the next segment is asked for now, since a connection that waits for an
    /// answer carries nothing.
    EndInSight,
    /// So slowly that it counts as stopped.
    TooSlow,
}

impl Flow {
    /// A body begins, with so many bytes to come.
    pub fn new(now: Duration, missing: u64) -> Self {
        Self {
            begun: now,
            received: 0,
            missing,
            window_begun: now,
            window_bytes: 0,
            is_ending: false,
        }
    }

    /// Bytes have come. `latency`: how long an answer takes.
    pub fn received(&mut self, now: Duration, bytes: u64, latency: Duration) -> Flowing {
        self.window_bytes += bytes;
        if now.saturating_sub(self.window_begun) >= FLOW_WINDOW {
            if self.window_bytes < FLOW_BYTES_MIN {
                return Flowing::TooSlow;
            }
            (self.window_begun, self.window_bytes) = (now, 0);
        }
        self.received += bytes;
        self.missing = self.missing.saturating_sub(bytes);
        if self.is_ending || !self.ends_within(now, latency) {
            return Flowing::On;
        }
        self.is_ending = true;
        Flowing::EndInSight
    }

    /// Whether the rest comes within a round trip and a half.
    fn ends_within(&self, now: Duration, latency: Duration) -> bool {
        let took = now.saturating_sub(self.begun);
        let in_a_round_trip = u128::from(self.received) * latency.as_micros() * 3 / 2 / took.as_micros().max(1);
        // Within the first round trip the first packets, which come together, would say anything.
        took >= latency && u128::from(self.missing) <= in_a_round_trip
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LATENCY: Duration = Duration::from_millis(100);

    #[test]
    fn the_end_is_in_sight_once_and_a_round_trip_and_a_half_before_it() {
        let (mut flow, mut seen) = (Flow::new(SECOND, 1_000_000), Vec::new());
        for tick in 1..=100_u32 {
            let flowing = flow.received(SECOND + tick * LATENCY / 10, 10_000, LATENCY);
            if flowing != Flowing::On {
                seen.push((tick, flowing));
            }
        }
        assert_eq!(seen, [(85, Flowing::EndInSight)]);
    }

    #[test]
    fn packets_of_the_first_round_trip_say_nothing() {
        let mut flow = Flow::new(SECOND, 10_000);
        assert_eq!(flow.received(SECOND + LATENCY / 2, 9_999, LATENCY), Flowing::On);
        assert_eq!(flow.received(SECOND + LATENCY, 1, LATENCY), Flowing::EndInSight);
    }

    #[test]
    fn a_body_that_drips_is_too_slow_after_a_minute_and_not_before() {
        let mut flow = Flow::new(SECOND, u64::MAX);
        for second in 1..60 {
            assert_eq!(flow.received(SECOND + second * SECOND, 500, LATENCY), Flowing::On);
        }
        assert_eq!(flow.received(SECOND + FLOW_WINDOW, 500, LATENCY), Flowing::TooSlow);
    }

    #[test]
    fn a_body_that_brings_the_least_in_each_minute_goes_on() {
        let mut flow = Flow::new(Duration::ZERO, u64::MAX);
        for minute in 1..100 {
            let flowing = flow.received(minute * FLOW_WINDOW, FLOW_BYTES_MIN, LATENCY);
            assert_eq!(flowing, Flowing::On);
        }
    }
}
