//!
//! Reader of the scheduler's orders: checks them and turns them into events.
//!
//! Invariant: a [`SessionEvent`] needs no further check.

use std::{net::IpAddr, ops::Range};

use piecemeal_proto::{
    AuthorityPublic, CheckPieceHashesError, Digest, FillId, NodeId, PIECE_COUNT_MAX, SignedPieceHashes,
    wire::{self, ClientState, SourceKind, WAITING_MAX, order::Order},
};

use super::SessionEvent;

/// Why an order is malformed. It is ignored; the scheduler notices that its effect does not come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReadOrderError {
    #[error("the digest is malformed")]
    Digest,
    #[error("the range of {count} pieces from piece {first} does not exist")]
    Range { first: u32, count: u32 },
    #[error("the source is missing or of an unknown kind")]
    Source,
    #[error("the source has no address that can be used")]
    Address,
    #[error("the number of hashes differs from the number of pieces")]
    Hashes,
    #[error("the ticket is not text")]
    Ticket,
    #[error("the name of the image to warm is invalid")]
    Warm,
    #[error(transparent)]
    PieceHashes(CheckPieceHashesError),
}

/// `None`: an order of a newer scheduler, or one that has no place after the welcome.
pub(super) fn read(order: wire::Order, authority: &AuthorityPublic) -> Result<Option<SessionEvent>, ReadOrderError> {
    let event = match order.order {
        Some(Order::Lease(lease)) => {
            check(&lease)?;
            SessionEvent::Lease(lease)
        }
        Some(Order::Cancel(cancel)) => SessionEvent::Cancel(cancel.lease),
        Some(Order::Revoked(revoked)) => SessionEvent::Revoked {
            digest: digest(&revoked.digest)?,
            fill: FillId(revoked.fill),
        },
        Some(Order::Describe(describe)) => SessionEvent::Describe(digest(&describe.digest)?),
        Some(Order::WantRefused(refused)) => SessionEvent::WantRefused {
            digest: digest(&refused.digest)?,
            reason: refused.reason,
        },
        Some(Order::Warm(warm)) if warm.is_sound() => SessionEvent::Warm(warm),
        Some(Order::Warm(_)) => return Err(ReadOrderError::Warm),
        Some(Order::Drop(drop)) => SessionEvent::Drop {
            digest: digest(&drop.digest)?,
            fill: FillId(drop.fill),
            pieces: drop.pieces.iter().map(range).collect::<Result<_, _>>()?,
        },
        Some(Order::Clients(clients)) => self::clients(&clients)?,
        Some(Order::PieceHashes(list)) => {
            let list = SignedPieceHashes::from_wire(&list, authority);
            SessionEvent::PieceHashes(list.map_err(ReadOrderError::PieceHashes)?)
        }
        // The order belongs to a feature that this daemon does not state.
        Some(Order::WantAccepted(_)) => return Ok(None),
        Some(Order::Challenge(_) | Order::Welcome(_) | Order::Refused(_)) | None => return Ok(None),
    };
    Ok(Some(event))
}

fn clients(clients: &wire::Clients) -> Result<SessionEvent, ReadOrderError> {
    let waiting = clients.waiting.iter().copied();
    Ok(SessionEvent::Clients {
        digest: digest(&clients.digest)?,
        connected: match clients.client() {
            ClientState::Unspecified => None,
            state => Some(state == ClientState::Connected),
        },
        waiting: waiting
            .filter(|&piece| piece < PIECE_COUNT_MAX)
            .take(WAITING_MAX)
            .collect(),
    })
}

fn digest(text: &str) -> Result<Digest, ReadOrderError> {
    text.parse().map_err(|_| ReadOrderError::Digest)
}

fn range(range: &wire::PieceRange) -> Result<Range<u32>, ReadOrderError> {
    let (first, count) = (range.first, range.count);
    let end = first.checked_add(count).filter(|&end| end <= PIECE_COUNT_MAX);
    end.map(|end| first..end).ok_or(ReadOrderError::Range { first, count })
}

fn check(lease: &wire::Lease) -> Result<(), ReadOrderError> {
    digest(&lease.digest)?;
    let (first, count) = (lease.first, lease.count);
    let end = first.checked_add(count).filter(|&end| end <= PIECE_COUNT_MAX);
    if count == 0 || end.is_none() {
        return Err(ReadOrderError::Range { first, count });
    }
    let source = lease.source.as_ref().ok_or(ReadOrderError::Source)?;
    let from_upstream = match source.kind() {
        SourceKind::Upstream => true,
        SourceKind::Peer | SourceKind::Mirror => false,
        SourceKind::Unspecified => return Err(ReadOrderError::Source),
    };
    let hashes = wire::split_hashes(&lease.hashes, count).ok_or(ReadOrderError::Hashes)?;
    if from_upstream {
        return Ok(());
    }
    if NodeId::from_slice(&source.node).is_none() {
        return Err(ReadOrderError::Source);
    }
    if source.addresses.is_empty() || !source.addresses.iter().all(is_usable) {
        return Err(ReadOrderError::Address);
    }
    // Without hashes, pieces from a source other than upstream cannot be verified.
    if hashes.iter().any(Option::is_none) {
        return Err(ReadOrderError::Hashes);
    }
    if std::str::from_utf8(&lease.ticket).is_err() {
        return Err(ReadOrderError::Ticket);
    }
    Ok(())
}

