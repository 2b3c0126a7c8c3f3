//! The hashes of all pieces of a proven blob, signed by the authority.
//!
//! The signature is over: a domain, the digest's algorithm (1) and hash (32 or 64), the blob's size and the piece size (8 each,
//! big-endian), the algorithm of the pieces' hashes (1), and the SHA-256 of the hashes in their order. It names no fill and no
//! time: a blob that has its digest has these pieces for ever, so that every holder of the list may pass it on.

use crate::{Algorithm, AuthorityKey, AuthorityPublic, Digest, PIECE_HASH_BYTES, PieceHash, PieceMap};

/// The bytes of the authority's signature.
pub const SIGNATURE_BYTES: usize = 64;
/// The most pieces of a blob whose list is signed: with the other fields the list fits [`MESSAGE_BYTES_MAX`](crate::wire::MESSAGE_BYTES_MAX).
/// At 4 MiB a piece that is a blob of 511 GiB. The pieces of a larger one are reported by `Have` alone.
pub const SIGNED_PIECES_MAX: u32 = (4 * 1024 * 1024 - OTHER_FIELDS_BYTES) / 32;
/// More than a list takes besides its hashes: a digest of 135 characters, two sizes, a signature, and the tags.
const OTHER_FIELDS_BYTES: u32 = 1024;

/// A list of a blob's piece hashes, signed by the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedPieceHashes {
    digest: Digest,
    map: PieceMap,
    hashes: Vec<PieceHash>,
    signature: [u8; SIGNATURE_BYTES],
}

/// Why a list of piece hashes is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckPieceHashesError {
    #[error("the list of piece hashes is malformed, or of another hash algorithm")]
    Malformed,
    #[error("authority.key of this site did not sign the list of piece hashes")]
    Signature,
}

impl SignedPieceHashes {
    /// Signs the hashes of a blob that the caller has proven; `None` for other than one hash a piece, and for a blob of more than
    /// [`SIGNED_PIECES_MAX`] pieces or of none.
    pub fn sign(key: &AuthorityKey, digest: Digest, map: PieceMap, hashes: Vec<PieceHash>) -> Option<Self> {
        fits(map, hashes.len()).then(|| Self {
            signature: key.sign(&claim(&digest, map, &hashes)),
            digest,
            map,
            hashes,
        })
    }

    /// A list whose parts were kept apart.
    ///
    /// # Errors
    /// [`CheckPieceHashesError`].
    pub fn check(
        authority: &AuthorityPublic,
        digest: Digest,
        map: PieceMap,
        hashes: Vec<PieceHash>,
        signature: &[u8],
    ) -> Result<Self, CheckPieceHashesError> {
        let signature: [u8; SIGNATURE_BYTES] = signature.try_into().map_err(|_| CheckPieceHashesError::Malformed)?;
        if !fits(map, hashes.len()) {
            return Err(CheckPieceHashesError::Malformed);
        }
        if !authority.verify(&claim(&digest, map, &hashes), &signature) {
            return Err(CheckPieceHashesError::Signature);
        }
        Ok(Self {
            digest,
            map,
            hashes,
            signature,
        })
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    pub fn map(&self) -> PieceMap {
        self.map
    }

    /// One a piece.
    pub fn hashes(&self) -> &[PieceHash] {
        &self.hashes
    }

    pub fn signature(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.signature
    }
}

#[cfg(feature = "grpc")]
mod message {
    use super::{
        AuthorityPublic, CheckPieceHashesError, Digest, PIECE_HASH_BYTES, PieceHash, PieceMap, SignedPieceHashes,
    };
    use crate::wire;

    impl SignedPieceHashes {
        /// Reads and checks a message.
        ///
        /// # Errors
        /// [`CheckPieceHashesError`].
        pub fn from_wire(
            message: &wire::PieceHashes,
            authority: &AuthorityPublic,
        ) -> Result<Self, CheckPieceHashesError> {
            let malformed = CheckPieceHashesError::Malformed;
            let digest: Digest = message.digest.parse().map_err(|_| malformed)?;
            let map = PieceMap::new(message.blob_bytes, message.piece_bytes).map_err(|_| malformed)?;
            let (hashes, rest) = message.hashes.as_chunks::<PIECE_HASH_BYTES>();
            if message.hash_algorithm() != wire::HashAlgorithm::Sha256 || !rest.is_empty() {
                return Err(malformed);
            }
            let hashes: Vec<PieceHash> = hashes.to_vec();
            Self::check(authority, digest, map, hashes, &message.signature)
        }

