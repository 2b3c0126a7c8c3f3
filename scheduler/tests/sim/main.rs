//! The real brain in a simulated site: modelled daemons over a virtual clock and network, of which a seed draws everything.
//!
//! Every scenario checks the brain's invariants on every step, then demands that every peer finishes.

mod bounds;
mod faults;
mod forger;
mod idle;
mod link;
mod mirror;
mod node;
mod plan;
mod session;
mod transfer;
mod upstream;
mod world;

/// Seeds that every scenario with faults runs: `PIECEMEAL_SEED` names one, `PIECEMEAL_SEEDS` says how many.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match number("PIECEMEAL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("PIECEMEAL_SEEDS").unwrap_or(16),
    }
}
