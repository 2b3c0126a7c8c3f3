//! A WAN with delay and loss: two TUN devices, joined by threads that hold every packet back for a while.
//!
//! The rate is not its business: `tbf` on the devices shapes what enters.

use std::{
    process::Command,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tun_rs::{DeviceBuilder, SyncDevice};

use super::netns::Netns;

/// Delay and loss of a WAN, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weather {
    /// One way.
    pub delay: Duration,
    /// The share of packets that vanish, 0 to 1.
    pub loss: f64,
    /// Which packets those are.
    pub seed: u64,
}

impl Weather {
    pub const CLEAR: Self = Self {
        delay: Duration::ZERO,
        loss: 0.0,
        seed: 1,
    };

    /// Whether a plain cable does the same.
    pub fn is_clear(&self) -> bool {
        self.delay.is_zero() && self.loss == 0.0
    }
}

/// The running relay. Dropping it removes both devices, which ends its threads.
#[derive(Debug)]
pub struct Relay {
    ends: [Netns; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Creates a device called `wan` in each of two namespaces and carries packets between them.
    pub fn join(ends: [&Netns; 2], weather: Weather) -> Self {
        let [a, b] = ends.map(|end| {
            let device = end.enter(|| DeviceBuilder::new().name("wan").mtu(1500).build_sync());
            Arc::new(device.expect("creating a TUN device: is /dev/net/tun there?"))
        });
        let there = carry(Arc::clone(&a), Arc::clone(&b), weather);
        let back = carry(
            b,
            a,
            Weather {
                seed: weather.seed ^ SEED_OTHER_WAY,
                ..weather
            },
        );
        Self {
            ends: ends.map(Netns::clone),
            threads: there.into_iter().chain(back).collect(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        for end in &self.ends {
            let deleted = Command::new("ip")
                .args(["-n", end.name(), "link", "delete", "wan"])
                .status();
            if !deleted.is_ok_and(|status| status.success()) {
                // Without it the threads never end; leaving them behind is better than hanging.
                return eprintln!("could not delete the WAN device in {}", end.name());
            }
        }
        for thread in self.threads.drain(..) {
            // A relay thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

struct Packet {
    due: Instant,
    bytes: Vec<u8>,
}

/// One direction: a thread that reads and one that waits and writes, since a packet's delay must not delay the next.
fn carry(from: Arc<SyncDevice>, to: Arc<SyncDevice>, weather: Weather) -> [JoinHandle<()>; 2] {
    let (sender, receiver) = sync_channel(QUEUE_PACKETS_MAX);
    let spawn = |work: Box<dyn FnOnce() + Send>| {
        thread::Builder::new()
            .name("wan-relay".to_owned())
            .spawn(work)
            .expect("starting a relay thread")
    };
    [
        spawn(Box::new(move || take_in(&from, &sender, weather))),
        spawn(Box::new(move || give_out(&to, &receiver))),
    ]
}

fn take_in(from: &SyncDevice, queue: &SyncSender<Packet>, weather: Weather) {
    let mut dice = Dice(weather.seed.max(1));
    let mut buffer = vec![0; 1 << 16];
    // Reading fails once the device is deleted.
    while let Ok(count) = from.recv(&mut buffer) {
        if dice.roll() >= weather.loss {
            // A full queue loses the packet, as a router's would.
            let _ = queue.try_send(Packet {
                due: Instant::now() + weather.delay,
                bytes: buffer[..count].to_vec(),
            });
        }
    }
}

fn give_out(to: &SyncDevice, queue: &Receiver<Packet>) {
    while let Ok(packet) = queue.recv() {
        thread::sleep(packet.due.saturating_duration_since(Instant::now()));
        // Fails while the device is down or once it is deleted; either way the packet is lost.
        let _ = to.send(&packet.bytes);
    }
}

/// A xorshift generator: enough to lose packets evenly, and the same ones for the same seed.
struct Dice(u64);

impl Dice {
    /// Uniform in 0..1.
    fn roll(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// More than 1 Gbit/s fills in 100 ms of delay.
const QUEUE_PACKETS_MAX: usize = 10_000;
const SEED_OTHER_WAY: u64 = 0x9e37_79b9_7f4a_7c15;
