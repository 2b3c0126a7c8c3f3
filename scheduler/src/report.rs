//! Reader of daemons' reports: checks them and turns them into the brain's events.
//!
//! Invariant: nothing in a report is trusted until it is checked here. Digests, bitmaps, counts and lengths fit each other, a
//! peer wants only blobs that it has a grant for, and only a mirror makes statements about whole fills.

use std::sync::Arc;

use piecemeal_proto::{AuthorityPublic, Digest, Grant, NodeId, PieceSet, SignedPieceHashes, wire};
use wire::report::Report as ReportKind;

use crate::{
    brain::{Event, LeaseId, MemberId, Role},
    report_fields::{PIECE_BYTES_FLOOR, ReadReportError, digest, fill, malformed, map, window},
};

/// Reads the reports of one member.
pub(crate) struct ReportReader {
    pub(crate) member: MemberId,
    pub(crate) node: NodeId,
    pub(crate) role: Role,
    pub(crate) authority: AuthorityPublic,
}

impl ReportReader {
    /// Appends the events that `report` tells of. `now` is in seconds since 1970. An unknown kind of report has no events.
    pub(crate) fn read(&self, report: wire::Report, now: u64, events: &mut Vec<Event>) -> Result<(), ReadReportError> {
        let member = self.member;
        let event = match report.report {
            None => return Ok(()),
            Some(ReportKind::Hello(_)) => return Err(malformed("second hello")),
            Some(ReportKind::Inventory(inventory)) => return self.inventory(&inventory, events),
            // The session passes it on; the brain has no part in it.
            Some(ReportKind::Warm(warm)) => return self.warm(&warm),
            Some(ReportKind::Want(want)) => {
                events.push(self.want(&want, now)?);
                events.extend(self.client(&want));
                return Ok(());
            }
            Some(ReportKind::Have(have)) => self.have(&have)?,
            Some(ReportKind::Proven(proven)) => self.proven(&proven)?,
            Some(ReportKind::PieceHashes(list)) => self.piece_hashes(&list)?,
            Some(ReportKind::Revoke(revoke)) => self.revoke(&revoke)?,
            Some(ReportKind::Unwant(unwant)) => {
                let digest = digest(&unwant.digest)?;
                Event::Unwant { member, digest }
            }
            Some(ReportKind::Complete(complete)) => {
                let digest = digest(&complete.digest)?;
                Event::Complete { member, digest }
            }
            Some(ReportKind::Lost(lost)) => {
                let digest = digest(&lost.digest)?;
                Event::Lost { member, digest }
            }
            Some(ReportKind::Waiting(waiting)) => Event::Waiting {
                member,
                digest: digest(&waiting.digest)?,
                piece: waiting.piece,
            },
            Some(ReportKind::LeaseEnded(ended)) => Event::LeaseEnded {
                member,
                lease: LeaseId(ended.lease),
                outcome: (&ended).into(),
            },
        };
        events.push(event);
        Ok(())
    }

    /// The piece map and the fill come from the peer's grant; a mirror, which issues grants, states them itself.
    fn want(&self, want: &wire::Want, now: u64) -> Result<Event, ReadReportError> {
        let digest = digest(&want.digest)?;
        let refused = |reason: String| ReadReportError::Want { digest, reason };
        let (map, fill) = match self.role {
            Role::Mirror => (map(want.blob_bytes, want.piece_bytes)?, fill(want.fill)?),
            Role::Peer => {
                let grant = self.grant(&want.grant, &digest, now).map_err(refused)?;
                (grant.map, grant.fill)
            }
        };
        // A bitmap over another fill says nothing about this fill.
        let have = if want.have.is_empty() || want.fill != fill.0 {
            PieceSet::new(map.count())
        } else {
            PieceSet::from_bytes(map.count(), &want.have).ok_or_else(|| {
                refused(format!(
                    "the bitmap does not fit the blob, which has {} pieces",
                    map.count()
                ))
            })?
        };
        Ok(Event::Want {
            member: self.member,
            digest,
            map,
            fill,
            have,
            window: window(want, map),
        })
    }

