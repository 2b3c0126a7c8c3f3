//! A site's keys.
//!
//! `authority.key` (mirror, scheduler) is one secret seed; everything else derives from it, so that the two files that
//! `keygen` writes are all there is to distribute. `join.key` (peers) admits a node and carries the authority's public key:
//! with it a peer can check the authority's word, but not give it.

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD as BASE64};
use ring::{
    hmac,
    signature::{self, Ed25519KeyPair, KeyPair},
};

const AUTHORITY_HEADER: &str = "piecemeal-authority-v1:";
const JOIN_HEADER: &str = "piecemeal-join-v1:";

/// What proves that a daemon belongs to the site: an HMAC-SHA256 over what it claims.
pub type Proof = [u8; 32];

/// A secret that daemons of one role share with the authority.
#[derive(Clone)]
pub struct RoleKey(hmac::Key);

impl RoleKey {
    /// The proof for `claim`, which the other side states a nonce in.
    pub fn prove(&self, claim: &[u8]) -> Proof {
        hmac::sign(&self.0, claim)
            .as_ref()
            .try_into()
            .expect("HMAC-SHA256 has 32 bytes")
    }

    /// Whether `proof` is this key's proof for `claim`, in constant time.
    pub fn verify(&self, claim: &[u8], proof: &[u8]) -> bool {
        hmac::verify(&self.0, claim, proof).is_ok()
    }
}

impl fmt::Debug for RoleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RoleKey([redacted])")
    }
}

/// `authority.key`: signs grants and tickets, and knows the secrets of every role.
pub struct AuthorityKey {
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

impl AuthorityKey {
    /// The key of a seed of 32 random bytes.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let pair =
            Ed25519KeyPair::from_seed_unchecked(&derive(&seed, b"sign")).expect("any 32 bytes are an Ed25519 seed");
        Self { seed, pair }
    }

    /// The key that admits peers.
    pub fn join_key(&self) -> JoinKey {
        JoinKey {
            secret: derive(&self.seed, b"join"),
            authority: self.public(),
        }
    }

    /// The secret that mirrors prove themselves with: peers do not hold it.
    pub fn mirror_role(&self) -> RoleKey {
        role_key(&derive(&self.seed, b"mirror"))
    }

    /// The half that checks signatures.
    pub fn public(&self) -> AuthorityPublic {
        AuthorityPublic(
            self.pair
                .public_key()
                .as_ref()
                .try_into()
                .expect("an Ed25519 public key has 32 bytes"),
        )
    }

    /// An Ed25519 signature of 64 bytes.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.pair
            .sign(message)
            .as_ref()
            .try_into()
            .expect("an Ed25519 signature has 64 bytes")
    }

    /// The text of the key file.
    pub fn to_text(&self) -> String {
        format!("{AUTHORITY_HEADER}{}\n", BASE64.encode(self.seed))
    }
}

impl FromStr for AuthorityKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = decode::<32>(text, AUTHORITY_HEADER, JOIN_HEADER, ParseKeyError::JoinForAuthority)?;
        Ok(Self::from_seed(bytes))
    }
}

impl fmt::Debug for AuthorityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthorityKey([redacted])")
    }
}

/// `join.key`: admits a node.
#[derive(Clone)]
pub struct JoinKey {
    secret: [u8; 32],
    authority: AuthorityPublic,
}

impl JoinKey {
    /// The secret that peers prove themselves with.
    pub fn peer_role(&self) -> RoleKey {
        role_key(&self.secret)
    }

    pub fn authority(&self) -> AuthorityPublic {
        self.authority
    }

    /// The text of the key file.
    pub fn to_text(&self) -> String {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.secret);
        bytes[32..].copy_from_slice(&self.authority.0);
        format!("{JOIN_HEADER}{}\n", BASE64.encode(bytes))
    }
}

