//! Guards what serving costs: throughput and processor time beside nginx's and docker-registry's, added latency, memory.
//!
//! Real daemons in network namespaces, every figure beside its aim and beside what the rivals did in the same run on the same
//! machine. Prints Markdown; asserts nothing, and panics when something cannot be measured. Server and client share the
//! machine, so throughput is good as a ratio only; what else runs there is measured at the beginning and at the end.
//!
//! `serve -- PART…` runs only those parts. On a machine of its own the whole takes less than ten minutes, and it gives up after
//! twelve; it needs 8 GiB of memory and as much disk.

#[path = "serve/blobs.rs"]
mod blobs;
#[path = "serve/client.rs"]
mod client;
#[path = "serve/latency.rs"]
mod latency;
#[path = "serve/manifests.rs"]
mod manifests;
#[path = "serve/memory.rs"]
mod memory;
#[path = "serve/meter.rs"]
mod meter;
#[path = "serve/nginx.rs"]
mod nginx;
#[path = "serve/parts.rs"]
mod parts;
#[path = "serve/stand.rs"]
mod stand;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "serve/swarm.rs"]
mod swarm;
#[path = "serve/table.rs"]
mod table;

use std::process::ExitCode;

use stand::Stand;

type Part = fn(&mut Stand);

const PARTS: [(&str, Part); 8] = [
    ("blobs", blobs::cached),
    ("followers", blobs::followers),
    ("manifests", manifests::cached),
    ("tiny", latency::tiny),
    ("miss", latency::miss),
    ("slow", memory::slow_clients),
    ("rest", memory::at_rest),
    ("swarm", swarm::both_ways),
];

fn main() -> ExitCode {
    let Some(chosen) = parts::chosen(&PARTS.map(|(name, _)| name)) else {
        return ExitCode::from(64);
    };
    println!("Machine: {}. {}.\n", meter::machine(), stand::versions());
    println!(
        "nginx: {}. docker-registry: its defaults, which log every request, and without a cache of descriptors.\n",
        nginx::Nginx::settings()
    );
    meter::print_busy("before");
    let mut stand = Stand::start();
    for (_, run) in PARTS.iter().filter(|(name, _)| chosen.contains(name)) {
        run(&mut stand);
    }
    drop(stand);
    meter::print_busy("after");
    ExitCode::SUCCESS
}
