//! Probes of an upstream, by which the daemon itself decides whether an endpoint is lost (`reach.rs`).
//!
//! Invariant: an endpoint has one question at a time, which goes on when the caller that caused it leaves. It carries no credential
//! of a caller's.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use piecemeal_proto::MANIFEST_ACCEPT;
use reqwest::{
    Client, Method, RequestBuilder, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, VIA},
};
use tracing::{info, warn};
use url::Url;

use crate::{ANSWER_TIMEOUT, PullError, SOURCE_TIMEOUT};
use crate::{
    answer::{innermost, is_page, read_body},
    endpoint::Endpoint,
    exchange::mirror_unanswered,
    reach::{ANSWER_LIFE, DOUBT, RENEWAL, Reach, Reachability},
    reachable::Zone,
    route::{PATIENCE_PROBE, patience},
    upstream::Upstream,
    wallet::Wallet,
};

/// The wait for a token server's status line: with the silence before it, less than the two seconds in which a client has its own.
const TOKEN_PATIENCE: Duration = Duration::from_millis(1500);
/// The most bytes of a token server's answer to a question.
const QUESTION_BYTES_MAX: usize = 64 * 1024;

/// A question that is under way. Dropped before it has an answer, as by a panic, it lets the next caller ask again.
struct Question {
    endpoint: Arc<Endpoint>,
    begun: Instant,
    is_answered: bool,
}

impl Question {
    /// `None`: there is no need for one.
    fn begin(endpoint: &Arc<Endpoint>, age_max: Duration, now: Instant) -> Option<Self> {
        let begins = endpoint.reach.send_if_modified(|reach| reach.begin(age_max, now));
        begins.then(|| Self {
            endpoint: Arc::clone(endpoint),
            begun: now,
            is_answered: false,
        })
    }

    /// Says whether the answer is news.
    fn end(mut self, lost: Option<PullError>, now: Instant) -> bool {
        self.is_answered = true;
        let mut is_news = false;
        self.endpoint
            .reach
            .send_modify(|reach| is_news = reach.end(lost, self.begun, now));
        is_news
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        if !self.is_answered {
            self.endpoint.reach.send_modify(Reach::give_up);
        }
    }
}

impl Upstream {
    /// Whether none of its endpoints can be reached. Costs a question unless one was answered not long ago.
    pub async fn is_lost(&self) -> bool {
        let lost = join_all(self.endpoints.iter().map(|endpoint| self.lost(endpoint))).await;
        lost.iter().all(Option::is_some)
    }

    /// Lets a request go to the endpoint, unless it would get no answer there.
    pub(crate) async fn require_reach(&self, endpoint: &Arc<Endpoint>) -> Result<(), PullError> {
        let reachability = endpoint.reach.borrow().reachability(Instant::now());
        match reachability {
            Reachability::Open => Ok(()),
            Reachability::Silent { error, renew } => {
                if renew {
                    self.begin_question(endpoint, RENEWAL);
                }
                Err(error)
            }
            Reachability::Unsure => self.lost(endpoint).await.map_or(Ok(()), Err),
        }
    }

    /// Why the endpoint is lost; `None` when it is not, or when that does not show in time.
    pub(crate) async fn lost(&self, endpoint: &Arc<Endpoint>) -> Option<PullError> {
        self.lost_since(endpoint, ANSWER_LIFE).await
    }

    /// The same after a connection to it has failed.
    pub(crate) async fn lost_now(&self, endpoint: &Arc<Endpoint>) -> Option<PullError> {
        self.lost_since(endpoint, DOUBT).await
    }

    async fn lost_since(&self, endpoint: &Arc<Endpoint>, there_max: Duration) -> Option<PullError> {
        let mut reach = endpoint.reach.subscribe();
        let known = reach.borrow().answer(there_max, Instant::now());
        if let Some(lost) = known {
            return lost;
        }
        self.begin_question(endpoint, there_max);
        let answered = tokio::time::timeout(SOURCE_TIMEOUT, reach.wait_for(|reach| !reach.is_asking())).await;
        let reach = answered.ok()?.ok()?;
        reach.answer(ANSWER_LIFE, Instant::now()).flatten()
    }

