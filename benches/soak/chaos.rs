//! Faults of the soak test: at random intervals one daemon is killed, stopped or told to reload, and started again soon.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{ended::Ended, random::Random, watched::Watched};

const INTERVAL_MIN: Duration = Duration::from_secs(20);
const INTERVAL_MAX: Duration = Duration::from_secs(40);
const DOWN_MAX: Duration = Duration::from_secs(3);
/// Clients may be slow to let go of a daemon that drains; none is that slow.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// A daemon that may be ended, and until when.
pub(crate) struct Victim {
    /// An index of the daemons.
    pub(crate) daemon: usize,
    /// From then on it lives, so that its memory can be judged.
    pub(crate) until: Duration,
}

pub(crate) struct Chaos<'a> {
    random: Random,
    victims: Vec<Victim>,
    next: Duration,
    outage: Option<Outage>,
    ended: &'a Ended,
    pub(crate) kills: u32,
    pub(crate) stops: u32,
    pub(crate) reloads: u32,
    pub(crate) drain_max: Duration,
}

/// One at a time.
enum Outage {
    Drains { daemon: usize, since: Instant },
    Down { daemon: usize, until: Instant },
}

impl<'a> Chaos<'a> {
    pub(crate) fn new(mut random: Random, victims: Vec<Victim>, ended: &'a Ended) -> Self {
        Self {
            next: random.duration(INTERVAL_MIN, INTERVAL_MAX),
            random,
            victims,
            outage: None,
            ended,
            kills: 0,
            stops: 0,
            reloads: 0,
            drain_max: Duration::ZERO,
        }
    }

    /// Whether this daemon is down or about to be.
    pub(crate) fn holds(&self, index: usize) -> bool {
        match self.outage {
            Some(Outage::Drains { daemon, .. } | Outage::Down { daemon, .. }) => daemon == index,
            None => false,
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.outage.is_none()
    }

    /// Does what is due; to be called often. With `more`, begins new outages too.
    pub(crate) fn go_on(&mut self, now: Duration, daemons: &mut [Watched], more: bool) -> Vec<String> {
        match self.outage.take() {
            Some(Outage::Drains { daemon, since }) => self.drain(daemons, daemon, since),
            Some(Outage::Down { daemon, until }) if Instant::now() >= until => start_again(now, &mut daemons[daemon]),
            Some(down) => {
                self.outage = Some(down);
                Vec::new()
            }
            None if more && now >= self.next => {
                self.next = now + self.random.duration(INTERVAL_MIN, INTERVAL_MAX);
                self.strike(now, daemons)
            }
            None => Vec::new(),
        }
    }

    fn strike(&mut self, now: Duration, daemons: &mut [Watched]) -> Vec<String> {
        let choice = self.random.below(100);
        if choice < 15 {
            self.reloads += 1;
            daemons[self.random.below(daemons.len())].daemon.signal(Signal::HUP);
            return Vec::new();
        }
        let candidates: Vec<usize> = self
            .victims
            .iter()
            .filter(|victim| now < victim.until)
            .map(|victim| victim.daemon)
            .collect();
        if candidates.is_empty() {
            return Vec::new();
        }
        let index = candidates[self.random.below(candidates.len())];
        let watched = &mut daemons[index];
        let amiss = watched.sample(now);
        if choice < 35 {
            self.stops += 1;
            self.ended.enter(watched.name, "stopped");
            watched.daemon.signal(Signal::TERM);
            let since = Instant::now();
            self.outage = Some(Outage::Drains { daemon: index, since });
        } else {
            self.kills += 1;
            self.ended.enter(watched.name, "killed");
            watched.daemon.kill();
            self.go_down(index);
        }
        amiss
    }

    fn drain(&mut self, daemons: &mut [Watched], index: usize, since: Instant) -> Vec<String> {
        let watched = &mut daemons[index];
        if !watched.daemon.is_running() {
            self.drain_max = self.drain_max.max(since.elapsed());
            self.go_down(index);
        } else if since.elapsed() > DRAIN_MAX {
            watched.daemon.kill();
            self.go_down(index);
            return vec![format!("{}: still runs {DRAIN_MAX:?} after SIGTERM", watched.name)];
        } else {
            self.outage = Some(Outage::Drains { daemon: index, since });
        }
        Vec::new()
    }

    fn go_down(&mut self, daemon: usize) {
        let until = Instant::now() + self.random.duration(Duration::ZERO, DOWN_MAX);
        self.outage = Some(Outage::Down { daemon, until });
    }
}

fn start_again(now: Duration, watched: &mut Watched) -> Vec<String> {
    let asked = Instant::now();
    watched.daemon.restart();
    watched.begin_life(now);
    let took = asked.elapsed();
    if took > Duration::from_secs(5) {
        return vec![format!("{}: ready only {took:?} after its start", watched.name)];
    }
    Vec::new()
}
