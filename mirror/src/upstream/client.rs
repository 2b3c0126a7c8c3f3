//! Requests to one upstream registry.

use std::{
    collections::BTreeMap,
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use piecemeal_proto::{Digest, MANIFEST_ACCEPT, MANIFEST_BYTES_MAX, Reference};
use piecemeal_store::Repository;
use reqwest::{
    Method, Response, StatusCode,
    header::{
        ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LOCATION, RANGE, RETRY_AFTER,
        WWW_AUTHENTICATE,
    },
};
use tracing::debug;
use url::Url;

use super::{
    auth::{Challenge, TokenAnswer, Tokens},
    lanes::Lanes,
    redirect,
};
use crate::{PullError, SOURCE_TIMEOUT, UpstreamConfig};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a body may pause before it is given up; it is resumed by Range.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
const CHECK_BYTES_MAX: usize = 64 * 1024;
const TOKEN_BYTES_MAX: usize = 64 * 1024;

/// A client as every component uses it: redirects by hand, no proxy, nothing decoded behind our back.
///
/// # Panics
/// When no TLS provider is installed: the binary installs ring's before anything else.
pub fn http_client() -> reqwest::Client {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(STALL_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_nodelay(true)
        .http1_only()
        .user_agent(concat!("piecemeal/", env!("CARGO_PKG_VERSION")))
        .build()
        .expect("a client without certificates of its own can always be built")
}

/// The configured upstreams by name.
#[derive(Clone, Default)]
pub struct Upstreams(BTreeMap<String, Arc<Upstream>>);

impl Upstreams {
    /// Clients of the registries themselves.
    pub fn new(configs: &[UpstreamConfig]) -> Self {
        Self::clients(configs, false)
    }

    /// Clients of a mirror, which is told by `?ns=` which registry is meant.
    pub fn behind_mirror(configs: &[UpstreamConfig]) -> Self {
        Self::clients(configs, true)
    }

    fn clients(configs: &[UpstreamConfig], names_upstream: bool) -> Self {
        let http = http_client();
        let upstream = |config: &UpstreamConfig| {
            (
                config.name.clone(),
                Arc::new(Upstream::new(http.clone(), config, names_upstream)),
            )
        };
        Self(configs.iter().map(upstream).collect())
    }

    /// # Errors
    /// [`PullError::UnknownUpstream`].
    pub fn get(&self, name: &str) -> Result<&Arc<Upstream>, PullError> {
        self.0
            .get(name)
            .ok_or_else(|| PullError::UnknownUpstream(name.to_owned()))
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.0.values()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// A registry that is pulled from: an upstream, or for a peer its mirror.
pub struct Upstream {
    name: String,
    url: Url,
    /// Whether requests name the real upstream by `?ns=`: the registry is itself a mirror.
    names_upstream: bool,
    http: reqwest::Client,
    tokens: Tokens,
    lanes: Lanes,
}

/// A manifest as the upstream sent it, its digest verified.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
    /// The `Warning` that came along: the source is itself serving something old.
    pub warning: Option<String>,
}

/// What a HEAD of a manifest says.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    /// `None` when the upstream does not say.
    pub digest: Option<Digest>,
}

/// An upstream's answer to GET of a blob, before its body.
pub struct BlobAnswer {
    /// The blob's whole size in bytes, when the upstream states it.
    pub blob_bytes: Option<u64>,
    /// The offset that the body begins at: 0 unless the upstream honoured the range.
    pub offset: u64,
    /// It is the range that was asked for (206).
    pub is_part: bool,
    pub body: Response,
}

impl Upstream {
    fn new(http: reqwest::Client, config: &UpstreamConfig, names_upstream: bool) -> Self {
        Self {
            name: config.name.clone(),
            url: config.url.clone(),
            names_upstream,
            http,
            tokens: Tokens::default(),
            lanes: Lanes::default(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The connections of fills.
    pub(crate) fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// GETs a manifest and verifies its digest when it was asked for by digest.
    ///
    /// # Errors
    /// [`PullError`]: the upstream's verdict, or what is wrong with its answer.
    pub async fn manifest(&self, at: &Repository, reference: &Reference) -> Result<FetchedManifest, PullError> {
        let response = self
            .get(
                Method::GET,
                at,
                &format!("manifests/{reference}"),
                Some(MANIFEST_ACCEPT),
                None,
            )
            .await?;
        let media_type = self.media_type(&response)?;
        let warning = response
            .headers()
            .get(reqwest::header::WARNING)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let stated = stated_digest(response.headers());
        let bytes = read_body(response, MANIFEST_BYTES_MAX)
            .await
            .map_err(|problem| self.bad(at, &problem))?;
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
        Ok(FetchedManifest {
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
    pub async fn head_manifest(&self, at: &Repository, reference: &Reference) -> Result<ManifestAnswer, PullError> {
        let response = self
            .get(
                Method::HEAD,
                at,
                &format!("manifests/{reference}"),
                Some(MANIFEST_ACCEPT),
                None,
            )
            .await?;
        Ok(ManifestAnswer {
            digest: stated_digest(response.headers()),
        })
    }

    /// HEADs a blob: its size in bytes, when stated. That the upstream answers at all proves that it is in that repository.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn head_blob(&self, at: &Repository, digest: &Digest) -> Result<Option<u64>, PullError> {
        let response = self
            .get(Method::HEAD, at, &format!("blobs/{digest}"), None, None)
            .await?;
        self.not_a_page(at, &response)?;
        Ok(content_length(response.headers()))
    }

    /// GETs a blob from `offset` on, or a bounded range of it.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn blob(
        &self,
        at: &Repository,
        digest: &Digest,
        offset: u64,
        end: Option<u64>,
    ) -> Result<BlobAnswer, PullError> {
        let range = match end {
            Some(end) => Some(format!("bytes={offset}-{}", end.saturating_sub(1))),
            None if offset > 0 => Some(format!("bytes={offset}-")),
            None => None,
        };
        let response = self
            .get(Method::GET, at, &format!("blobs/{digest}"), None, range.as_deref())
            .await?;
        self.not_a_page(at, &response)?;
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

    /// Asks whether it is a registry that answers.
    ///
    /// # Errors
    /// [`PullError`]; a 401 is no error, since it is how a registry asks for a token.
    pub(crate) async fn check(&self) -> Result<(), PullError> {
        let base = self.url.as_str().trim_end_matches('/');
        let response = self.send(self.http.get(format!("{base}/v2/"))).await?;
        let status = response.status();
        // Read to its end, so that the connection can be used again.
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

    /// Sends a request, with an anonymous token when one is asked for, and follows redirects. The status is a success.
    async fn get(
        &self,
        method: Method,
        at: &Repository,
        path: &str,
        accept: Option<&str>,
        range: Option<&str>,
    ) -> Result<Response, PullError> {
        let mut url = self.request_url(at, path)?;
        let scope = format!("repository:{}:pull", at.name);
        let mut token = self.tokens.get(&scope, Instant::now());
        let mut asked_token = false;
        let mut redirects = 0;
        loop {
            let mut request = self.http.request(method.clone(), url.clone());
            for (name, value) in [(ACCEPT, accept), (RANGE, range)] {
                if let Some(value) = value {
                    request = request.header(name, value);
                }
            }
            if let Some(token) = token.as_deref().filter(|_| redirects == 0) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = self.send(request).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && redirects == 0 && !asked_token {
                asked_token = true;
                self.tokens.drop(&scope);
                token = self.anonymous_token(response.headers(), &scope).await?;
                if token.is_some() {
                    continue;
                }
            }
            if status.is_redirection() && response.headers().contains_key(LOCATION) {
                redirects += 1;
                url = redirect::target(&url, response.headers())
                    .filter(|_| redirects <= redirect::REDIRECTS_MAX)
                    .ok_or_else(|| self.bad(at, "a redirect that may not be followed"))?;
                continue;
            }
            return self.judge(at, path, response);
        }
    }

    fn request_url(&self, at: &Repository, path: &str) -> Result<Url, PullError> {
        let base = self.url.as_str().trim_end_matches('/');
        let mut url = Url::parse(&format!("{base}/v2/{}/{path}", at.name))
            .map_err(|error| PullError::BadGateway(format!("{}: {error}", self.name)))?;
        if self.names_upstream {
            url.query_pairs_mut().append_pair("ns", &at.upstream);
        }
        Ok(url)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, PullError> {
        let unreachable = |reason: String| PullError::Unreachable(format!("{} does not answer: {reason}", self.name));
        let sent = Instant::now();
        match tokio::time::timeout(SOURCE_TIMEOUT, request.send()).await {
            Ok(Ok(response)) => {
                self.lanes.answered_after(sent.elapsed());
                Ok(response)
            }
            Ok(Err(error)) => Err(unreachable(innermost(&error))),
            Err(_) => Err(unreachable(format!(
                "no status line within {} s",
                SOURCE_TIMEOUT.as_secs()
            ))),
        }
    }

    /// `Ok(None)`: the challenge is not for a token that anybody can have; the 401 itself is the answer.
    async fn anonymous_token(&self, headers: &HeaderMap, scope: &str) -> Result<Option<String>, PullError> {
        let challenge = headers
            .get(WWW_AUTHENTICATE)
            .and_then(|value| value.to_str().ok())
            .and_then(Challenge::parse);
        let Some(url) = challenge.and_then(|challenge| challenge.token_url(&self.url, scope)) else {
            return Ok(None);
        };
        debug!(upstream = self.name, scope, "asking for an anonymous token");
        let response = self.send(self.http.get(url)).await?;
        if !response.status().is_success() {
            return Ok(None);
        }
        let body = read_body(response, TOKEN_BYTES_MAX)
            .await
            .map_err(|problem| PullError::BadGateway(format!("{}'s token server: {problem}", self.name)))?;
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| PullError::BadGateway(format!("{}'s token server sent no token", self.name)))?;
        Ok(self.tokens.put(scope, answer, Instant::now()))
    }

    fn judge(&self, at: &Repository, path: &str, response: Response) -> Result<Response, PullError> {
        let header = |name| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let upstream = self.name.clone();
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => Err(PullError::Unknown(format!("{upstream} has no {}/{path}", at.name))),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Err(PullError::Denied {
                upstream,
                status: status.as_u16(),
                challenge: header(WWW_AUTHENTICATE),
            }),
            StatusCode::TOO_MANY_REQUESTS => Err(PullError::TooManyRequests {
                upstream,
                retry_after: header(RETRY_AFTER),
            }),
            status if status.is_server_error() => Err(PullError::Unavailable(format!(
                "{upstream} answered {status} for {}/{path}",
                at.name
            ))),
            status => Err(self.bad(at, &format!("status {status} for {path}"))),
        }
    }

    fn media_type(&self, response: &Response) -> Result<String, PullError> {
        let value = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let media_type = value.split(';').next().unwrap_or_default().trim();
        if media_type.is_empty() || media_type == "text/html" {
            return Err(PullError::BadGateway(format!(
                "{} answered a manifest with media type {value:?}: is there a login page in front of it?",
                self.name
            )));
        }
        Ok(media_type.to_owned())
    }

    /// A captive portal answers everything with 200 and a page.
    fn not_a_page(&self, at: &Repository, response: &Response) -> Result<(), PullError> {
        let is_page = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"text/html"));
        if is_page {
            return Err(self.bad(at, "an HTML page for a blob: is there a login page in front of it?"));
        }
        Ok(())
    }

    fn bad(&self, at: &Repository, problem: &str) -> PullError {
        PullError::BadGateway(format!("{} answered {problem} ({})", self.name, at.name))
    }
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

async fn read_body(mut response: Response, bytes_max: usize) -> Result<Bytes, String> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| innermost(&error))? {
        if bytes.len() + chunk.len() > bytes_max {
            return Err(format!("a body of more than {bytes_max} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// The last cause of an error: reqwest's own text repeats the URL, whose query may be a secret.
pub(crate) fn innermost(error: &reqwest::Error) -> String {
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
