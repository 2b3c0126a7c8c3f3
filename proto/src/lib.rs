//! Piecemeal's vocabulary and wire messages: digests, references, pieces, tickets, as every component uses them.
//!
//! Pure: no I/O, no clock, no randomness of its own.

pub mod accelerated;
mod digest;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod hex;
mod id;
mod key;
mod manifest;
mod node_key;
mod piece;
mod piece_hashes;
mod platform;
mod reference;
mod token;
#[cfg(feature = "grpc")]
pub mod wire;

pub use digest::{Algorithm, Digest, Hasher, ParseDigestError};
pub use id::{FillId, NodeId, ParseNodeIdError};
pub use key::{AuthorityKey, AuthorityPublic, JoinKey, ParseKeyError, PeerRoles, Proof, RoleKey};
pub use manifest::{Descriptor, MANIFEST_ACCEPT, MANIFEST_BYTES_MAX, Manifest, Platform};
pub use node_key::{NodeKey, NodePublic};
pub use piece::{
    PIECE_BYTES_MAX, PIECE_BYTES_MIN, PIECE_COUNT_MAX, PIECE_HASH_BYTES, PieceHash, PieceMap, PieceMapError, PieceSet,
    piece_hash,
};
pub use piece_hashes::{CheckPieceHashesError, SIGNATURE_BYTES, SIGNED_PIECES_MAX, SignedPieceHashes};
pub use platform::{ParsePlatformError, offered_platforms};
pub use reference::{
    DOCKER_HUB, ImageReference, ParseReferenceError, REPOSITORY_BYTES_MAX, Reference, RepositoryName, TAG_BYTES_MAX,
    full_repository, is_docker_hub_alias, is_registry,
};
pub use token::{CheckTokenError, Grant, Ticket};
