//! Client of one upstream registry: manifests, blobs, and lists of names.

use bytes::Bytes;
use piecemeal_proto::{Digest, MANIFEST_ACCEPT, MANIFEST_BYTES_MAX, Reference};
use piecemeal_store::Repository;
use reqwest::{
    Method, Response, StatusCode,
    header::{HeaderName, LINK},
};

use crate::{Caller, PullError, SOURCE_TIMEOUT};
use crate::{
    answer::{content_length, content_range, innermost, is_text, list, media_type, read_body, stated_digest},
    endpoint::Endpoint,
    form::{is_list, manifest_type},
    limits::SMALL_BODY_BYTES,
    note::Note,
    proof::Proof,
    request::{Purpose, Request},
    upstream::Upstream,
};

const CHECK_BYTES_MAX: usize = 64 * 1024;
/// Source: OCI distribution-spec, "Listing Referrers".
pub const FILTERS_APPLIED: &str = "oci-filters-applied";
/// The most bytes that are read before a sample of a blob.
const SAMPLE_READ_MAX: u64 = 64 * 1024 * 1024;
/// The most bytes of a list of tags or referrers.
const LIST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A manifest as the upstream sent it, its digest verified.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
    pub note: Note,
    /// Whether it has just come from the source, and was not here before.
    pub fetched: bool,
}

/// A page of a list of tags or referrers.
pub struct ListAnswer {
    pub bytes: Bytes,
    /// The links to other pages, as upstream wrote them.
    pub next: Option<String>,
    /// `OCI-Filters-Applied`.
    pub filters: Option<String>,
    pub note: Note,
}

/// Whether upstream has answered the caller with something of the blob before: then the credential has only expired when it
/// is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    NotYet,
    Before,
}

/// An upstream's answer to GET of a blob, before its body.
pub struct BlobAnswer {
    /// The blob's whole size in bytes, when the upstream states it.
    pub blob_bytes: Option<u64>,
    /// The offset that the body begins at: 0 unless the upstream honoured the range.
    pub offset: u64,
    /// Whether it is the requested range (206).
    pub is_part: bool,
    pub body: Response,
}

impl Upstream {
    /// GETs a manifest and verifies its digest when it was asked for by digest.
    ///
    /// # Errors
    /// [`PullError`]: the upstream's verdict, or what is wrong with its answer.
    pub async fn manifest(
        &self,
        caller: &Caller,
        at: &Repository,
        reference: &Reference,
    ) -> Result<FetchedManifest, PullError> {
        let path = format!("manifests/{reference}");
        let response = self.ask(manifest_ask(&Method::GET, caller, at, &path)).await?;
        let (proof, note) = (Proof::of(&response), self.note_of(response.headers()));
        let media_type = media_type(&response);
        let stated = stated_digest(response.headers());
        let bytes = self.read_lookup(at, response, MANIFEST_BYTES_MAX).await?;
        let by_form = manifest_type(&bytes);
        if matches!(reference, Reference::Tag(_)) && by_form.is_none() {
            let what = media_type.as_deref().unwrap_or("no media type");
            return Err(self.bad(
                at,
                &format!("something that is no manifest ({what}) for the tag {reference}: is there a filter or a login page in front of it?"),
            ));
        }
        let digest = match (reference, stated) {
            (Reference::Digest(digest), _) => *digest,
            (Reference::Tag(_), Some(digest)) => digest,
            (Reference::Tag(_), None) => Digest::of_manifest(&bytes),
        };
        if !digest.matches_manifest(&bytes) {
            return Err(self.bad(
                at,
                &format!("the manifest {reference} does not have the digest {digest}"),
            ));
        }
        // A general type says nothing of a manifest that shows its own.
        let of_manifest = |media_type: &String| media_type.starts_with("application/vnd.");
        let media_type = media_type
            .clone()
            .filter(of_manifest)
            .or(by_form)
            .or(media_type)
            .ok_or_else(|| self.bad(at, &format!("the manifest {reference} without a media type")))?;
        self.served_manifest(at, &path, proof);
        Ok(FetchedManifest {
            fetched: true,
            digest,
            media_type,
            bytes,
            note,
        })
    }

