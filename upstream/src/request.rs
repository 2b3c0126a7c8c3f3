//! One request to a registry: with whose right it is made, through which endpoint, over which redirects.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use piecemeal_store::Repository;
use piecemeal_tls::ServerRole;
use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, LOCATION, RANGE, RETRY_AFTER, VIA, WWW_AUTHENTICATE},
};
use tracing::{debug, warn};
use url::Url;

use crate::{Caller, Credential, PullError, SOURCE_TIMEOUT};
use crate::{
    auth::{Challenge, TokenAnswer},
    breaker::{BUSY_PAUSE, Kind, PAUSE_MAX, Pass},
    client::{Endpoint, Upstream, innermost, read_body},
    home::is_home,
    reach::SILENCE,
    reachable::Zone,
    redirect,
    verdicts::Who,
};

const TOKEN_BYTES_MAX: usize = 64 * 1024;
/// The size limit of a mirror's answer that asks for a new claim.
const AGAIN_BYTES_MAX: usize = 64 * 1024;
/// The longest challenge that is kept and passed on.
const CHALLENGE_BYTES_MAX: usize = 4 * 1024;
/// As long as a date.
const RETRY_AFTER_BYTES_MAX: usize = 64;

/// A request to upstream.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a Method,
    pub(crate) caller: &'a Caller,
    pub(crate) at: &'a Repository,
    /// Below `/v2/<name>/`, with its query: `manifests/v1`.
    pub(crate) path: &'a str,
    pub(crate) accept: Option<&'a str>,
    pub(crate) range: Option<&'a str>,
    pub(crate) purpose: Purpose,
}

/// What the request is for: it decides how long upstream may take, and what is remembered of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A caller waits, and may be answered from the store.
    Lookup,
    /// The same, for lists, which may appear at any moment: a 404 is not remembered.
    List,
    /// The same, and upstream may count it against a limit.
    Manifest,
    /// A download, which has a patience of its own.
    Fill,
    /// More of a download that its caller has been served the beginning of.
    Resume,
}

impl Purpose {
    fn is_download(self) -> bool {
        self.kind().is_none()
    }

    /// The kind that an upstream counts the request as. `None` for a download, which slows down in its own way.
    fn kind(self) -> Option<Kind> {
        match self {
            Self::Lookup => Some(Kind::Blob),
            Self::List => Some(Kind::List),
            Self::Manifest => Some(Kind::Manifest),
            Self::Fill | Self::Resume => None,
        }
    }
}

/// With whose right a request is made.
pub(crate) enum Wallet {
    Public,
    Holder(Credential),
    /// The site's own user and password.
    Site(Credential),
}

impl Wallet {
    fn holders(&self) -> Option<&Credential> {
        match self {
            Self::Holder(credential) => Some(credential),
            Self::Public | Self::Site(_) => None,
        }
    }

    fn who(&self) -> Who {
        match self {
            Self::Public => Who::Public,
            Self::Holder(credential) => Who::Holder(credential.fingerprint()),
            Self::Site(_) => Who::Site,
        }
    }
}

