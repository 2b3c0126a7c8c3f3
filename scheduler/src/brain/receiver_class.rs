//! Class of a receiver: whether its leases take a place at their sources.
//!
//! Invariant: a receiver that lands nothing takes no place, after the time that every receiver gets.

/// Class of a receiver, by which its leases count at their sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReceiverClass {
    /// It lands the pieces that it is leased: each lease takes a place.
    Landing,
    /// It has landed nothing yet, and had no time to: each lease takes a place, too.
    New,
    /// It landed pieces before, and has landed none for a while: its leases take no place.
    Stalled,
    /// It has landed nothing, although it had the time: its leases take no place, and end when another receiver needs the room.
    Idle,
}

impl ReceiverClass {
    pub(super) const COUNT: usize = 4;
    pub(super) const ALL: [Self; Self::COUNT] = [Self::Landing, Self::New, Self::Stalled, Self::Idle];
}