impl FromStr for JoinKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = decode::<64>(text, JOIN_HEADER, AUTHORITY_HEADER, ParseKeyError::AuthorityForJoin)?;
        let (secret, authority) = bytes.split_at(32);
        Ok(Self {
            secret: secret.try_into().expect("half of 64 bytes"),
            authority: AuthorityPublic(authority.try_into().expect("half of 64 bytes")),
        })
    }
}

impl fmt::Debug for JoinKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinKey([redacted])")
    }
}

/// The public half of `authority.key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthorityPublic([u8; 32]);

impl AuthorityPublic {
    /// The Ed25519 public key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether the authority signed `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        signature::UnparsedPublicKey::new(&signature::ED25519, self.0)
            .verify(message, signature)
            .is_ok()
    }
}

/// Why a key file cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    #[error("this is a join.key; an authority.key is needed here (`piecemeal keygen DIR` writes both)")]
    JoinForAuthority,
    #[error(
        "this is an authority.key, which peers must not hold; a join.key is needed here (`piecemeal keygen DIR` writes both)"
    )]
    AuthorityForJoin,
    #[error("this is not a Piecemeal key, or it is damaged (`piecemeal keygen DIR` writes keys)")]
    Malformed,
}

fn decode<const N: usize>(
    text: &str,
    header: &str,
    other_header: &str,
    other: ParseKeyError,
) -> Result<[u8; N], ParseKeyError> {
    let text = text.trim();
    if text.starts_with(other_header) {
        return Err(other);
    }
    let body = text.strip_prefix(header).ok_or(ParseKeyError::Malformed)?;
    let bytes = BASE64.decode(body).map_err(|_| ParseKeyError::Malformed)?;
    bytes.try_into().map_err(|_| ParseKeyError::Malformed)
}

fn derive(seed: &[u8; 32], purpose: &[u8]) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, seed);
    hmac::sign(&key, purpose)
        .as_ref()
        .try_into()
        .expect("HMAC-SHA256 has 32 bytes")
}

fn role_key(secret: &[u8; 32]) -> RoleKey {
    RoleKey(hmac::Key::new(hmac::HMAC_SHA256, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_files() {
        let authority = AuthorityKey::from_seed([7; 32]);
        let again: AuthorityKey = authority.to_text().parse().unwrap();
        assert_eq!(again.public(), authority.public());
        let join: JoinKey = authority.join_key().to_text().parse().unwrap();
        assert_eq!(join.authority(), authority.public());
        assert!(
            again
                .join_key()
                .peer_role()
                .verify(b"hello", &join.peer_role().prove(b"hello"))
        );
    }

    #[test]
    fn a_key_of_another_site_or_role_proves_nothing() {
        let ours = AuthorityKey::from_seed([1; 32]);
        let theirs = AuthorityKey::from_seed([2; 32]);
        let proof = theirs.join_key().peer_role().prove(b"hello");
        assert!(!ours.join_key().peer_role().verify(b"hello", &proof));
        assert!(
            !ours
                .mirror_role()
                .verify(b"hello", &ours.join_key().peer_role().prove(b"hello"))
        );
        assert!(!ours.public().verify(b"word", &theirs.sign(b"word")));
        assert!(ours.public().verify(b"word", &ours.sign(b"word")));
        assert!(!ours.public().verify(b"other word", &ours.sign(b"word")));
    }

    #[test]
    fn the_wrong_file_is_named() {
        let authority = AuthorityKey::from_seed([1; 32]);
        let join = authority.join_key().to_text();
        assert_eq!(
            join.parse::<AuthorityKey>().unwrap_err(),
            ParseKeyError::JoinForAuthority
        );
        assert_eq!(
            authority.to_text().parse::<JoinKey>().unwrap_err(),
            ParseKeyError::AuthorityForJoin
        );
        assert_eq!("".parse::<JoinKey>().unwrap_err(), ParseKeyError::Malformed);
        assert_eq!(
            join[..join.len() - 4].parse::<JoinKey>().unwrap_err(),
            ParseKeyError::Malformed
        );
        assert!(!format!("{authority:?}{:?}", authority.join_key()).contains(&join[30..50]));
    }
}
