//! Blobs to clients on the same machine: stored ones, and one that is still being filled.

use std::{sync::Barrier, thread, time::Instant};

use crate::{
    client::Disposal,
    meter::{cpu_seconds, forget_peak_memory, median, memory_mib},
    stand::{FAST_MBIT, Server, Stand, Stored},
    support::Image,
    table::{Table, at_least, at_most},
};

/// What is asked of every server in each run.
struct Load {
    what: &'static str,
    layer: usize,
    connections: usize,
    /// By each connection: enough for the processor's clock ticks to be fine beside it.
    fetches: usize,
    disposal: Disposal,
}

#[derive(Clone, Copy)]
struct Sample {
    /// Bytes per second.
    rate: f64,
    cpu_seconds_per_gb: f64,
}

/// H12.
pub(crate) fn cached(stand: &mut Stand) {
    println!("### Cached blobs\n");
    println!(
        "{RUNS} runs in turn, medians; bytes are read and thrown away, or dropped unread by the client's kernel.\n"
    );
    let mut table = Table::new([
        "blob",
        "server",
        "GB/s",
        "CPU s/GB",
        "GB/s ÷ nginx's",
        "aim",
        "CPU ÷ nginx's",
        "aim",
    ]);
    let (stand, image) = (&*stand, stand.big());
    for load in LOADS {
        eprintln!("cached blobs: {}", load.what);
        let servers = stand.servers();
        let samples: Vec<[Sample; 4]> = (0..RUNS)
            .map(|_| {
                stand.check_time();
                servers.each_ref().map(|server| load.put_on(server, image))
            })
            .collect();
        for (place, server) in servers.iter().enumerate() {
            let of = |value: fn(&Sample) -> f64| median(samples.iter().map(|run| value(&run[place])));
            let ratio =
                |value: fn(&Sample) -> f64| median(samples.iter().map(|run| value(&run[place]) / value(&run[NGINX])));
            let (rate, cpu) = (ratio(|sample| sample.rate), ratio(|sample| sample.cpu_seconds_per_gb));
            let aims = if place < NGINX {
                [at_least(0.9, rate, ""), at_most(1.5, cpu, "")]
            } else {
                [String::new(), String::new()]
            };
            let [rate_aim, cpu_aim] = aims;
            table.row([
                load.what.to_owned(),
                server.name.to_owned(),
                format!("{:.2}", of(|sample| sample.rate) / 1e9),
                format!("{:.3}", of(|sample| sample.cpu_seconds_per_gb)),
                format!("{rate:.2}"),
                rate_aim,
                format!("{cpu:.2}"),
                cpu_aim,
            ]);
        }
    }
    table.print();
}

impl Load {
    fn put_on(&self, server: &Server, image: &Stored) -> Sample {
        let target = image.layer(self.layer);
        let connections: Vec<_> = (0..self.connections)
            .map(|_| server.connect().disposal(self.disposal))
            .collect();
        let (ready, before) = (Barrier::new(self.connections + 1), cpu_seconds(&server.pids));
        let seconds = thread::scope(|scope| {
            for mut connection in connections {
                let (ready, target) = (&ready, &target);
                scope.spawn(move || {
                    ready.wait();
                    for _ in 0..self.fetches {
                        connection.get(target);
                    }
                    ready.wait();
                });
            }
            ready.wait();
            let started = Instant::now();
            ready.wait();
            started.elapsed().as_secs_f64()
        });
        let bytes = image.layer_bytes(self.layer) as f64 * (self.connections * self.fetches) as f64;
        Sample {
            rate: bytes / seconds,
            cpu_seconds_per_gb: (cpu_seconds(&server.pids) - before) / (bytes / 1e9),
        }
    }
}

/// Many clients for a blob that is on its way: what each byte costs that is written once and sent fifty times.
pub(crate) fn followers(stand: &mut Stand) {
    println!("### A blob on its way\n");
    println!(
        "{FOLLOWERS} clients for one blob of 64 MiB that comes over a WAN of {WAN_MBIT} Mbit/s, {FILLS} times; medians. CPU is for a \
         GB to clients, with that of the download itself.\n"
    );
    let mut table = Table::new([
        "server",
        "GB/s to clients",
        "CPU s/GB",
        "last client ÷ WAN alone",
        "peak MiB",
    ]);
    stand.shape(stand.site().origin(), "wan", WAN_MBIT);
    let wan = stand.site().measure_goodput_wan();
    for server in [stand.mirror(), stand.peer()] {
        eprintln!("a blob on its way: {}", server.name);
        let mut samples = Vec::new();
        for fill in 0..FILLS {
            stand.check_time();
            let name = format!("library/way-{}-{fill}", server.name);
            let image = stand.push(&Image::new(&name, "v1").layer_bytes(&[64 << 20]));
            server.connect().get(&image.by_tag());
            server.pids.iter().copied().for_each(forget_peak_memory);
            let follow = Load {
                what: "",
                layer: 0,
                connections: FOLLOWERS,
                fetches: 1,
                disposal: Disposal::Read,
            };
            let sample = follow.put_on(&server, &image);
            samples.push((sample, memory_mib(server.pids[0], "VmHWM")));
        }
        let rate = median(samples.iter().map(|(sample, _)| sample.rate));
        table.row([
            server.name.to_owned(),
            format!("{:.2}", rate / 1e9),
            format!(
                "{:.3}",
                median(samples.iter().map(|(sample, _)| sample.cpu_seconds_per_gb))
            ),
            format!("{:.2}", wan * FOLLOWERS as f64 / rate),
            format!("{:.0}", median(samples.iter().map(|(_, peak)| *peak))),
        ]);
    }
    stand.shape(stand.site().origin(), "wan", FAST_MBIT);
    table.print();
}

const LOADS: [Load; 5] = [
    Load {
        what: "1 GiB, 1 connection",
        layer: 0,
        connections: 1,
        fetches: 3,
        disposal: Disposal::Read,
    },
    Load {
        what: "1 GiB, 8 connections",
        layer: 0,
        connections: 8,
        fetches: 1,
        disposal: Disposal::Read,
    },
    Load {
        what: "64 MiB, 1 connection",
        layer: 1,
        connections: 1,
        fetches: 48,
        disposal: Disposal::Read,
    },
    Load {
        what: "64 MiB, 8 connections",
        layer: 1,
        connections: 8,
        fetches: 12,
        disposal: Disposal::Read,
    },
    Load {
        what: "1 GiB, 1 connection, dropped unread",
        layer: 0,
        connections: 1,
        fetches: 3,
        disposal: Disposal::Drop,
    },
];
/// The place of nginx among the servers.
const NGINX: usize = 2;
const RUNS: usize = 5;
const FOLLOWERS: usize = 50;
const FILLS: usize = 3;
const WAN_MBIT: u32 = 200;
