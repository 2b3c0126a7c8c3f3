//! Reachability of an upstream, decided by probes of the daemon's own.
//!
//! A failed request of a caller proves nothing about the host: the caller chose the credential, the path and the item. So the
//! daemon probes the host itself (its *question*): a HEAD of manifests that are known to be public and of one whose name the
//! daemon has made up, or `/v2/` as long as no manifest is known to be public; and the token server where the registry names
//! one. No answer or a 5xx means that the host is lost; a 4xx is an answer. A peer asks its mirror `/v2/`.
//!
//! Callers choose which manifests are known to be public, and a caller may choose one that hangs. So a host is lost only when the
//! made-up manifest gets no answer either: no caller knows its name, and a registry answers it with 404 or 401 as long as its
//! backend works.
//!
//! An endpoint is asked one question at a time, whose answer counts for [`ANSWER_LIFE`]. A healthy upstream is asked none: the
//! question follows a request that failed or that got no answer within [`SILENCE`].

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use piecemeal_proto::MANIFEST_ACCEPT;
use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, VIA},
};
use tracing::{info, warn};
use url::Url;

use crate::{ANSWER_TIMEOUT, PullError, SOURCE_TIMEOUT};
use crate::{
    client::{Endpoint, Upstream, innermost},
    request::{Wallet, is_page, mirror_unanswered},
};

/// How long a request waits for its status line before the question is asked.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);
/// How long an answer to the question counts.
const ANSWER_LIFE: Duration = Duration::from_secs(5);
/// From this age on the answer that an endpoint is lost is renewed while it still counts, so that no caller has to wait for it.
const RENEWAL: Duration = Duration::from_millis(2500);
/// How long the answer that an endpoint is there counts once a connection to it has failed: no caller can cause such a failure.
const DOUBT: Duration = Duration::from_secs(1);
/// How often a question looks whether downloads still bring bytes.
const LOOK_AROUND: Duration = Duration::from_millis(250);
/// The most public manifests that are remembered, one of a repository. Each question names all of them.
const PUBLIC_MAX: usize = 3;

/// What is known of one endpoint. Times are passed in.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    answer: Option<Answer>,
    asking: bool,
}

#[derive(Debug)]
struct Answer {
    /// Why it is lost.
    lost: Option<PullError>,
    /// The question got no answer in time: other requests would not either.
    silent: bool,
    at: Instant,
}

/// What a request is to do about an endpoint.
#[derive(Debug)]
pub(crate) enum Standing {
    /// Go there.
    Open,
    /// Do not go there: the request would get no answer. `renew`: the question is due again.
    Silent { error: PullError, renew: bool },
    /// Ask first: the last answer is too old.
    Unsure,
}

impl Reach {
    /// Before a request.
    pub(crate) fn standing(&self, now: Instant) -> Standing {
        let Some(answer) = self.answer.as_ref().filter(|answer| answer.silent) else {
            return Standing::Open;
        };
        let age = now.saturating_duration_since(answer.at);
        match &answer.lost {
            None => Standing::Open,
            Some(_) if age >= ANSWER_LIFE => Standing::Unsure,
            Some(error) => Standing::Silent {
                error: error.clone(),
                renew: age >= RENEWAL,
            },
        }
    }

    /// The answer that counts now: why the endpoint is lost, if it is. `None`: no answer counts. `there_max`: the greatest
    /// age of an answer that it is there.
    fn answer(&self, there_max: Duration, now: Instant) -> Option<Option<PullError>> {
        let answer = self.answer.as_ref()?;
        let life = if answer.lost.is_some() { ANSWER_LIFE } else { there_max };
        let counts = now.saturating_duration_since(answer.at) < life;
        counts.then(|| answer.lost.clone())
    }

