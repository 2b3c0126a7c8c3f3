//! Messages of `piecemeal.proto`, and conversions of their fields into Piecemeal's own types.
//!
//! Invariant: a field of another daemon never causes a panic; one that makes no sense is `None` or `false`.

use crate::{Digest, NodeId, NodeKey, NodePublic, PIECE_HASH_BYTES, PieceHash, Reference, RepositoryName, is_registry};

pub use generated::*;

mod generated {
    #![allow(
        clippy::allow_attributes_without_reason,
        clippy::missing_errors_doc,
        clippy::use_self,
        unnameable_types,
        unreachable_pub,
        reason = "generated; documented in piecemeal.proto"
    )]
    tonic::include_proto!("piecemeal.v1");
}

/// The only version of the protocol so far.
pub const VERSION: u32 = 1;
/// Features: additions to version 1. Each side states those that it has (`Challenge.features`, `Hello.features`), and the
/// messages and fields of a feature are sent only to a side that has stated it.
pub mod feature {
    /// [`Hello::public_key`](super::Hello): the daemon's id is its key's, and its hello is signed.
    pub const SIGNED_IDENTITY: &str = "signed-identity";
    /// [`PieceHashes`](super::PieceHashes), in both directions.
    pub const PIECE_HASHES: &str = "piece-hashes";
    /// [`Drop`](super::Drop).
    pub const DROP: &str = "drop";
    /// [`Want::client`](super::Want), and [`Clients`](super::Clients).
    pub const CLIENT_STATE: &str = "client-state";
    /// [`Lease::pieces`](super::Lease).
    pub const LEASE_SET: &str = "lease-set";
    /// [`WantAccepted`](super::WantAccepted): hashes and ticket come once for a want.
    pub const WANT_ACCEPTED: &str = "want-accepted";
    /// [`Welcome::scheduler`](super::Welcome) and [`Want::leader`](super::Want): which scheduler leases for a want.
    pub const LEADER: &str = "leader";
}

/// The longest silence of a side, and the time for which messages are gathered into a batch.
pub const HEARTBEAT: std::time::Duration = std::time::Duration::from_millis(500);
pub const BATCH_DELAY: std::time::Duration = std::time::Duration::from_millis(5);
/// The most bytes of one message: an inventory chunk, or the hashes of a whole blob's pieces in a few.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most digests in one chunk of an inventory.
pub const INVENTORY_CHUNK_MAX: usize = 4096;
/// The most pieces that one `Have` tells of.
pub const HAVE_PIECES_MAX: usize = 16 * 1024;
/// The most manifests and blobs that one `Warm` names.
pub const WARM_MANIFESTS_MAX: usize = 256;
pub const WARM_BLOBS_MAX: usize = 1000;
/// The most pieces of a blob that the clients of one node are known to wait for, and that one `Clients` names.
pub const WAITING_MAX: usize = 16;

impl Hello {
    /// The bytes that [`Hello::proof`] covers: the scheduler's nonce, and the daemon's role, incarnation and node id.
    pub fn claim(&self, nonce: &[u8]) -> Vec<u8> {
        let role = self.role.to_be_bytes();
        let incarnation = self.incarnation.to_be_bytes();
        [b"piecemeal hello v1\0", nonce, &role, &incarnation, &self.node].concat()
    }

    /// The bytes that [`Hello::signature`] covers: the same, and the key itself.
    pub fn signed_claim(&self, nonce: &[u8]) -> Vec<u8> {
        let role = self.role.to_be_bytes();
        let incarnation = self.incarnation.to_be_bytes();
        let context: &[u8] = b"piecemeal signed hello v1\0";
        [context, nonce, &role, &incarnation, &self.node, &self.public_key].concat()
    }

    /// Adds what the feature signed-identity asks for: the daemon's key, and its signature over the scheduler's nonce.
    pub fn sign(&mut self, key: &NodeKey, nonce: &[u8]) {
        self.public_key = key.public().as_bytes().to_vec();
        self.signature = key.sign(&self.signed_claim(nonce)).to_vec();
    }

    /// Whether the node that it names has signed it, over `nonce`.
    pub fn is_signed(&self, nonce: &[u8]) -> bool {
        NodePublic::from_slice(&self.public_key).is_some_and(|public| {
            public.id().0[..] == self.node[..] && public.verify(&self.signed_claim(nonce), &self.signature)
        })
    }
}