        pub fn to_wire(&self) -> wire::PieceHashes {
            wire::PieceHashes {
                digest: self.digest.to_string(),
                blob_bytes: self.map.blob_bytes(),
                piece_bytes: self.map.piece_bytes(),
                hash_algorithm: wire::HashAlgorithm::Sha256.into(),
                hashes: self.hashes.concat(),
                signature: self.signature.to_vec(),
            }
        }
    }
}

fn fits(map: PieceMap, hashes: usize) -> bool {
    (1..=SIGNED_PIECES_MAX).contains(&map.count()) && hashes == map.count() as usize
}

/// The signed bytes.
fn claim(digest: &Digest, map: PieceMap, hashes: &[PieceHash]) -> Vec<u8> {
    let (algorithm, hash): (u8, &[u8]) = match digest {
        Digest::Sha256(hash) => (1, hash),
        Digest::Sha512(hash) => (2, hash),
    };
    let mut hasher = Algorithm::Sha256.hasher();
    hasher.update(hashes.as_flattened());
    let Digest::Sha256(list) = hasher.finish() else {
        unreachable!("a SHA-256 hasher makes no other digest");
    };
    [
        DOMAIN,
        &[algorithm],
        hash,
        &map.blob_bytes().to_be_bytes(),
        &map.piece_bytes().to_be_bytes(),
        &[PIECES_BY_SHA256],
        &list,
    ]
    .concat()
}

const DOMAIN: &[u8] = b"piecemeal piece hashes v1\0";
/// [`PIECE_HASH_BYTES`] bytes a piece.
const PIECES_BY_SHA256: u8 = 1;

const _: () = assert!(PIECE_HASH_BYTES == 32);

#[cfg(test)]
#[cfg(feature = "grpc")]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::wire;

    fn key() -> AuthorityKey {
        AuthorityKey::from_seed([3; 32])
    }

    fn signed() -> SignedPieceHashes {
        let map = PieceMap::new(1000, 300).unwrap();
        let hashes = (0..4).map(|piece| [piece; 32]).collect();
        SignedPieceHashes::sign(&key(), Digest::of(b"blob"), map, hashes).unwrap()
    }

    #[test]
    fn a_list_survives_the_wire() {
        let read = SignedPieceHashes::from_wire(&signed().to_wire(), &key().public());
        assert_eq!(read, Ok(signed()));
    }

    #[test]
    fn a_list_that_was_changed_in_any_field_is_not_the_authoritys() {
        type Change = fn(&mut wire::PieceHashes);
        let changes: [Change; 8] = [
            |list| list.digest = Digest::of(b"other").to_string(),
            |list| list.blob_bytes = 999,
            |list| list.piece_bytes = 299,
            |list| list.hashes[70] ^= 1,
            |list| list.hashes.swap(0, 32),
            |list| list.hashes.truncate(127),
            |list| list.signature[5] ^= 1,
            |list| list.hash_algorithm = 9,
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut list = signed().to_wire();
            change(&mut list);
            assert!(
                SignedPieceHashes::from_wire(&list, &key().public()).is_err(),
                "{number}"
            );
        }
    }

    #[test]
    fn the_list_of_another_site_is_not_the_authoritys() {
        let other = AuthorityKey::from_seed([4; 32]).public();
        let read = SignedPieceHashes::from_wire(&signed().to_wire(), &other);
        assert_eq!(read, Err(CheckPieceHashesError::Signature));
    }

    #[test]
    fn the_longest_list_fits_a_message_and_a_longer_one_is_not_signed() {
        let list = |count: u32| {
            let map = PieceMap::new(u64::from(count) << 22, 1 << 22).unwrap();
            let digest = Digest::Sha512([255; 64]);
            SignedPieceHashes::sign(&key(), digest, map, vec![[9; 32]; count as usize])
        };
        let report = wire::Report {
            report: Some(wire::report::Report::PieceHashes(
                list(SIGNED_PIECES_MAX).unwrap().to_wire(),
            )),
        };
        let message = wire::Reports { reports: vec![report] };
        assert!(message.encoded_len() <= wire::MESSAGE_BYTES_MAX);
        assert_eq!(list(SIGNED_PIECES_MAX + 1), None);
        assert_eq!(list(0), None);
    }
}
