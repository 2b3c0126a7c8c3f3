//! Settings of node set-up: what a node should be like.

use crate::{
    kind::RuntimeKind,
    names::{Names, Registry},
};

/// What a node should be like.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of [`crate::registries`].
    pub registries: Vec<Registry>,
    pub peer_port: u16,
    /// Whether there is a peer here, or will be.
    pub has_peer: bool,
    pub names: Names,
    /// Empty: those that are found.
    pub runtimes: Vec<RuntimeKind>,
    /// Whether these are all registries that there are. If not, files for others are left as they are.
    pub is_complete: bool,
}

impl Settings {
    pub(crate) fn peer(&self) -> Option<u16> {
        self.has_peer.then_some(self.peer_port)
    }
}
