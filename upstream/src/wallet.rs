//! The right that a request is made with: none, a caller's credential, or the site's own.
//!
//! Invariant: a caller with a credential of its own is served by that alone, never by the site's.

use std::time::Instant;

use piecemeal_store::Repository;

use crate::{Caller, Credential, PullError};
use crate::{site_secret::SiteSecret, upstream::Upstream, verdicts::Who};

/// With whose right a request is made.
pub(crate) enum Wallet {
    Public,
    Holder(Credential),
    /// The site's own secret.
    Site(SiteSecret),
}

impl Wallet {
    pub(crate) fn holders(&self) -> Option<&Credential> {
        match self {
            Self::Holder(credential) => Some(credential),
            Self::Public | Self::Site(_) => None,
        }
    }

    pub(crate) fn who(&self) -> Who {
        match self {
            Self::Public => Who::Public,
            Self::Holder(credential) => Who::Holder(credential.fingerprint()),
            Self::Site(_) => Who::Site,
        }
    }

    pub(crate) fn token_key(&self, scope: &str) -> String {
        match self {
            Self::Site(_) => format!("site {scope}"),
            Self::Public | Self::Holder(_) => scope.to_owned(),
        }
    }
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

    pub(crate) async fn wallet(&self, caller: &Caller, at: &Repository) -> Result<Wallet, PullError> {
        Ok(match (&caller.credential, &self.held) {
            (Some(credential), _) => Wallet::Holder(credential.clone()),
            (None, Some(held)) if self.may_use_sites_right(caller) => {
                Wallet::Site(held.secret(&self.name, &at.name).await?)
            }
            _ => Wallet::Public,
        })
    }
}
