//! The real brain in a simulated site: modelled daemons over a virtual clock and network, of which a seed draws everything.
//!
//! Every scenario checks the brain's invariants on every step, then demands that everybody finishes.

mod bounds;
mod faults;
mod link;
mod node;
mod plan;
mod transfer;
mod upstream;
mod world;

/// Seeds that every scenario with faults runs.
fn seeds() -> std::ops::Range<u64> {
    match std::env::var("PIECEMEAL_SEED").map(|seed| seed.parse()) {
        Ok(Ok(seed)) => seed..seed + 1,
        _ => 0..20,
    }
}
