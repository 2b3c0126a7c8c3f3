//! Guards what the webhook costs whoever creates pods: its latency under a steady load, its processor time and its memory.
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
    // cargo adds flags of its own.
    let chosen: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let names = PARTS.map(|(name, _)| name);
    if let Some(unknown) = chosen.iter().find(|chosen| !names.contains(&chosen.as_str())) {
        eprintln!("there is no part {unknown}; there are: {}", names.join(", "));
        return ExitCode::from(64);
    }
    println!("Machine: {}.\n", meter::machine());
    meter::print_busy("before");
    for (_, run) in PARTS
        .iter()
        .filter(|(name, _)| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name))
    {
        run();
    }
    meter::print_busy("after");
    ExitCode::SUCCESS
}
