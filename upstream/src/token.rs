//! Tokens of a registry: the answer to its challenge, from its token server.
//!
//! Invariant: the site's password goes to no token server but those at the registry's home. A token server that fails is not the
//! registry's refusal.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{
    Client, RequestBuilder, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use tracing::{debug, warn};
use url::{Url, form_urlencoded};

use crate::{Credential, PullError};
use crate::{
    answer::{encoding, read_body, refuses_request},
    auth::TokenAnswer,
    breaker::RequestKind,
    challenge::{Bearer, Challenge, challenges},
    cover::require_cover,
    endpoint::Endpoint,
    exchange::NoAnswer,
    home::is_home,
    rate_limit::{limited, settle},
    reach::DOUBT,
    reachable::Zone,
    route::Route,
    site_secret::SiteSecret,
    upstream::Upstream,
    verdicts::Who,
    wallet::Wallet,
};

const TOKEN_BYTES_MAX: usize = 64 * 1024;
/// The wait of a token request for its status line after which the daemon asks the token server its own question, and the wait for
/// the answer to that, which is longer than the question's own patience. A client has its status line within two seconds: the rest is
/// the registry's.
const TOKEN_SILENCE: Duration = Duration::from_millis(250);
const QUESTION_WAIT: Duration = Duration::from_millis(1550);

impl Upstream {
    /// The credential that answers a challenge, where the mirror may give one. `None`: the challenge itself is the answer.
    pub(crate) async fn answer_challenge(
        &self,
        endpoint: &Endpoint,
        response: &Response,
        wallet: &Wallet,
        scope: &str,
    ) -> Result<Option<Credential>, PullError> {
        let challenges = challenges(response.headers());
        if challenges.is_empty() {
            return Ok(None);
        }
        let key = wallet.token_key(scope);
        self.tokens.drop(&key);
        let site = match wallet {
            // A client answers challenges itself, and a peer's mirror has already asked every token server that it may.
            Wallet::Holder(_) => return Ok(None),
            _ if self.node.is_some() => return Ok(None),
            Wallet::Public => None,
            // The registry has refused it already.
            Wallet::Site(SiteSecret::RegistryToken(_)) => return Ok(None),
            Wallet::Site(SiteSecret::Nothing) => None,
            Wallet::Site(secret) => Some(secret),
        };
        let bearers = || challenges.iter().filter_map(Challenge::bearer);
        let usable = |bearer: Bearer| Some((bearer.token_url(&endpoint.url, scope)?, bearer.covers(scope)));
        let Some((url, covers)) = bearers().find_map(usable) else {
            if bearers().next().is_some() {
                debug!(
                    upstream = self.name,
                    "{} names a token server without TLS, which the mirror does not use", self.name
                );
            }
            let is_basic = challenges.iter().any(Challenge::is_basic);
            return match site.and_then(SiteSecret::password).filter(|_| is_basic) {
                Some(credential) => {
                    require_cover(&endpoint.url, self.allow_plain_credentials, &self.name)?;
                    Ok(Some(credential.clone()))
                }
                None => Ok(None),
            };
        };
        // A token server elsewhere is asked for an anonymous token: that is enough for what is public, and costs no secret.
        let at_home = is_home(&url, &endpoint.url, &self.token_servers);
        if site.is_some() && !at_home {
            self.keep_home(&url);
        }
        let from = self.routes.zone(&endpoint.url, response);
        let kept = covers.then_some(&*key);
        self.fetch_token(url, from, site.filter(|_| at_home), kept).await
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
    ///
    /// # Errors
    /// [`PullError::Unavailable`], [`PullError::BadGateway`], [`PullError::TooManyRequests`]: the token server cannot say. That is
    /// no word of the registry's.
    pub(crate) async fn fetch_token(
        &self,
        url: Url,
        from: Zone,
        site: Option<&SiteSecret>,
        key: Option<&str>,
    ) -> Result<Option<Credential>, PullError> {
        let route = match self.route_to(from, &url) {
            Err(PullError::Misled { .. }) => return Ok(None),
            route => route?,
        };
        let who = if site.is_some() { Who::Site } else { Who::Public };
        let pass = self.breakers.enter(&url, who, RequestKind::Token, Instant::now())?;
        if site.is_some() {
            require_cover(&url, self.allow_plain_credentials, &self.name)?;
        }
        debug!(upstream = self.name, "asking for a token");
        let server = self.asked_for_tokens.at(&url, from, self.public.made_up());
        let whom = server.whom(&self.name);
        let asked = match site {
            Some(SiteSecret::IdentityToken(refresh)) => {
                let request = |client: &Client| grant_request(client, &url, refresh);
                self.answer_of_token_server(&route.fresh_alone(), request, &server)
                    .await
            }
            site => {
                let password = site.and_then(SiteSecret::password).map(Credential::header);
                let request = |client: &Client| match &password {
                    Some(password) => client.get(url.clone()).header(AUTHORIZATION, password),
                    None => client.get(url.clone()),
                };
                self.answer_of_token_server(&route, request, &server).await
            }
        };
        let response = match asked {
            Err(PullError::Misled { .. }) => return Ok(None),
            response => response?,
        };
        settle(pass, &response, &whom);
        match response.status() {
            status if status.is_success() => {}
            StatusCode::TOO_MANY_REQUESTS => return Err(limited(&response, &whom)),
            status if refuses_request(status) => return Ok(None),
            status => return Err(PullError::Unavailable(format!("{whom} answered {status}"))),
        }
        let bad = |problem: &str| PullError::BadGateway(format!("{whom} sent {problem}"));
        if let Some(encoding) = encoding(response.headers()) {
            return Err(bad(&format!(
                "a body in the encoding {encoding}, although none was asked for"
            )));
        }
        let body = tokio::select! {
            biased;
            body = read_body(response, TOKEN_BYTES_MAX) => body.map_err(|problem| bad(&problem))?,
            error = self.lost_tokens(&server) => return Err(error),
        };
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| bad("no token, but other text"))?;
        let token = self.tokens.put(key, &answer, Instant::now());
        let token = token.ok_or_else(|| bad("an answer without a token"))?;
        let credential = Credential::bearer(&token);
        credential
            .map(Some)
            .ok_or_else(|| bad("a token that no request can carry"))
    }