    /// The question goes on when the caller that caused it leaves.
    fn begin_question(&self, endpoint: &Arc<Endpoint>, age_max: Duration) {
        let Some(upstream) = self.me.upgrade() else { return };
        let Some(question) = Question::begin(endpoint, age_max, Instant::now()) else {
            return;
        };
        tokio::spawn(async move {
            let answer = upstream.ask_itself(&question.endpoint).await;
            upstream.answered(question, answer.err());
        });
    }

    fn answered(&self, question: Question, lost: Option<PullError>) {
        let whom = question.endpoint.whom(&self.name);
        let is_news = question.end(lost.clone(), Instant::now());
        match lost {
            Some(error) if is_news => warn!(upstream = self.name, %error, "{whom} is unreachable: {error}"),
            None if is_news => info!(upstream = self.name, "{whom} is reachable again"),
            _ => {}
        }
    }

    /// Whether the endpoint answers. A peer need not probe beyond its mirror, which itself knows whether the WAN is there.
    async fn ask_itself(&self, endpoint: &Endpoint) -> Result<(), PullError> {
        if let Some(from) = endpoint.led_from {
            return self.question_token_server(endpoint, from).await;
        }
        let questioned = match self.node {
            None => self.public.questioned(),
            Some(_) => Vec::new(),
        };
        if questioned.is_empty() {
            return self.question_root(endpoint).await;
        }
        // One answer is enough: the owner of a repository may have broken that one on purpose.
        let asked = questioned
            .iter()
            .map(|(name, path)| self.question_manifest(endpoint, name, path));
        let mut asked: FuturesUnordered<_> = asked.collect();
        let mut answer = Ok(());
        while let Some(answered) = asked.next().await {
            answer = answered;
            if answer.is_ok() {
                break;
            }
        }
        answer
    }