/// The host that a request goes to: it decides what a missing answer means.
#[derive(Clone, Copy)]
pub(crate) enum Host<'a> {
    /// The registry. With an endpoint, the daemon probes that endpoint when this request gets no answer in time: a caller's
    /// request never shows by itself that the endpoint is lost.
    Registry(Option<&'a Arc<Endpoint>>),
    /// A redirect's target, or the token server: its silence says nothing about the registry.
    Led(&'a Url),
}

impl Upstream {
    /// Whether upstream has recently served the caller from the repository.
    pub fn allows(&self, caller: &Caller, at: &Repository) -> bool {
        let life = self.allowed_life.get();
        self.verdicts.allow(&self.who(caller), &at.name, life, Instant::now())
    }

    /// By whose right a caller is served: a verdict counts for all callers with the same right.
    pub fn who(&self, caller: &Caller) -> Who {
        match &caller.credential {
            Some(credential) => Who::Holder(credential.fingerprint()),
            None if self.may_use_sites_right(caller) => Who::Site,
            None => Who::Public,
        }
    }

    fn may_use_sites_right(&self, caller: &Caller) -> bool {
        self.held.is_some() && (self.serves_site || caller.node.is_some())
    }

    async fn wallet(&self, caller: &Caller) -> Result<Wallet, PullError> {
        Ok(match (&caller.credential, &self.held) {
            (Some(credential), _) => Wallet::Holder(credential.clone()),
            (None, Some(held)) if self.may_use_sites_right(caller) => Wallet::Site(held.credential(&self.name).await?),
            _ => Wallet::Public,
        })
    }

    /// Sends a request and follows redirects. The status is a success.
    ///
    /// # Errors
    /// [`PullError`].
    pub(crate) async fn ask(&self, ask: Ask<'_>) -> Result<Response, PullError> {
        let wallet = self.wallet(ask.caller).await?;
        let who = wallet.who();
        if ask.purpose != Purpose::Resume
            && let Some(refusal) = self.verdicts.refusal(&who, &ask.at.name, ask.path, Instant::now())
        {
            return Err(refusal);
        }
        if !ask.purpose.is_download() {
            let asked = tokio::time::timeout(SOURCE_TIMEOUT, self.ask_as(ask, wallet)).await;
            return asked.unwrap_or_else(|_| {
                let seconds = SOURCE_TIMEOUT.as_secs();
                Err(PullError::Unavailable(format!(
                    "{} gave no answer within {seconds} s, redirects and token requests included",
                    self.name
                )))
            });
        }
        let result = self.ask_as(ask, wallet).await;
        match result {
            // The credential that a download began with has expired: another one of the same repository was accepted since.
            Err(PullError::Denied { .. }) if ask.purpose == Purpose::Resume => match self.newer_credential(ask) {
                Some(credential) => self.ask_as(ask, Wallet::Holder(credential)).await,
                None => result,
            },
            result => result,
        }
    }

    fn newer_credential(&self, ask: Ask<'_>) -> Option<Credential> {
        let own = ask.caller.credential.as_ref()?;
        let life = self.allowed_life.get();
        let accepted = self.verdicts.accepted(&ask.at.name, life, Instant::now());
        accepted.filter(|accepted| accepted != own)
    }

    /// Asks one endpoint after the other until one gives a final answer, and remembers the result.
    async fn ask_as(&self, ask: Ask<'_>, wallet: Wallet) -> Result<Response, PullError> {
        let mut result = Err(PullError::Unreachable(format!("{} has no endpoint", self.name)));
        for endpoint in &self.endpoints {
            result = self.ask_endpoint(endpoint, ask, &wallet).await;
            // Another endpoint may take what this one does not understand.
            let stands = |error: &PullError| error.is_verdict() && !matches!(error, PullError::Rejected { .. });
            if result.as_ref().is_ok() || result.as_ref().is_err_and(stands) {
                break;
            }
        }
        let (who, now) = (wallet.who(), Instant::now());
        match &result {
            Ok(_) => {
                if ask.purpose == Purpose::Manifest && who == Who::Public {
                    self.public.note(&ask.at.name, ask.path);
                }
                let life = self.allowed_life.get();
                self.verdicts.allowed(&who, &ask.at.name, wallet.holders(), life, now);
            }
            // A registry may keep its lists from those whom it serves images.
            Err(PullError::Unknown(_) | PullError::Denied { .. }) if ask.purpose == Purpose::List => {}
            Err(error) => self.verdicts.refused(&who, &ask.at.name, ask.path, error, now),
        }
        result
    }

    async fn ask_endpoint(
        &self,
        endpoint: &Arc<Endpoint>,
        ask: Ask<'_>,
        wallet: &Wallet,
    ) -> Result<Response, PullError> {
        let pass = self.enter(&endpoint.url, wallet, ask.purpose)?;
        let asked_at = Instant::now();
        let result = self.follow(endpoint, ask, wallet, pass).await;
        self.asked.note(&self.label, asked_at.elapsed(), &result);
        result
    }

    /// A credential that has used up a host's limit for one kind blocks no other credential, kind or host.
    fn enter(&self, host: &Url, wallet: &Wallet, purpose: Purpose) -> Result<Option<Pass<'_>>, PullError> {
        let pass = |kind| self.breakers.enter(host, wallet.who(), kind, Instant::now());
        purpose.kind().map(pass).transpose()
    }

    /// Updates the breaker by a host's answer.
    fn settle(&self, pass: Pass<'_>, response: &Response) {
        match response.status() {
            StatusCode::TOO_MANY_REQUESTS => {
                let retry_after = text(response.headers(), RETRY_AFTER);
                let pause = retry_after.as_deref().and_then(seconds).unwrap_or(BUSY_PAUSE);
                pass.open(self.limited(response), pause, Instant::now());
            }
            // Answers by the host itself to a request that it has counted.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => pass.close(),
            status if status.is_success() || status.is_redirection() => pass.close(),
            _ => {}
        }
    }

    /// A 429.
    fn limited(&self, response: &Response) -> PullError {
        PullError::TooManyRequests {
            upstream: self.name.clone(),
            retry_after: text(response.headers(), RETRY_AFTER).and_then(within_reason),
        }
    }

    /// Follows token challenges and redirects to an answer.
    async fn follow(
        &self,
        endpoint: &Arc<Endpoint>,
        ask: Ask<'_>,
        wallet: &Wallet,
        pass: Option<Pass<'_>>,
    ) -> Result<Response, PullError> {
        let url = self.request_url(endpoint, ask.at, ask.path)?;
        let scope = format!("repository:{}{}:pull", endpoint.prefix(), ask.at.name);
        let mut authorization = self.first_authorization(&url, wallet, &scope)?;
        let mut response = self.send(endpoint, ask, &url, authorization.as_ref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            authorization = self.answer_challenge(endpoint, &response, wallet, &scope).await?;
            if authorization.is_some() {
                let challenge = response.headers().get(WWW_AUTHENTICATE).cloned();
                response = self.send(endpoint, ask, &url, authorization.as_ref()).await?;
                // The client needs the challenge by which it gets a right of its own, not the error of the site's credential.
                if let (StatusCode::UNAUTHORIZED, Some(challenge)) = (response.status(), challenge) {
                    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                }
            }
        }
        if let Some(pass) = pass {
            self.settle(pass, &response);
        }
        let mut at = url.clone();
        let mut from = Zone::Loopback;
        for _ in 0..redirect::REDIRECTS_MAX {
            if !response.status().is_redirection() || !response.headers().contains_key(LOCATION) {
                return self.judge(endpoint, ask, response, at != url);
            }
            // The farthest host of a redirect chain decides where it may lead.
            from = from.min(self.routes.zone(&at, &response));
            at = redirect::target(&at, response.headers())
                .ok_or_else(|| self.bad(ask.at, "a redirect that may not be followed"))?;
            let pass = self.enter(&at, wallet, ask.purpose)?;
            response = self.fetch_led(ask, from, &at, &scope).await?;
            if let Some(pass) = pass {
                self.settle(pass, &response);
            }
        }
        Err(self.bad(ask.at, "too many redirects"))
    }

    /// Fetches a redirect's target: storage, or another registry that gives anonymous tokens. No credential of the caller's or
    /// of the site's goes there: storage hosts refuse a foreign `Authorization`, and strangers must not see it.
    async fn fetch_led(&self, ask: Ask<'_>, from: Zone, url: &Url, scope: &str) -> Result<Response, PullError> {
        let key = format!("{} {scope}", url.origin().ascii_serialization());
        let token = |token: String| Credential::bearer(&token);
        let known = self.tokens.get(&key, Instant::now()).and_then(token);
        let response = self.fetch_stored(ask, from, url, known.as_ref()).await?;
        let challenge = text(response.headers(), WWW_AUTHENTICATE).and_then(|text| Challenge::parse(&text));
        let Some(challenge) = challenge.filter(|_| response.status() == StatusCode::UNAUTHORIZED) else {
            return Ok(response);
        };
        self.tokens.drop(&key);
        let Some(realm) = challenge.token_url(url, scope) else {
            return Ok(response);
        };
        let from = from.min(self.routes.zone(url, &response));
        let kept = challenge.covers(scope).then_some(&*key);
        match self.fetch_token(realm, from, None, kept).await?.and_then(token) {
            Some(credential) => self.fetch_stored(ask, from, url, Some(&credential)).await,
            None => Ok(response),
        }
    }

    /// The HTTP client for a redirect's target. The registry itself is named by the administrator, and needs no check.
    fn client_for(&self, from: Zone, url: &Url) -> Result<reqwest::Client, PullError> {
        let is_registry = |endpoint: &Arc<Endpoint>| endpoint.url.origin() == url.origin();
        if self.endpoints.iter().any(is_registry) {
            return self.routes.registry(url);
        }
        self.routes.to(from, url)
    }

    /// The credential to send before the registry challenges for one.
    fn first_authorization(&self, url: &Url, wallet: &Wallet, scope: &str) -> Result<Option<Credential>, PullError> {
        match wallet {
            Wallet::Holder(credential) => {
                require_cover(url, self.allow_plain_credentials, &self.name)?;
                Ok(Some(credential.clone()))
            }
            Wallet::Public | Wallet::Site(_) => {
                let token = self.tokens.get(&wallet.token_key(scope), Instant::now());
                Ok(token.and_then(|token| Credential::bearer(&token)))
            }
        }
    }

    /// The credential that answers a challenge, where the mirror may give one. `None`: the challenge itself is the answer.
    pub(crate) async fn answer_challenge(
        &self,
        endpoint: &Endpoint,
        response: &Response,
        wallet: &Wallet,
        scope: &str,
    ) -> Result<Option<Credential>, PullError> {
        let Some(challenge) = response
            .headers()
            .get(WWW_AUTHENTICATE)
            .and_then(|value| value.to_str().ok())
        else {
            return Ok(None);
        };
        let key = wallet.token_key(scope);
        self.tokens.drop(&key);
        let site = match wallet {
            // A client answers challenges itself, and a peer's mirror has already asked every token server that it may.
            Wallet::Holder(_) => return Ok(None),
            _ if self.node.is_some() => return Ok(None),
            Wallet::Public => None,
            Wallet::Site(credential) => Some(credential),
        };
        let Some(bearer) = Challenge::parse(challenge) else {
            let is_basic = challenge
                .trim()
                .get(..5)
                .is_some_and(|scheme| scheme.eq_ignore_ascii_case("basic"));
            return match site.filter(|_| is_basic) {
                Some(credential) => {
                    require_cover(&endpoint.url, self.allow_plain_credentials, &self.name)?;
                    Ok(Some(credential.clone()))
                }
                None => Ok(None),
            };
        };
        let Some(url) = bearer.token_url(&endpoint.url, scope) else {
            debug!(
                upstream = self.name,
                "{} names a token server without TLS, which the mirror does not use", self.name
            );
            return Ok(None);
        };
        // A token server elsewhere is asked for an anonymous token: that is enough for what is public, and costs no secret.
        let at_home = is_home(&url, &endpoint.url, &self.token_servers);
        if site.is_some() && !at_home {
            self.keep_home(&url);
        }
        let from = self.routes.zone(&endpoint.url, response);
        let kept = bearer.covers(scope).then_some(&*key);
        let token = self.fetch_token(url, from, site.filter(|_| at_home), kept).await?;
        Ok(token.and_then(|token| Credential::bearer(&token)))
    }

    fn keep_home(&self, realm: &Url) {
        self.kept_home.call_once(|| {
            warn!(
                upstream = self.name,
                "{} asks for tokens at {}, which is not known to be its owner's: the held password is not sent there. If it is, set \
                 --token-server",
                self.name,
                realm.host_str().unwrap_or_default()
            );
        });
    }

    /// `key`: the key that the token is cached under, if it is. `Ok(None)`: the token server grants nothing, or the registry
    /// may not lead to it; the registry's 401 is the answer.
    async fn fetch_token(
        &self,
        url: Url,
        from: Zone,
        site: Option<&Credential>,
        key: Option<&str>,
    ) -> Result<Option<String>, PullError> {
        let client = match self.client_for(from, &url) {
            Err(PullError::Misled { .. }) => return Ok(None),
            client => client?,
        };
        let who = if site.is_some() { Who::Site } else { Who::Public };
        let pass = self.breakers.enter(&url, who, Kind::Token, Instant::now())?;
        let mut request = client.get(url.clone());
        if let Some(credential) = site {
            require_cover(&url, self.allow_plain_credentials, &self.name)?;
            request = request.header(AUTHORIZATION, credential.header());
        }
        debug!(upstream = self.name, "asking for a token");
        let response = match self.await_answer(request, Host::Led(&url)).await {
            Err(PullError::Misled { .. }) => return Ok(None),
            response => response?,
        };
        self.settle(pass, &response);
        match response.status() {
            status if status.is_success() => {}
            StatusCode::TOO_MANY_REQUESTS => return Err(self.limited(&response)),
            status if status.is_server_error() => {
                return Err(PullError::Unavailable(format!(
                    "{}'s token server answered {status}",
                    self.name
                )));
            }
            _ => return Ok(None),
        }
        let body = read_body(response, TOKEN_BYTES_MAX)
            .await
            .map_err(|problem| PullError::BadGateway(format!("{}'s token server: {problem}", self.name)))?;
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| PullError::BadGateway(format!("{}'s token server sent no token", self.name)))?;
        Ok(self.tokens.put(key, answer, Instant::now()))
    }

    async fn send(
        &self,
        endpoint: &Arc<Endpoint>,
        ask: Ask<'_>,
        url: &Url,
        authorization: Option<&Credential>,
    ) -> Result<Response, PullError> {
        let client = self.routes.registry(url)?;
        let request = || {
            let request = dressed(client.request(ask.method.clone(), url.clone()), ask);
            let request = request.header(VIA, self.via(ask.caller));
            let request = match authorization {
                Some(credential) => request.header(AUTHORIZATION, credential.header()),
                None => request,
            };
            let signed = self.node.iter().flat_map(|node| node.headers(ask.method, url));
            signed.fold(request, |request, (name, value)| request.header(name, value))
        };
        let host = match ask.purpose.is_download() {
            true => Host::Registry(None),
            false => {
                self.require_reach(endpoint).await?;
                Host::Registry(Some(endpoint))
            }
        };
        let response = self.await_answer(request(), host).await?;
        let (status, headers) = (response.status(), response.headers());
        if !self
            .node
            .as_ref()
            .is_some_and(|node| node.must_sign_again(status, headers))
        {
            return Ok(response);
        }
        // Read to its end, so that the connection can be used again. What it says is known.
        let _ = read_body(response, AGAIN_BYTES_MAX).await;
        self.await_answer(request(), host).await
    }

    /// Where a redirect leads, through the accelerated host when there is one.
    async fn fetch_stored(
        &self,
        ask: Ask<'_>,
        from: Zone,
        url: &Url,
        token: Option<&Credential>,
    ) -> Result<Response, PullError> {
        let request = |url: &Url| -> Result<RequestBuilder, PullError> {
            let client = self.client_for(from, url)?;
            Ok(dressed(client.request(ask.method.clone(), url.clone()), ask))
        };
        if let Some(faster) = self.rewrites.apply(url, Instant::now()) {
            let answer = match request(&faster) {
                Ok(request) => self.await_answer(request, Host::Led(&faster)).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(response) if !response.status().is_client_error() => return Ok(response),
                _ => self.rewrites.failed(url, Instant::now()),
            }
        }
        let mut request = request(url)?;
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token.header());
        }
        self.await_answer(request, Host::Led(url)).await
    }

    /// # Errors
    /// [`PullError::Unreachable`]: the registry is lost, as far as it is known. [`PullError::Unavailable`]: this request got no answer.
    pub(crate) async fn await_answer(&self, request: RequestBuilder, host: Host<'_>) -> Result<Response, PullError> {
        let sent = Instant::now();
        let judged = match host {
            Host::Registry(judged) => judged,
            Host::Led(_) => None,
        };
        let loss = async {
            match judged {
                Some(endpoint) => {
                    tokio::time::sleep(SILENCE).await;
                    self.lost(endpoint).await
                }
                None => None,
            }
        };
        let lost = async {
            match loss.await {
                Some(error) => error,
                None => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            biased;
            answer = tokio::time::timeout(SOURCE_TIMEOUT, request.send()) => answer,
            error = lost => return Err(error),
        };
        let unconnected = matches!(&answer, Ok(Err(error)) if error.is_connect());
        let reason = match answer {
            Ok(Ok(response)) => {
                self.lanes.answered_after(sent.elapsed());
                return Ok(response);
            }
            Ok(Err(error)) if self.node.is_some() => mirror_unanswered(&error).to_string(),
            Ok(Err(error)) => match self.routes.refusal(&error) {
                Some(refusal) => return Err(refusal),
                None => format!("{} does not answer: {}", self.named(host), innermost(&error)),
            },
            Err(_) => {
                let seconds = SOURCE_TIMEOUT.as_secs();
                format!(
                    "{} does not answer: no status line within {seconds} s",
                    self.named(host)
                )
            }
        };
        let is_there = match host {
            Host::Registry(Some(endpoint)) if unconnected => self.lost_now(endpoint).await.is_none(),
            Host::Registry(Some(endpoint)) => self.lost(endpoint).await.is_none(),
            Host::Registry(None) => false,
            Host::Led(_) => true,
        };
        Err(match is_there {
            true => PullError::Unavailable(reason),
            false => PullError::Unreachable(reason),
        })
    }

    /// Without a path, whose query may be a secret.
    fn named(&self, host: Host<'_>) -> String {
        match host {
            Host::Registry(_) => self.name.clone(),
            Host::Led(url) => format!("{}, to which {} leads,", url.host_str().unwrap_or_default(), self.name),
        }
    }

    /// `led_on`: the answer comes from a redirect's target, not from the registry itself.
    fn judge(
        &self,
        endpoint: &Endpoint,
        ask: Ask<'_>,
        response: Response,
        led_on: bool,
    ) -> Result<Response, PullError> {
        let header = |name| text(response.headers(), name);
        let upstream = self.name.clone();
        match response.status() {
            // A captive portal or a login page answers every request with 200 and a page. That proves no right.
            status if status.is_success() && is_page(response.headers()) => Err(self.bad(
                ask.at,
                &format!("an HTML page for {}: is there a login page in front of it?", ask.path),
            )),
            status if status.is_success() => Ok(response),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) if led_on => Err(self.bad(
                ask.at,
                &format!("a redirect to a host that answers {status} for {}", ask.path),
            )),
            StatusCode::NOT_FOUND => Err(PullError::Unknown(format!(
                "{upstream} has no {}/{}",
                ask.at.name, ask.path
            ))),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Err(PullError::Denied {
                upstream,
                status: status.as_u16(),
                challenge: header(WWW_AUTHENTICATE).filter(|challenge| {
                    challenge.len() <= CHALLENGE_BYTES_MAX && self.may_be_replayed(endpoint, challenge)
                }),
            }),
            StatusCode::MISDIRECTED_REQUEST => Err(PullError::Loop(format!(
                "{upstream} answered that the request has returned to the mirror that sent it: its URL leads to this mirror"
            ))),
            StatusCode::TOO_MANY_REQUESTS => Err(self.limited(&response)),
            status if status.is_server_error() => Err(PullError::Unavailable(format!(
                "{upstream} answered {status} for {}/{}",
                ask.at.name, ask.path
            ))),
            // The mirror chose the range of a resumed download, not its caller.
            StatusCode::RANGE_NOT_SATISFIABLE if ask.purpose == Purpose::Resume => {
                Err(self.bad(ask.at, &format!("status 416 for the rest of {}", ask.path)))
            }
            status if refuses_request(status) && !led_on => Err(PullError::Rejected {
                upstream,
                status: status.as_u16(),
                path: format!("{}/{}", ask.at.name, ask.path),
            }),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => Err(PullError::Unavailable(format!(
                "{upstream} answered {} for {}/{}",
                response.status(),
                ask.at.name,
                ask.path
            ))),
            status => Err(self.bad(ask.at, &format!("status {status} for {}", ask.path))),
        }
    }

    /// Whether a client may get the challenge. It answers with its secrets, as it would without the mirror: over TLS at any token
    /// server that the registry names, and in the clear at the registry's own.
    fn may_be_replayed(&self, endpoint: &Endpoint, challenge: &str) -> bool {
        // A mirror has looked at it already, with the registry's own URL before it.
        let may = self.node.is_some()
            || match Challenge::parse(challenge) {
                Some(bearer) => bearer.token_url(&endpoint.url, "").is_some_and(|realm| {
                    realm.scheme() == "https" || is_home(&realm, &endpoint.url, &self.token_servers)
                }),
                // Of other schemes, those that name no place to go to.
                None => !challenge.to_ascii_lowercase().contains("bearer"),
            };
        if !may {
            self.withheld.call_once(|| {
                warn!(
                    upstream = self.name,
                    "{} names a token server elsewhere without TLS; the mirror sends no client there, and private images are pulled past \
                     this mirror",
                    self.name
                );
            });
        }
        may
    }
}

