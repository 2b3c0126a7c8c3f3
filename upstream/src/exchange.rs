//! One exchange with a host: a request, and the wait for its status line.
//!
//! Invariant: an exchange ends within [`SOURCE_TIMEOUT`], and no error has the query of a URL, which may be a secret.

use std::{sync::Arc, time::Instant};

use piecemeal_tls::ServerRole;
use reqwest::{Client, RequestBuilder, Response};
use url::Url;

use crate::{PullError, SOURCE_TIMEOUT};
use crate::{
    answer::innermost,
    endpoint::Endpoint,
    reachable::Zone,
    route::{PATIENCE, PATIENCE_BUSY, Route, patience},
    upstream::Upstream,
};

/// Why a request got no answer.
pub(crate) enum NoAnswer {
    /// The host is known to be lost, or the upstream may not lead there.
    Settled(PullError),
    /// The host did not answer. `unconnected`: no connection came about.
    Silent { reason: String, unconnected: bool },
}

impl Upstream {
    /// Sends what `request` makes to the host `whom` and waits for the status line, until `lost` says that it will not come.
    pub(crate) async fn exchange(
        &self,
        route: &Route,
        request: impl Fn(&Client) -> RequestBuilder,
        whom: &str,
        lost: impl Future<Output = PullError>,
    ) -> Result<Response, NoAnswer> {
        let sent = Instant::now();
        let patience = patience(PATIENCE, PATIENCE_BUSY, || self.concurrency.received_within(PATIENCE));
        let answer = tokio::select! {
            biased;
            answer = tokio::time::timeout(SOURCE_TIMEOUT, route.send(patience, request)) => answer,
            error = lost => return Err(NoAnswer::Settled(error)),
        };
        let unconnected = matches!(&answer, Ok(Err(error)) if error.is_connect());
        let reason = match answer {
            Ok(Ok(response)) => {
                self.concurrency.answered_after(sent.elapsed());
                return Ok(response);
            }
            Ok(Err(error)) if self.node.is_some() => mirror_unanswered(&error).to_string(),
            Ok(Err(error)) => match self.routes.refusal(&error) {
                Some(refusal) => return Err(NoAnswer::Settled(refusal)),
                None => format!("{whom} does not answer: {}", innermost(&error)),
            },
            Err(_) => {
                let seconds = SOURCE_TIMEOUT.as_secs();
                format!("{whom} does not answer: no status line within {seconds} s")
            }
        };
        Err(NoAnswer::Silent { reason, unconnected })
    }

    /// The exchange with the registry for a request that has a patience of its own.
    ///
    /// # Errors
    /// [`PullError::Unreachable`]: this request got no answer.
    pub(crate) async fn answer_of_registry(
        &self,
        route: &Route,
        request: impl Fn(&Client) -> RequestBuilder,
    ) -> Result<Response, PullError> {
        let answer = self.exchange(route, request, &self.name, std::future::pending()).await;
        answer.map_err(|error| match error {
            NoAnswer::Settled(error) => error,
            NoAnswer::Silent { reason, .. } => PullError::Unreachable(reason),
        })
    }

    /// The exchange with a redirect's target or a token server, whose silence says nothing about the registry.
    ///
    /// # Errors
    /// [`PullError::Unavailable`]: this request got no answer; [`PullError::Misled`].
    pub(crate) async fn answer_of_led(
        &self,
        route: &Route,
        request: impl Fn(&Client) -> RequestBuilder,
        url: &Url,
    ) -> Result<Response, PullError> {
        // Without the path, whose query may be a secret.
        let whom = format!("{}, to which {} leads,", url.host_str().unwrap_or_default(), self.name);
        let answer = self.exchange(route, request, &whom, std::future::pending()).await;
        answer.map_err(|error| match error {
            NoAnswer::Settled(error) => error,
            NoAnswer::Silent { reason, .. } => PullError::Unavailable(reason),
        })
    }

    /// The route to a redirect's target. The registry itself is named by the administrator, and needs no check.
    pub(crate) fn route_to(&self, from: Zone, url: &Url) -> Result<Route, PullError> {
        let is_registry = |endpoint: &Arc<Endpoint>| endpoint.url.origin() == url.origin();
        if self.endpoints.iter().any(is_registry) {
            return self.routes.registry(url);
        }
        self.routes.to(from, url)
    }
}

/// The error of a request to the mirror that got no answer, or an answer from another server.
pub fn mirror_unanswered(error: &reqwest::Error) -> PullError {
    PullError::Unreachable(match piecemeal_tls::refusal(error, ServerRole::Mirror) {
        Some(refused) => refused.to_string(),
        None => format!("the mirror does not answer: {}", innermost(error)),
    })
}
