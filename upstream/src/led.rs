//! Fetches from where a registry leads: a redirect's target, such as its storage.
//!
//! No credential of the caller's or of the site's goes there.

use std::time::Instant;

use reqwest::{Client, Method, Response, StatusCode, header::AUTHORIZATION};
use url::Url;

use crate::{Credential, PullError};
use crate::{
    challenge::{Challenge, challenges},
    reachable::Zone,
    request::Request,
    upstream::Upstream,
};

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
        // A registry that is redirected to has repositories, and names for them, of its own.
        let own = scope_of(url);
        let scope = own.as_deref().unwrap_or(scope);
        let key = format!("{} {scope}", url.origin().ascii_serialization());
        let known = self.tokens.get(&key, Instant::now());
        let known = known.and_then(|token| Credential::bearer(&token));
        let response = self.fetch_stored(ask, from, url, known.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges = challenges(response.headers());
        let mut bearers = challenges.iter().filter_map(Challenge::bearer);
        let Some((realm, covers)) = bearers.find_map(|one| Some((one.token_url(url, scope)?, one.covers(scope))))
        else {
            return Ok(response);
        };
        self.tokens.drop(&key);
        let from = from.min(self.routes.zone(url, &response));
        let kept = covers.then_some(&*key);
        match self.fetch_token(realm, from, None, kept).await? {
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

/// Whether a redirect's target is another registry, by its path.
pub(crate) fn is_of_registry(url: &Url) -> bool {
    scope_of(url).is_some()
}

/// The scope of a request to another registry, by its URL: `https://ghcr.io/v2/team/app/manifests/v1`. `None`: it is none.
fn scope_of(url: &Url) -> Option<String> {
    let path = url.path().strip_prefix("/v2/")?;
    let kinds = ["/manifests/", "/blobs/", "/referrers/", "/tags/"];
    let end = kinds.into_iter().filter_map(|kind| path.rfind(kind)).max()?;
    let name = &path[..end];
    (!name.is_empty()).then(|| format!("repository:{name}:pull"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_is_redirected_to_has_a_scope_of_its_own() {
        for (url, scope) in [
            (
                "https://ghcr.io/v2/team/app/manifests/v1",
                Some("repository:team/app:pull"),
            ),
            (
                "https://a.io/v2/app/blobs/sha256:0?x=/tags/",
                Some("repository:app:pull"),
            ),
            (
                "https://a.io/v2/a/manifests/b/tags/list",
                Some("repository:a/manifests/b:pull"),
            ),
            ("https://a.io/v2/a/referrers/sha256:0", Some("repository:a:pull")),
            ("https://s3.io/docker/registry/v2/blobs/sha256/00/data", None),
            ("https://a.io/v2/", None),
            ("https://a.io/v2//blobs/x", None),
        ] {
            assert_eq!(scope_of(&url.parse().unwrap()).as_deref(), scope, "{url}");
        }
    }
}
