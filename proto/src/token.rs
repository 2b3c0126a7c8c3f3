//! Grants and tickets: tokens signed by the authority that allow a node to fetch a blob.
//!
//! Both bind one node to one blob and expire. A *grant* is signed by the mirror once the node has proven its right to the
//! blob; the scheduler, and the mirror's piece port, take it. A *ticket* is signed by the scheduler for the piece ports of
//! the sources that it names. On the wire they are base64url; their layout is fixed, after a version byte:
//! version, kind, node (16), expiry (8), algorithm (1), hash (32 or 64), then of a grant the blob's size, the piece size
//! and the fill (8 each), then the Ed25519 signature (64) over all before it. Integers are big-endian.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};

use crate::{
    Algorithm, Digest, FillId, NodeId, PieceMap,
    key::{AuthorityKey, AuthorityPublic},
};

const VERSION: u8 = 1;
const KIND_GRANT: u8 = 1;
const KIND_TICKET: u8 = 2;
const SIGNATURE_BYTES: usize = 64;
/// The longest text that is parsed, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// A token of the mirror: the node has proven its right to the blob, which is cut as stated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub node: NodeId,
    pub digest: Digest,
    pub map: PieceMap,
    pub fill: FillId,
    /// Seconds since 1970 by the authority's clock.
    pub expires: u64,
}

/// A token of the scheduler: the node may fetch the blob's pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub node: NodeId,
    pub digest: Digest,
    /// Seconds since 1970 by the authority's clock.
    pub expires: u64,
}

impl Grant {
    /// The grant as base64url text.
    pub fn sign(&self, key: &AuthorityKey) -> String {
        let mut bytes = head(KIND_GRANT, self.node, &self.digest, self.expires);
        for number in [self.map.blob_bytes(), self.map.piece_bytes(), self.fill.0] {
            bytes.extend(number.to_be_bytes());
        }
        seal(bytes, key)
    }

    /// Reads a grant that the authority signed and that has not expired at `now` (seconds since 1970).
    ///
    /// # Errors
    /// [`CheckTokenError`], which never repeats the token.
    pub fn check(text: &str, authority: &AuthorityPublic, now: u64) -> Result<Self, CheckTokenError> {
        let bytes = open(text, authority)?;
        let mut fields = Fields(&bytes);
        let (node, digest, expires) = fields.head(KIND_GRANT)?;
        let (blob_bytes, piece_bytes, fill) = (fields.number()?, fields.number()?, fields.number()?);
        let map = PieceMap::new(blob_bytes, piece_bytes).map_err(|_| CheckTokenError::Malformed)?;
        fresh(expires, now)?;
        Ok(Self {
            node,
            digest,
            map,
            fill: FillId(fill),
            expires,
        })
    }
}

impl Ticket {
    /// The ticket as base64url text.
    pub fn sign(&self, key: &AuthorityKey) -> String {
        seal(head(KIND_TICKET, self.node, &self.digest, self.expires), key)
    }

    /// Reads a ticket that the authority signed and that has not expired at `now` (seconds since 1970).
    ///
    /// # Errors
    /// [`CheckTokenError`], which never repeats the token.
    pub fn check(text: &str, authority: &AuthorityPublic, now: u64) -> Result<Self, CheckTokenError> {
        let bytes = open(text, authority)?;
        let (node, digest, expires) = Fields(&bytes).head(KIND_TICKET)?;
        fresh(expires, now)?;
        Ok(Self { node, digest, expires })
    }
}

/// Why a grant or ticket is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckTokenError {
    #[error("the token is malformed or of another kind or version")]
    Malformed,
    #[error("the token is not signed by this site's authority (do all daemons have keys of one `piecemeal keygen`?)")]
    Signature,
    #[error("the token has expired")]
    Expired,
}

fn head(kind: u8, node: NodeId, digest: &Digest, expires: u64) -> Vec<u8> {
    let algorithm = match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    };
    [
        &[VERSION, kind],
        &node.0[..],
        &expires.to_be_bytes(),
        &[algorithm],
        digest.hash(),
    ]
    .concat()
}

