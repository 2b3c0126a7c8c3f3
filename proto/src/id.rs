//! Ids of nodes and fills.
//!
//! Invariant: a node's id has one text form, 32 lower-case hexadecimal digits.

use std::{fmt, str::FromStr};

use crate::hex;

/// A daemon's id: the hash of its key ([`crate::NodePublic::id`]); of a daemon of the last release, 16 random bytes. Written as
/// 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 16]);

impl NodeId {
    /// `None` unless `bytes` has exactly 16 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = ParseNodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        hex::decode_array(text).map(Self).ok_or(ParseNodeIdError)
    }
}

/// The text is not a node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a node id is 32 lower-case hexadecimal digits")]
pub struct ParseNodeIdError;

/// One download of a blob from upstream. Pieces carry it, so that all of a bad download can be revoked at once; a resumed
/// download keeps its id. Random, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FillId(pub u64);

impl fmt::Display for FillId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
