//! Fetches of pieces from one source into the store. A piece is kept only once it is verified.

use std::{net::SocketAddr, pin::pin};

use futures_util::StreamExt;
use piecemeal_proto::{
    PieceHash,
    wire::{Lease, Outcome, SourceKind},
};
use piecemeal_proxy::{Destination, FillObserver, Origin};
use piecemeal_store::{Filling, Repository, WritePieceError};
use piecemeal_swarm::{FetchPiecesError, PieceRequest};
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
        let kind = lease
            .source
            .as_ref()
            .map_or(SourceKind::Unspecified, |source| source.kind());
        if kind == SourceKind::Upstream {
            return self.fetch_upstream(&caller, &at, &filling, &pieces).await;
        }
        let addresses = lease.source.iter().flat_map(|source| &source.addresses);
        let addresses = addresses.filter_map(|address| {
            Some(SocketAddr::new(
                address.ip.parse().ok()?,
                u16::try_from(address.port).ok()?,
            ))
        });
        let hashes = piecemeal_proto::wire::split_hashes(&lease.hashes, lease.count).unwrap_or_default();
        let fetch = Fetch {
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
        };
        self.fetch_pieces(&filling, fetch).await
    }

    /// Fetches pieces from a peer or the mirror, run by run.
    pub(super) async fn fetch_pieces(&self, filling: &Filling, fetch: Fetch) -> Ended {
        for run in runs(&fetch.pieces) {
            let request = PieceRequest {
                addresses: fetch.addresses.clone(),
                digest: *filling.digest(),
                fill: filling.fill(),
                map: filling.map(),
                first: run.start,
                count: run.end - run.start,
                token: fetch.token.clone(),
                patient: fetch.patient,
            };
            let mut pieces = pin!(self.pieces.fetch(request));
            while let Some(piece) = pieces.next().await {
                let piece = match piece {
                    Ok(piece) => piece,
                    Err(error) => {
                        debug!(blob.digest = %filling.digest(), source = ?fetch.addresses, %error, "a fetch ended early: {error}");
                        return Ended {
                            outcome: outcome(&error),
                            piece: run.start,
                        };
                    }
                };
                self.traffic
                    .count(fetch.origin, Destination::Store, piece.bytes.len() as u64);
                let known = fetch
                    .hashes
                    .iter()
                    .find(|(index, _)| *index == piece.index)
                    .map(|(_, hash)| *hash);
                // A hash from the mirror is as good as one from the scheduler, which has it from there. A peer's hash is not
                // trusted.
                let stated = piece.hash.filter(|_| fetch.origin == Origin::Mirror);
                let Some(expected) = known.or(stated) else {
                    return Ended {
                        outcome: Outcome::Cancelled,
                        piece: piece.index,
                    };
                };
                match filling.write_piece(piece.index, piece.bytes, Some(expected)).await {
                    Ok(hash) => self.announcer.landed(filling, piece.index, hash),
                    Err(WritePieceError::Mismatch { .. }) => {
                        warn!(blob.digest = %filling.digest(), source = ?fetch.addresses, "a corrupt piece {} of {} came from {:?}; it is dropped", piece.index, filling.digest(), fetch.addresses);
                        return Ended {
                            outcome: Outcome::Corrupt,
                            piece: piece.index,
                        };
                    }
                    Err(error) => {
                        debug!(blob.digest = %filling.digest(), %error, "a piece could not be kept");
                        return Outcome::Cancelled.into();
                    }
                }
            }
        }
        Outcome::Done.into()
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

fn outcome(error: &FetchPiecesError) -> Outcome {
    match error {
        FetchPiecesError::Unreachable => Outcome::Unreachable,
        FetchPiecesError::Missing => Outcome::Missing,
        FetchPiecesError::Refused => Outcome::Refused,
        FetchPiecesError::Stalled | FetchPiecesError::Busy | FetchPiecesError::Broken(_) => Outcome::Stalled,
    }
}

/// Contiguous runs of ascending pieces.
fn runs(pieces: &[u32]) -> impl Iterator<Item = std::ops::Range<u32>> + '_ {
    pieces
        .chunk_by(|a, b| a + 1 == *b)
        .map(|run| run[0]..run[run.len() - 1] + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_contiguous() {
        assert_eq!(runs(&[1, 2, 3, 5, 7, 8]).collect::<Vec<_>>(), [1..4, 5..6, 7..9]);
        assert_eq!(runs(&[]).count(), 0);
    }
}
