//! Registry of a pull: one repository, read without credentials; a registry that asks for an anonymous token gets one.
//!
//! Invariant: a manifest whose bytes have another digest than the expected one is an error.

use std::{sync::Mutex, sync::PoisonError, time::Duration};

use anyhow::{Context, anyhow, bail};
use piecemeal_proto::{Digest, ImageReference, MANIFEST_ACCEPT, MANIFEST_BYTES_MAX, Manifest, Reference};
use piecemeal_upstream::{Bearer, TokenAnswer, bearer_challenge};
use reqwest::{
    Client, Response, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, RANGE},
};
use url::Url;

use crate::cli::http::http_client;

/// A manifest, its digest verified.
pub(super) struct FetchedManifest {
    pub(super) digest: Digest,
    pub(super) manifest: Manifest,
    /// As [`Manifest::unreadable`].
    pub(super) unreadable: Vec<String>,
}

/// An answer that is no success.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(super) struct AnswerError {
    pub(super) status: StatusCode,
    text: String,
}

pub(super) struct Registry {
    client: Client,
    base: Url,
    repository: String,
    host: String,
    token: Mutex<Option<String>>,
}

impl Registry {
    /// `host` is for messages.
    pub(super) fn new(base: Url, image: &ImageReference, host: String) -> anyhow::Result<Self> {
        let is_plain = base.scheme() == "http";
        let client = http_client(|client| {
            let client = client
                .connect_timeout(CONNECT_TIME_MAX)
                .read_timeout(SILENCE_MAX)
                .user_agent(concat!("piecemeal/", env!("CARGO_PKG_VERSION")));
            // A proxy of the environment is for the way out, not for this machine or site.
            if is_plain { client.no_proxy() } else { client }
        })?;
        Ok(Self {
            client,
            base,
            repository: image.repository.to_string(),
            host,
            token: Mutex::new(None),
        })
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Fetches a manifest and checks it against the reference's digest, or for a tag against the one that the registry states.
    pub(super) async fn manifest(&self, reference: &Reference) -> anyhow::Result<FetchedManifest> {
        let path = format!("manifests/{reference}");
        let answer = self.get(&path, None).await?;
        let header = |name: &str| {
            answer
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let media_type = header(CONTENT_TYPE.as_str()).unwrap_or_default();
        let stated: Option<Digest> = header("docker-content-digest").and_then(|text| text.parse().ok());
        let body = self
            .read_manifest(answer)
            .await
            .with_context(|| format!("reading {path} from {}", self.host))?;
        let expected = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => stated,
        };
        let digest = match expected {
            Some(digest) if digest.matches_manifest(&body) => digest,
            Some(digest) => {
                let found = Digest::of(&body);
                bail!(
                    "{} sent a manifest with the wrong digest: expected {digest}, got {found}",
                    self.host
                )
            }
            None => Digest::of_manifest(&body),
        };
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        Ok(FetchedManifest {
            digest,
            manifest: Manifest::read(media_type, &body),
            unreadable: Manifest::unreadable(&body),
        })
    }

    async fn read_manifest(&self, mut answer: Response) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(bytes) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
            body.extend_from_slice(&bytes);
            if body.len() > MANIFEST_BYTES_MAX {
                bail!("it has more than {MANIFEST_BYTES_MAX} bytes");
            }
        }
        Ok(body)
    }

    /// Opens a blob from byte `from` on.
    pub(super) async fn blob(&self, digest: &Digest, from: u64) -> anyhow::Result<Response> {
        let range = (from > 0).then(|| format!("bytes={from}-"));
        self.get(&format!("blobs/{digest}"), range.as_deref()).await
    }

    /// GETs from the repository; any status but a success is an error that names it.
    async fn get(&self, path: &str, range: Option<&str>) -> anyhow::Result<Response> {
        let mut answer = self.send(path, range).await?;
        if answer.status() == StatusCode::UNAUTHORIZED
            && let Some(challenge) = bearer_challenge(answer.headers())
        {
            let token = self.fetch_token(&challenge).await?;
            *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
            answer = self.send(path, range).await?;
        }
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let said = said(&answer.bytes().await.unwrap_or_default());
        let hint = if status == StatusCode::UNAUTHORIZED {
            " (it wants credentials, which this command does not send)"
        } else {
            ""
        };
        let text = format!(
            "{} answered {status} for {path} of {}{said}{hint}",
            self.host, self.repository
        );
        Err(AnswerError { status, text }.into())
    }

    async fn send(&self, path: &str, range: Option<&str>) -> anyhow::Result<Response> {
        let url = self.base.join(&format!("/v2/{}/{path}", self.repository))?;
        let mut request = self.client.get(url).header(ACCEPT_ENCODING, "identity");
        if path.starts_with("manifests/") {
            request = request.header(ACCEPT, MANIFEST_ACCEPT);
        }
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        if let Some(token) = &*self.token.lock().unwrap_or_else(PoisonError::into_inner) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        // Without the URL: a redirect's is signed, which makes it a secret.
        let answer = request.send().await.map_err(reqwest::Error::without_url);
        answer.with_context(|| format!("no answer from {} for {path}", self.host))
    }

    /// An anonymous token. Source: distribution's "Token Authentication Specification".
    async fn fetch_token(&self, challenge: &Bearer) -> anyhow::Result<String> {
        let url = challenge
            .token_url(&self.base, &format!("repository:{}:pull", self.repository))
            .with_context(|| format!("{} names no place for tokens", self.host))?;
        let place = url.host_str().unwrap_or_default().to_owned();
        let answer = self.client.get(url).send().await.map_err(reqwest::Error::without_url);
        let answer = answer.with_context(|| format!("no token from {place}"))?;
        if !answer.status().is_success() {
            bail!(
                "{place} answered {} when asked for a token for {}",
                answer.status(),
                self.repository
            );
        }
        let body = answer.bytes().await.map_err(reqwest::Error::without_url)?;
        let answer: TokenAnswer =
            serde_json::from_slice(&body).with_context(|| format!("reading the token of {place}"))?;
        let token = answer.token().map(str::to_owned);
        token.ok_or_else(|| anyhow!("{place} sent no token"))
    }
}

/// The error of an OCI error body, as `: CODE message`.
fn said(body: &[u8]) -> String {
    let Ok(body) = serde_json::from_slice::<serde_json::Value>(body) else {
        return String::new();
    };
    let error = &body["errors"][0];
    let texts: Vec<&str> = [&error["code"], &error["message"]]
        .into_iter()
        .filter_map(|text| text.as_str())
        .collect();
    if texts.is_empty() {
        String::new()
    } else {
        format!(": {}", texts.join(" "))
    }
}

const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Longer than a peer waits for its mirror to return.
const SILENCE_MAX: Duration = Duration::from_secs(60);