    /// Whether a client waits at a peer; `None` where it does not say so.
    fn client(&self, want: &wire::Want) -> Option<Event> {
        let connected = match (self.role, want.client()) {
            (Role::Mirror, _) | (_, wire::ClientState::Unspecified) => return None,
            (Role::Peer, state) => state == wire::ClientState::Connected,
        };
        Some(Event::Client {
            member: self.member,
            digest: want.digest.parse().ok()?,
            connected,
        })
    }

    fn grant(&self, text: &[u8], digest: &Digest, now: u64) -> Result<Grant, String> {
        let text = str::from_utf8(text).map_err(|_| "the grant is not text (pass the mirror's on unchanged)")?;
        let grant = Grant::check(text, &self.authority, now)
            .map_err(|error| format!("{error}; ask the mirror for a new grant"))?;
        if grant.node != self.node {
            return Err("the grant is another node's (ask the mirror for one of its own)".into());
        }
        if grant.digest != *digest {
            return Err("the grant is for another blob (ask the mirror for this one's)".into());
        }
        if grant.map.piece_bytes() < PIECE_BYTES_FLOOR {
            return Err(format!("pieces have {PIECE_BYTES_FLOOR} bytes or more"));
        }
        Ok(grant)
    }

    fn have(&self, have: &wire::Have) -> Result<Event, ReadReportError> {
        let digest = digest(&have.digest)?;
        let fill = fill(have.fill)?;
        let map = map(have.blob_bytes, have.piece_bytes)?;
        if have.count == 0 || have.count as usize > wire::HAVE_PIECES_MAX {
            return Err(malformed("count"));
        }
        let end = have.first.checked_add(have.count);
        if end.is_none_or(|end| end > map.count()) {
            return Err(malformed("range"));
        }
        // This release cannot check the hashes of a later one; the member holds the pieces all the same.
        let hashes: &[u8] = match have.hash_algorithm() {
            wire::HashAlgorithm::Sha256 => &have.hashes,
            wire::HashAlgorithm::Unspecified => &[],
        };
        Ok(Event::Have {
            member: self.member,
            digest,
            map,
            fill,
            first: have.first,
            hashes: wire::split_hashes(hashes, have.count).ok_or(malformed("hashes"))?,
        })
    }

    fn proven(&self, proven: &wire::Proven) -> Result<Event, ReadReportError> {
        self.mirrors_only()?;
        Ok(Event::Proven {
            member: self.member,
            digest: digest(&proven.digest)?,
            fill: fill(proven.fill)?,
        })
    }

    /// A mirror revokes the fill. A peer's statement concerns its own copy only.
    fn revoke(&self, revoke: &wire::Revoke) -> Result<Event, ReadReportError> {
        let (digest, fill, member) = (digest(&revoke.digest)?, fill(revoke.fill)?, self.member);
        Ok(match self.role {
            Role::Mirror => Event::Revoke { member, digest, fill },
            Role::Peer => Event::Doubt { member, digest, fill },
        })
    }

    fn warm(&self, warm: &wire::Warm) -> Result<(), ReadReportError> {
        self.mirrors_only()?;
        warm.is_sound().then_some(()).ok_or(malformed("warm"))
    }

    /// Accepted from any member, since the authority signed it.
    fn piece_hashes(&self, list: &wire::PieceHashes) -> Result<Event, ReadReportError> {
        let list =
            SignedPieceHashes::from_wire(list, &self.authority).map_err(|_| malformed("list of piece hashes"))?;
        match list.map().piece_bytes() >= PIECE_BYTES_FLOOR {
            true => Ok(Event::PieceHashes {
                member: self.member,
                list: Arc::new(list),
            }),
            false => Err(malformed("piece size")),
        }
    }

    /// Leaves out digests that it cannot read, so that a digest of a later release does not cost the others.
    fn inventory(&self, inventory: &wire::Inventory, events: &mut Vec<Event>) -> Result<(), ReadReportError> {
        if inventory.complete.len() > wire::INVENTORY_CHUNK_MAX {
            return Err(malformed("inventory"));
        }
        let before = events.len();
        let digests = inventory.complete.iter().filter_map(|text| text.parse().ok());
        events.extend(digests.map(|digest| Event::Complete {
            member: self.member,
            digest,
        }));
        if events.len() - before == inventory.complete.len() {
            Ok(())
        } else {
            Err(malformed("digest"))
        }
    }

    fn mirrors_only(&self) -> Result<(), ReadReportError> {
        match self.role {
            Role::Mirror => Ok(()),
            Role::Peer => Err(ReadReportError::MirrorsOnly),
        }
    }
}

