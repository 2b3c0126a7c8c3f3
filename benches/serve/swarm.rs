//! What a peer costs its node while it receives and serves at once.
//!
//! What comes from whom is the scheduler's decision, so the network leaves it none: the second peer reaches the first one's
//! pieces, and not the mirror's. The first then sends all that it receives, at the same rate.

use std::{thread, time::Instant};

use crate::{
    meter::{cpu_seconds, median, memory_mib},
    stand::{FAST_MBIT, Server, Stand, Stored, peer_server, remove},
    support::{MIRROR_IP, Peer},
    table::{Table, at_most},
};

/// Of one run.
#[derive(Clone, Copy)]
struct Cost {
    received: f64,
    sent: f64,
    cpu_seconds: f64,
    seconds: f64,
    peak_mib: f64,
}

/// H13.
pub(crate) fn both_ways(stand: &mut Stand) {
    println!("### A peer, receiving and serving\n");
    println!(
        "An image of 1 GiB that the mirror has, pulled through peers that have nothing, at {LINK_MBIT} Mbit/s out of the mirror and out \
         of every node; {RUNS} runs each in turn, medians. *Alone*: a peer receives from the mirror and hands on to a client of \
         its own node. *Relaying*: the same peer while another, which cannot reach the mirror's pieces, has them all from it. Cores at \
         1 Gbit/s: CPU seconds for a GB received, and when relaying also sent, times 0.125 GB/s.\n"
    );
    // It has the image and would be asked for it.
    stand.big();
    stand.kill_peer();
    relay(stand);
    stand.restart_peer();
}

fn relay(stand: &Stand) {
    let image = stand.big();
    let lan = [stand.site().mirror(), stand.site().node(1), stand.site().node(2)];
    lan.iter().for_each(|netns| stand.shape(netns, "eth0", LINK_MBIT));
    stand.site().node(2).nft(&format!(
        "table inet pieces {{
            chain output {{ type filter hook output priority 0; ip daddr {MIRROR_IP} tcp dport 65002 reject with tcp reset; }}
        }}"
    ));
    let (mut alone, mut relaying) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        eprintln!("a peer, receiving and serving: run {run}");
        stand.check_time();
        alone.push(pull(stand, &[1], image));
        relaying.push(pull(stand, &[1, 2], image));
    }
    stand.site().node(2).nft("delete table inet pieces");
    lan.iter().for_each(|netns| stand.shape(netns, "eth0", FAST_MBIT));

    let mut table = Table::new([
        "peer",
        "MB/s received",
        "MB/s sent",
        "CPU s/GB",
        "cores at 1 Gbit/s",
        "aim",
        "peak VmRSS, MiB",
        "aim",
    ]);
    for (name, costs, aim) in [("alone", &alone, None), ("relaying", &relaying, Some(0.3))] {
        let of = |value: fn(&Cost) -> f64| median(costs.iter().map(value));
        let cpu = of(|cost| cost.cpu_seconds / (cost.received / 1e9));
        let peak = costs.iter().map(|cost| cost.peak_mib).fold(0.0, f64::max);
        table.row([
            name.to_owned(),
            format!("{:.0}", of(|cost| cost.received / cost.seconds) / 1e6),
            format!("{:.0}", of(|cost| cost.sent / cost.seconds) / 1e6),
            format!("{cpu:.2}"),
            format!("{:.2}", 0.125 * cpu),
            aim.map_or_else(String::new, |aim| at_most(aim, 0.125 * cpu, "")),
            format!("{peak:.1}"),
            at_most(64.0, peak, " MiB"),
        ]);
    }
    table.print();
}

/// What the first of these nodes' peers had to do with it while all of them pulled.
fn pull(stand: &Stand, nodes: &[usize], image: &Stored) -> Cost {
    let cache_dir = |node: usize| stand.site().dir().join(format!("swarm-cache{node}"));
    let peers: Vec<(Server, Peer)> = nodes
        .iter()
        .map(|&node| {
            let peer = stand.start_peer(node, cache_dir(node));
            (peer_server(stand.site(), node, &peer), peer)
        })
        .collect();
    let (first, peer) = &peers[0];
    let (before, started) = (cpu_seconds(&first.pids), Instant::now());
    thread::scope(|scope| {
        for (server, _) in &peers {
            scope.spawn(|| {
                let mut connection = server.connect();
                connection.get(&image.by_tag());
                connection.get(&image.layer(0));
            });
        }
    });
    let cost = Cost {
        received: bytes(peer, "mirror", "store") + bytes(peer, "peer", "store"),
        sent: bytes(peer, "local", "node"),
        cpu_seconds: cpu_seconds(&first.pids) - before,
        seconds: started.elapsed().as_secs_f64(),
        peak_mib: memory_mib(first.pids[0], "VmHWM"),
    };
    drop(peers);
    nodes.iter().for_each(|&node| remove(&cache_dir(node)));
    cost
}

fn bytes(peer: &Peer, from: &str, to: &str) -> f64 {
    peer.metric(&format!("piecemeal_blob_bytes_total{{from=\"{from}\",to=\"{to}\"}}"))
}

const RUNS: usize = 3;
const LINK_MBIT: u32 = 1000;
