//! The real brain, the real downloads of peers and the real fills of mirrors in a simulated site, over a virtual clock and network, of which
//! a seed draws everything.
//!
//! Modelled are links, disks, sessions, the mirror's answers to questions for a blob, and members that lie or do nothing.
//!
//! Every scenario checks the brain's invariants on every step, then demands that every peer finishes.

mod bounds;
mod download;
mod faults;
mod fetch;
mod fill;
mod forger;
mod idle;
mod link;
mod mirror;
mod node;
mod opening;
mod order;
mod plan;
mod session;
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