    /// Whether to ask: not while a question is under way, nor when there is an answer that is younger than `age_max`.
    fn begin(&mut self, age_max: Duration, now: Instant) -> bool {
        let is_young = |answer: &Answer| now.saturating_duration_since(answer.at) < age_max;
        let begins = !self.asking && !self.answer.as_ref().is_some_and(is_young);
        self.asking |= begins;
        begins
    }

    /// The question that began at `begun` has ended. Says whether that is news.
    fn end(&mut self, lost: Option<PullError>, begun: Instant, now: Instant) -> bool {
        let was_lost = self.answer.as_ref().is_some_and(|answer| answer.lost.is_some());
        let is_news = was_lost != lost.is_some();
        let silent = lost.is_some() && now.saturating_duration_since(begun) >= SILENCE;
        self.answer = Some(Answer { lost, silent, at: now });
        self.asking = false;
        is_news
    }

    /// The question has ended without an answer. The next caller asks again.
    fn give_up(&mut self) {
        self.asking = false;
    }
}

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

/// Manifests that probes ask for: those that upstream has served without a credential, and a made-up one that does not exist.
pub(crate) struct PublicManifests {
    /// The repository and the path below it, the first that came: no later caller displaces them.
    known: Mutex<Vec<(String, String)>>,
    made_up: String,
}

impl PublicManifests {
    /// `random`: so that no caller can know the made-up name.
    pub(crate) fn new(random: u64) -> Self {
        Self {
            known: Mutex::default(),
            made_up: format!("piecemeal-{random:016x}/reach"),
        }
    }

    /// `path`: below the repository.
    pub(crate) fn note(&self, repository: &str, path: &str) {
        let mut known = self.known.lock().expect("no holder of this lock panics");
        if known.len() < PUBLIC_MAX && known.iter().all(|(name, _)| name != repository) {
            known.push((repository.to_owned(), path.to_owned()));
        }
    }

    /// What a question names; nothing as long as no manifest is known to be public.
    fn questioned(&self) -> Vec<(String, String)> {
        let mut questioned = self.known.lock().expect("no holder of this lock panics").clone();
        if !questioned.is_empty() {
            questioned.push((self.made_up.clone(), "manifests/reach".to_owned()));
        }
        questioned
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
        let standing = endpoint.reach.borrow().standing(Instant::now());
        match standing {
            Standing::Open => Ok(()),
            Standing::Silent { error, renew } => {
                if renew {
                    self.begin_question(endpoint, RENEWAL);
                }
                Err(error)
            }
            Standing::Unsure => self.lost(endpoint).await.map_or(Ok(()), Err),
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
        let answered = tokio::time::timeout(SOURCE_TIMEOUT, reach.wait_for(|reach| !reach.asking)).await;
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
        let is_news = question.end(lost.clone(), Instant::now());
        match lost {
            Some(error) if is_news => warn!(upstream = self.name, %error, "{} is unreachable: {error}", self.name),
            None if is_news => info!(upstream = self.name, "{} is reachable again", self.name),
            _ => {}
        }
    }

    /// Whether the endpoint answers. A peer need not probe beyond its mirror, which itself knows whether the WAN is there.
    async fn ask_itself(&self, endpoint: &Endpoint) -> Result<(), PullError> {
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
        let head = || Ok::<_, PullError>(self.own(Method::HEAD, &url)?.header(ACCEPT, MANIFEST_ACCEPT));
        let mut response = self.status_line(head()?).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let scope = format!("repository:{name}:pull");
            let Some(token) = self.question_token(endpoint, &response, &scope).await? else {
                return Ok(());
            };
            response = self.status_line(head()?.header(AUTHORIZATION, token)).await?;
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
        let response = self.status_line(self.own(Method::GET, &url)?).await?;
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
            Ok(Ok(token)) => Ok(token.map(|token| token.header())),
            // A 429 is an answer.
            Ok(Err(PullError::TooManyRequests { .. })) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(self.silent("token server", ANSWER_TIMEOUT)),
        }
    }

