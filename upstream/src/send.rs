//! Sending a request to a registry: through which endpoint, with whose right, over which redirects, and how the answer is judged.

use std::{sync::Arc, time::Instant};

use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{AUTHORIZATION, LOCATION, VIA, WWW_AUTHENTICATE},
};
use tracing::warn;
use url::Url;

use crate::{Credential, PullError, SOURCE_TIMEOUT};
use crate::{
    answer::{is_page, read_body, text},
    auth::Challenge,
    breaker::Permit,
    cover::require_cover,
    endpoint::Endpoint,
    exchange::NoAnswer,
    head::Worth,
    home::is_home,
    proof::Proof,
    reach::SILENCE,
    reachable::Zone,
    redirect,
    request::{Purpose, Request},
    upstream::Upstream,
    verdicts::Who,
    wallet::Wallet,
};

/// The size limit of a mirror's answer that asks for a new claim.
const AGAIN_BYTES_MAX: usize = 64 * 1024;
/// The longest challenge that is kept and passed on.
const CHALLENGE_BYTES_MAX: usize = 4 * 1024;

impl Upstream {
    /// Sends a request and follows redirects. The status is a success.
    ///
    /// # Errors
    /// [`PullError`].
    pub(crate) async fn ask(&self, ask: Request<'_>) -> Result<Response, PullError> {
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

    fn newer_credential(&self, ask: Request<'_>) -> Option<Credential> {
        let own = ask.caller.credential.as_ref()?;
        let life = self.allowed_life.get();
        let accepted = self.verdicts.accepted(&ask.at.name, life, Instant::now());
        accepted.filter(|accepted| accepted != own)
    }

    /// Asks one endpoint after the other until one gives a final answer, and remembers the result.
    async fn ask_as(&self, ask: Request<'_>, wallet: Wallet) -> Result<Response, PullError> {
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
        match &mut result {
            // It has still to show that it is what was asked for.
            Ok(response) => {
                response.extensions_mut().insert(Proof::by(&wallet));
            }
            // A registry may keep its lists from those whom it serves images.
            Err(PullError::Unknown(_) | PullError::Denied { .. }) if ask.purpose == Purpose::List => {}
            Err(error) => {
                if who == Who::Public && matches!(error, PullError::Denied { .. }) {
                    self.pings.refused(now);
                }
                self.verdicts.refused(&who, &ask.at.name, ask.path, error, now);
            }
        }
        result
    }

    async fn ask_endpoint(
        &self,
        endpoint: &Arc<Endpoint>,
        ask: Request<'_>,
        wallet: &Wallet,
    ) -> Result<Response, PullError> {
        let pass = self.enter(&endpoint.url, wallet, ask.purpose)?;
        let asked_at = Instant::now();
        let result = self.follow(endpoint, ask, wallet, pass).await;
        self.asked.note(&self.label, asked_at.elapsed(), &result);
        result
    }

    /// Follows token challenges and redirects to an answer.
    async fn follow(
        &self,
        endpoint: &Arc<Endpoint>,
        ask: Request<'_>,
        wallet: &Wallet,
        pass: Option<Permit<'_>>,
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

    /// The credential to send before the registry challenges for one.
    pub(crate) fn first_authorization(
        &self,
        url: &Url,
        wallet: &Wallet,
        scope: &str,
    ) -> Result<Option<Credential>, PullError> {
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

    pub(crate) async fn send(
        &self,
        endpoint: &Arc<Endpoint>,
        ask: Request<'_>,
        url: &Url,
        authorization: Option<&Credential>,
    ) -> Result<Response, PullError> {
        let client = self.routes.registry(url)?;
        let request = || {
            let request = ask.dress(client.request(ask.method.clone(), url.clone()));
            let request = request.header(VIA, self.via(ask.caller));
            let request = match authorization {
                Some(credential) => request.header(AUTHORIZATION, credential.header()),
                None => request,
            };
            let signed = self.node.iter().flat_map(|node| node.headers(ask.method, url));
            signed.fold(request, |request, (name, value)| request.header(name, value))
        };
        // A download has a patience of its own, and no caller's request shows by itself that the endpoint is lost.
        let answer = async |request| match ask.purpose.is_download() {
            true => self.answer_of_registry(request).await,
            false => self.answer_of_endpoint(request, endpoint).await,
        };
        if !ask.purpose.is_download() {
            self.require_reach(endpoint).await?;
        }
        let response = answer(request()).await?;
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
        answer(request()).await
    }

    /// The exchange with an endpoint, which the daemon probes when this request gets no answer in time.
    ///
    /// # Errors
    /// [`PullError::Unreachable`]: the endpoint is lost. [`PullError::Unavailable`]: this request got no answer.
    async fn answer_of_endpoint(
        &self,
        request: RequestBuilder,
        endpoint: &Arc<Endpoint>,
    ) -> Result<Response, PullError> {
        let lost = async {
            tokio::time::sleep(SILENCE).await;
            match self.lost(endpoint).await {
                Some(error) => error,
                None => std::future::pending().await,
            }
        };
        let (reason, unconnected) = match self.exchange(request, &self.name, lost).await {
            Ok(response) => return Ok(response),
            Err(NoAnswer::Settled(error)) => return Err(error),
            Err(NoAnswer::Silent { reason, unconnected }) => (reason, unconnected),
        };
        let lost = match unconnected {
            true => self.lost_now(endpoint).await,
            false => self.lost(endpoint).await,
        };
        Err(match lost {
            None => PullError::Unavailable(reason),
            Some(_) => PullError::Unreachable(reason),
        })
    }

    /// `led_on`: the answer comes from a redirect's target, not from the registry itself.
    pub(crate) fn judge(
        &self,
        endpoint: &Endpoint,
        ask: Request<'_>,
        mut response: Response,
        led_on: bool,
    ) -> Result<Response, PullError> {
        if ask.method == Method::HEAD {
            let worth = self.worth_of_head(ask, &response, led_on);
            if worth != Worth::Stands {
                response.extensions_mut().insert(worth);
                return Ok(response);
            }
        }
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

/// Whether a 4xx is about the request that it answers. A proxy's 407 is about the mirror, and some only say: not now.
fn refuses_request(status: StatusCode) -> bool {
    let others = [
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_EARLY,
    ];
    status.is_client_error() && !others.contains(&status)
}
