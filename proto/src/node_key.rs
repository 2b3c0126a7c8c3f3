//! `node.key`: the identity of a daemon.
//!
//! A daemon makes the key at its first start and never shows it. Its id is the hash of the public half, so that an id cannot be
//! claimed: a hello and a request are signed with the key. The key admits to no site; `join.key` does.

use std::{fmt, str::FromStr};

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD as BASE64};
use ring::signature::Ed25519KeyPair;
use sha2::{Digest as _, Sha256};

use crate::{
    NodeId, ParseKeyError,
    key::{pair, public_bytes, sign, verify},
};

const HEADER: &str = "piecemeal-node-v1:";

/// A daemon's own key.
pub struct NodeKey {
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

impl NodeKey {
    /// The key of a seed of 32 random bytes.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self {
            pair: pair(&seed),
            seed,
        }
    }

    /// The half that checks signatures.
    pub fn public(&self) -> NodePublic {
        NodePublic(public_bytes(&self.pair))
    }

    /// The id of the node that holds the key.
    pub fn id(&self) -> NodeId {
        self.public().id()
    }

    /// An Ed25519 signature of 64 bytes.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        sign(&self.pair, message)
    }

    /// The text of the key file.
    pub fn to_text(&self) -> String {
        format!("{HEADER}{}\n", BASE64.encode(self.seed))
    }
}

impl FromStr for NodeKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let body = text.trim().strip_prefix(HEADER).ok_or(ParseKeyError::Node)?;
        let bytes = BASE64.decode(body).map_err(|_| ParseKeyError::Node)?;
        let seed = bytes.try_into().map_err(|_| ParseKeyError::Node)?;
        Ok(Self::from_seed(seed))
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({}, [redacted])", self.id())
    }
}

/// The public half of a `node.key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePublic([u8; 32]);

impl NodePublic {
    /// `None` unless `bytes` has exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The Ed25519 public key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id of the node that holds the other half: the first 16 bytes of the key's SHA-256.
    pub fn id(&self) -> NodeId {
        let hash: [u8; 32] = Sha256::digest(self.0).into();
        NodeId(hash[..16].try_into().expect("half of 32 bytes"))
    }

    /// Whether the node signed `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        verify(&self.0, message, signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_id_with_its_key() {
        let key = NodeKey::from_seed([5; 32]);
        let again: NodeKey = key.to_text().parse().unwrap();
        assert_eq!(again.id(), key.id());
        assert_ne!(NodeKey::from_seed([6; 32]).id(), key.id());
        assert!(key.public().verify(b"hello", &again.sign(b"hello")));
        assert!(!key.public().verify(b"other", &again.sign(b"hello")));
        assert!(
            !NodeKey::from_seed([6; 32])
                .public()
                .verify(b"hello", &key.sign(b"hello"))
        );
        assert_eq!(NodePublic::from_slice(key.public().as_bytes()), Some(key.public()));
        assert_eq!(NodePublic::from_slice(&[1; 31]), None);
    }

    #[test]
    fn another_file_is_no_node_key_and_the_secret_does_not_show() {
        let key = NodeKey::from_seed([5; 32]);
        let text = key.to_text();
        let authority = crate::AuthorityKey::from_seed([5; 32]);
        for wrong in [
            "",
            "x",
            &text[..text.len() - 4],
            &authority.to_text(),
            &authority.join_key().to_text(),
        ] {
            assert_eq!(wrong.parse::<NodeKey>().unwrap_err(), ParseKeyError::Node, "{wrong:?}");
        }
        assert!(!format!("{key:?}").contains(text.trim_start_matches(HEADER).trim()));
    }
}