    async fn question_manifest(&self, endpoint: &Endpoint, name: &str, path: &str) -> Result<(), PullError> {
        let name = format!("{}{name}", endpoint.prefix());
        let Some(url) = endpoint.v2(&format!("{name}/{path}")) else {
            return Ok(());
        };
        let head = |client: &Client| self.own(client, Method::HEAD, &url).header(ACCEPT, MANIFEST_ACCEPT);
        let mut response = self.status_line(&url, head).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let scope = format!("repository:{name}:pull");
            let Some(token) = self.question_token(endpoint, &response, &scope).await? else {
                return Ok(());
            };
            let authorized = |client: &Client| head(client).header(AUTHORIZATION, &token);
            response = self.status_line(&url, authorized).await?;
        }
        // A redirect is an answer too: its target concerns the repository alone.
        match response.status().is_success() && is_page(response.headers()) {
            true => Err(PullError::BadGateway(format!(
                "{} answers with an HTML page: is there a login page in front of it?",
                self.name
            ))),
            false => Ok(()),
        }
    }

    async fn question_root(&self, endpoint: &Endpoint) -> Result<(), PullError> {
        let Some(url) = endpoint.v2("") else { return Ok(()) };
        let response = self
            .status_line(&url, |client| self.own(client, Method::GET, &url))
            .await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.question_token(endpoint, &response, "").await?;
        }
        Ok(())
    }

    /// An anonymous token. `None`: the challenge names no token server that may be asked, or that grants none.
    async fn question_token(
        &self,
        endpoint: &Endpoint,
        response: &Response,
        scope: &str,
    ) -> Result<Option<reqwest::header::HeaderValue>, PullError> {
        let asked = self.answer_challenge(endpoint, response, &Wallet::Public, scope);
        match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Ok(credential)) => Ok(credential.map(|credential| credential.header())),
            // A 429 is an answer.
            Ok(Err(PullError::TooManyRequests { .. })) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(self.silent("token server", ANSWER_TIMEOUT)),
        }
    }

    /// Any answer but a 5xx shows that the token server is there. The request goes on when its answer comes too late, so that the next
    /// one finds a connection: over some links it takes longer to make one than to use it.
    async fn question_token_server(&self, server: &Endpoint, from: Zone) -> Result<(), PullError> {
        let whom = server.whom(&self.name);
        let (route, url) = (self.route_to(from, &server.url)?, server.url.clone());
        let asked = tokio::spawn(async move {
            let request = |client: &Client| client.get(url.clone()).timeout(SOURCE_TIMEOUT);
            let response = route.send(tokio::time::sleep(PATIENCE_PROBE), request).await?;
            let status = response.status();
            // Read to its end, so that the connection can be reused.
            let _ = read_body(response, QUESTION_BYTES_MAX).await;
            Ok::<_, reqwest::Error>(status)
        });
        let is_receiving = || self.concurrency.received_within(ANSWER_TIMEOUT);
        let answer = tokio::select! {
            answer = asked => answer,
            () = patience(TOKEN_PATIENCE, SOURCE_TIMEOUT, is_receiving) => {
                let waited = TOKEN_PATIENCE.as_millis();
                return Err(PullError::Unavailable(format!("{whom} does not answer: no answer within {waited} ms")));
            }
        };
        match answer {
            Ok(Ok(status)) if status.is_server_error() => {
                Err(PullError::Unavailable(format!("{whom} answered {status}")))
            }
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(PullError::Unavailable(format!(
                "{whom} does not answer: {}",
                innermost(&error)
            ))),
            Err(_) => Err(PullError::Unavailable(format!("the question to {whom} broke off"))),
        }
    }

    fn own(&self, client: &Client, method: Method, url: &Url) -> RequestBuilder {
        client.request(method, url.as_str()).header(VIA, &self.via)
    }

    /// An answer that shows that the host is there.
    async fn status_line(&self, url: &Url, request: impl Fn(&Client) -> RequestBuilder) -> Result<Response, PullError> {
        let route = self.routes.registry(url)?;
        let sent = Instant::now();
        let response = tokio::select! {
            response = route.send(tokio::time::sleep(PATIENCE_PROBE), request) => response,
            () = patience(ANSWER_TIMEOUT, SOURCE_TIMEOUT, || self.concurrency.received_within(ANSWER_TIMEOUT)) => return Err(self.silent("registry", sent.elapsed())),
        };
        match response {
            // Some refuse HEAD by 501: an answer.
            Ok(response) if response.status().is_server_error() && response.status() != StatusCode::NOT_IMPLEMENTED => {
                Err(PullError::Unavailable(format!(
                    "{} answers {}",
                    self.name,
                    response.status()
                )))
            }
            Ok(response) => Ok(response),
            Err(error) if self.node.is_some() => Err(mirror_unanswered(&error)),
            Err(error) => Err(PullError::Unreachable(format!(
                "{} does not answer: {}",
                self.name,
                innermost(&error)
            ))),
        }
    }

    fn silent(&self, who: &str, waited: Duration) -> PullError {
        PullError::Unreachable(format!(
            "{} does not answer: no status line from its {who} within {} s",
            self.name,
            waited.as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> Option<PullError> {
        Some(PullError::Unreachable("silence".to_owned()))
    }

    #[tokio::test]
    async fn a_question_that_panics_or_is_cancelled_lets_the_next_caller_ask_again() {
        let endpoint = Arc::new(Endpoint::new("http://a.test".parse().unwrap()));
        let begin = || Question::begin(&endpoint, ANSWER_LIFE, Instant::now());
        let question = begin().unwrap();
        assert!(begin().is_none(), "one is under way");
        let mut waiting = endpoint.reach.subscribe();
        let broke = tokio::spawn(async move {
            let _question = question;
            panic!("the question breaks");
        });
        assert!(broke.await.is_err());
        let heard = waiting.wait_for(|reach| !reach.is_asking()).await.unwrap();
        assert!(heard.answer(ANSWER_LIFE, Instant::now()).is_none(), "it says nothing");
        drop(heard);
        let question = begin().expect("the next caller asks");
        let hangs = tokio::spawn(async move {
            let _question = question;
            std::future::pending::<()>().await;
        });
        hangs.abort();
        assert!(hangs.await.is_err());
        assert!(begin().expect("and the one after it").end(lost(), Instant::now()));
        assert!(begin().is_none(), "an answer counts");
    }
}
