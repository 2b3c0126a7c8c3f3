//! A site's keys.
//!
//! `authority.key` (mirror, scheduler) is one secret seed; everything else derives from it, so that the two files that
//! `keygen` writes are all there is to distribute. `join.key` (peers) admits a node and carries the authority's public key:
//! with it a peer can check the authority's signatures, but not make them. `join.key` has generations: a new one locks out a
//! stolen one, once the grace of the old one is over.
//!
//! `node.key` is a daemon's own (`node_key.rs`): it proves the node's identity, while `join.key` proves only that the node
//! belongs to the site.

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD as BASE64};
use ring::{
    hmac,
    signature::{self, Ed25519KeyPair, KeyPair},
};

const AUTHORITY_HEADER: &str = "piecemeal-authority-v1:";
const JOIN_HEADER: &str = "piecemeal-join-v1:";
/// In `authority.key`, below the seed, once `join.key` has been rotated.
const GENERATION_FIELD: &str = "join-generation:";
const PREVIOUS_FIELD: &str = "previous-join-until:";

/// The proof that a daemon belongs to the site: an HMAC-SHA256 over its claim.
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
    /// The generation of `join.key`; 0 until it is rotated.
    generation: u32,
    /// Until when the generation before admits too, in seconds since 1970.
    previous_until: u64,
}

impl AuthorityKey {
    /// The key of a seed of 32 random bytes.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self {
            pair: pair(&derive(&seed, b"sign")),
            seed,
            generation: 0,
            previous_until: 0,
        }
    }

    /// The key that admits peers: of the newest generation.
    pub fn join_key(&self) -> JoinKey {
        self.join_key_of(self.generation)
    }

    /// The `join.key` before this one, if there was one, and until when it admits, in seconds since 1970.
    pub fn previous_join_key(&self) -> Option<(JoinKey, u64)> {
        let generation = self.generation.checked_sub(1)?;
        Some((self.join_key_of(generation), self.previous_until))
    }

    /// The same authority with a new `join.key`. The one until now admits until `previous_until` (seconds since 1970); one
    /// before that no longer. `None` when there were too many.
    pub fn rotate_join(&self, previous_until: u64) -> Option<Self> {
        Some(Self {
            generation: self.generation.checked_add(1)?,
            previous_until,
            ..Self::from_seed(self.seed)
        })
    }

    /// The roles that peers are admitted by.
    pub fn peer_roles(&self) -> PeerRoles {
        let previous = self.previous_join_key();
        PeerRoles {
            generation: self.generation,
            current: self.join_key().peer_role(),
            previous: previous.map(|(key, until)| (key.peer_role(), until)),
        }
    }

    fn join_key_of(&self, generation: u32) -> JoinKey {
        let secret = match generation {
            0 => derive(&self.seed, b"join"),
            later => derive(&self.seed, &[&b"join"[..], &later.to_be_bytes()].concat()),
        };
        JoinKey {
            secret,
            authority: self.public(),
        }
    }

    /// The secret that mirrors prove themselves with: peers do not hold it.
    pub fn mirror_role(&self) -> RoleKey {
        role_key(&derive(&self.seed, b"mirror"))
    }

    /// The half that checks signatures.
    pub fn public(&self) -> AuthorityPublic {
        AuthorityPublic(public_bytes(&self.pair))
    }

    /// An Ed25519 signature of 64 bytes.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        sign(&self.pair, message)
    }

    /// The text of the key file: one line, and two more once `join.key` has been rotated.
    pub fn to_text(&self) -> String {
        let mut text = format!("{AUTHORITY_HEADER}{}\n", BASE64.encode(self.seed));
        if self.generation > 0 {
            text += &format!(
                "{GENERATION_FIELD}{}\n{PREVIOUS_FIELD}{}\n",
                self.generation, self.previous_until
            );
        }
        text
    }
}

impl FromStr for AuthorityKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut lines = text.trim().lines();
        let seed = lines.next().unwrap_or_default();
        let bytes = decode::<32>(seed, AUTHORITY_HEADER, JOIN_HEADER, ParseKeyError::JoinForAuthority)?;
        let (mut generation, mut previous_until) = (0, 0);
        for line in lines.map(str::trim).filter(|line| !line.is_empty()) {
            let number = |field: &str| line.strip_prefix(field)?.trim().parse::<u64>().ok();
            match (number(GENERATION_FIELD), number(PREVIOUS_FIELD)) {
                (Some(number), _) => generation = u32::try_from(number).map_err(|_| ParseKeyError::Malformed)?,
                (_, Some(seconds)) => previous_until = seconds,
                _ => return Err(ParseKeyError::Malformed),
            }
        }
        Ok(Self {
            generation,
            previous_until,
            ..Self::from_seed(bytes)
        })
    }
}

