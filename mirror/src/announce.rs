//! Telling the scheduler what is here, as it lands.

use std::ops::Range;

use piecemeal_proto::{
    Digest, FillId, PieceHash, PieceMap,
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
}

impl Announcer {
    pub fn new(session: Option<Session>, traffic: Traffic) -> Self {
        Self { session, traffic }
    }

    /// Reports one event; dropped when there is no scheduler.
    pub fn report(&self, report: Report) {
        if let Some(session) = &self.session {
            session.report(report);
        }
    }

    /// Answers the scheduler's question what is here of a blob, with hashes.
    pub async fn describe(&self, store: &Store, digest: &Digest) {
        let reports = match store.blob(digest).await {
            Ok(Some(blob)) => blob_reports(&blob),
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

/// What is here of a blob that is still on its way.
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

/// The blob is here no more.
pub fn lost(digest: &Digest) -> Report {
    Report::Lost(wire::Lost {
        digest: digest.to_string(),
    })
}
