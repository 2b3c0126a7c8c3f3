//! Settings of node set-up.
//!
//! They hold what the administrator asks for, and nothing that was found on the node.

use crate::{
    kind::RuntimeKind,
    names::{Names, Registry},
};

/// Wanted state of a node.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Result of [`crate::registries`].
    pub registries: Vec<Registry>,
    pub peer_port: u16,
    /// Whether the node has a peer, now or later.
    pub has_peer: bool,
    pub names: Names,
    /// Runtimes to wire; empty: those that are found.
    pub runtimes: Vec<RuntimeKind>,
    /// Whether `registries` is the full list. If not, files for other registries stay.
    pub is_complete: bool,
}

impl Settings {
    pub(crate) fn peer(&self) -> Option<u16> {
        self.has_peer.then_some(self.peer_port)
    }
}
