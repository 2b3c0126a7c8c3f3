//! Share of a port's slots that one address or node may have once the port is nearly full.
//!
//! Invariant: a share is at least one slot.

/// A percentage of a port's slots, from 1 to 100. At 100 nothing counts but age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u8);

impl Share {
    /// Every caller has the same address, or is trusted alike.
    pub const ALL: Self = Self(100);

    /// `None` unless `percent` is from 1 to 100.
    pub const fn new(percent: u8) -> Option<Self> {
        match percent {
            1..=100 => Some(Self(percent)),
            _ => None,
        }
    }

    /// The number of slots that it is of `slots`: one at least.
    pub fn of(self, slots: usize) -> usize {
        (slots * usize::from(self.0) / 100).max(1)
    }
}

impl Default for Share {
    /// Ten addresses can have it all between them, and no node of an honest site needs as much.
    fn default() -> Self {
        Self(10)
    }
}
