//! Lease time: how long a lease usually takes, and how long is too long.
//!
//! Invariant: a smoothed time follows the latest leases, each by a fixed part.

use super::Time;

/// The lease time before the first lease is done.
pub(super) const INITIAL: Time = Time::from_millis(250);

/// The exponentially weighted average of the lease times before, `known`, and of a lease that took `took`.
pub(super) fn smoothed(known: Option<Time>, took: Time) -> Time {
    let known = known.unwrap_or(took);
    known - known / WEIGHT + took / WEIGHT
}

/// The time in which the swarm may pass a piece on before a mirror sends it again: as many lease times as a copy needs to reach all
/// the `wanting` peers by doubling, and four more.
pub(super) fn patience(lease_time: Option<Time>, wanting: u32) -> Time {
    lease_time.unwrap_or(INITIAL) * (4 + wanting.max(1).ilog2())
}

/// The latest lease counts as one part of so many.
const WEIGHT: u32 = 8;
