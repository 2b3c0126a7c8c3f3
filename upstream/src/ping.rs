//! Ping of a registry, `GET /v2/`: whether its clients are to show credentials.
//!
//! Invariant: pings without a credential cost the registry one question in [`PING_LIFE`], however many clients ping. A login costs one
//! of its own, whose answer counts as verdicts do.

use std::{sync::Arc, time::Instant};

use piecemeal_store::Repository;
use reqwest::{Method, Response, StatusCode};

use crate::{ANSWER_TIMEOUT, Caller, PullError};
use crate::{
    endpoint::Endpoint,
    pings::{PING_LIFE, PING_LIFE_AT_MIRROR},
    request::{Purpose, Request},
    upstream::Upstream,
    verdicts::Who,
    wallet::Wallet,
};

/// The repository that verdicts on `/v2/` are remembered under: no repository has that name.
const NO_REPOSITORY: &str = "";

impl Upstream {
    /// Whether the registry's clients are to show a credential at `/v2/`. A registry that does not answer is taken for what it was.
    ///
    /// # Errors
    /// [`PullError::Denied`] with the registry's challenge; [`PullError::Withheld`].
    pub async fn ping(&self, caller: &Caller) -> Result<(), PullError> {
        match self.who(caller) {
            Who::Site => Ok(()),
            who @ Who::Holder(_) => self.ping_with_credential(caller, who).await,
            Who::Public => {
                self.require_pinged().await;
                let serves_public = !self.public.questioned().is_empty();
                // A mirror has decided already.
                let challenge = match self.node {
                    Some(_) => self.pings.challenge(),
                    None => self.pings.challenge_for_clients(serves_public, Instant::now()),
                };
                match challenge {
                    None => Ok(()),
                    Some(_) => Err(PullError::Denied {
                        upstream: self.name.clone(),
                        status: StatusCode::UNAUTHORIZED.as_u16(),
                        challenge,
                    }),
                }
            }
        }
    }

    /// A login is right or wrong by the registry's own word.
    async fn ping_with_credential(&self, caller: &Caller, who: Who) -> Result<(), PullError> {
        let (life, now) = (self.allowed_life.get(), Instant::now());
        if let Some(refusal) = self.verdicts.refusal(&who, NO_REPOSITORY, "", now) {
            return Err(refusal);
        }
        if self.verdicts.allow(&who, NO_REPOSITORY, life, now) {
            return Ok(());
        }
        let wallet = self.wallet(caller).await?;
        let mut result = Ok(());
        for endpoint in &self.endpoints {
            let asked = self.ping_endpoint(endpoint, caller, &wallet).await;
            result = asked.and_then(|answer| self.judge_ping(endpoint, answer));
            if result.as_ref().map_or_else(PullError::is_verdict, |()| true) {
                break;
            }
        }
        let now = Instant::now();
        match &result {
            Ok(()) => self.verdicts.allowed(&who, NO_REPOSITORY, None, life, now),
            Err(error) => self.verdicts.refused(&who, NO_REPOSITORY, "", error, now),
        }
        match result {
            Err(error @ (PullError::Denied { .. } | PullError::Withheld(_) | PullError::Loop(_))) => Err(error),
            // The pull itself will say what is wrong.
            _ => Ok(()),
        }
    }

    /// Waits until an answer counts, or will not come in time. The question goes on when the caller that caused it leaves.
    async fn require_pinged(&self) {
        if let Some(upstream) = self.me.upgrade()
            && self.pings.begin(Instant::now())
        {
            tokio::spawn(async move { upstream.ask_pinged().await });
        }
        let _ = tokio::time::timeout(ANSWER_TIMEOUT, self.pings.answered()).await;
    }

    async fn ask_pinged(&self) {
        let question = self.pings.question(match self.node {
            Some(_) => PING_LIFE_AT_MIRROR,
            None => PING_LIFE,
        });
        for endpoint in &self.endpoints {
            let asked = self.ping_endpoint(endpoint, &Caller::default(), &Wallet::Public).await;
            let Ok(response) = asked else { continue };
            let gives_tokens = match response.status() {
                StatusCode::UNAUTHORIZED => {
                    let token = self.answer_challenge(endpoint, &response, &Wallet::Public, "").await;
                    // A token server that cannot be asked refuses no client.
                    !matches!(token, Ok(None))
                }
                _ => false,
            };
            let challenge = match self.judge_ping(endpoint, response) {
                Ok(()) => None,
                Err(PullError::Denied { challenge, .. }) => challenge,
                Err(_) => continue,
            };
            return question.answer(challenge, gives_tokens);
        }
    }

    async fn ping_endpoint(
        &self,
        endpoint: &Arc<Endpoint>,
        caller: &Caller,
        wallet: &Wallet,
    ) -> Result<Response, PullError> {
        let at = self.no_repository();
        let ask = ping_ask(caller, &at);
        let mut url = endpoint.v2("").ok_or_else(|| self.bad_url(endpoint))?;
        if self.node.is_some() {
            url.query_pairs_mut().append_pair("ns", &self.name);
        }
        let pass = self.enter(&endpoint.url, wallet, ask.purpose)?;
        let authorization = match wallet {
            Wallet::Holder(_) => self.first_authorization(&url, wallet, "")?,
            Wallet::Public | Wallet::Site(_) => None,
        };
        let response = self.send(endpoint, ask, &url, authorization.as_ref()).await?;
        if let Some(pass) = pass {
            self.settle(pass, &response);
        }
        Ok(response)
    }

    fn judge_ping(&self, endpoint: &Endpoint, answer: Response) -> Result<(), PullError> {
        let at = self.no_repository();
        match self.judge(endpoint, ping_ask(&Caller::default(), &at), answer, false) {
            // A registry without a `/v2/` of its own asks for nothing there.
            Ok(_) | Err(PullError::Unknown(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn no_repository(&self) -> Repository {
        Repository {
            upstream: self.name.clone(),
            name: NO_REPOSITORY.to_owned(),
        }
    }
}

fn ping_ask<'a>(caller: &'a Caller, at: &'a Repository) -> Request<'a> {
    Request {
        method: &Method::GET,
        caller,
        at,
        path: "",
        accept: None,
        range: None,
        purpose: Purpose::Lookup,
    }
}