#[cfg(test)]
mod tests {
    use piecemeal_proto::{AuthorityKey, FillId, PieceMap};

    use super::*;
    use crate::brain::Outcome;

    const NODE: NodeId = NodeId([1; 16]);

    fn key() -> AuthorityKey {
        AuthorityKey::from_seed([3; 32])
    }

    fn read(role: Role, report: impl Into<Option<ReportKind>>) -> Result<Vec<Event>, ReadReportError> {
        let reader = ReportReader {
            member: MemberId(1),
            node: NODE,
            role,
            authority: key().public(),
        };
        let mut events = Vec::new();
        let report = wire::Report { report: report.into() };
        reader.read(report, 500, &mut events)?;
        Ok(events)
    }

    fn have() -> wire::Have {
        wire::Have {
            digest: Digest::of(b"blob").to_string(),
            fill: 7,
            blob_bytes: 1000,
            piece_bytes: 100,
            first: 8,
            count: 2,
            hash_algorithm: wire::HashAlgorithm::Sha256.into(),
            hashes: vec![5; 64],
        }
    }

    fn want(fill: u64, have: &[u8]) -> wire::Want {
        let grant = Grant {
            node: NODE,
            digest: Digest::of(b"blob"),
            map: PieceMap::new(1000, 100).unwrap(),
            fill: FillId(7),
            expires: 1000,
        };
        wire::Want {
            digest: grant.digest.to_string(),
            grant: grant.sign(&key()).into_bytes(),
            fill,
            blob_bytes: u64::MAX,
            piece_bytes: 0,
            have: have.to_vec(),
            ..wire::Want::default()
        }
    }

    #[test]
    fn a_peers_want_says_whether_its_client_is_connected_and_that_of_the_last_release_says_nothing() {
        let clients = |role, client: i32| {
            let want = wire::Want {
                blob_bytes: 1000,
                piece_bytes: 1000,
                client,
                ..want(7, &[])
            };
            let events = read(role, ReportKind::Want(want)).unwrap().into_iter();
            let clients = events.filter_map(|event| match event {
                Event::Client { connected, .. } => Some(connected),
                _ => None,
            });
            clients.collect::<Vec<_>>()
        };
        assert_eq!(clients(Role::Peer, wire::ClientState::Connected.into()), [true]);
        assert_eq!(clients(Role::Peer, wire::ClientState::Absent.into()), [false]);
        assert_eq!(clients(Role::Peer, 0), [false; 0]);
        assert_eq!(clients(Role::Mirror, wire::ClientState::Absent.into()), [false; 0]);
    }

    fn wanted(role: Role, want: wire::Want) -> (u64, FillId, Vec<u32>) {
        let events = read(role, ReportKind::Want(want)).unwrap();
        let [Event::Want { map, fill, have, .. }] = &events[..] else {
            panic!("{events:?}");
        };
        (map.blob_bytes(), *fill, have.iter().collect())
    }

    #[test]
    fn the_grant_says_how_the_blob_is_cut_and_the_message_does_not() {
        assert_eq!(wanted(Role::Peer, want(7, &[0b101, 0])), (1000, FillId(7), vec![0, 2]));
        assert_eq!(wanted(Role::Peer, want(7, &[])), (1000, FillId(7), vec![]));
    }

    #[test]
    fn pieces_of_another_fill_do_not_count() {
        assert_eq!(wanted(Role::Peer, want(8, &[0b101, 0])), (1000, FillId(7), vec![]));
    }

    #[test]
    fn a_mirror_states_the_cut_itself() {
        let want = wire::Want {
            grant: Vec::new(),
            blob_bytes: 200,
            piece_bytes: 100,
            ..want(9, &[1])
        };
        assert_eq!(wanted(Role::Mirror, want), (200, FillId(9), vec![0]));
    }

    #[test]
    fn a_bitmap_of_another_length_is_refused() {
        for bitmap in [&[1][..], &[0, 0xff], &[0; 3]] {
            let refused = read(Role::Peer, ReportKind::Want(want(7, bitmap))).unwrap_err();
            assert!(matches!(refused, ReadReportError::Want { .. }), "{refused:?}");
        }
    }

