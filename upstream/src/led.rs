//! Fetches from where a registry leads: a redirect's target, such as its storage.
//!
//! No credential of the caller's or of the site's goes there.

use std::time::Instant;

use reqwest::{
    Client, Method, Response, StatusCode,
    header::{AUTHORIZATION, WWW_AUTHENTICATE},
};
use url::Url;

use crate::{Credential, PullError};
use crate::{answer::text, auth::Challenge, reachable::Zone, request::Request, upstream::Upstream};

impl Upstream {
    /// Fetches a redirect's target: storage, or another registry that gives anonymous tokens. No credential of the caller's or
    /// of the site's goes there: storage hosts refuse a foreign `Authorization`, and strangers must not see it.
    pub(crate) async fn fetch_led(
        &self,
        ask: Request<'_>,
        from: Zone,
        url: &Url,
        scope: &str,
    ) -> Result<Response, PullError> {
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

    /// Fetches from a redirect's target, through the accelerated host when there is one.
    async fn fetch_stored(
        &self,
        ask: Request<'_>,
        from: Zone,
        url: &Url,
        token: Option<&Credential>,
    ) -> Result<Response, PullError> {
        // The refusal of a HEAD says nothing about the host.
        let brings_bytes = ask.method != Method::HEAD;
        let faster = brings_bytes.then(|| self.rewrites.apply(url, Instant::now()));
        if let Some(faster) = faster.flatten() {
            match self.fetch_from(ask, from, &faster, None).await {
                Ok(response) if !response.status().is_client_error() => return Ok(response),
                _ => self.rewrites.failed(url, Instant::now()),
            }
        }
        self.fetch_from(ask, from, url, token).await
    }

    async fn fetch_from(
        &self,
        ask: Request<'_>,
        from: Zone,
        url: &Url,
        token: Option<&Credential>,
    ) -> Result<Response, PullError> {
        let route = self.route_to(from, url)?;
        let request = |client: &Client| {
            let request = ask.dress(client.request(ask.method.clone(), url.clone()));
            match token {
                Some(token) => request.header(AUTHORIZATION, token.header()),
                None => request,
            }
        };
        self.answer_of_led(&route, request, url).await
    }
}