impl Warm {
    /// Whether its names and digests are well formed, and no more than a peer takes at once.
    pub fn is_sound(&self) -> bool {
        let are_digests = |texts: &[String]| texts.iter().all(|text| text.parse::<Digest>().is_ok());
        let is_tag = || matches!(self.tag.parse(), Ok(Reference::Tag(_)));
        is_registry(&self.upstream)
            && self.repository.parse::<RepositoryName>().is_ok()
            && (self.tag.is_empty() || is_tag())
            && (1..=WARM_MANIFESTS_MAX).contains(&self.manifests.len())
            && self.blobs.len() <= WARM_BLOBS_MAX
            && are_digests(&self.manifests)
            && are_digests(&self.blobs)
    }
}

/// One after the other; empty when any is unknown.
pub fn join_hashes(hashes: &[Option<PieceHash>]) -> Vec<u8> {
    let known: Option<Vec<PieceHash>> = hashes.iter().copied().collect();
    known.unwrap_or_default().concat()
}

/// `count` hashes, each known or none; `None` when the length fits neither.
pub fn split_hashes(bytes: &[u8], count: u32) -> Option<Vec<Option<PieceHash>>> {
    let count = usize::try_from(count).ok()?;
    if bytes.is_empty() {
        return Some(vec![None; count]);
    }
    (bytes.len() == count.checked_mul(PIECE_HASH_BYTES)?).then(|| {
        bytes
            .chunks_exact(PIECE_HASH_BYTES)
            .map(|hash| hash.try_into().ok())
            .collect()
    })
}

impl Source {
    /// The node that the source is, when it is a peer or the mirror.
    pub fn node_id(&self) -> Option<NodeId> {
        NodeId::from_slice(&self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_signed_by_the_node_that_it_names_and_for_one_challenge() {
        let key = NodeKey::from_seed([5; 32]);
        let signed = || {
            let mut hello = Hello {
                node: key.id().0.to_vec(),
                role: Role::Peer.into(),
                incarnation: 7,
                ..Hello::default()
            };
            hello.sign(&key, b"nonce");
            hello
        };
        assert!(signed().is_signed(b"nonce"));
        assert!(!signed().is_signed(b"other nonce"));
        type Change = fn(&mut Hello);
        let changes: [Change; 6] = [
            |hello| hello.incarnation += 1,
            |hello| hello.role = Role::Mirror.into(),
            |hello| hello.node[0] ^= 1,
            |hello| hello.public_key = NodeKey::from_seed([6; 32]).public().as_bytes().to_vec(),
            |hello| hello.signature.truncate(63),
            // One key's signature under the id of another.
            |hello| {
                hello.node = vec![9; 16];
                hello.sign(&NodeKey::from_seed([6; 32]), b"nonce");
            },
        ];
        for change in changes {
            let mut hello = signed();
            change(&mut hello);
            assert!(!hello.is_signed(b"nonce"), "{hello:?}");
        }
    }

    #[test]
    fn a_warm_names_what_can_be_asked_for_and_not_too_much_of_it() {
        let digest = || Digest::of(b"x").to_string();
        let warm = || Warm {
            upstream: "docker.io".into(),
            repository: "library/alpine".into(),
            tag: "3".into(),
            manifests: vec![digest()],
            blobs: vec![digest(); WARM_BLOBS_MAX],
        };
        assert!(warm().is_sound());
        assert!(
            Warm {
                tag: String::new(),
                blobs: Vec::new(),
                ..warm()
            }
            .is_sound()
        );
        type Change = fn(&mut Warm);
        let wrong: [Change; 8] = [
            |warm| warm.upstream = "a/b".into(),
            |warm| warm.upstream.clear(),
            |warm| warm.repository = "../x".into(),
            |warm| warm.tag = "a/b".into(),
            |warm| warm.tag = Digest::of(b"x").to_string(),
            |warm| warm.manifests.clear(),
            |warm| warm.blobs.push(Digest::of(b"x").to_string()),
            |warm| warm.blobs[0] = "sha256:x".into(),
        ];
        for change in wrong {
            let mut warm = warm();
            change(&mut warm);
            assert!(!warm.is_sound(), "{:?}", warm.tag);
        }
    }
}
