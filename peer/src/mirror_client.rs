//! A peer's side of its mirror: opening blobs for the swarm, and knowing whether the mirror is there.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::Digest;
use piecemeal_proxy::{NodeBlob, open_path};
use piecemeal_store::Repository;
use piecemeal_swarm::AuthorityClock;
use piecemeal_tls::{ServerRole, refusal as refusal_of};
use piecemeal_upstream::{ANSWER_TIMEOUT, Caller, NodeIdentity, PullError, mirror_unanswered, require_cover};
use reqwest::{Method, Response, StatusCode, header};
use tracing::error;
use url::Url;

/// The mirror answers within its own two seconds, or is slow to be reached.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// An inlined blob of 64 KiB, in base64, and the rest of the answer.
const ANSWER_BYTES_MAX: usize = 128 * 1024;
/// As many as a mirror passes on.
const CHALLENGES_MAX: usize = 16;

/// Opens blobs at the mirror.
#[derive(Clone)]
pub(crate) struct MirrorClient {
    url: Url,
    identity: NodeIdentity,
    allow_plain_credentials: bool,
    http: reqwest::Client,
    clock: AuthorityClock,
    lost: Arc<Mutex<Option<Lost>>>,
}

/// A mirror that does not answer.
struct Lost {
    since: Instant,
    /// The last reason.
    why: String,
}

impl MirrorClient {
    pub(crate) fn new(
        url: Url,
        http: reqwest::Client,
        identity: NodeIdentity,
        allow_plain_credentials: bool,
        clock: AuthorityClock,
    ) -> Self {
        Self {
            url,
            identity,
            allow_plain_credentials,
            http,
            clock,
            lost: Arc::default(),
        }
    }

    /// For how long the mirror has not answered; `None` while it does.
    pub(crate) fn lost_for(&self) -> Option<Duration> {
        self.lost().as_ref().map(|lost| lost.since.elapsed())
    }

    /// Why the mirror does not answer, and for how long; `None` while it does.
    pub(crate) fn problem(&self) -> Option<String> {
        let lost = self.lost();
        let lost = lost.as_ref()?;
        Some(format!(
            "{}; this has lasted for {} s",
            lost.why,
            lost.since.elapsed().as_secs()
        ))
    }

    /// Notes that the mirror has just answered, or why it did not.
    pub(crate) fn saw(&self, answered: Result<(), String>) {
        let mut lost = self.lost();
        *lost = answered.err().map(|why| Lost {
            since: lost.as_ref().map_or_else(Instant::now, |lost| lost.since),
            why,
        });
    }

