//! Fetches of pieces from one source into the store. A piece is kept only once it is verified.

use std::{net::SocketAddr, ops::Range, pin::pin};

use futures_util::StreamExt;
use piecemeal_proto::{
    PieceHash,
    wire::{Lease, Outcome, SourceKind},
};
use piecemeal_proxy::{Destination, FillObserver, Origin};
use piecemeal_store::{Filling, Repository, WritePieceError};
use piecemeal_swarm::{FetchPiecesError, FetchedPiece, PieceRequest};
use piecemeal_upstream::Caller;
use tracing::{debug, warn};

use super::{ended::Ended, parts::Parts};

/// One fetch: these pieces from there.
pub(super) struct Fetch {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) token: String,
    pub(super) origin: Origin,
    /// Ascending, not necessarily contiguous.
    pub(super) pieces: Vec<u32>,
    /// From the scheduler; empty when the mirror itself sends them along.
    pub(super) hashes: Vec<(u32, PieceHash)>,
    /// The mirror's answer may wait for the WAN.
    pub(super) patient: bool,
}

impl Fetch {
    /// What is still to be fetched of a lease, from a peer or the mirror.
    fn of_lease(lease: Lease, kind: SourceKind, pieces: Vec<u32>) -> Self {
        let addresses = lease.source.iter().flat_map(|source| &source.addresses);
        let addresses = addresses.filter_map(|address| {
            Some(SocketAddr::new(
                address.ip.parse().ok()?,
                u16::try_from(address.port).ok()?,
            ))
        });
        let hashes = piecemeal_proto::wire::split_hashes(&lease.hashes, lease.count).unwrap_or_default();
        Self {
            addresses: addresses.collect(),
            token: String::from_utf8(lease.ticket).unwrap_or_default(),
            origin: if kind == SourceKind::Mirror {
                Origin::Mirror
            } else {
                Origin::Peer
            },
            pieces,
            hashes: (lease.first..)
                .zip(hashes)
                .filter_map(|(piece, hash)| Some((piece, hash?)))
                .collect(),
            patient: false,
        }
    }

    fn request(&self, filling: &Filling, run: &Range<u32>) -> PieceRequest {
        PieceRequest {
            addresses: self.addresses.clone(),
            digest: *filling.digest(),
            fill: filling.fill(),
            map: filling.map(),
            first: run.start,
            count: run.end - run.start,
            token: self.token.clone(),
            patient: self.patient,
        }
    }

    /// The hash that the scheduler has stated for a piece.
    fn known_hash(&self, piece: u32) -> Option<PieceHash> {
        let mut hashes = self.hashes.iter();
        hashes.find(|(index, _)| *index == piece).map(|(_, hash)| *hash)
    }
}

impl Parts {
    /// Carries out a lease, of which `pieces` are still to be fetched.
    pub(super) async fn fetch_lease(
        self,
        caller: Caller,
        at: Repository,
        filling: Filling,
        lease: Lease,
        pieces: Vec<u32>,
    ) -> Ended {
        let source = lease.source.as_ref();
        let kind = source.map_or(SourceKind::Unspecified, |source| source.kind());
        if kind == SourceKind::Upstream {
            return self.fetch_upstream(&caller, &at, &filling, &pieces).await;
        }
        self.fetch_pieces(&filling, Fetch::of_lease(lease, kind, pieces)).await
    }

    /// Fetches pieces from a peer or the mirror, run by run.
    pub(super) async fn fetch_pieces(&self, filling: &Filling, fetch: Fetch) -> Ended {
        for run in runs(&fetch.pieces) {
            let mut pieces = pin!(self.pieces.fetch(fetch.request(filling, &run)));
            while let Some(piece) = pieces.next().await {
                let kept = match piece {
                    Ok(piece) => self.keep(filling, &fetch, piece).await,
                    Err(error) => {
                        debug!(blob.digest = %filling.digest(), source = ?fetch.addresses, %error, "a fetch ended early: {error}");
                        Err(Ended {
                            outcome: outcome(&error),
                            piece: run.start,
                        })
                    }
                };
                if let Err(ended) = kept {
                    return ended;
                }
            }
        }
        Outcome::Done.into()
    }

