//! Malicious members, registries and clients, driven by seed: no action of one may affect another client's pull.
//!
//! A test holds one beside a running pull, and it ends when it is dropped. What it says and when is drawn from its seed, so that a
//! failure can be reproduced.

mod client;
mod node;
mod peer;
mod pieces;
mod registry;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

pub use self::{
    client::{ClientHarm, Haunt, RogueClient},
    node::RogueNode,
    peer::{Misdeed, Prey, RoguePeer},
    registry::{RegistryHarm, RogueRegistry},
};

/// A sequence that a seed alone decides: splitmix64, which needs no state but a number.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let index = usize::try_from(self.below(of.len() as u64)).expect("an index");
        &of[index]
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next().to_le_bytes()[0])
    }
}

/// Threads that go on until their holder is dropped.
#[derive(Debug, Default)]
struct Crew {
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    /// `work` looks at the flag and returns soon after it is set.
    fn hire(&mut self, work: impl FnOnce(Arc<AtomicBool>) + Send + 'static) {
        let stopped = Arc::clone(&self.stopped);
        self.threads.push(std::thread::spawn(move || work(stopped)));
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("a rogue's thread panicked");
            }
        }
    }
}

/// Sleeps in steps; says whether to go on.
fn rest(stopped: &AtomicBool, pause: Duration) -> bool {
    let step = Duration::from_millis(20);
    let mut left = pause;
    while !stopped.load(Ordering::Relaxed) && !left.is_zero() {
        std::thread::sleep(left.min(step));
        left = left.saturating_sub(step);
    }
    !stopped.load(Ordering::Relaxed)
}