    /// The exchange with a token server, which the daemon asks a question of its own when this request gets no answer in time. Its
    /// silence is remembered for all requests, and each waits for it for [`TOKEN_SILENCE`] and [`QUESTION_WAIT`] at most.
    ///
    /// # Errors
    /// [`PullError::Unavailable`]: no answer; [`PullError::Misled`].
    async fn answer_of_token_server(
        &self,
        route: &Route,
        request: impl Fn(&Client) -> RequestBuilder,
        server: &Arc<Endpoint>,
    ) -> Result<Response, PullError> {
        let whom = server.whom(&self.name);
        let reach = tokio::time::timeout(QUESTION_WAIT, self.require_reach(server)).await;
        reach.unwrap_or_else(|_| Err(self.unanswered(server)))?;
        let answer = self.exchange(route, request, &whom, self.lost_tokens(server)).await;
        answer.map_err(|error| match error {
            NoAnswer::Settled(error) => error,
            NoAnswer::Silent { reason, .. } => PullError::Unavailable(reason),
        })
    }
    /// Why the rest of an answer will not come. Does not end while the token server answers others.
    async fn lost_tokens(&self, server: &Arc<Endpoint>) -> PullError {
        tokio::time::sleep(TOKEN_SILENCE).await;
        loop {
            match tokio::time::timeout(QUESTION_WAIT, self.lost_now(server)).await {
                Ok(Some(error)) => return error,
                Err(_) => return self.unanswered(server),
                // It may have been lost since.
                Ok(None) => tokio::time::sleep(DOUBT).await,
            }
        }
    }

    fn unanswered(&self, server: &Endpoint) -> PullError {
        let waited = (TOKEN_SILENCE + QUESTION_WAIT).as_millis();
        PullError::Unavailable(format!(
            "{} does not answer: no answer within {waited} ms",
            server.whom(&self.name)
        ))
    }
}

/// The request for a token by an identity token, which is OAuth 2's refresh token. `url`: with service and scope in its query.
///
/// Source: distribution's token specification, "OAuth2 Token Authentication"; RFC 6749, section 6.
fn grant_request(client: &Client, url: &Url, refresh: &str) -> RequestBuilder {
    let (of_form, of_query): (Vec<_>, Vec<_>) = url
        .query_pairs()
        .partition(|(key, _)| matches!(&**key, "service" | "scope"));
    let mut at = url.clone();
    at.set_query(None);
    if !of_query.is_empty() {
        at.query_pairs_mut().extend_pairs(&of_query);
    }
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "refresh_token")
        .append_pair("client_id", "piecemeal")
        .append_pair("refresh_token", refresh)
        .extend_pairs(&of_form)
        .finish();
    let request = client
        .post(at)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    request.body(form)
}
