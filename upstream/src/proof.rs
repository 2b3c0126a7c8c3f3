//! Proof of a right: an answer by which upstream has served a caller.
//!
//! Invariant: an answer proves nothing before it has shown to be what was asked for. A filter, a login page or a wrong server answers
//! every request with 200.

use std::time::Instant;

use piecemeal_store::Repository;
use reqwest::Response;

use crate::{Credential, upstream::Upstream, verdicts::Who, wallet::Wallet};

/// The right that an answer was given to. It travels with the answer.
#[derive(Clone)]
pub(crate) struct Proof {
    who: Who,
    credential: Option<Credential>,
}

impl Proof {
    pub(crate) fn by(wallet: &Wallet) -> Self {
        Self {
            who: wallet.who(),
            credential: wallet.holders().cloned(),
        }
    }

    pub(crate) fn of(response: &Response) -> Option<Self> {
        response.extensions().get::<Self>().cloned()
    }
}

impl Upstream {
    /// Upstream has served what was asked for.
    pub(crate) fn served(&self, at: &Repository, proof: Option<Proof>) {
        let Some(Proof { who, credential }) = proof else { return };
        let life = self.allowed_life.get();
        self.verdicts
            .allowed(&who, &at.name, credential.as_ref(), life, Instant::now());
    }

    /// The same for a manifest: a probe may ask for one that is public.
    pub(crate) fn served_manifest(&self, at: &Repository, path: &str, proof: Option<Proof>) {
        if proof.as_ref().is_some_and(|proof| proof.who == Who::Public) {
            self.public.note(&at.name, path);
        }
        self.served(at, proof);
    }
}
