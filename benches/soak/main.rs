//! Guards against what only time shows: leaks, left-over files, and pulls that fail while daemons come and go.
//!
//! Real daemons on a site of namespaces: a registry, a mirror, a scheduler and four peers, whose quotas are far below what is
//! pulled, so that eviction never rests and some blobs pass through without being kept. Fifty clients pull at random and check
//! every byte. Meanwhile daemons are killed, stopped, told to reload, and started again. A client's only way is the daemon that
//! it was given: there is no registry to fall back to.
//!
//! A kill resets memory, so memory is judged where none happens: at `peer1`, which works under the same outages of mirror and
//! scheduler as its neighbours, and at `far-mirror`, an independent mirror beside the registry with clients of its own. The
//! site's mirror and its scheduler are spared for the last third, which adds a slope for a mirror that serves pieces.
//!
//! `soak -- MINUTES [LOGS]` changes the twenty minutes, and keeps the daemons' logs in a folder. Ends with status 1 when a
//! pull failed, a byte was wrong, a daemon panicked or ended by itself, a quota was not kept, a blob was found damaged, or
//! files were left behind.

#[path = "../../tests/support/mod.rs"]
mod support;

mod catalogue;
mod chaos;
mod client;
mod ended;
mod random;
mod report;
mod tally;
mod watched;
mod wire;

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::ExitCode,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use catalogue::Catalogue;
use chaos::{Chaos, Victim};
use client::{Client, Target, Told};
use ended::Ended;
use random::Random;
use support::{
    FakeUpstream, Keys, MIRROR_IP, Mirror, MirrorOptions, Netns, ORIGIN_IP, Peer, PeerOptions, REGISTRY, Scheduler,
    SchedulerOptions, Site,
};
use tally::{Tally, read};
use watched::{BRAIN_RESTARTS, DAMAGED, Watched};

const SEED: u64 = 20;
const MIB: u64 = 1 << 20;
const MIRROR_QUOTA_BYTES: u64 = 96 * MIB;
/// The largest layers have 24 MiB.
const PEER_QUOTAS_BYTES: [u64; 4] = [16 * MIB, 40 * MIB, 16 * MIB, 12 * MIB];
const PEERS: [&str; 4] = ["peer1", "peer2", "peer3", "peer4"];
const NEVER_ENDED: [&str; 2] = ["far-mirror", "peer1"];
const CLIENTS_PER_PEER: usize = 9;
const CLIENTS_OF_MIRROR: usize = 8;
const CLIENTS_OF_FAR_MIRROR: usize = 6;
const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
/// For the clients to end what they are at.
const FINISH_TIME_MAX: Duration = Duration::from_secs(240);
const AMISS_SHOWN: usize = 100;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let minutes: f64 = words
        .first()
        .map_or(20.0, |word| word.parse().expect("MINUTES is a number"));
    let length = Duration::from_secs_f64(minutes * 60.0);

    let mut random = Random::new(SEED);
    let catalogue = Catalogue::draw(&mut random);
    let site = Site::builder().nodes(PEERS.len()).wan_mbit(200).lan_mbit(1000).build();
    let [first, others @ ..] = catalogue.images() else {
        unreachable!("there are images");
    };
    let upstream = FakeUpstream::start(site.origin(), REGISTRY, first);
    for image in others {
        upstream.add_image(image);
    }
    let mut daemons = start_daemons(&site);
    println!(
        "{minutes} minutes, {} images of {} MiB together, seed {SEED}",
        catalogue.images().len(),
        catalogue.total_bytes() / MIB
    );

    let (tally, told, ended) = (Tally::default(), Told::default(), Ended::default());
    let clients = clients(&site);
    let mut chaos = Chaos::new(Random::new(SEED + 1), victims(&daemons, length), &ended);
    let mut amiss: Vec<String> = daemons
        .iter_mut()
        .flat_map(|watched| watched.sample(Duration::ZERO))
        .collect();
    let started = Instant::now();
    amiss.extend(thread::scope(|scope| {
        // Also when something panics, or the scope would wait for ever.
        let _end = EndClients(&told);
        let running: Vec<_> = (0..)
            .zip(clients)
            .map(|(number, (target, netns))| {
                let client = Client {
                    target,
                    catalogue: &catalogue,
                    random: Random::new(1000 * SEED + number),
                    tally: &tally,
                    told: &told,
                    ended: &ended,
                };
                scope.spawn(move || netns.enter(|| client.run()))
            })
            .collect();
        watch(&mut daemons, &mut chaos, started, length, &told, || {
            running.iter().all(|client| client.is_finished())
        })
    }));
    let end = started.elapsed();

    for watched in daemons.iter_mut().rev() {
        // Peers first: what a mirror has under way is theirs.
        amiss.extend(watched.stop());
    }
    if let Some(folder) = words.get(1) {
        keep_logs(&daemons, Path::new(folder));
    }
    let wan_bytes = site.wan_bytes_received();
    println!(
        "\n{:.1} minutes; {} kills, {} stops, {} reloads; longest drain {:.1} s",
        end.as_secs_f64() / 60.0,
        chaos.kills,
        chaos.stops,
        chaos.reloads,
        chaos.drain_max.as_secs_f64()
    );
    tally.print();
    println!("over the WAN {} MiB, headers included", wan_bytes / MIB);
    report::print_counters(&daemons);
    report::print_table(
        &daemons,
        if minutes < 10.0 {
            length / 4
        } else {
            Duration::from_secs(300)
        },
    );
    let grew = report::print_slopes(&daemons, &NEVER_ENDED, end);
    println!("what the logs say:");
    for watched in &daemons {
        report::print_complaints(watched);
        amiss.extend(watched.read_log().0);
        for what in [DAMAGED, BRAIN_RESTARTS] {
            let count = watched.counted(what);
            if count > 0.0 {
                amiss.push(format!("{}: {what} {count}", watched.name));
            }
        }
    }
    verdict(&tally, amiss, &grew)
}

