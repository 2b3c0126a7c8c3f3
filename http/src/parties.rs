//! Parties of a port: the connections of each address, node and origin by age, and the parties over their share.
//!
//! Invariant: [`Crowds`] has exactly the parties with more connections than their share.

use std::{collections::BTreeSet, time::Duration};

use piecemeal_proto::NodeId;

use crate::AddressBlock;

/// Id of one connection of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SlotId(pub(crate) u64);

/// A party that a connection counts for. Each connection counts for two: its address or node, and its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Party {
    /// The connections from an address that no node has proven to be its own.
    Address(AddressBlock),
    Node(NodeId),
    /// All connections from an address.
    Origin(AddressBlock),
}

/// Connections by age, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) idle: BTreeSet<(Duration, SlotId)>,
    pub(crate) busy: BTreeSet<(Duration, SlotId)>,
}

impl Group {
    pub(crate) fn len(&self) -> usize {
        self.idle.len() + self.busy.len()
    }

    pub(crate) fn of(&mut self, busy: bool) -> &mut BTreeSet<(Duration, SlotId)> {
        if busy { &mut self.busy } else { &mut self.idle }
    }
}

pub(crate) fn oldest(connections: &BTreeSet<(Duration, SlotId)>) -> Option<SlotId> {
    connections.first().map(|&(_, id)| id)
}

/// The parties over their share, by the number of their connections.
#[derive(Debug, Default)]
pub(crate) struct Crowds {
    /// Addresses and nodes with an idle one.
    pub(crate) idle: BTreeSet<(usize, Party)>,
    /// Addresses and nodes with a busy one.
    pub(crate) busy: BTreeSet<(usize, Party)>,
    /// Origins with a busy one.
    pub(crate) origins: BTreeSet<(usize, Party)>,
}

impl Crowds {
    pub(crate) fn forget(&mut self, party: Party, len: usize) {
        for crowd in [&mut self.idle, &mut self.busy, &mut self.origins] {
            crowd.remove(&(len, party));
        }
    }

    pub(crate) fn note(&mut self, party: Party, group: &Group, share: usize) {
        let len = group.len();
        if len <= share {
            return;
        }
        if matches!(party, Party::Origin(_)) {
            if !group.busy.is_empty() {
                self.origins.insert((len, party));
            }
            return;
        }
        if !group.idle.is_empty() {
            self.idle.insert((len, party));
        }
        if !group.busy.is_empty() {
            self.busy.insert((len, party));
        }
    }
}
