//! Secret that the mirror holds for an upstream, in the forms that Docker's files and helpers have.
//!
//! Invariant: it shows in no log.

use std::fmt;

use crate::Credential;

/// A secret of the site's own.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum SiteSecret {
    /// A user and a password.
    Password(Credential),
    /// A refresh token: a token server gives tokens for it. Docker calls it `identitytoken`.
    IdentityToken(String),
    /// None: the site has some for other repositories of this registry alone.
    Nothing,
    /// A token for the registry itself. Docker calls it `registrytoken`.
    RegistryToken(Credential),
}

impl SiteSecret {
    /// What a helper answers: the user `<token>` means that the secret is an identity token.
    pub(crate) fn of_helper(user: &str, secret: &str) -> Self {
        match user {
            "<token>" => Self::IdentityToken(secret.to_owned()),
            user => Self::Password(Credential::basic(user, secret)),
        }
    }

    /// The credential for a registry that asks for user and password.
    pub(crate) fn password(&self) -> Option<&Credential> {
        match self {
            Self::Password(credential) => Some(credential),
            Self::Nothing | Self::IdentityToken(_) | Self::RegistryToken(_) => None,
        }
    }
}

impl fmt::Debug for SiteSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SiteSecret(..)")
    }
}
