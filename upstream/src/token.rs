//! Tokens of a registry: the answer to its challenge, from its token server.
//!
//! Invariant: the site's password goes to no token server but those at the registry's home.

use std::time::Instant;

use reqwest::{
    Client, RequestBuilder, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE},
};
use tracing::{debug, warn};
use url::{Url, form_urlencoded};

use crate::{Credential, PullError};
use crate::{
    answer::read_body,
    auth::{Challenge, TokenAnswer},
    breaker::RequestKind,
    cover::require_cover,
    endpoint::Endpoint,
    home::is_home,
    reachable::Zone,
    site_secret::SiteSecret,
    upstream::Upstream,
    verdicts::Who,
    wallet::Wallet,
};

const TOKEN_BYTES_MAX: usize = 64 * 1024;

impl Upstream {
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
            // The registry has refused it already.
            Wallet::Site(SiteSecret::RegistryToken(_)) => return Ok(None),
            Wallet::Site(SiteSecret::Nothing) => None,
            Wallet::Site(secret) => Some(secret),
        };
        let Some(bearer) = Challenge::parse(challenge) else {
            let is_basic = challenge
                .trim()
                .get(..5)
                .is_some_and(|scheme| scheme.eq_ignore_ascii_case("basic"));
            return match site.and_then(SiteSecret::password).filter(|_| is_basic) {
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
    pub(crate) async fn fetch_token(
        &self,
        url: Url,
        from: Zone,
        site: Option<&SiteSecret>,
        key: Option<&str>,
    ) -> Result<Option<String>, PullError> {
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
        let asked = match site {
            Some(SiteSecret::IdentityToken(refresh)) => {
                let request = |client: &Client| grant_request(client, &url, refresh);
                self.answer_of_led(&route.fresh_alone(), request, &url).await
            }
            site => {
                let password = site.and_then(SiteSecret::password).map(Credential::header);
                let request = |client: &Client| match &password {
                    Some(password) => client.get(url.clone()).header(AUTHORIZATION, password),
                    None => client.get(url.clone()),
                };
                self.answer_of_led(&route, request, &url).await
            }
        };
        let response = match asked {
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