    #[test]
    fn pieces_are_offered_within_the_blob_and_one_hash_each() {
        let events = read(Role::Peer, ReportKind::Have(have())).unwrap();
        assert!(matches!(&events[..], [Event::Have { hashes, .. }] if *hashes == [Some([5; 32]); 2]));
        let wrong = [
            wire::Have { first: 9, ..have() },
            wire::Have {
                first: u32::MAX,
                ..have()
            },
            wire::Have { count: 0, ..have() },
            wire::Have {
                count: u32::MAX,
                ..have()
            },
            wire::Have {
                hashes: vec![5; 63],
                ..have()
            },
            wire::Have { fill: 0, ..have() },
            wire::Have {
                piece_bytes: 0,
                ..have()
            },
            wire::Have {
                blob_bytes: 100,
                piece_bytes: 10,
                ..have()
            },
            wire::Have {
                digest: "../etc".into(),
                ..have()
            },
        ];
        for have in wrong {
            let report = ReportKind::Have(have);
            assert!(read(Role::Mirror, report.clone()).is_err(), "{report:?}");
        }
    }

    #[test]
    fn hashes_of_another_algorithm_are_not_believed() {
        let have = wire::Have {
            hash_algorithm: 99,
            hashes: vec![5; 7],
            ..have()
        };
        let events = read(Role::Peer, ReportKind::Have(have)).unwrap();
        assert!(matches!(&events[..], [Event::Have { hashes, .. }] if *hashes == [None; 2]));
    }

    #[test]
    fn only_a_mirror_proves_and_revokes() {
        let digest = Digest::of(b"blob").to_string();
        let proven = ReportKind::Proven(wire::Proven {
            digest: digest.clone(),
            fill: 7,
        });
        let revoke = ReportKind::Revoke(wire::Revoke { digest, fill: 7 });
        assert_eq!(read(Role::Peer, proven.clone()), Err(ReadReportError::MirrorsOnly));
        let doubts = read(Role::Peer, revoke.clone()).unwrap();
        assert!(
            matches!(doubts[..], [Event::Doubt { .. }]),
            "a peer speaks for its own copy"
        );
        for report in [proven, revoke] {
            assert_eq!(read(Role::Mirror, report).unwrap().len(), 1);
        }
    }

    #[test]
    fn a_signed_piece_list_is_accepted_from_any_member() {
        let (blob, map) = (Digest::of(b"blob"), PieceMap::new(1000, 100).unwrap());
        let signed = SignedPieceHashes::sign(&key(), blob, map, vec![[4; 32]; 10]).unwrap();
        for role in [Role::Peer, Role::Mirror] {
            let events = read(role, ReportKind::PieceHashes(signed.to_wire())).unwrap();
            assert!(matches!(&events[..], [Event::PieceHashes { list, .. }] if **list == signed));
            let mut forged = signed.to_wire();
            forged.hashes[0] ^= 1;
            assert!(read(role, ReportKind::PieceHashes(forged)).is_err(), "{role:?}");
        }
    }

    #[test]
    fn only_a_mirror_has_peers_warmed_and_only_by_sound_names() {
        let warm = wire::Warm {
            upstream: "docker.io".into(),
            repository: "library/alpine".into(),
            tag: "3".into(),
            manifests: vec![Digest::of(b"manifest").to_string()],
            blobs: Vec::new(),
        };
        let report = ReportKind::Warm(warm.clone());
        assert_eq!(read(Role::Peer, report.clone()), Err(ReadReportError::MirrorsOnly));
        assert_eq!(read(Role::Mirror, report), Ok(vec![]), "placement hears nothing of it");
        let unsound = wire::Warm {
            repository: "../x".into(),
            ..warm
        };
        assert_eq!(
            read(Role::Mirror, ReportKind::Warm(unsound)),
            Err(ReadReportError::Malformed { field: "warm" })
        );
    }

    #[test]
    fn a_report_of_a_later_release_tells_nothing() {
        assert_eq!(read(Role::Peer, None), Ok(vec![]));
        let ended = wire::LeaseEnded {
            lease: 1,
            outcome: 99,
            piece: 0,
        };
        let events = read(Role::Peer, ReportKind::LeaseEnded(ended)).unwrap();
        assert!(matches!(
            events[..],
            [Event::LeaseEnded {
                outcome: Outcome::Cancelled,
                ..
            }]
        ));
    }
}
