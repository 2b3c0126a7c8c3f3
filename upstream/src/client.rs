//! Client of one upstream registry: manifests, blobs, and lists of names.

use std::{
    error::Error,
    sync::{Arc, Once, Weak},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use piecemeal_proto::{Digest, MANIFEST_ACCEPT, MANIFEST_BYTES_MAX, Reference};
use piecemeal_store::Repository;
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LINK, WARNING},
};
use tokio::sync::watch;
use url::Url;

use crate::{Caller, LiveDuration, NodeIdentity, PullError, SOURCE_TIMEOUT};
use crate::{
    auth::Tokens,
    breaker::Breakers,
    concurrency::Lanes,
    form::manifest_type,
    limits::{Limits, SMALL_BODY_BYTES},
    metrics::Asked,
    reach::{PublicManifests, Reach},
    request::{Ask, Host, Purpose, text},
    rewrite::Rewrites,
    routes::Routes,
    site_credentials::Held,
    verdicts::Verdicts,
};

/// Enough for the largest manifest at a tenth of a megabyte a second.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
const CHECK_BYTES_MAX: usize = 64 * 1024;
/// Source: OCI distribution-spec, "Listing Referrers".
pub const FILTERS_APPLIED: &str = "oci-filters-applied";
/// The most bytes that are read before a sample of a blob.
const SAMPLE_READ_MAX: u64 = 64 * 1024 * 1024;
/// The most bytes of a list of tags or referrers.
const LIST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A registry that is pulled from: an upstream, or for a peer its mirror.
pub struct Upstream {
    /// For tasks that go on when the caller has left.
    pub(crate) me: Weak<Self>,
    pub(crate) name: String,
    /// The configured name: a pattern, where one stands for it.
    pub(crate) label: String,
    pub(crate) asked: Asked,
    /// In the order in which they are asked.
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    /// This node's identity, when the registry is the site's mirror: requests are signed with it, and `?ns=` names the upstream.
    pub(crate) node: Option<NodeIdentity>,
    /// The HTTP clients for the registry and its redirects' targets.
    pub(crate) routes: Arc<Routes>,
    /// Hosts whose tokens may be asked for with the held password, besides the registry's own.
    pub(crate) token_servers: Vec<String>,
    pub(crate) tokens: Tokens,
    pub(crate) breakers: Breakers,
    pub(crate) verdicts: Verdicts,
    /// Public manifests that probes ask for.
    pub(crate) public: PublicManifests,
    /// How long a right counts as proven.
    pub(crate) allowed_life: LiveDuration,
    /// The site's own user and password here.
    pub(crate) held: Option<Held>,
    /// Whether those are used for all callers, or for the site's nodes only.
    pub(crate) serves_site: bool,
    pub(crate) allow_plain_credentials: bool,
    pub(crate) rewrites: Arc<Rewrites>,
    /// Logs once that this upstream's challenges are not passed on.
    pub(crate) withheld: Once,
    /// The same, for a held password that was not sent to a token server elsewhere.
    pub(crate) kept_home: Once,
    /// This daemon, as `Via` names it.
    pub(crate) via: String,
    pub(crate) lanes: Lanes,
    pub(crate) limits: Limits,
}

/// One of the places where a registry answers.
pub(crate) struct Endpoint {
    /// Its path, if it has one, comes before every repository's name: so do caches that hold several registries name one.
    pub(crate) url: Url,
    pub(crate) reach: watch::Sender<Reach>,
}

impl Endpoint {
    pub(crate) fn new(url: Url) -> Self {
        Self {
            url,
            reach: watch::Sender::default(),
        }
    }

    /// What comes before a repository's name there: nothing, or a path that ends with a slash.
    pub(crate) fn prefix(&self) -> String {
        match self.url.path().trim_matches('/') {
            "" => String::new(),
            path => format!("{path}/"),
        }
    }

    pub(crate) fn v2(&self, rest: &str) -> Option<Url> {
        self.url.join(&format!("/v2/{rest}")).ok()
    }
}

/// A manifest as the upstream sent it, its digest verified.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
    /// The `Warning` that came along: the source is itself serving something old.
    pub warning: Option<String>,
    /// Whether it has just come from the source, and was not here before.
    pub fetched: bool,
}

/// What a HEAD of a manifest says.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    /// `None` when the upstream does not say.
    pub digest: Option<Digest>,
    /// As in [`FetchedManifest`].
    pub warning: Option<String>,
}

