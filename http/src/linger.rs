//! Linger of a port that is told to stop: how long it still takes connections.
//!
//! Invariant: a pull that is under way finds its port open, a port that is not asked for anything closes at once, and every port
//! closes in time.

use std::time::Duration;

/// Bounds of the time for which a port that is told to stop still takes connections.
#[derive(Clone, Copy, Debug)]
pub struct Linger {
    /// Time without a request after which the port closes: a client takes less between two requests of a pull.
    pub quiet: Duration,
    /// Longest time, whatever is asked for.
    pub time_max: Duration,
}

impl Linger {
    /// The port closes at once.
    pub const NONE: Self = Self {
        quiet: Duration::ZERO,
        time_max: Duration::ZERO,
    };

    /// Whether the port still takes connections. All times count from the port's start; `told`: when it was told to stop.
    pub(crate) fn lasts(self, told: Duration, now: Duration, requests: Requests) -> bool {
        now < told + self.time_max
            && (requests.are_under_way || requests.ended.is_some_and(|ended| now < ended + self.quiet))
    }
}

/// The requests of a port.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Requests {
    pub(crate) are_under_way: bool,
    /// When the last one ended; `None`: none has ended.
    pub(crate) ended: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINGER: Linger = Linger {
        quiet: Duration::from_secs(3),
        time_max: Duration::from_secs(30),
    };

    fn lasts(told: u64, now: u64, are_under_way: bool, ended: Option<u64>) -> bool {
        let requests = Requests {
            are_under_way,
            ended: ended.map(Duration::from_secs),
        };
        LINGER.lasts(Duration::from_secs(told), Duration::from_secs(now), requests)
    }

    #[test]
    fn a_port_that_is_not_asked_for_anything_closes_at_once() {
        assert!(!lasts(100, 100, false, None));
        assert!(!lasts(100, 100, false, Some(97)));
    }

    #[test]
    fn a_pull_between_two_requests_finds_the_port_open() {
        assert!(lasts(100, 100, false, Some(98)));
        assert!(lasts(100, 104, false, Some(102)));
        assert!(!lasts(100, 105, false, Some(102)));
    }

    #[test]
    fn no_request_holds_a_port_open_for_ever() {
        assert!(lasts(100, 129, true, None));
        assert!(!lasts(100, 130, true, Some(129)));
        assert!(!lasts(100, 131, false, Some(131)));
    }

    #[test]
    fn a_port_without_a_linger_closes_whatever_is_under_way() {
        let requests = Requests {
            are_under_way: true,
            ended: Some(Duration::from_secs(5)),
        };
        let now = Duration::from_secs(5);
        assert!(!Linger::NONE.lasts(now, now, requests));
    }
}
