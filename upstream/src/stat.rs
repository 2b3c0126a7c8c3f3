//! Stat of a manifest or a blob: whether upstream has it, and what it says of it.
//!
//! Invariant: where HEAD says nothing that counts (`head.rs`), GET is asked before anything is concluded.

use std::time::Instant;

use piecemeal_proto::{Digest, Reference};
use piecemeal_store::Repository;
use reqwest::{Method, Response, StatusCode};

use crate::{Caller, PullError};
use crate::{
    answer::{content_length, content_range, read_body, stated_digest, text},
    breaker::RequestKind,
    client::{FetchedManifest, manifest_ask},
    head::{Got, HeadAnswer, Worth},
    limits::SMALL_BODY_BYTES,
    note::Note,
    proof::Proof,
    request::{Purpose, Request},
    upstream::Upstream,
};

/// The stat of a manifest.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    pub digest: Digest,
    pub note: Note,
    /// The manifest itself, where upstream had to be asked by GET.
    pub manifest: Option<FetchedManifest>,
}

/// The answer to HEAD.
enum Head {
    /// As good as an answer to GET.
    Good(Response),
    /// GET has to be asked. `None`: HEAD was not sent, or led nowhere.
    Doubtful(Option<Doubt>),
}

struct Doubt {
    status: Option<StatusCode>,
    blob_bytes: Option<u64>,
}

impl Upstream {
    /// Asks what a manifest is: by HEAD where that counts, otherwise by GET.
    ///
    /// # Errors
    /// As [`Upstream::manifest`].
    pub async fn head_manifest(
        &self,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
    ) -> Result<ManifestAnswer, PullError> {
        let path = format!("manifests/{reference}");
        let doubt = match self.ask_head(manifest_ask(&Method::HEAD, caller, at, &path)).await? {
            Head::Good(response) => {
                let digest = stated_digest(response.headers())
                    .ok_or_else(|| self.bad(at, &format!("{path} without a digest")))?;
                self.served_manifest(at, &path, Proof::of(&response));
                return Ok(ManifestAnswer {
                    digest,
                    note: self.note_of(response.headers()),
                    manifest: None,
                });
            }
            Head::Doubtful(doubt) => doubt,
        };
        let manifest = self.manifest(caller, at, reference).await;
        let got = manifest.as_ref().map_or_else(Got::error, |_| Got::Served);
        self.learn(at, RequestKind::Manifest, doubt, &got);
        manifest.map(|manifest| ManifestAnswer {
            digest: manifest.digest,
            note: manifest.note.clone(),
            manifest: Some(manifest),
        })
    }

