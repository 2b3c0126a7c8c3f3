//! Space of a disk: how many bytes have to go before a demand has room.
//!
//! Bytes that are promised to a fill count as written. Pure.

/// The figures that decide whether a demand has space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    pub(crate) quota_bytes: Option<u64>,
    /// The bytes that the ledger counts already.
    pub(crate) used_bytes: u64,
    pub(crate) free_bytes_min: u64,
    pub(crate) free_bytes: u64,
    /// The bytes that admitted fills have still to write: free now, but promised.
    pub(crate) promised_bytes: u64,
}

impl Space {
    /// The bytes that must go before `new_bytes` more may be counted and `unwritten_bytes` more written.
    pub(crate) fn shortage_bytes(&self, new_bytes: u64, unwritten_bytes: u64) -> u64 {
        let over_quota = self.quota_bytes.map_or(0, |quota_bytes| {
            self.used_bytes.saturating_add(new_bytes).saturating_sub(quota_bytes)
        });
        let under_floor = unwritten_bytes
            .saturating_add(self.promised_bytes)
            .saturating_add(self.free_bytes_min)
            .saturating_sub(self.free_bytes);
        over_quota.max(under_floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortage_is_the_worse_of_quota_and_floor() {
        let space = Space {
            quota_bytes: Some(100),
            used_bytes: 90,
            free_bytes_min: 50,
            free_bytes: 70,
            promised_bytes: 5,
        };
        assert_eq!(space.shortage_bytes(10, 10), 0);
        assert_eq!(space.shortage_bytes(15, 10), 5);
        assert_eq!(space.shortage_bytes(15, 30), 15);
        let unlimited = Space {
            quota_bytes: None,
            ..space
        };
        assert_eq!(unlimited.shortage_bytes(u64::MAX, 0), 0);
        assert_eq!(unlimited.shortage_bytes(0, u64::MAX), u64::MAX - 70);
    }
}
