//! A client that pulls images until it is told to stop, and checks every byte.
//!
//! It resumes with `Range` as containerd does, but has no other host to turn to, so that what goes wrong shows. It knows the
//! content: what comes is compared byte by byte, which is stricter than a digest, and costs less on a machine of two cores.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    catalogue::Catalogue,
    ended::Ended,
    random::Random,
    support::{Blob, HOST, Image},
    tally::{Tally, add},
    watched::without_numbers,
    wire::{Session, is_stall},
};

/// How long something may yield no byte, over all tries, before the pull has failed.
const FRUITLESS_MAX: Duration = Duration::from_secs(60);
/// As often does a client of a killed daemon begin its pull again.
const PULLS_AGAIN_MAX: u32 = 5;
const PAUSE_MAX: Duration = Duration::from_secs(6);
/// Longer than a reader may hold up others without being passed by.
const NAP: Duration = Duration::from_secs(40);
const READ_BYTES: usize = 32 * 1024;
const SAID_BYTES_MAX: usize = 1024;

/// A daemon's port for OCI clients.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
}

/// Orders to all clients.
#[derive(Default)]
pub(crate) struct Told {
    /// Finish the pull that is under way, without pauses.
    pub(crate) finish: AtomicBool,
    /// Drop everything.
    pub(crate) abandon: AtomicBool,
}

impl Told {
    pub(crate) fn finishing(&self) -> bool {
        self.finish.load(Ordering::Relaxed) || self.abandoned()
    }

    fn abandoned(&self) -> bool {
        self.abandon.load(Ordering::Relaxed)
    }
}

pub(crate) struct Client<'a> {
    pub(crate) target: Target,
    pub(crate) catalogue: &'a Catalogue,
    pub(crate) random: Random,
    pub(crate) tally: &'a Tally,
    pub(crate) told: &'a Told,
    pub(crate) ended: &'a Ended,
}

/// How one pull goes about it.
struct Habit {
    by_digest: bool,
    /// Whether the upstream is named in the path, and not by `ns`.
    host_in_path: bool,
    ranged: bool,
    leaves_after: Option<u64>,
    naps_after: Option<u64>,
    bytes_per_second: Option<f64>,
    /// Whether it begins again when its daemon was ended, and does not resume.
    begins_again: bool,
}

/// Why a pull ended early.
enum End {
    Left,
    /// Its daemon was ended under it.
    Cut(String),
    Failed(String),
    Wrong(String),
    Abandoned,
}

/// One pull under way.
struct Pull<'a> {
    target: &'a Target,
    ends_before: usize,
    habit: &'a Habit,
    image: &'a Image,
    session: Session,
    received_bytes: u64,
    napped: bool,
    tally: &'a Tally,
    told: &'a Told,
    ended: &'a Ended,
}

