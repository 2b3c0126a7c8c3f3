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
    /// The offset of the next byte.
    offset: u64,
    window_begun: Duration,
    window_bytes: u64,
    /// The end that has been in sight before.
    seen: Option<u64>,
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
    /// A body begins at this offset.
    pub fn new(now: Duration, offset: u64) -> Self {
        Self {
            begun: now,
            received: 0,
            offset,
            window_begun: now,
            window_bytes: 0,
            seen: None,
        }
    }

    /// Bytes have come. `end`: the offset to which the body is received, which may move. `latency`: how long an answer takes.
    pub fn received(&mut self, now: Duration, bytes: u64, end: u64, latency: Duration) -> Flowing {
        self.window_bytes += bytes;
        if now.saturating_sub(self.window_begun) >= FLOW_WINDOW {
            if self.window_bytes < FLOW_BYTES_MIN {
                return Flowing::TooSlow;
            }
            (self.window_begun, self.window_bytes) = (now, 0);
        }
        self.received += bytes;
        self.offset += bytes;
        if self.seen == Some(end) || !self.ends_within(now, end, latency) {
            return Flowing::On;
        }
        self.seen = Some(end);
        Flowing::EndInSight
    }

    /// Whether the rest comes within a round trip and a half.
    fn ends_within(&self, now: Duration, end: u64, latency: Duration) -> bool {
        let took = now.saturating_sub(self.begun);
        let in_a_round_trip = u128::from(self.received) * latency.as_micros() * 3 / 2 / took.as_micros().max(1);
        // Within the first round trip the first packets, which come together, would say anything.
        took >= latency && u128::from(end.saturating_sub(self.offset)) <= in_a_round_trip
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const LATENCY: Duration = Duration::from_millis(100);

    #[test]
    fn the_end_is_in_sight_once_and_a_round_trip_and_a_half_before_it() {
        let (mut flow, mut seen) = (Flow::new(SECOND, 0), Vec::new());
        for tick in 1..=100_u32 {
            let flowing = flow.received(SECOND + tick * LATENCY / 10, 10_000, 1_000_000, LATENCY);
            if flowing != Flowing::On {
                seen.push((tick, flowing));
            }
        }
        assert_eq!(seen, [(85, Flowing::EndInSight)]);
    }

    #[test]
    fn an_end_that_moves_comes_into_sight_again() {
        let mut flow = Flow::new(SECOND, 0);
        let mut received = |tick: u32, end| flow.received(SECOND + tick * LATENCY, 100_000, end, LATENCY);
        assert_eq!(received(1, 1_000_000), Flowing::On);
        assert_eq!(received(2, 300_000), Flowing::EndInSight);
        assert_eq!(received(3, 1_000_000), Flowing::On, "it was given back");
        assert_eq!(received(9, 1_000_000), Flowing::On);
        assert_eq!(received(10, 500_000), Flowing::EndInSight);
    }

    #[test]
    fn packets_of_the_first_round_trip_say_nothing() {
        let mut flow = Flow::new(SECOND, 500);
        assert_eq!(flow.received(SECOND + LATENCY / 2, 9_999, 10_500, LATENCY), Flowing::On);
        assert_eq!(flow.received(SECOND + LATENCY, 1, 10_500, LATENCY), Flowing::EndInSight);
    }

    #[test]
    fn a_body_that_drips_is_too_slow_after_a_minute_and_not_before() {
        let mut flow = Flow::new(SECOND, 0);
        for second in 1..60 {
            assert_eq!(
                flow.received(SECOND + second * SECOND, 500, u64::MAX, LATENCY),
                Flowing::On
            );
        }
        assert_eq!(
            flow.received(SECOND + FLOW_WINDOW, 500, u64::MAX, LATENCY),
            Flowing::TooSlow
        );
    }

    #[test]
    fn a_body_that_brings_the_least_in_each_minute_goes_on() {
        let mut flow = Flow::new(Duration::ZERO, 0);
        for minute in 1..100 {
            let flowing = flow.received(minute * FLOW_WINDOW, FLOW_BYTES_MIN, u64::MAX, LATENCY);
            assert_eq!(flowing, Flowing::On);
        }
    }
}
