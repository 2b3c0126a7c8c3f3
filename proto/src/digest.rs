//! Content digests: `sha256:<64 hex>` and `sha512:<128 hex>`.
//!
//! A [`Digest`] is always well formed, so that code which holds one may use it as a path component.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

use crate::hex;

/// A registered digest algorithm. Source: OCI image-spec, "Registered Algorithms".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// The name as it stands before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the raw hash in bytes.
    pub fn hash_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// A hasher that has seen no bytes yet.
    pub fn hasher(self) -> Hasher {
        match self {
            Self::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Self::Sha512 => Hasher::Sha512(sha2::Sha512::new()),
        }
    }
}

/// The digest of a blob or manifest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Digest {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

impl Digest {
    /// The canonical (sha256) digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self::Sha256(sha2::Sha256::digest(content).into())
    }

    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw hash: 32 or 64 bytes.
    pub fn hash(&self) -> &[u8] {
        match self {
            Self::Sha256(hash) => hash,
            Self::Sha512(hash) => hash,
        }
    }

    /// The lower-case hexadecimal part, after the colon.
    pub fn hex(&self) -> String {
        hex::encode(self.hash())
    }

    /// Whether `content` has this digest.
    pub fn matches(&self, content: &[u8]) -> bool {
        let mut hasher = self.algorithm().hasher();
        hasher.update(content);
        hasher.finish() == *self
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, hex) = text.split_once(':').ok_or(ParseDigestError::NoAlgorithm)?;
        match algorithm {
            "sha256" => hex::decode_array(hex).map(Self::Sha256),
            "sha512" => hex::decode_array(hex).map(Self::Sha512),
            _ => return Err(ParseDigestError::UnknownAlgorithm),
        }
        .ok_or(ParseDigestError::Malformed)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Why a text is not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    #[error("a digest has the form <algorithm>:<hex>")]
    NoAlgorithm,
    #[error("the digest algorithm is neither sha256 nor sha512")]
    UnknownAlgorithm,
    #[error("the digest is not the algorithm's number of lower-case hexadecimal digits")]
    Malformed,
}

/// Computes a digest as bytes arrive in order.
#[derive(Clone)]
pub enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::of(b"")));
    }

    #[test]
    fn both_algorithms_survive_a_round_trip() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut hasher = algorithm.hasher();
            hasher.update(b"pie");
            hasher.update(b"ce");
            let digest = hasher.finish();
            assert!(digest.matches(b"piece"));
            assert!(!digest.matches(b"pieces"));
            assert_eq!(digest.to_string().parse(), Ok(digest));
            assert_eq!(digest.hash().len(), algorithm.hash_bytes());
        }
    }

    #[test]
    fn malformed_digests_are_refused_with_the_reason() {
        let cases = [
            ("", ParseDigestError::NoAlgorithm),
            ("baddigest", ParseDigestError::NoAlgorithm),
            (
                "md5:d41d8cd98f00b204e9800998ecf8427e",
                ParseDigestError::UnknownAlgorithm,
            ),
            ("SHA256:00", ParseDigestError::UnknownAlgorithm),
            ("sha256:baddigeststring", ParseDigestError::Malformed),
            ("sha256:", ParseDigestError::Malformed),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
        }
        assert_eq!(
            EMPTY.to_uppercase().replace("SHA256", "sha256").parse::<Digest>(),
            Err(ParseDigestError::Malformed)
        );
        assert_eq!(format!("{EMPTY}0").parse::<Digest>(), Err(ParseDigestError::Malformed));
    }
}
