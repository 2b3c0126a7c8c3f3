//! What the scheduler takes from its surroundings, in one place: the wall clock and randomness.

use std::time::{SystemTime, UNIX_EPOCH};

use ring::rand::SystemRandom;

/// The clock that grants and tickets are judged by, in seconds since 1970; 0 when it stands before that.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Bytes that no caller can foresee.
pub(crate) fn random<const N: usize>() -> [u8; N]
where
    [u8; N]: ring::rand::RandomlyConstructable,
{
    ring::rand::generate(&SystemRandom::new())
        .expect("the operating system has random numbers")
        .expose()
}