    fn own(&self, method: Method, url: &Url) -> Result<RequestBuilder, PullError> {
        let client = self.routes.registry(url)?;
        Ok(client.request(method, url.as_str()).header(VIA, &self.via))
    }

    /// An answer that shows that the host is there.
    async fn status_line(&self, request: RequestBuilder) -> Result<Response, PullError> {
        let sent = Instant::now();
        // While downloads fill the link, an answer may be late: the link is not gone.
        let patience = async {
            tokio::time::sleep(ANSWER_TIMEOUT).await;
            while sent.elapsed() < SOURCE_TIMEOUT && self.lanes.received_within(ANSWER_TIMEOUT) {
                tokio::time::sleep(LOOK_AROUND).await;
            }
        };
        let response = tokio::select! {
            response = request.send() => response,
            () = patience => return Err(self.silent("registry", sent.elapsed())),
        };
        match response {
            Ok(response) if response.status().is_server_error() => Err(PullError::Unavailable(format!(
                "{} answers {}",
                self.name,
                response.status()
            ))),
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

    #[test]
    fn one_question_at_a_time_and_its_answer_counts_for_five_seconds() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        assert!(reach.answer(ANSWER_LIFE, now).is_none());
        assert!(reach.begin(ANSWER_LIFE, now));
        assert!(!reach.begin(ANSWER_LIFE, now), "one is under way");
        assert!(reach.end(lost(), now, now), "news");
        assert!(matches!(reach.answer(ANSWER_LIFE, now), Some(Some(_))));
        assert!(!reach.begin(ANSWER_LIFE, now + ANSWER_LIFE / 2));
        let later = now + ANSWER_LIFE;
        assert!(reach.answer(ANSWER_LIFE, later).is_none());
        assert!(reach.begin(ANSWER_LIFE, later));
        assert!(reach.end(None, later, later), "it is back");
        assert!(matches!(reach.answer(ANSWER_LIFE, later), Some(None)));
        assert!(reach.answer(DOUBT, later + DOUBT).is_none(), "a connection has failed");
        assert!(reach.begin(DOUBT, later + DOUBT));
    }

    #[test]
    fn only_silence_keeps_requests_away_and_the_first_one_after_it_asks_again() {
        let (mut reach, now) = (Reach::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(matches!(reach.standing(now), Standing::Open));
        // A refused connection costs no caller any time.
        reach.begin(ANSWER_LIFE, now);
        reach.end(lost(), now, now);
        assert!(matches!(reach.standing(now), Standing::Open));
        reach.begin(Duration::ZERO, now);
        reach.end(lost(), now, at(2));
        assert!(matches!(reach.standing(at(3)), Standing::Silent { renew: false, .. }));
        assert!(matches!(reach.standing(at(5)), Standing::Silent { renew: true, .. }));
        assert!(matches!(reach.standing(at(7)), Standing::Unsure));
        reach.begin(ANSWER_LIFE, at(7));
        reach.end(None, at(7), at(7));
        assert!(matches!(reach.standing(at(7)), Standing::Open));
    }

    #[test]
    fn the_first_public_manifests_stay_and_a_name_that_no_caller_knows_is_asked_for_too() {
        let known = PublicManifests::new(7);
        assert!(known.questioned().is_empty(), "there is `/v2/`");
        known.note("honest", "manifests/v1");
        for number in 0..20 {
            known.note("honest", &format!("manifests/v{number}"));
            known.note(&format!("strangers/{number}"), "manifests/v1");
        }
        let questioned = known.questioned();
        assert_eq!(questioned.len(), PUBLIC_MAX + 1);
        assert_eq!(questioned[0], ("honest".to_owned(), "manifests/v1".to_owned()));
        let made_up = |known: &PublicManifests| known.questioned().pop().map(|(name, _)| name);
        let other = PublicManifests::new(8);
        other.note("honest", "manifests/v1");
        assert_ne!(made_up(&known), made_up(&other));
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
        let heard = waiting.wait_for(|reach| !reach.asking).await.unwrap();
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