fn verdict(tally: &Tally, mut amiss: Vec<String>, grew: &[&str]) -> ExitCode {
    amiss.extend(tally.notes());
    println!("\nverdict");
    // No failure: an allocator keeps what its owner has given back, and gets to its high-water mark slowly.
    if grew.is_empty() {
        println!("memory: no growth stands out of the noise");
    } else {
        println!(
            "memory: {} grew; what their allocators have in use tells a leak from a high-water mark",
            grew.join(", ")
        );
    }
    if amiss.is_empty() && read(&tally.pulls) > 0 {
        println!("good: every pull succeeded, every byte was right, every quota was kept, and nothing was left behind");
        return ExitCode::SUCCESS;
    }
    println!(
        "BAD: {} pulls failed, {} were wrong, {} findings",
        read(&tally.failed),
        read(&tally.wrong),
        amiss.len()
    );
    for finding in amiss.iter().take(AMISS_SHOWN) {
        println!("  {finding}");
    }
    ExitCode::FAILURE
}

struct EndClients<'a>(&'a Told);

impl Drop for EndClients<'_> {
    fn drop(&mut self) {
        self.0.abandon.store(true, Ordering::Relaxed);
    }
}

/// In the order of their starts.
fn start_daemons(site: &Site) -> Vec<Watched> {
    let keys = Keys::generate(&site.dir().join("keys"));
    let quota = |bytes: u64| ["--cache-quota".to_owned(), bytes.to_string()];
    let mirror_options = |with_scheduler| MirrorOptions {
        with_scheduler,
        extra_args: quota(MIRROR_QUOTA_BYTES).to_vec(),
        ..MirrorOptions::new(&keys)
    };
    let scheduler = Scheduler::start(site, SchedulerOptions::new(&keys));
    let mirror = Mirror::start(site, mirror_options(true));
    let far_mirror = Mirror::start_beyond_wan(site, mirror_options(false));
    let mut daemons = vec![
        Watched::new("scheduler", Box::new(scheduler), None),
        Watched::new("mirror", Box::new(mirror), Some(MIRROR_QUOTA_BYTES)),
        Watched::new("far-mirror", Box::new(far_mirror), Some(MIRROR_QUOTA_BYTES)),
    ];
    for (node, (name, quota_bytes)) in PEERS.into_iter().zip(PEER_QUOTAS_BYTES).enumerate() {
        let options = PeerOptions {
            zone: format!("rack-{}", node / 2),
            extra_args: quota(quota_bytes).to_vec(),
            ..PeerOptions::new(&keys)
        };
        let peer = Peer::start(site, node, options);
        daemons.push(Watched::new(name, Box::new(peer), Some(quota_bytes)));
    }
    daemons
}