impl Client<'_> {
    pub(crate) fn run(mut self) {
        while !self.told.finishing() {
            let catalogue = self.catalogue;
            let image = catalogue.choose(&mut self.random);
            let habit = self.draw_habit(image);
            self.pull(image, &habit);
            let pause = self.random.duration(Duration::ZERO, PAUSE_MAX);
            wait(pause, || self.told.finishing());
        }
    }

    fn draw_habit(&mut self, image: &Image) -> Habit {
        let random = &mut self.random;
        let somewhere =
            |random: &mut Random| 1 + random.below(usize::try_from(image.total_bytes()).expect("images are small"));
        Habit {
            by_digest: random.percent(50),
            host_in_path: random.percent(25),
            ranged: random.percent(25),
            leaves_after: random.percent(10).then(|| somewhere(random) as u64),
            naps_after: random.percent(1).then(|| somewhere(random) as u64),
            bytes_per_second: random
                .percent(8)
                .then(|| 256.0 * 1024.0 * (1.0 + 3.0 * random.fraction())),
            begins_again: random.percent(50),
        }
    }

    fn pull(&mut self, image: &Image, habit: &Habit) {
        let tally = self.tally;
        for again in 0..=PULLS_AGAIN_MAX {
            let mut pull = Pull {
                target: &self.target,
                ends_before: self.ended.count(self.target.name),
                habit,
                image,
                session: Session::new(self.target.address, habit.bytes_per_second.is_some()),
                received_bytes: 0,
                napped: false,
                tally,
                told: self.told,
                ended: self.ended,
            };
            let outcome = pull.run(&mut self.random);
            let of = format!("{} from {}", image.repository(), self.target.name);
            match outcome {
                Ok(()) => return add(&tally.pulls, 1),
                Err(End::Left) => return add(&tally.left, 1),
                Err(End::Cut(_)) if again < PULLS_AGAIN_MAX => {
                    add(&tally.retried, 1);
                    wait(Duration::from_secs(1 << again), || self.told.finishing());
                }
                Err(End::Cut(why) | End::Failed(why)) => {
                    tally.note(format!("failed: {of}: {why}"));
                    return add(&tally.failed, 1);
                }
                Err(End::Wrong(why)) => {
                    tally.note(format!("WRONG: {of}: {why}"));
                    return add(&tally.wrong, 1);
                }
                Err(End::Abandoned) => {
                    tally.note(format!("failed: {of}: it did not end"));
                    return add(&tally.failed, 1);
                }
            }
        }
    }
}

