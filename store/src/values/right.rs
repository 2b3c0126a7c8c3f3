//! Rights to pull: what an upstream has granted to a client or a node.

use std::time::Duration;

use piecemeal_proto::NodeId;

/// The holder of a right to pull from a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// Every client: upstream serves the repository without a credential.
    Public,
    /// An admitted node, by a credential that upstream took.
    Node(NodeId, Shown),
}

/// The credential that a node was served by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shown {
    /// A client's, by its SHA-256. The store keeps a keyed hash of it.
    Client([u8; 32]),
    /// The site's own.
    Site,
    /// None. A mirror does not tell its peer whether the repository is public or open to this node only.
    Nothing,
}

/// The time since upstream last served a node from a repository; a restart adds an hour at the most.
///
/// A credential that upstream has answered is known, and has only the rights that it has earned itself, repository by
/// repository: a credential that was served in one repository has no right in another. Only a new one may use the rights that
/// its node has earned by others.
///
/// Tables are bounded, and what is forgotten gives no right: a node of which as many refused credentials are known at an upstream as
/// are kept has no new credentials there. A right that made room for other credentials' of the node falls back on the node's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeRight {
    /// By any of the node's credentials, or by one of which only the node was stored. A right that upstream has refused since
    /// does not count.
    pub by_any: Option<Duration>,
    /// By this very credential.
    pub by_this: Option<Duration>,
    /// Whether the credential is known: upstream has served it or refused it, in this repository or another, or may have done
    /// so and been forgotten.
    pub is_known: bool,
}
