//! Serial links and seeded randomness of the simulated world.

/// Nanoseconds since the start.
pub(crate) type Nanos = u64;

pub(crate) const MILLISECOND: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1000 * MILLISECOND;

/// Carries one thing at a time, in the order of arrival.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    bytes_per_second: u64,
    free_at: Nanos,
}

impl Link {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_at: 0,
        }
    }

    pub(crate) fn takes(&self, bytes: u64) -> Nanos {
        let nanos = u128::from(bytes) * u128::from(SECOND) / u128::from(self.bytes_per_second);
        nanos.try_into().expect("links are not that slow")
    }

    /// When `bytes` that arrive at `now` are through.
    pub(crate) fn send(&mut self, now: Nanos, bytes: u64) -> Nanos {
        self.free_at = self.free_at.max(now) + self.takes(bytes);
        self.free_at
    }

    /// The same for bytes that have been flowing in since they left a link, the last of them at `now`.
    pub(crate) fn receive(&mut self, now: Nanos, bytes: u64) -> Nanos {
        self.free_at = now.max(self.free_at + self.takes(bytes));
        self.free_at
    }

    pub(crate) fn reset(&mut self, now: Nanos) {
        self.free_at = now;
    }
}

/// Seeded randomness (SplitMix64): a seed replays for ever.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed ^ 0x5157_11ab_70c3_9d2e)
    }

    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `range`.
    pub(crate) fn among(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.draw() % (range.end - range.start)
    }

    /// The same for numbers of nodes.
    pub(crate) fn index(&mut self, range: std::ops::Range<usize>) -> usize {
        usize::try_from(self.among(range.start as u64..range.end as u64)).expect("below the range's end")
    }

    pub(crate) fn happens(&mut self, per_mille: u64) -> bool {
        self.among(0..1000) < per_mille
    }
}