    fn lost(&self) -> MutexGuard<'_, Option<Lost>> {
        self.lost.lock()
    }

    /// Logs at the start, not at the first pull, when this is not the mirror of this node's site. It logs nothing else: a mirror
    /// that is not there yet may come before it is needed.
    pub(crate) async fn check(self) {
        let Ok(url) = self.url.join("/v2/") else { return };
        if url.scheme() != "https" {
            return;
        }
        if let Err(error) = self.http.get(url).timeout(OPEN_TIMEOUT).send().await
            && refusal_of(&error, ServerRole::Mirror).is_some()
        {
            self.note(&error);
        }
    }

    /// Whether the mirror answers a probe that carries nothing of a caller.
    async fn answers(&self) -> bool {
        let Ok(url) = self.url.join("/v2/") else { return false };
        self.http.get(url).timeout(ANSWER_TIMEOUT).send().await.is_ok()
    }

    /// Notes that the mirror did not answer. A server that is not trusted needs the operator, and is logged once.
    fn note(&self, error: &reqwest::Error) -> PullError {
        let unanswered = mirror_unanswered(error);
        let why = unanswered.to_string();
        let is_news = self.lost().as_ref().is_none_or(|lost| lost.why != why);
        if is_news && refusal_of(error, ServerRole::Mirror).is_some() {
            error!("the mirror {} is not used: {why}", self.url);
        }
        self.saw(Err(why));
        unanswered
    }

    /// Asks for a blob: the verdict, how it is cut, the fill, the grant. `suspect`: a piece that came wrong.
    ///
    /// # Errors
    /// The mirror's answer as a [`PullError`]; [`PullError::Unavailable`] when there is none.
    pub(crate) async fn open(
        &self,
        caller: &Caller,
        at: &Repository,
        digest: &Digest,
        suspect: Option<u32>,
    ) -> Result<NodeBlob, PullError> {
        let url = self
            .url
            .join(&open_path(at, digest, suspect))
            .map_err(|error| PullError::Unavailable(format!("the mirror's URL: {error}")))?;
        if caller.credential.is_some() {
            require_cover(&url, self.allow_plain_credentials, "the mirror")?;
        }
        let mut response = self.ask(&url, caller, digest).await?;
        if self.identity.must_sign_again(response.status(), response.headers()) {
            // Read to its end, so that the connection can be used again. What it says is known.
            let _ = read_answer(&mut response).await;
            response = self.ask(&url, caller, digest).await?;
        }
        let header = |name| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let retry_after = header(header::RETRY_AFTER);
        let challenges = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
        let challenges = challenges.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let challenges = challenges.take(CHALLENGES_MAX).collect();
        let status = response.status();
        let body = read_answer(&mut response).await?;
        if status != StatusCode::OK {
            return Err(refusal(status, challenges, retry_after, &body, at, digest));
        }
        let blob: NodeBlob = serde_json::from_slice(&body)
            .map_err(|error| PullError::BadGateway(format!("the mirror's answer cannot be read: {error}")))?;
        // The scheduler signs tickets, and its clock may differ.
        self.clock.assume(blob.unix_seconds);
        Ok(NodeBlob {
            piece_addresses: self.reachable(&blob.piece_addresses).await,
            ..blob
        })
    }

    /// Sends one request, signed for itself alone.
    async fn ask(&self, url: &Url, caller: &Caller, digest: &Digest) -> Result<Response, PullError> {
        let mut request = self.http.get(url.clone()).timeout(OPEN_TIMEOUT);
        for (name, value) in self.identity.headers(&Method::GET, url) {
            request = request.header(name, value);
        }
        if let Some(credential) = &caller.credential {
            request = request.header(header::AUTHORIZATION, credential.header());
        }
        match request.send().await {
            Ok(response) => {
                self.saw(Ok(()));
                Ok(response)
            }
            // The blob itself may be what takes long. A probe without it shows whether the mirror is there.
            Err(error) if error.is_timeout() && !error.is_connect() && self.answers().await => {
                self.saw(Ok(()));
                let seconds = OPEN_TIMEOUT.as_secs();
                Err(PullError::Unavailable(format!(
                    "the mirror has not answered for {digest} within {seconds} s"
                )))
            }
            Err(error) => Err(self.note(&error)),
        }
    }

    /// The addresses to reach the piece port. A mirror that listens on all addresses does not know its own: it is its registry's.
    async fn reachable(&self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        if addresses.iter().all(|address| !address.ip().is_unspecified()) {
            return addresses.to_vec();
        }
        let host = self
            .url
            .host_str()
            .unwrap_or_default()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let port = addresses.first().map_or(0, SocketAddr::port);
        tokio::net::lookup_host((host, port))
            .await
            .map(Iterator::collect)
            .unwrap_or_default()
    }
}

async fn read_answer(response: &mut Response) -> Result<Vec<u8>, PullError> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(PullError::BadGateway("the mirror's answer is too long".to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn refusal(
    status: StatusCode,
    challenges: Vec<String>,
    retry_after: Option<String>,
    body: &[u8],
    at: &Repository,
    digest: &Digest,
) -> PullError {
    let upstream = at.upstream.clone();
    let said = || {
        format!(
            "the mirror answered {status}: {}",
            String::from_utf8_lossy(&body[..body.len().min(500)])
        )
    };
    match status {
        StatusCode::NOT_FOUND => PullError::Unknown(format!("{upstream} has no {}/{digest}", at.name)),
        StatusCode::UNAUTHORIZED if challenges.is_empty() => PullError::BadGateway(said()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => PullError::Denied {
            upstream,
            status: status.as_u16(),
            challenges,
        },
        StatusCode::MISDIRECTED_REQUEST => PullError::Loop(said()),
        StatusCode::TOO_MANY_REQUESTS => PullError::TooManyRequests { upstream, retry_after },
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => {
            PullError::Unavailable(said())
        }
        status if status.is_client_error() => PullError::Rejected {
            upstream,
            status: status.as_u16(),
            path: format!("{}/{digest}", at.name),
        },
        _ => PullError::BadGateway(said()),
    }
}