fn seal(mut bytes: Vec<u8>, key: &AuthorityKey) -> String {
    bytes.extend(key.sign(&bytes));
    BASE64.encode(bytes)
}

/// The signed bytes, once the signature holds.
fn open(text: &str, authority: &AuthorityPublic) -> Result<Vec<u8>, CheckTokenError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(CheckTokenError::Malformed);
    }
    let mut bytes = BASE64.decode(text).map_err(|_| CheckTokenError::Malformed)?;
    let signature = bytes.split_off(bytes.len().saturating_sub(SIGNATURE_BYTES));
    if !authority.verify(&bytes, &signature) {
        return Err(CheckTokenError::Signature);
    }
    Ok(bytes)
}

fn fresh(expires: u64, now: u64) -> Result<(), CheckTokenError> {
    if now < expires {
        Ok(())
    } else {
        Err(CheckTokenError::Expired)
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], CheckTokenError> {
        let (field, rest) = self.0.split_first_chunk().ok_or(CheckTokenError::Malformed)?;
        self.0 = rest;
        Ok(*field)
    }

    fn number(&mut self) -> Result<u64, CheckTokenError> {
        self.take().map(u64::from_be_bytes)
    }

    fn head(&mut self, kind: u8) -> Result<(NodeId, Digest, u64), CheckTokenError> {
        if self.take()? != [VERSION, kind] {
            return Err(CheckTokenError::Malformed);
        }
        let node = NodeId(self.take()?);
        let expires = self.number()?;
        let digest = match self.take()? {
            [1] => Digest::Sha256(self.take()?),
            [2] => Digest::Sha512(self.take()?),
            _ => return Err(CheckTokenError::Malformed),
        };
        Ok((node, digest, expires))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> AuthorityKey {
        AuthorityKey::from_seed([3; 32])
    }

    fn grant() -> Grant {
        Grant {
            node: NodeId([9; 16]),
            digest: Digest::of(b"blob"),
            map: PieceMap::for_blob(1 << 30).unwrap(),
            fill: FillId(77),
            expires: 1000,
        }
    }

    fn ticket() -> Ticket {
        Ticket {
            node: NodeId([9; 16]),
            digest: Digest::Sha512([5; 64]),
            expires: 1000,
        }
    }

    #[test]
    fn tokens_read_back_until_they_expire() {
        let public = key().public();
        assert_eq!(Grant::check(&grant().sign(&key()), &public, 999), Ok(grant()));
        assert_eq!(Ticket::check(&ticket().sign(&key()), &public, 0), Ok(ticket()));
        assert_eq!(
            Grant::check(&grant().sign(&key()), &public, 1000),
            Err(CheckTokenError::Expired)
        );
        assert_eq!(
            Ticket::check(&ticket().sign(&key()), &public, 1001),
            Err(CheckTokenError::Expired)
        );
    }

    #[test]
    fn one_kind_is_not_the_other_and_another_site_is_a_stranger() {
        let public = key().public();
        assert_eq!(
            Ticket::check(&grant().sign(&key()), &public, 0),
            Err(CheckTokenError::Malformed)
        );
        assert_eq!(
            Grant::check(&ticket().sign(&key()), &public, 0),
            Err(CheckTokenError::Malformed)
        );
        let stranger = AuthorityKey::from_seed([4; 32]);
        assert_eq!(
            Ticket::check(&ticket().sign(&stranger), &public, 0),
            Err(CheckTokenError::Signature)
        );
    }

    proptest! {
        #[test]
        fn a_changed_token_is_never_accepted(position in 0_usize..200, flip in 1_u8..64) {
            let mut text = grant().sign(&key()).into_bytes();
            let position = position % text.len();
            text[position] ^= flip;
            if let Ok(text) = String::from_utf8(text) {
                prop_assert!(Grant::check(&text, &key().public(), 0).is_err());
            }
        }

        #[test]
        fn no_text_makes_the_check_panic(text in ".{0,600}") {
            prop_assert!(Ticket::check(&text, &key().public(), 0).is_err());
        }
    }
}