    /// Verifies and writes a piece that has come, and announces it. An error ends the fetch.
    async fn keep(&self, filling: &Filling, fetch: &Fetch, piece: FetchedPiece) -> Result<(), Ended> {
        let index = piece.index;
        let bytes = piece.bytes.len() as u64;
        self.traffic.count(fetch.origin, Destination::Store, bytes);
        let Some(expected) = expected_hash(fetch.known_hash(index), piece.hash, fetch.origin) else {
            return Err(Ended {
                outcome: Outcome::Cancelled,
                piece: index,
            });
        };
        match filling.write_piece(index, piece.bytes, Some(expected)).await {
            Ok(hash) => {
                self.announcer.landed(filling, index, hash);
                Ok(())
            }
            Err(WritePieceError::Mismatch { .. }) => {
                warn!(blob.digest = %filling.digest(), source = ?fetch.addresses, "a corrupt piece {index} of {} came from {:?}; it is dropped", filling.digest(), fetch.addresses);
                Err(Ended {
                    outcome: Outcome::Corrupt,
                    piece: index,
                })
            }
            Err(error) => {
                debug!(blob.digest = %filling.digest(), %error, "a piece could not be kept");
                Err(Outcome::Cancelled.into())
            }
        }
    }

    async fn fetch_upstream(&self, caller: &Caller, at: &Repository, filling: &Filling, pieces: &[u32]) -> Ended {
        for run in runs(pieces) {
            let map = filling.map();
            let bytes = map.range(run.start).start..map.range(run.end - 1).end;
            if let Err(error) = self.upstream.fetch_run(caller, at, filling, &bytes).await {
                warn!(blob.digest = %filling.digest(), %error, "upstream, leased since the mirror is lost, failed: {error}");
                return Ended {
                    outcome: Outcome::Unreachable,
                    piece: run.start,
                };
            }
        }
        Outcome::Done.into()
    }
}

/// The hash that a piece must have: the scheduler's, which it has from the mirror or a peer's statement, or else the mirror's own.
/// `stated`: the source's, which comes with the piece. A peer's is not trusted: it could state the hash of any bytes.
fn expected_hash(known: Option<PieceHash>, stated: Option<PieceHash>, origin: Origin) -> Option<PieceHash> {
    match origin {
        Origin::Mirror => known.or(stated),
        _ => known,
    }
}

fn outcome(error: &FetchPiecesError) -> Outcome {
    match error {
        FetchPiecesError::Unreachable => Outcome::Unreachable,
        FetchPiecesError::Missing => Outcome::Missing,
        FetchPiecesError::Refused => Outcome::Refused,
        FetchPiecesError::Stalled | FetchPiecesError::Busy | FetchPiecesError::Broken(_) => Outcome::Stalled,
    }
}

/// Contiguous runs of ascending pieces.
fn runs(pieces: &[u32]) -> impl Iterator<Item = Range<u32>> + '_ {
    pieces
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| run[0]..run[run.len() - 1] + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: PieceHash = [1; 32];
    const STATED: PieceHash = [2; 32];

    #[test]
    fn the_schedulers_word_for_a_piece_is_above_its_sources() {
        for origin in [Origin::Mirror, Origin::Peer] {
            assert_eq!(expected_hash(Some(KNOWN), Some(STATED), origin), Some(KNOWN));
            assert_eq!(expected_hash(Some(KNOWN), None, origin), Some(KNOWN));
        }
    }

    #[test]
    fn of_sources_only_the_mirror_is_trusted_with_the_hash_of_what_it_sends() {
        assert_eq!(expected_hash(None, Some(STATED), Origin::Mirror), Some(STATED));
        for origin in [Origin::Peer, Origin::Upstream] {
            assert_eq!(expected_hash(None, Some(STATED), origin), None);
        }
    }

    #[test]
    fn without_a_trusted_hash_no_piece_is_kept() {
        for origin in [Origin::Mirror, Origin::Peer, Origin::Upstream] {
            assert_eq!(expected_hash(None, None, origin), None);
        }
    }

    #[test]
    fn runs_are_contiguous() {
        assert_eq!(runs(&[1, 2, 3, 5, 7, 8]).collect::<Vec<_>>(), [1..4, 5..6, 7..9]);
        assert_eq!(runs(&[]).count(), 0);
    }
}