fn is_usable(address: &wire::Address) -> bool {
    address.ip.parse::<IpAddr>().is_ok() && u16::try_from(address.port).is_ok_and(|port| port != 0)
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::{AuthorityKey, PieceMap};

    use super::*;

    fn lease() -> wire::Lease {
        wire::Lease {
            lease: 1,
            digest: Digest::of(b"blob").to_string(),
            fill: 7,
            first: 2,
            count: 3,
            source: Some(wire::Source {
                kind: SourceKind::Peer.into(),
                node: vec![1; 16],
                addresses: vec![wire::Address {
                    ip: "fd00::1".into(),
                    port: 65002,
                }],
            }),
            ticket: b"ticket".to_vec(),
            hashes: vec![0; 96],
            ..wire::Lease::default()
        }
    }

    fn read_lease(lease: wire::Lease) -> Result<Option<SessionEvent>, ReadOrderError> {
        read_order(Order::Lease(lease))
    }

    #[test]
    fn a_good_lease_is_passed_on_as_it_is() {
        assert_eq!(read_lease(lease()), Ok(Some(SessionEvent::Lease(lease()))));
        let mut upstream = lease();
        upstream.hashes.clear();
        upstream.source = Some(wire::Source {
            kind: SourceKind::Upstream.into(),
            ..wire::Source::default()
        });
        assert!(read_lease(upstream).is_ok());
    }

    #[test]
    fn a_lease_that_cannot_be_carried_out_is_malformed() {
        type Change = fn(&mut wire::Lease);
        let cases: [(Change, ReadOrderError); 10] = [
            (|lease| lease.digest = "sha256:../x".into(), ReadOrderError::Digest),
            (|lease| lease.count = 0, ReadOrderError::Range { first: 2, count: 0 }),
            (
                |lease| lease.first = u32::MAX,
                ReadOrderError::Range {
                    first: u32::MAX,
                    count: 3,
                },
            ),
            (|lease| lease.source = None, ReadOrderError::Source),
            (|lease| source(lease).kind = 9, ReadOrderError::Source),
            (|lease| source(lease).node = vec![1; 15], ReadOrderError::Source),
            (
                |lease| source(lease).addresses[0].ip = "host".into(),
                ReadOrderError::Address,
            ),
            (
                |lease| source(lease).addresses[0].port = 65_536,
                ReadOrderError::Address,
            ),
            (|lease| lease.hashes = vec![0; 95], ReadOrderError::Hashes),
            (|lease| lease.hashes = Vec::new(), ReadOrderError::Hashes),
        ];
        for (change, error) in cases {
            let mut lease = lease();
            change(&mut lease);
            assert_eq!(read_lease(lease), Err(error));
        }
    }

    fn source(lease: &mut wire::Lease) -> &mut wire::Source {
        lease.source.as_mut().expect("the lease has one")
    }

    #[test]
    fn an_order_of_a_newer_scheduler_is_nothing() {
        assert_eq!(read_order(None), Ok(None));
    }

    fn read_order(order: impl Into<Option<Order>>) -> Result<Option<SessionEvent>, ReadOrderError> {
        let authority = AuthorityKey::from_seed([3; 32]).public();
        read(wire::Order { order: order.into() }, &authority)
    }

    #[test]
    fn a_list_that_the_authority_has_not_signed_is_not_passed_on() {
        let map = PieceMap::new(300, 100).expect("three pieces");
        let signed_by = |seed| {
            let key = AuthorityKey::from_seed([seed; 32]);
            SignedPieceHashes::sign(&key, Digest::of(b"blob"), map, vec![[1; 32]; 3]).expect("three hashes")
        };
        let list = signed_by(3);
        let read = read_order(Order::PieceHashes(list.to_wire()));
        assert_eq!(read, Ok(Some(SessionEvent::PieceHashes(list))));
        let read = read_order(Order::PieceHashes(signed_by(4).to_wire()));
        assert_eq!(read, Err(ReadOrderError::PieceHashes(CheckPieceHashesError::Signature)));
    }

    #[test]
    fn of_the_pieces_that_clients_wait_for_so_many_are_read_and_a_state_of_a_later_release_says_nothing() {
        let read_clients = |client: i32, waiting: Vec<u32>| {
            let digest = Digest::of(b"blob").to_string();
            let clients = wire::Clients {
                digest,
                client,
                waiting,
            };
            match read_order(Order::Clients(clients)) {
                Ok(Some(SessionEvent::Clients { connected, waiting, .. })) => (connected, waiting),
                read => panic!("{read:?}"),
            }
        };
        assert_eq!(read_clients(1, vec![PIECE_COUNT_MAX, 7]), (Some(true), vec![7]));
        assert_eq!(read_clients(2, Vec::new()), (Some(false), Vec::new()));
        let (connected, waiting) = read_clients(9, (0..100).collect());
        assert_eq!((connected, waiting.len()), (None, WAITING_MAX));
    }

    #[test]
    fn pieces_to_be_dropped_lie_within_what_a_blob_can_have() {
        let drop = |first, count| {
            read_order(Order::Drop(wire::Drop {
                digest: Digest::of(b"blob").to_string(),
                fill: 7,
                pieces: vec![wire::PieceRange { first, count }],
            }))
        };
        assert!(
            matches!(drop(2, 3), Ok(Some(SessionEvent::Drop { pieces, .. })) if pieces.len() == 1 && pieces[0] == (2..5))
        );
        assert!(drop(0, PIECE_COUNT_MAX + 1).is_err() && drop(u32::MAX, 1).is_err());
    }
}
