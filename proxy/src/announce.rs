//! Announcements to the scheduler: which pieces and blobs are here, as they land.
//!
//! Invariant: without a scheduler nothing is reported, and bytes are counted all the same.

use std::{ops::Range, sync::Arc};

use piecemeal_proto::{
    AuthorityKey, Digest, FillId, PieceHash, PieceMap, SignedPieceHashes,
    wire::{self, HAVE_PIECES_MAX, report::Report},
};
use piecemeal_store::{Blob, Filling, Store};
use piecemeal_swarm::Session;
use tracing::warn;

use crate::{Destination, FillObserver, Origin, Traffic};

/// Reports fills to the scheduler, when there is one, and counts their bytes.
#[derive(Clone)]
pub struct Announcer {
    session: Option<Session>,
    traffic: Traffic,
    /// A mirror's key, which signs the piece hashes of proven blobs.
    authority: Option<Arc<AuthorityKey>>,
}

impl Announcer {
    pub fn new(session: Option<Session>, traffic: Traffic) -> Self {
        Self {
            session,
            traffic,
            authority: None,
        }
    }

    /// For a mirror: its signed lists of piece hashes stay valid after its session.
    pub fn signing(self, authority: Option<Arc<AuthorityKey>>) -> Self {
        Self { authority, ..self }
    }

    /// Reports one event; dropped when there is no scheduler.
    pub fn report(&self, report: Report) {
        if let Some(session) = &self.session {
            session.report(report);
        }
    }

    /// Reports to the scheduler, which asked for it, the pieces of a blob that are here, with hashes.
    pub async fn describe(&self, store: &Store, digest: &Digest) {
        let reports = match store.blob(digest).await {
            Ok(Some(blob)) => {
                let list = self.list(store, &blob).await;
                list.into_iter().chain(blob_reports(&blob)).collect()
            }
            Ok(None) => match store.filling(digest) {
                Some(filling) => filling_reports(&filling),
                None => vec![lost(digest)],
            },
            Err(error) => {
                warn!(blob.digest = %digest, %error, "{digest} cannot be described to the scheduler");
                vec![lost(digest)]
            }
        };
        for report in reports {
            self.report(report);
        }
    }

    /// The signed list of a blob's piece hashes, made here or kept beside the blob, for a scheduler that supports such lists.
    async fn list(&self, store: &Store, blob: &Blob) -> Option<Report> {
        if let Some(list) = self.sign(blob) {
            return Some(list);
        }
        let session = self.session.as_ref()?;
        if !session.has_feature(wire::feature::PIECE_HASHES) {
            return None;
        }
        let signature = store.piece_hashes(blob.digest()).await.ok().flatten()?.signature?;
        Some(Report::PieceHashes(wire::PieceHashes {
            digest: blob.digest().to_string(),
            blob_bytes: blob.map().blob_bytes(),
            piece_bytes: blob.map().piece_bytes(),
            hash_algorithm: wire::HashAlgorithm::Sha256.into(),
            hashes: blob.piece_hashes().concat(),
            signature: signature.to_vec(),
        }))
    }

    fn sign(&self, blob: &Blob) -> Option<Report> {
        let (authority, session) = (self.authority.as_ref()?, self.session.as_ref()?);
        if !session.has_feature(wire::feature::PIECE_HASHES) {
            return None;
        }
        let hashes = blob.piece_hashes().to_vec();
        let list = SignedPieceHashes::sign(authority, *blob.digest(), blob.map(), hashes)?;
        Some(Report::PieceHashes(list.to_wire()))
    }
}

impl FillObserver for Announcer {
    fn opened(&self, filling: &Filling) {
        for report in filling_reports(filling) {
            self.report(report);
        }
    }

    fn landed(&self, filling: &Filling, piece: u32, hash: PieceHash) {
        self.report(have(
            filling.digest(),
            filling.fill(),
            filling.map(),
            piece,
            vec![Some(hash)],
        ));
    }

    fn kept(&self, blob: &Blob) {
        if let Some(list) = self.sign(blob) {
            self.report(list);
        }
    }

    fn proven(&self, digest: &Digest, fill: FillId) {
        self.report(Report::Proven(wire::Proven {
            digest: digest.to_string(),
            fill: fill.0,
        }));
        self.report(complete(digest));
    }

    fn revoked(&self, digest: &Digest, fill: FillId) {
        self.report(Report::Revoke(wire::Revoke {
            digest: digest.to_string(),
            fill: fill.0,
        }));
    }

    fn received(&self, bytes: usize) {
        self.traffic.count(Origin::Upstream, Destination::Store, bytes as u64);
    }
}

/// Reports of the pieces that a live fill has.
pub fn filling_reports(filling: &Filling) -> Vec<Report> {
    let have_pieces = filling.have();
    let mut reports = Vec::new();
    let mut pieces = have_pieces.iter().peekable();
    while let Some(first) = pieces.next() {
        let mut run: Range<u32> = first..first + 1;
        while run.len() < HAVE_PIECES_MAX && pieces.next_if_eq(&run.end).is_some() {
            run.end += 1;
        }
        let hashes = run.map(|index| filling.hash(index)).collect();
        reports.push(have(filling.digest(), filling.fill(), filling.map(), first, hashes));
    }
    reports
}

fn blob_reports(blob: &Blob) -> Vec<Report> {
    let hashes = blob.piece_hashes();
    let chunks = (0..).step_by(HAVE_PIECES_MAX).zip(hashes.chunks(HAVE_PIECES_MAX));
    let mut reports: Vec<Report> = chunks
        .map(|(first, hashes)| {
            have(
                blob.digest(),
                blob.fill(),
                blob.map(),
                first,
                hashes.iter().copied().map(Some).collect(),
            )
        })
        .collect();
    reports.push(complete(blob.digest()));
    reports
}

/// Pieces `first`, `first + 1`, … are here; a hash that is not known here is left out with all others of the report.
pub fn have(digest: &Digest, fill: FillId, map: PieceMap, first: u32, hashes: Vec<Option<PieceHash>>) -> Report {
    Report::Have(wire::Have {
        digest: digest.to_string(),
        fill: fill.0,
        blob_bytes: map.blob_bytes(),
        piece_bytes: map.piece_bytes(),
        first,
        count: u32::try_from(hashes.len()).expect("no more pieces than a blob has"),
        hash_algorithm: wire::HashAlgorithm::Sha256.into(),
        hashes: wire::join_hashes(&hashes),
    })
}

/// The whole blob is here, its digest proven.
pub fn complete(digest: &Digest) -> Report {
    Report::Complete(wire::Complete {
        digest: digest.to_string(),
    })
}

/// The blob was removed.
pub fn lost(digest: &Digest) -> Report {
    Report::Lost(wire::Lost {
        digest: digest.to_string(),
    })
}