impl Pull<'_> {
    fn run(&mut self, random: &mut Random) -> Result<(), End> {
        let manifests: Vec<&Blob> = self.image.manifests().collect();
        for (place, manifest) in manifests.iter().rev().enumerate() {
            let name = if place == 0 && !self.habit.by_digest {
                self.image.tag()
            } else {
                &manifest.digest
            };
            let path = self.path("manifests", name);
            self.fetch(&path, manifest, 0..manifest.bytes.len())?;
        }
        for blob in self.image.blobs() {
            let path = self.path("blobs", &blob.digest);
            for part in self.parts(blob.bytes.len(), random) {
                self.fetch(&path, blob, part)?;
            }
        }
        Ok(())
    }

    fn path(&self, kind: &str, name: &str) -> String {
        let repository = self.image.repository();
        if self.habit.host_in_path {
            format!("/v2/{HOST}/{repository}/{kind}/{name}")
        } else {
            format!("/v2/{repository}/{kind}/{name}?ns={HOST}")
        }
    }

    /// The ranges in which a blob is fetched, the last first at times.
    fn parts(&self, bytes: usize, random: &mut Random) -> Vec<Range<usize>> {
        if !self.habit.ranged {
            return vec![Range { start: 0, end: bytes }];
        }
        let part = bytes.div_ceil(2 + random.below(3)).max(1);
        let mut parts: Vec<_> = (0..bytes)
            .step_by(part)
            .map(|start| start..bytes.min(start + part))
            .collect();
        if random.percent(50) {
            parts.reverse();
        }
        parts
    }

    /// Tries until it has the range, or until nothing has come for too long.
    fn fetch(&mut self, path: &str, blob: &Blob, mut range: Range<usize>) -> Result<(), End> {
        let mut last_byte = Instant::now();
        let mut tries: u32 = 0;
        let mut history = String::new();
        while !range.is_empty() {
            let before = range.start;
            let Err(trouble) = self.attempt(path, blob, &mut range, &mut last_byte)? else {
                continue;
            };
            self.session.hang_up();
            let cause = self.ended.cause(self.target.name);
            self.tally.trouble(format!("{}, {cause}: {trouble}", self.target.name));
            tries = if range.start > before { 0 } else { tries + 1 };
            let fruitless = last_byte.elapsed();
            let at = range.start;
            if history.len() < 600 {
                let _ = write!(history, "; byte {at} after {:.1} s: {trouble}", fruitless.as_secs_f64());
            }
            let what = format!("{} of {} bytes{history}", blob.digest, blob.size);
            let was_ended = self.ended.count(self.target.name) != self.ends_before;
            if self.habit.begins_again && was_ended {
                return Err(End::Cut(what));
            }
            if fruitless > FRUITLESS_MAX {
                return Err(End::Failed(what));
            }
            add(&self.tally.resumed, 1);
            wait(Duration::from_millis(200 << tries.min(3)), || self.told.abandoned());
        }
        Ok(())
    }

    /// One request. `Ok(Err(trouble))` is worth another; `range` begins where it got to.
    fn attempt(
        &mut self,
        path: &str,
        blob: &Blob,
        range: &mut Range<usize>,
        last_byte: &mut Instant,
    ) -> Result<Result<(), String>, End> {
        if self.told.abandoned() {
            return Err(End::Abandoned);
        }
        let whole = *range == (0..blob.bytes.len());
        let asked = Instant::now();
        let answer = match self.session.ask("GET", path, (!whole).then(|| range.clone())) {
            Ok(answer) => answer,
            Err(error) if is_stall(&error) => return Ok(Err("no status line, or no connection".to_owned())),
            Err(error) => return Ok(Err(format!("no answer: {:?}", error.kind()))),
        };
        self.tally.head(asked.elapsed());
        if answer.status != if whole { 200 } else { 206 } {
            let mut said = vec![0; SAID_BYTES_MAX.min(answer.body_bytes().unwrap_or_default())];
            let count = self.session.read(&mut said).unwrap_or_default();
            let said = without_numbers(&String::from_utf8_lossy(&said[..count]));
            return Ok(Err(format!("status {}: {said}", answer.status)));
        }
        let wrong = |what: &str| Err(End::Wrong(format!("{} {range:?}: {what}", blob.digest)));
        if answer.body_bytes() != Some(range.len()) {
            return wrong(&format!("length {:?}", answer.headers.get("content-length")));
        }
        if let Some(digest) = answer.headers.get("docker-content-digest")
            && digest != blob.digest
        {
            return wrong(&format!("called {digest}"));
        }
        let mut buffer = vec![0; READ_BYTES];
        while range.start < range.end {
            let room = buffer.len().min(range.len());
            let count = match self.session.read(&mut buffer[..room]) {
                Ok(0) => return Ok(Err("the body ended short".to_owned())),
                Ok(count) => count,
                Err(error) if is_stall(&error) => return Ok(Err("the body stood still".to_owned())),
                Err(error) => return Ok(Err(format!("the body broke off: {:?}", error.kind()))),
            };
            let expected = &blob.bytes[range.start..range.start + count];
            if buffer[..count] != *expected {
                let at = range.start + buffer.iter().zip(expected).take_while(|(a, b)| a == b).count();
                return Err(End::Wrong(format!(
                    "{} {range:?}: other bytes from {at} on",
                    blob.digest
                )));
            }
            range.start += count;
            self.tally.fruitless(last_byte.elapsed());
            self.received_bytes += count as u64;
            add(&self.tally.bytes, count as u64);
            self.dawdle(count)?;
            *last_byte = Instant::now();
        }
        Ok(Ok(()))
    }

    /// Takes its time, or leaves.
    fn dawdle(&mut self, count: usize) -> Result<(), End> {
        let reached = |mark: Option<u64>| mark.is_some_and(|mark| self.received_bytes >= mark);
        if reached(self.habit.leaves_after) {
            return Err(End::Left);
        }
        if reached(self.habit.naps_after) && !self.napped {
            self.napped = true;
            wait(NAP, || self.told.finishing());
        }
        if let Some(rate) = self.habit.bytes_per_second
            && !self.told.finishing()
        {
            thread::sleep(Duration::from_secs_f64(count as f64 / rate));
        }
        Ok(())
    }
}

/// Sleeps, unless there is a reason not to.
fn wait(time: Duration, cut_short: impl Fn() -> bool) {
    let until = Instant::now() + time;
    while !cut_short() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(Duration::from_millis(250)));
    }
}
