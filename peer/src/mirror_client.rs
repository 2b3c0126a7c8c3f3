//! A peer's side of its mirror: opening blobs for the swarm, and knowing whether the mirror is there.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use piecemeal_proto::Digest;
use piecemeal_proxy::{NodeBlob, UnopenedReason, open_path};
use piecemeal_store::Repository;
use piecemeal_swarm::AuthorityClock;
use piecemeal_tls::{ServerRole, refusal as refusal_of};
use piecemeal_upstream::{
    ANSWER_TIMEOUT, Caller, NodeIdentity, PATIENCE, PATIENCE_PROBE, PullError, Route, mirror_said, mirror_unanswered,
    require_cover,
};
use reqwest::{Client, Method, Response, StatusCode, header};
use tracing::error;
use url::Url;

use crate::download::Unopened;

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
    route: Route,
    clock: AuthorityClock,
    lost: Arc<Mutex<Option<Lost>>>,
}

/// Why the mirror has not opened a blob: its error, and what that says about asking again.
pub(crate) struct NotOpened {
    pub(crate) error: PullError,
    pub(crate) unopened: Unopened,
}

impl NotOpened {
    /// The error that the mirror has answered with; `None` while its answer is open, or there is none.
    pub(crate) fn answer(&self) -> Option<PullError> {
        match self.unopened {
            Unopened::Unavailable | Unopened::Refused => Some(self.error.clone()),
            Unopened::Pending | Unopened::Lost { .. } => None,
        }
    }
}

impl From<PullError> for NotOpened {
    fn from(error: PullError) -> Self {
        let unopened = match &error {
            PullError::Pending(_) => Unopened::Pending,
            PullError::Unavailable(_) => Unopened::Unavailable,
            _ => Unopened::Refused,
        };
        Self { error, unopened }
    }
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
        route: Route,
        identity: NodeIdentity,
        allow_plain_credentials: bool,
        clock: AuthorityClock,
    ) -> Self {
        Self {
            url,
            identity,
            allow_plain_credentials,
            route,
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
        if let Err(error) = self.root(&url, OPEN_TIMEOUT).await
            && refusal_of(&error, ServerRole::Mirror).is_some()
        {
            self.note(&error);
        }
    }

    /// Whether the mirror answers a probe that carries nothing of a caller.
    async fn answers(&self) -> bool {
        let Ok(url) = self.url.join("/v2/") else { return false };
        self.root(&url, ANSWER_TIMEOUT).await.is_ok()
    }

    async fn root(&self, url: &Url, timeout: Duration) -> reqwest::Result<Response> {
        let until = Instant::now() + timeout;
        let request = |client: &Client| client.get(url.clone()).timeout(left(until));
        self.route.send(tokio::time::sleep(PATIENCE_PROBE), request).await
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
    /// The mirror's answer as a [`PullError`]; [`PullError::Pending`] or [`PullError::Unreachable`] when there is none.
    pub(crate) async fn open(
        &self,
        caller: &Caller,
        at: &Repository,
        digest: &Digest,
        suspect: Option<u32>,
    ) -> Result<NodeBlob, NotOpened> {
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
        let reason = UnopenedReason::stated(response.headers());
        let body = read_answer(&mut response).await?;
        if status != StatusCode::OK {
            let error = refusal(status, challenges, retry_after, &body, at, digest);
            return Err(match (reason, error) {
                (Some(UnopenedReason::Pending), PullError::Unavailable(said)) => PullError::Pending(said).into(),
                (Some(UnopenedReason::UpstreamLost), error) => NotOpened {
                    error,
                    unopened: Unopened::Refused,
                },
                (_, error) => error.into(),
            });
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

    /// Sends one request, signed for itself alone each time that it goes out.
    async fn ask(&self, url: &Url, caller: &Caller, digest: &Digest) -> Result<Response, NotOpened> {
        let until = Instant::now() + OPEN_TIMEOUT;
        let request = |client: &Client| {
            let mut request = client.get(url.clone()).timeout(left(until));
            for (name, value) in self.identity.headers(&Method::GET, url) {
                request = request.header(name, value);
            }
            match &caller.credential {
                Some(credential) => request.header(header::AUTHORIZATION, credential.header()),
                None => request,
            }
        };
        match self.route.send(tokio::time::sleep(PATIENCE), request).await {
            Ok(response) => {
                self.saw(Ok(()));
                Ok(response)
            }
            // The blob itself may be what takes long. A probe without it shows whether the mirror is there.
            Err(error) if error.is_timeout() && !error.is_connect() && self.answers().await => {
                self.saw(Ok(()));
                let seconds = OPEN_TIMEOUT.as_secs();
                let waited = format!("the mirror has not answered for {digest} within {seconds} s");
                Err(PullError::Pending(waited).into())
            }
            Err(error) => Err(NotOpened {
                error: self.note(&error),
                unopened: Unopened::Lost { lost: self.lost_for() },
            }),
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

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
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
    let said = || mirror_said(status, body);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_that_the_mirror_states_for_a_blob_is_passed_on_under_its_name() {
        let at = Repository {
            upstream: "docker.io".to_owned(),
            name: "library/app".to_owned(),
        };
        let digest = format!("sha256:{}", "ab".repeat(32)).parse().unwrap();
        for (status, reason) in [
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "docker.io does not answer: failed to lookup address information",
            ),
            (
                StatusCode::BAD_GATEWAY,
                "docker.io leads to 10.0.0.1, which is inside the private network",
            ),
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                "the content store failed: No space left on device",
            ),
        ] {
            let body = format!(r#"{{"errors":[{{"code":"UNKNOWN","detail":null,"message":"{reason}"}}]}}"#);
            let error = refusal(status, Vec::new(), None, body.as_bytes(), &at, &digest);
            let expected = format!("the mirror answered {}: {reason}", status.as_u16());
            assert_eq!(error.to_string(), expected);
            assert!(!error.is_verdict());
        }
    }
}
