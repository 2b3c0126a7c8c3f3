//! Orders of the scheduler about one blob.

use std::{ops::Range, sync::Arc};

use piecemeal_proto::{SignedPieceHashes, wire::Lease};

/// The most orders that wait for one download.
pub(crate) const ORDERS_MAX: usize = 256;

/// An order from the scheduler about one blob.
#[derive(Debug)]
pub enum Order {
    Lease(Lease),
    Cancel(u64),
    Revoked(u64),
    /// These pieces of the fill do not match their hash.
    Drop {
        fill: u64,
        pieces: Vec<Range<u32>>,
    },
    /// The authority's word for the hashes of all pieces.
    PieceHashes(Arc<SignedPieceHashes>),
    /// The session is there again: the want is sent once more.
    Up,
    /// The want was not accepted: the grant is old.
    WantRefused(String),
}