/// A page of a list of tags or referrers.
pub struct ListAnswer {
    pub bytes: Bytes,
    /// `Link` to the next page, as upstream wrote it.
    pub next: Option<String>,
    /// `OCI-Filters-Applied`.
    pub filters: Option<String>,
    /// As in [`FetchedManifest`].
    pub warning: Option<String>,
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
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The connections of fills.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Limits on what this upstream may make the mirror hold.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

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
        let media_type = media_type(&response);
        let warning = text(response.headers(), WARNING);
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
            (Reference::Tag(_), None) => Digest::of(&bytes),
        };
        if !digest.matches(&bytes) {
            return Err(self.bad(
                at,
                &format!("the manifest {reference} does not have the digest {digest}"),
            ));
        }
        let media_type = media_type
            .or(by_form)
            .ok_or_else(|| self.bad(at, &format!("the manifest {reference} without a media type")))?;
        Ok(FetchedManifest {
            fetched: true,
            digest,
            media_type,
            bytes,
            warning,
        })
    }

    /// HEADs a manifest.
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
        let response = self.ask(manifest_ask(&Method::HEAD, caller, at, &path)).await?;
        let digest = stated_digest(response.headers());
        let media_type = media_type(&response).unwrap_or_default();
        if digest.is_none() && !media_type.starts_with("application/vnd.") {
            return Err(self.bad(at, &format!("{media_type:?} for {path}, which is no manifest")));
        }
        Ok(ManifestAnswer {
            digest,
            warning: text(response.headers(), WARNING),
        })
    }

    /// HEADs a blob: its size in bytes, when stated. That the upstream answers at all proves that it is in that repository.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn head_blob(&self, caller: &Caller, at: &Repository, digest: &Digest) -> Result<Option<u64>, PullError> {
        let ask = Ask {
            method: &Method::HEAD,
            caller,
            at,
            path: &format!("blobs/{digest}"),
            accept: None,
            range: None,
            purpose: Purpose::Lookup,
        };
        let response = self.ask(ask).await?;
        Ok(content_length(response.headers()))
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
        let ask = Ask {
            method: &Method::GET,
            caller,
            at,
            path: &format!("blobs/{digest}"),
            accept: None,
            range: (!sample.is_empty()).then_some(&range),
            purpose: Purpose::Lookup,
        };
        let mut response = self.ask(ask).await?;
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
        let ask = Ask {
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
            return Ok(BlobAnswer {
                blob_bytes: total,
                offset: start,
                is_part: true,
                body: response,
            });
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
        let ask = Ask {
            method: &Method::GET,
            caller,
            at,
            path,
            accept: None,
            range: None,
            purpose: Purpose::List,
        };
        let response = self.ask(ask).await?;
        let next = text(response.headers(), LINK);
        let filters = text(response.headers(), HeaderName::from_static(FILTERS_APPLIED));
        let warning = text(response.headers(), WARNING);
        let bytes = self.read_lookup(at, response, LIST_BYTES_MAX).await?;
        Ok(ListAnswer {
            bytes,
            next,
            filters,
            warning,
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
        let request = self.routes.registry(&url)?.get(url);
        let response = self.await_answer(request, Host::Registry(None)).await?;
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

    pub(crate) fn request_url(&self, endpoint: &Endpoint, at: &Repository, path: &str) -> Result<Url, PullError> {
        let mut url = endpoint
            .v2(&format!("{}{}/{path}", endpoint.prefix(), at.name))
            .ok_or_else(|| self.bad_url(endpoint))?;
        if self.node.is_some() {
            url.query_pairs_mut().append_pair("ns", &at.upstream);
        }
        Ok(url)
    }

    fn bad_url(&self, endpoint: &Endpoint) -> PullError {
        PullError::BadGateway(format!("{}: {} is no registry's URL", self.name, endpoint.url))
    }

    /// The hosts that a request has passed, with this one.
    pub(crate) fn via(&self, caller: &Caller) -> HeaderValue {
        let path = match &caller.via {
            Some(before) => format!("{before}, {}", self.via),
            None => self.via.clone(),
        };
        HeaderValue::from_str(&path).unwrap_or_else(|_| HeaderValue::from_static("1.1 piecemeal"))
    }

    pub(crate) fn bad(&self, at: &Repository, problem: &str) -> PullError {
        PullError::BadGateway(format!("{} answered {problem} ({})", self.name, at.name))
    }
}

fn manifest_ask<'a>(method: &'a Method, caller: &'a Caller, at: &'a Repository, path: &'a str) -> Ask<'a> {
    Ask {
        method,
        caller,
        at,
        path,
        accept: Some(MANIFEST_ACCEPT),
        range: None,
        purpose: Purpose::Manifest,
    }
}

/// The media type without its parameters.
fn media_type(response: &Response) -> Option<String> {
    let value = response.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    let media_type = value.split(';').next().unwrap_or_default().trim();
    (!media_type.is_empty()).then(|| media_type.to_owned())
}

fn stated_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The start and, when stated, the whole size of `Content-Range: bytes a-b/N`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = value.split_once('/')?;
    let start = range.split_once('-')?.0.parse().ok()?;
    Some((start, total.parse().ok()))
}

/// Reads a body to its end, within [`BODY_TIMEOUT`] at the latest: all callers of the lookup would wait for one that drips.
pub(crate) async fn read_body(mut response: Response, bytes_max: usize) -> Result<Bytes, String> {
    let read = async {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| innermost(&error))? {
            if bytes.len() + chunk.len() > bytes_max {
                return Err(format!("a body of more than {bytes_max} bytes"));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    };
    let read = tokio::time::timeout(BODY_TIMEOUT, read).await;
    read.unwrap_or_else(|_| Err(format!("a body that takes longer than {} s", BODY_TIMEOUT.as_secs())))
}

/// The last cause of an error: reqwest's own text repeats the URL, whose query may be a secret.
pub fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if error.source().is_none() {
        "the connection failed".to_owned()
    } else {
        cause.to_string()
    }
}