    /// Asks for the size of a blob in bytes, which upstream may not state: by HEAD where that counts, otherwise by GET of its first byte.
    /// That the upstream answers at all proves that it is in that repository.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn head_blob(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<Option<u64>, PullError> {
        let path = format!("blobs/{digest}");
        let ask = Request {
            method: &Method::HEAD,
            caller,
            at,
            path: &path,
            accept: None,
            range: None,
            purpose: Purpose::Lookup,
        };
        let doubt = match self.ask_head(ask).await? {
            Head::Good(response) => {
                self.served(at, Proof::of(&response));
                return Ok(content_length(response.headers()));
            }
            Head::Doubtful(doubt) => doubt,
        };
        let blob_bytes = self.ask_first_byte(ask, digest).await;
        let got = match (&blob_bytes, doubt.as_ref().and_then(|doubt| doubt.blob_bytes)) {
            (Ok(Some(get)), Some(head)) => Got::Size { is_same: *get == head },
            (Ok(_), _) => Got::Served,
            (Err(error), _) => Got::error(error),
        };
        self.learn(at, RequestKind::Blob, doubt, &got);
        blob_bytes
    }

    /// The size of a blob by GET of its first byte. Where an upstream without ranges sends the whole, a small one shows by its digest that it
    /// is no page, and a large one is not read.
    async fn ask_first_byte(&self, ask: Request<'_>, digest: &Digest) -> Result<Option<u64>, PullError> {
        // Of nothing no range can be satisfied.
        let has_bytes = !digest.matches(&[]);
        let get = Request {
            method: &Method::GET,
            range: has_bytes.then_some("bytes=0-0"),
            ..ask
        };
        let response = self.ask(get).await?;
        let proof = Proof::of(&response);
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = content_range(response.headers()).filter(|(start, _)| *start == 0);
            let (_, blob_bytes) =
                range.ok_or_else(|| self.bad(ask.at, "a 206 without the range that was asked for"))?;
            self.served(ask.at, proof);
            return Ok(blob_bytes);
        }
        let stated = content_length(response.headers());
        if stated.is_some_and(|length| length <= SMALL_BODY_BYTES as u64) {
            let bytes = read_body(response, SMALL_BODY_BYTES).await;
            let bytes = bytes.map_err(|problem| self.bad(ask.at, &problem))?;
            if !digest.matches(&bytes) {
                let problem = format!("other bytes for {digest}: is there a filter or a login page in front of it?");
                return Err(self.bad(ask.at, &problem));
            }
        }
        self.served(ask.at, proof);
        Ok(stated)
    }

    /// Asks by HEAD, unless that is known to be useless.
    async fn ask_head(&self, ask: Request<'_>) -> Result<Head, PullError> {
        let kind = ask.purpose.kind().unwrap_or(RequestKind::Blob);
        let now = Instant::now();
        if self.node.is_none() && self.heads.of(&ask.at.name, kind).is_useless(now) {
            return Ok(Head::Doubtful(None));
        }
        let doubt = |status, blob_bytes| Head::Doubtful(Some(Doubt { status, blob_bytes }));
        match self.ask(ask).await {
            Ok(response) if response.extensions().get() == Some(&Worth::Nothing) => {
                Ok(doubt(Some(response.status()), content_length(response.headers())))
            }
            Ok(response) => {
                if self.node.is_none() && stated_digest(response.headers()).is_some() {
                    self.heads.stated(&ask.at.name, kind, now);
                }
                Ok(Head::Good(response))
            }
            // A redirect of HEAD may lead elsewhere than that of GET. A mirror has followed it itself.
            Err(PullError::BadGateway(_) | PullError::Misled { .. }) if self.node.is_none() => Ok(doubt(None, None)),
            Err(error) => Err(error),
        }
    }

    /// What an answer to HEAD is worth. A mirror knows by itself what it answers.
    pub(crate) fn worth_of_head(&self, ask: Request<'_>, response: &Response, led_on: bool) -> Worth {
        let kind = ask.purpose.kind().unwrap_or(RequestKind::Blob);
        let (status, headers) = (response.status(), response.headers());
        if self.node.is_some() {
            return if status.is_success() {
                Worth::Good
            } else {
                Worth::Stands
            };
        }
        let asked = ask
            .path
            .split_once('/')
            .and_then(|(_, reference)| reference.parse::<Digest>().ok());
        let stated = stated_digest(headers);
        // Some answer HEAD with the length of the body that it has.
        let is_empty = kind == RequestKind::Blob
            && content_length(headers) == Some(0)
            && asked.is_some_and(|digest| !digest.matches(&[]));
        let answer = HeadAnswer {
            status,
            states_digest: stated.is_some() && (asked.is_none() || asked == stated) && !is_empty,
            states_size: kind == RequestKind::Blob && content_length(headers).is_some() && !is_empty,
            has_challenge: text(headers, reqwest::header::WWW_AUTHENTICATE).is_some(),
            led_on,
        };
        self.heads.of(&ask.at.name, kind).worth(answer, Instant::now())
    }

    fn learn(&self, at: &Repository, kind: RequestKind, doubt: Option<Doubt>, got: &Got) {
        if let Some(doubt) = doubt {
            self.heads.compared(&at.name, kind, doubt.status, got, Instant::now());
        }
    }
}