impl fmt::Debug for AuthorityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthorityKey([redacted])")
    }
}

/// The roles that peers are admitted by: that of the newest `join.key`, and for a time that of the one before.
#[derive(Clone, Debug)]
pub struct PeerRoles {
    generation: u32,
    current: RoleKey,
    previous: Option<(RoleKey, u64)>,
}

impl PeerRoles {
    /// The newest generation.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The generation of the `join.key` that `proof` was made with over `claim`; `None` when it is none that admits at `now`
    /// (seconds since 1970).
    pub fn admits(&self, claim: &[u8], proof: &[u8], now: u64) -> Option<u32> {
        if self.current.verify(claim, proof) {
            return Some(self.generation);
        }
        let (previous, until) = self.previous.as_ref()?;
        let generation = self.generation.checked_sub(1)?;
        (now < *until && previous.verify(claim, proof)).then_some(generation)
    }

    /// Whether a node that was admitted by `generation` is still admitted at `now` (seconds since 1970).
    pub fn still_admits(&self, generation: u32, now: u64) -> bool {
        generation == self.generation
            || (generation.checked_add(1) == Some(self.generation)
                && self.previous.as_ref().is_some_and(|(_, until)| now < *until))
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
        verify(&self.0, message, signature)
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
    #[error(
        "this is no node.key, or it is damaged (remove it: the daemon then makes itself a new one, and is a new node)"
    )]
    Node,
}

pub(crate) fn pair(seed: &[u8; 32]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes are an Ed25519 seed")
}

pub(crate) fn public_bytes(pair: &Ed25519KeyPair) -> [u8; 32] {
    let public = pair.public_key().as_ref();
    public.try_into().expect("an Ed25519 public key has 32 bytes")
}

pub(crate) fn sign(pair: &Ed25519KeyPair, message: &[u8]) -> [u8; 64] {
    let signature = pair.sign(message);
    let bytes = signature.as_ref();
    bytes.try_into().expect("an Ed25519 signature has 64 bytes")
}

pub(crate) fn verify(public: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    signature::UnparsedPublicKey::new(&signature::ED25519, public)
        .verify(message, signature)
        .is_ok()
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
    fn a_join_key_of_the_generation_before_admits_until_its_time_is_over() {
        let first = AuthorityKey::from_seed([7; 32]);
        let second = first.rotate_join(1000).unwrap();
        let third = second.rotate_join(2000).unwrap();
        let proof = |authority: &AuthorityKey| authority.join_key().peer_role().prove(b"hello");
        let admits =
            |authority: &AuthorityKey, by: &AuthorityKey, now| authority.peer_roles().admits(b"hello", &proof(by), now);
        assert_eq!(admits(&first, &first, 0), Some(0));
        assert_eq!(admits(&first, &second, 0), None);
        assert_eq!(admits(&second, &second, u64::MAX), Some(1));
        assert_eq!(admits(&second, &first, 999), Some(0));
        assert_eq!(admits(&second, &first, 1000), None);
        assert_eq!(admits(&third, &second, 1999), Some(1));
        assert_eq!(admits(&third, &first, 0), None, "two rotations ago");

        let roles = second.peer_roles();
        assert!(roles.still_admits(1, u64::MAX) && roles.still_admits(0, 999));
        assert!(!roles.still_admits(0, 1000) && !roles.still_admits(2, 0));
        assert!(!third.peer_roles().still_admits(0, 0));
        assert_eq!(
            second.public(),
            first.public(),
            "grants, tickets and certificates stay good"
        );
    }

    #[test]
    fn a_rotation_is_kept_in_the_authoritys_file_and_a_site_without_one_has_the_file_of_before() {
        let first = AuthorityKey::from_seed([7; 32]);
        assert_eq!(first.to_text().lines().count(), 1);
        let second = first.rotate_join(1000).unwrap();
        let again: AuthorityKey = second.to_text().parse().unwrap();
        assert_eq!(again.join_key().to_text(), second.join_key().to_text());
        let (previous, until) = again.previous_join_key().unwrap();
        assert_eq!((previous.to_text(), until), (first.join_key().to_text(), 1000));
        for damage in ["join-generation:-1", "join-generation:99999999999", "other:1", "x"] {
            let text = first.to_text() + damage;
            assert_eq!(
                text.parse::<AuthorityKey>().unwrap_err(),
                ParseKeyError::Malformed,
                "{damage}"
            );
        }
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