    /// Whether the upstream has these bytes of a blob, from `start` on. One that knows no ranges shows the blob's beginning
    /// as far as that, up to `SAMPLE_READ_MAX`.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn has_sample(
        &self,
        caller: &Caller,
        at: &Repository,
        digest: &Digest,
        start: u64,
        sample: &[u8],
    ) -> Result<bool, PullError> {
        let end = start + sample.len() as u64;
        let range = format!("bytes={start}-{}", end.saturating_sub(1));
        let ask = Request {
            method: &Method::GET,
            caller,
            at,
            path: &format!("blobs/{digest}"),
            accept: None,
            range: (!sample.is_empty()).then_some(&range),
            purpose: Purpose::Lookup,
        };
        let mut response = self.ask(ask).await?;
        let proof = Proof::of(&response);
        let mut skip = match content_range(response.headers()) {
            Some((offset, _)) if response.status() == StatusCode::PARTIAL_CONTENT => start
                .checked_sub(offset)
                .ok_or_else(|| self.bad(at, "a range that begins too late"))?,
            _ => start,
        };
        let mut rest = sample;
        while !rest.is_empty() && skip <= SAMPLE_READ_MAX {
            let chunk = tokio::time::timeout(SOURCE_TIMEOUT, response.chunk()).await;
            let chunk = chunk.map_err(|_| PullError::Unavailable(format!("{} stalls", self.name)))?;
            let chunk = chunk.map_err(|error| PullError::Unavailable(innermost(&error)))?;
            let Some(chunk) = chunk else { return Ok(false) };
            let skipped = usize::try_from(skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
            skip -= skipped as u64;
            let shown = &chunk[skipped..];
            let (wanted, left) = rest.split_at(shown.len().min(rest.len()));
            if wanted != &shown[..wanted.len()] {
                return Ok(false);
            }
            rest = left;
        }
        if rest.is_empty() {
            self.served(at, proof);
        }
        Ok(rest.is_empty())
    }

    /// GETs a blob from `offset` on, or a bounded range of it.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn blob(
        &self,
        caller: &Caller,
        at: &Repository,
        digest: &Digest,
        offset: u64,
        end: Option<u64>,
        served: Served,
    ) -> Result<BlobAnswer, PullError> {
        let range = match end {
            Some(end) => Some(format!("bytes={offset}-{}", end.saturating_sub(1))),
            None if offset > 0 => Some(format!("bytes={offset}-")),
            None => None,
        };
        let ask = Request {
            method: &Method::GET,
            caller,
            at,
            path: &format!("blobs/{digest}"),
            accept: None,
            range: range.as_deref(),
            purpose: match served {
                Served::NotYet => Purpose::Fill,
                Served::Before => Purpose::Resume,
            },
        };
        let response = self.ask(ask).await?;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let (start, total) = content_range(response.headers())
                .ok_or_else(|| self.bad(at, "a 206 without a usable Content-Range"))?;
            self.served(at, Proof::of(&response));
            return Ok(BlobAnswer {
                blob_bytes: total,
                offset: start,
                is_part: true,
                body: response,
            });
        }
        // A text may be a page about the request. Its digest shows what it is, when it is whole.
        if !is_text(response.headers()) {
            self.served(at, Proof::of(&response));
        }
        Ok(BlobAnswer {
            blob_bytes: content_length(response.headers()),
            offset: 0,
            is_part: false,
            body: response,
        })
    }

    /// One page of a list below a repository, as upstream has it: `tags/list?n=100`, `referrers/<digest>`.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn list(&self, caller: &Caller, at: &Repository, path: &str) -> Result<ListAnswer, PullError> {
        let ask = Request {
            method: &Method::GET,
            caller,
            at,
            path,
            accept: None,
            range: None,
            purpose: Purpose::List,
        };
        let response = self.ask(ask).await?;
        let next = list(response.headers(), LINK);
        let filters = list(response.headers(), HeaderName::from_static(FILTERS_APPLIED));
        let (proof, note) = (Proof::of(&response), self.note_of(response.headers()));
        let bytes = self.read_lookup(at, response, LIST_BYTES_MAX).await?;
        if !is_list(&bytes) {
            let problem =
                format!("something that is no list for {path}: is there a filter or a login page in front of it?");
            return Err(self.bad(at, &problem));
        }
        self.served(at, proof);
        Ok(ListAnswer {
            bytes,
            next,
            filters,
            note,
        })
    }

    /// The body of a manifest or a list.
    async fn read_lookup(&self, at: &Repository, response: Response, bytes_max: usize) -> Result<Bytes, PullError> {
        let is_small = content_length(response.headers()).is_some_and(|length| length <= SMALL_BODY_BYTES as u64);
        let _room = if is_small {
            None
        } else {
            Some(self.limits.large_body(at).await?)
        };
        let bytes = read_body(response, bytes_max).await;
        bytes.map_err(|problem| self.bad(at, &problem))
    }

    /// Checks that a registry answers.
    ///
    /// # Errors
    /// [`PullError`]; a 401 is no error, since it is how a registry asks for a token.
    pub async fn check(&self) -> Result<(), PullError> {
        let mut result = Ok(());
        for endpoint in &self.endpoints {
            result = self.check_endpoint(endpoint).await;
            if result.is_ok() {
                break;
            }
        }
        result
    }

    async fn check_endpoint(&self, endpoint: &Endpoint) -> Result<(), PullError> {
        let url = endpoint.v2("").ok_or_else(|| self.bad_url(endpoint))?;
        let route = self.routes.registry(&url)?;
        let response = self
            .answer_of_registry(&route, |client| client.get(url.clone()))
            .await?;
        let status = response.status();
        // Read to its end, so that the connection can be reused.
        read_body(response, CHECK_BYTES_MAX)
            .await
            .map_err(PullError::Unavailable)?;
        if status.is_success() || status == StatusCode::UNAUTHORIZED {
            return Ok(());
        }
        Err(PullError::BadGateway(format!(
            "{} answered {status} for /v2/: is that a registry?",
            self.name
        )))
    }
}

pub(crate) fn manifest_ask<'a>(
    method: &'a Method,
    caller: &'a Caller,
    at: &'a Repository,
    path: &'a str,
) -> Request<'a> {
    Request {
        method,
        caller,
        at,
        path,
        accept: Some(MANIFEST_ACCEPT),
        range: None,
        purpose: Purpose::Manifest,
    }
}
