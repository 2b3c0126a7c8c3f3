//! Address block: the unit by which callers are counted.
//!
//! Invariant: a host that may choose among many IPv6 addresses of one network counts as one.

use std::net::{IpAddr, Ipv6Addr};

/// An IPv4 address, or the /64 that a host may choose its IPv6 address from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressBlock(IpAddr);

impl AddressBlock {
    /// The block of `address`; an IPv4-mapped IPv6 address counts as the IPv4 one.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}
