//! Benchmark of what the webhook adds to the creation of pods: its latency under a steady load, its processor time and its memory.
//!
//! `mock`: the webhook on a core of its own, beside a Kubernetes API that is made up and answers at once; the time is its own.
//! `real`: beside a real API server and its etcd, where each pod needs a new copy of a pull secret; the time is what users wait.
//!
//! Load is open: questions come when they are due, whatever became of those before, and latency counts from then. Prints Markdown,
//! every figure beside its aim; asserts nothing, and panics when something cannot be measured. `webhook -- PART…` runs only
//! those parts.

#[path = "../webhook/tests/support/fake_api.rs"]
#[expect(dead_code, unreachable_pub, reason = "the tests use the rest")]
mod fake_api;
#[path = "webhook/histogram.rs"]
mod histogram;
#[path = "webhook/load.rs"]
mod load;
#[path = "serve/meter.rs"]
#[expect(dead_code, reason = "shared with `serve`")]
mod meter;
#[path = "webhook/mock.rs"]
mod mock;
#[path = "webhook/objects.rs"]
mod objects;
#[path = "serve/parts.rs"]
mod parts;
#[path = "webhook/real.rs"]
mod real;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "serve/table.rs"]
#[expect(dead_code, reason = "shared with `serve`")]
mod table;

use std::process::ExitCode;

const PARTS: [(&str, fn()); 2] = [("mock", mock::run), ("real", real::run)];

fn main() -> ExitCode {
    let Some(chosen) = parts::chosen(&PARTS.map(|(name, _)| name)) else {
        return ExitCode::from(64);
    };
    println!("Machine: {}.\n", meter::machine());
    meter::print_busy("before");
    for (_, run) in PARTS.iter().filter(|(name, _)| chosen.contains(name)) {
        run();
    }
    meter::print_busy("after");
    ExitCode::SUCCESS
}
