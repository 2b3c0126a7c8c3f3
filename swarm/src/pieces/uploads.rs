//! Uploads of a piece port: the requests that it answers at once, in all, for each receiver, and, once the port is nearly full,
//! from each address.
//!
//! Invariant: no receiver, and no address, keeps all places from the others. A receiver is the node that its ticket or grant
//! names. Since a site's key lets a host be many nodes, the address counts, too.

use std::{collections::HashMap, hash::Hash, net::IpAddr, sync::Arc};

use parking_lot::Mutex;
use piecemeal_http::{AddressBlock, Share};
use piecemeal_proto::NodeId;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Uploads(Arc<Mutex<Counts>>);

#[derive(Debug)]
struct Counts {
    max: usize,
    per_node_max: usize,
    per_address_max: usize,
    total: usize,
    nodes: HashMap<NodeId, usize>,
    addresses: HashMap<AddressBlock, usize>,
}

/// One request's place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Upload {
    uploads: Uploads,
    node: NodeId,
    address: Option<AddressBlock>,
}

impl Uploads {
    /// `share`: of `max`, for one address.
    pub(super) fn new(max: usize, share: Share) -> Self {
        Self(Arc::new(Mutex::new(Counts {
            max,
            per_node_max: (max / NODE_PART).max(NODE_MIN),
            per_address_max: share.of(max),
            total: 0,
            nodes: HashMap::new(),
            addresses: HashMap::new(),
        })))
    }

    /// A place for a request of `node`; `None`: the node must ask again later, or elsewhere.
    pub(super) fn take(&self, node: NodeId, address: Option<IpAddr>) -> Option<Upload> {
        let address = address.map(AddressBlock::of);
        self.0.lock().take(node, address).then(|| Upload {
            uploads: self.clone(),
            node,
            address,
        })
    }
}

impl Counts {
    fn take(&mut self, node: NodeId, address: Option<AddressBlock>) -> bool {
        let of_node = self.nodes.get(&node).copied().unwrap_or_default();
        let of_address = address.and_then(|address| self.addresses.get(&address)).copied();
        let is_near = self.total >= self.max - self.max / NEAR_PART;
        let is_crowded = is_near && of_address.unwrap_or_default() >= self.per_address_max;
        if self.total >= self.max || of_node >= self.per_node_max || is_crowded {
            return false;
        }
        self.total += 1;
        *self.nodes.entry(node).or_default() += 1;
        if let Some(address) = address {
            *self.addresses.entry(address).or_default() += 1;
        }
        true
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut counts = self.uploads.0.lock();
        counts.total -= 1;
        one_less(&mut counts.nodes, &self.node);
        if let Some(address) = self.address {
            one_less(&mut counts.addresses, &address);
        }
    }
}

fn one_less<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    let Some(count) = counts.get_mut(key) else { return };
    *count -= 1;
    if *count == 0 {
        counts.remove(key);
    }
}

/// Part of the requests that one receiver has at most: more than it needs to fill its network.
const NODE_PART: usize = 16;
/// Requests that a receiver has in any case, also at a small port: a few blobs at once, four requests each.
const NODE_MIN: usize = 16;
/// Part of the requests that is free when addresses begin to count.
const NEAR_PART: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 16])
    }

    fn host(number: u8) -> Option<IpAddr> {
        Some([10, 0, 0, number].into())
    }

    #[test]
    fn one_receiver_leaves_the_rest_to_others() {
        let uploads = Uploads::new(320, Share::default());
        let held: Vec<_> = (0..1000).filter_map(|_| uploads.take(node(1), host(1))).collect();
        assert_eq!(held.len(), 20);
        assert!(uploads.take(node(2), host(1)).is_some());
        drop(held);
        assert!(uploads.take(node(1), host(1)).is_some());
    }

    #[test]
    fn many_identities_of_one_host_leave_some_to_others() {
        let uploads = Uploads::new(320, Share::default());
        let of_crowd = |number| uploads.take(node(number), host(1));
        let held: Vec<_> = (0..=255).cycle().take(5000).filter_map(of_crowd).collect();
        assert_eq!(held.len(), 280);
        for number in 2..6 {
            let honest: Vec<_> = (0..10)
                .filter_map(|_| uploads.take(node(number), host(number)))
                .collect();
            assert_eq!(honest.len(), 10);
        }
    }

    #[test]
    fn what_has_ended_leaves_no_trace() {
        let uploads = Uploads::new(64, Share::default());
        for number in 0..200 {
            let _upload = uploads.take(node(number), host(number)).unwrap();
        }
        let counts = uploads.0.lock();
        assert!(counts.total == 0 && counts.nodes.is_empty() && counts.addresses.is_empty());
    }
}
