//! Outcome of a client program: exit status and output.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What a finished client left behind. Clients are meant to fail in some tests, so failure is a value here.
#[derive(Clone, Debug)]
pub struct CommandOutcome {
    pub ok: bool,
    pub started: Instant,
    pub elapsed: Duration,
    /// Standard output, then standard error.
    pub output: String,
}

impl CommandOutcome {
    /// Runs the command to its end. `started` is when the clock starts: before, for those that wait for each other.
    pub fn of(command: &mut Command, started: Instant) -> Self {
        let output = command
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let elapsed = started.elapsed();
        let text = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .concat();
        Self {
            ok: output.status.success(),
            started,
            elapsed,
            output: text,
        }
    }

    /// Panics with the client's own words when it failed.
    pub fn expect_ok(self) -> Self {
        assert!(self.ok, "the client failed after {:?}: {}", self.elapsed, self.output);
        self
    }
}
