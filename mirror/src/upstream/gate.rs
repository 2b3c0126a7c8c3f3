//! Whether an upstream is worth asking just now.
//!
//! One that has kept somebody waiting for nothing, or has asked us to come back later, is left alone for a while: everybody
//! else is answered at once with what is here. Then one request at a time finds out whether it is back.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use super::verdicts::Who;
use crate::PullError;

/// How long an upstream that did not answer is left alone.
pub(crate) const SILENCE_PAUSE: Duration = Duration::from_secs(2);
/// The same for one that asked for it without saying how long.
pub(crate) const BUSY_PAUSE: Duration = Duration::from_secs(5);
/// The longest that an upstream may ask for.
pub(crate) const PAUSE_MAX: Duration = Duration::from_secs(10 * 60);

/// The most gates of one upstream.
const GATES_MAX: usize = 1024;

/// Times are passed in.
#[derive(Default)]
pub(crate) struct Gate(Mutex<Option<Closed>>);

struct Closed {
    error: PullError,
    until: Instant,
    /// Somebody is finding out.
    probing: bool,
}

/// The gates of those who have different rights, and limits, at one upstream.
#[derive(Default)]
pub(crate) struct Gates(Mutex<HashMap<Who, Arc<Gate>>>);

impl Gates {
    pub(crate) fn of(&self, who: &Who) -> Arc<Gate> {
        let mut gates = self.0.lock().expect("no holder of this lock panics");
        if gates.len() >= GATES_MAX {
            gates.clear();
        }
        Arc::clone(gates.entry(who.clone()).or_default())
    }
}

/// The right to ask. Dropped without a word it says nothing about the upstream.
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
    probes: bool,
}

impl Gate {
    /// # Errors
    /// Why it is closed.
    pub(crate) fn enter(&self, now: Instant) -> Result<Pass<'_>, PullError> {
        let mut closed = self.lock();
        let probes = match closed.as_mut() {
            None => false,
            Some(closed) if now < closed.until || closed.probing => return Err(closed.error.clone()),
            Some(closed) => {
                closed.probing = true;
                true
            }
        };
        Ok(Pass { gate: self, probes })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Closed>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Pass<'_> {
    /// It is there.
    pub(crate) fn open(mut self) {
        *self.gate.lock() = None;
        self.probes = false;
    }

    /// It has kept this request waiting for long already: others need not wait too. This one goes on, and finds out.
    pub(crate) fn warn(&mut self, error: PullError, now: Instant) {
        *self.gate.lock() = Some(Closed {
            error,
            until: now,
            probing: true,
        });
        self.probes = true;
    }

    /// Nobody asks for so long.
    pub(crate) fn close(mut self, error: PullError, pause: Duration, now: Instant) {
        *self.gate.lock() = Some(Closed {
            error,
            until: now + pause.min(PAUSE_MAX),
            probing: false,
        });
        self.probes = false;
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.probes
            && let Some(closed) = self.gate.lock().as_mut()
        {
            closed.probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> PullError {
        PullError::Unreachable("silence".to_owned())
    }

    #[test]
    fn after_a_silence_one_at_a_time_finds_out() {
        let (gate, now) = (Gate::default(), Instant::now());
        gate.enter(now).unwrap().close(silent(), SILENCE_PAUSE, now);
        assert!(gate.enter(now).is_err());
        let later = now + SILENCE_PAUSE;
        let probe = gate.enter(later).unwrap();
        assert!(gate.enter(later).is_err(), "one is enough");
        drop(probe);
        let probe = gate.enter(later).unwrap();
        probe.open();
        let (_one, _other) = (gate.enter(later).unwrap(), gate.enter(later).unwrap());
    }

    #[test]
    fn who_waits_long_warns_the_others_until_it_is_answered() {
        let (gate, now) = (Gate::default(), Instant::now());
        let mut slow = gate.enter(now).unwrap();
        slow.warn(silent(), now);
        assert!(gate.enter(now + Duration::from_secs(5)).is_err());
        slow.open();
        assert!(gate.enter(now).is_ok());
    }

    #[test]
    fn who_has_used_up_a_limit_is_not_everybody() {
        let (gates, now) = (Gates::default(), Instant::now());
        let anybody = gates.of(&Who::Anybody);
        anybody.enter(now).unwrap().close(silent(), SILENCE_PAUSE, now);
        assert!(gates.of(&Who::Anybody).enter(now).is_err());
        assert!(gates.of(&Who::Holder([1; 32])).enter(now).is_ok());
    }

    #[test]
    fn no_upstream_can_send_us_away_for_ever() {
        let (gate, now) = (Gate::default(), Instant::now());
        gate.enter(now)
            .unwrap()
            .close(silent(), Duration::from_secs(1 << 40), now);
        assert!(gate.enter(now + PAUSE_MAX).is_ok());
    }
}