impl Wallet {
    fn token_key(&self, scope: &str) -> String {
        match self {
            Self::Site(_) => format!("site {scope}"),
            Self::Public | Self::Holder(_) => scope.to_owned(),
        }
    }
}

/// Whether a 4xx is about the request that it answers. A proxy's 407 is about the mirror, and some only say: not now.
fn refuses_request(status: StatusCode) -> bool {
    let others = [
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_EARLY,
    ];
    status.is_client_error() && !others.contains(&status)
}

fn dressed(request: RequestBuilder, ask: Ask<'_>) -> RequestBuilder {
    [(ACCEPT, ask.accept), (RANGE, ask.range)]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .fold(request, |request, (name, value)| request.header(name, value))
}

/// The error of a request to the mirror that got no answer, or an answer from another server.
pub fn mirror_unanswered(error: &reqwest::Error) -> PullError {
    PullError::Unreachable(match piecemeal_tls::refusal(error, ServerRole::Mirror) {
        Some(refused) => refused.to_string(),
        None => format!("the mirror does not answer: {}", innermost(error)),
    })
}

/// Lets a credential for `whom` go to `url` only over TLS or to this host, or where `allowed`: others on the way could read it.
///
/// # Errors
/// [`PullError::Withheld`], which says what to do.
pub fn require_cover(url: &Url, allowed: bool, whom: &str) -> Result<(), PullError> {
    if allowed || url.scheme() == "https" || is_loopback(url) {
        return Ok(());
    }
    Err(PullError::Withheld(format!(
        "a credential for {whom} would go to {} in the clear: let its URL begin with https://, or set allow_plain_credentials",
        url.host_str().unwrap_or_default()
    )))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(domain)) => domain == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// `Retry-After` in seconds. A date is left to the default: clocks of edge boards are not to be trusted.
fn seconds(retry_after: &str) -> Option<Duration> {
    retry_after.trim().parse().ok().map(Duration::from_secs)
}

/// As it may be passed on.
fn within_reason(retry_after: String) -> Option<String> {
    match retry_after.trim().parse::<u64>() {
        Ok(seconds) => Some(seconds.min(PAUSE_MAX.as_secs()).to_string()),
        Err(_) => Some(retry_after).filter(|date| date.len() <= RETRY_AFTER_BYTES_MAX),
    }
}

pub(crate) fn is_page(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"text/html"))
}

pub(crate) fn text(headers: &HeaderMap, name: reqwest::header::HeaderName) -> Option<String> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}
