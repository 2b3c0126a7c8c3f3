//! Slot policy of one port: how many connections it has, and how long each stage of one may take.
//!
//! Invariant: every stage has a limit.

use std::time::Duration;

use crate::Share;

#[derive(Clone, Copy, Debug)]
pub struct SlotPolicy {
    /// Connections at a time.
    pub slots: usize,
    /// Share of them that one address or node may have once the port is nearly full.
    pub share: Share,
    /// Longest time for a handshake before the protocol, such as that of TLS.
    pub greet_max: Duration,
    /// Longest time from the handshake to the first byte.
    pub first_byte_max: Duration,
    /// Longest time from the first byte of a request's head to its last.
    pub head_max: Duration,
    /// Longest time without a request.
    pub idle_max: Duration,
    /// Interval at which the gate checks whether the receiver of an answer still takes bytes.
    pub take_max: Duration,
    /// Whether a newcomer gets a slot even if only busy connections are left. For a port whose answers are short.
    pub busy_give_way: bool,
}
