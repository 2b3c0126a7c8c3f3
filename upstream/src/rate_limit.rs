//! Rate limits (429) that hosts answer with, and the circuit breakers that keep them.
//!
//! Invariant: a credential that has used up a host's limit blocks neither another credential nor another kind of request.

use std::time::{Duration, Instant};

use reqwest::{Response, StatusCode, header::RETRY_AFTER};
use url::Url;

use crate::PullError;
use crate::{
    answer::text,
    breaker::{BUSY_PAUSE, PAUSE_MAX, Permit},
    request::Purpose,
    upstream::Upstream,
    wallet::Wallet,
};

/// As long as a date.
const RETRY_AFTER_BYTES_MAX: usize = 64;

impl Upstream {
    /// A credential that has used up a host's limit for one kind blocks no other credential, kind or host.
    pub(crate) fn enter(&self, host: &Url, wallet: &Wallet, purpose: Purpose) -> Result<Option<Permit<'_>>, PullError> {
        // A mirror keeps the limits of its upstreams itself, and serves what it has: one 429 says nothing about another request.
        if self.node.is_some() {
            return Ok(None);
        }
        let pass = |kind| self.breakers.enter(host, wallet.who(), kind, Instant::now());
        purpose.kind().map(pass).transpose()
    }

    /// Updates the breaker by the registry's answer.
    pub(crate) fn settle(&self, pass: Permit<'_>, response: &Response) {
        settle(pass, response, &self.name);
    }
}

/// Updates the breaker by the answer of the host `whom`.
pub(crate) fn settle(pass: Permit<'_>, response: &Response, whom: &str) {
    match response.status() {
        StatusCode::TOO_MANY_REQUESTS => {
            let retry_after = text(response.headers(), RETRY_AFTER);
            let pause = retry_after.as_deref().and_then(seconds).unwrap_or(BUSY_PAUSE);
            pass.open(limited(response, whom), pause, Instant::now());
        }
        // Answers by the host itself to a request that it has counted.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => pass.close(),
        status if status.is_success() || status.is_redirection() => pass.close(),
        _ => {}
    }
}

/// A 429 of the host `whom`.
pub(crate) fn limited(response: &Response, whom: &str) -> PullError {
    PullError::TooManyRequests {
        upstream: whom.to_owned(),
        retry_after: text(response.headers(), RETRY_AFTER).and_then(within_reason),
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
