//! Open load: arrivals at fixed times, and the report of their latencies.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    meter::quantile,
    table::{Table, at_most},
};

/// Calls `begin` with each arrival's number when it is due and with when that is. `begin` only begins: one that waits would delay
/// the next.
pub(crate) fn open_loop(per_second: u32, count: u32, mut begin: impl FnMut(u32, Instant)) {
    let first = Instant::now() + LEAD;
    for number in 0..count {
        let due = first + Duration::from_secs(1) * number / per_second;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        begin(number, due);
    }
}

/// Latencies in a table of their own.
pub(crate) struct Latencies(Table);

impl Latencies {
    pub(crate) fn new() -> Self {
        Self(Table::new([
            "milliseconds",
            "samples",
            "p50",
            "p90",
            "p99",
            "max",
            "aim",
        ]))
    }

    /// `aim`: what the p99 should not exceed.
    pub(crate) fn row(&mut self, what: &str, latencies: &[Duration], aim: Option<f64>) {
        let at = |share| quantile(latencies.iter().map(|latency| latency.as_secs_f64() * 1e3), share);
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(at);
        self.0.row([
            what.to_owned(),
            latencies.len().to_string(),
            format!("{p50:.2}"),
            format!("{p90:.2}"),
            format!("{p99:.2}"),
            format!("{max:.2}"),
            aim.map_or_else(String::new, |aim| at_most(aim, p99, " ms")),
        ]);
    }

    pub(crate) fn print(&self) {
        self.0.print();
    }
}

/// Until the first arrival, so that it is not late.
const LEAD: Duration = Duration::from_millis(10);