/// Where each client pulls from, and where it is.
fn clients(site: &Site) -> Vec<(Target, Netns)> {
    let target = |name, address: (Ipv4Addr, u16)| Target {
        name,
        address: address.into(),
    };
    let at_peers = PEERS.into_iter().zip(site.nodes()).flat_map(|(name, node)| {
        let client = (target(name, (Ipv4Addr::LOCALHOST, 65001)), node.clone());
        vec![client; CLIENTS_PER_PEER]
    });
    let nodes = site.nodes().iter().cycle();
    let at_mirror = nodes
        .take(CLIENTS_OF_MIRROR)
        .map(|node| (target("mirror", (MIRROR_IP, 65011)), node.clone()));
    let far = (target("far-mirror", (ORIGIN_IP, 65011)), site.origin().clone());
    at_peers
        .chain(at_mirror)
        .chain(vec![far; CLIENTS_OF_FAR_MIRROR])
        .collect()
}

fn victims(daemons: &[Watched], length: Duration) -> Vec<Victim> {
    let spared_from = |name: &str| match name {
        name if NEVER_ENDED.contains(&name) => Duration::ZERO,
        "mirror" | "scheduler" => length * 2 / 3,
        _ => length,
    };
    let all = daemons.iter().enumerate().map(|(daemon, watched)| Victim {
        daemon,
        until: spared_from(watched.name),
    });
    all.filter(|victim| !victim.until.is_zero()).collect()
}

/// Samples and strikes until the time is over and the clients have ended; returns what was amiss.
fn watch(
    daemons: &mut [Watched],
    chaos: &mut Chaos<'_>,
    started: Instant,
    length: Duration,
    told: &Told,
    all_ended: impl Fn() -> bool,
) -> Vec<String> {
    let mut amiss = Vec::new();
    let mut next_sample = SAMPLE_INTERVAL;
    loop {
        let now = started.elapsed();
        let over = now >= length;
        amiss.extend(chaos.go_on(now, daemons, !over));
        if over {
            told.finish.store(true, Ordering::Relaxed);
        }
        if now >= length + FINISH_TIME_MAX {
            told.abandon.store(true, Ordering::Relaxed);
        }
        for (index, watched) in daemons.iter_mut().enumerate() {
            if !chaos.holds(index) && !watched.daemon.is_running() {
                amiss.push(format!(
                    "{}: ended by itself\n{}",
                    watched.name,
                    watched.daemon.log_tail()
                ));
                watched.daemon.restart();
                watched.begin_life(now);
            }
            if now >= next_sample && !chaos.holds(index) {
                amiss.extend(watched.sample(now));
            }
        }
        if now >= next_sample {
            next_sample += SAMPLE_INTERVAL;
        }
        if over && chaos.is_quiet() && all_ended() {
            return amiss;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn keep_logs(daemons: &[Watched], folder: &Path) {
    fs::create_dir_all(folder).expect("making the folder for the logs");
    for watched in daemons {
        fs::write(folder.join(format!("{}.log", watched.name)), watched.daemon.log_text()).expect("keeping a log");
    }
}
