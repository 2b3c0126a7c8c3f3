//! Orders of the wire protocol, made of the brain's commands.
//!
//! Invariant: an order says no more than its command. A lease is the only one that needs a ticket and a source's addresses.

use std::ops::Range;

use piecemeal_proto::{Digest, FillId, wire};
use wire::order::Order as OrderKind;

use crate::brain::{Lease, LeaseId, Priority};

pub(crate) fn lease(lease: Lease, source: &wire::Source, ticket: Vec<u8>) -> OrderKind {
    OrderKind::Lease(wire::Lease {
        lease: lease.id.0,
        digest: lease.digest.to_string(),
        fill: lease.fill.0,
        first: lease.first,
        count: lease.count,
        source: Some(source.clone()),
        ticket,
        priority: match lease.priority {
            Priority::Normal => 0,
            Priority::Waiting => 1,
        },
        hash_algorithm: wire::HashAlgorithm::Sha256.into(),
        hashes: wire::join_hashes(&lease.hashes),
        ..wire::Lease::default()
    })
}

pub(crate) fn cancel(lease: LeaseId) -> OrderKind {
    OrderKind::Cancel(wire::Cancel { lease: lease.0 })
}

pub(crate) fn revoked(digest: Digest, fill: FillId) -> OrderKind {
    OrderKind::Revoked(wire::Revoked {
        digest: digest.to_string(),
        fill: fill.0,
    })
}

pub(crate) fn drop_pieces(digest: Digest, fill: FillId, pieces: &[Range<u32>]) -> OrderKind {
    let pieces = pieces.iter().map(|range| wire::PieceRange {
        first: range.start,
        count: range.end - range.start,
    });
    OrderKind::Drop(wire::Drop {
        digest: digest.to_string(),
        fill: fill.0,
        pieces: pieces.collect(),
    })
}

pub(crate) fn clients(digest: Digest, connected: Option<bool>, waiting: Vec<u32>) -> OrderKind {
    let client = match connected {
        None => wire::ClientState::Unspecified,
        Some(true) => wire::ClientState::Connected,
        Some(false) => wire::ClientState::Absent,
    };
    OrderKind::Clients(wire::Clients {
        digest: digest.to_string(),
        client: client.into(),
        waiting,
    })
}

pub(crate) fn describe(digest: Digest) -> OrderKind {
    OrderKind::Describe(wire::Describe {
        digest: digest.to_string(),
    })
}
