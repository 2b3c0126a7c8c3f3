//! Metrics of a mirror or peer. Every name is listed in `docs/metrics.md`.

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::{Registry, Unit},
};

/// Where bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Upstream,
    Mirror,
    Peer,
    /// A blob that was complete here.
    Local,
    /// A blob that was still on its way here.
    Transfer,
}

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    Store,
    /// An OCI client.
    Client,
    /// Another node of the site, by the piece port.
    Node,
}

impl Origin {
    fn label(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Mirror => "mirror",
            Self::Peer => "peer",
            Self::Local => "local",
            Self::Transfer => "transfer",
        }
    }
}

impl Destination {
    fn label(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Client => "client",
            Self::Node => "node",
        }
    }
}

type Labels = [(&'static str, &'static str); 2];

fn labels(from: Origin, to: Destination) -> Labels {
    [("from", from.label()), ("to", to.label())]
}

/// Bytes by where they came from and where they went.
#[derive(Clone, Default)]
pub struct Traffic(Family<Labels, Counter>);

impl Traffic {
    /// Registers the counters, all from zero on, so that a rate includes the first byte.
    pub fn register(&self, registry: &mut Registry) {
        for (from, to) in [
            (Origin::Upstream, Destination::Store),
            (Origin::Mirror, Destination::Store),
            (Origin::Peer, Destination::Store),
            (Origin::Local, Destination::Client),
            (Origin::Transfer, Destination::Client),
            (Origin::Local, Destination::Node),
        ] {
            self.count(from, to, 0);
        }
        registry.sub_registry_with_prefix("piecemeal").register_with_unit(
            "blob",
            "Bytes of blobs, by source and destination",
            Unit::Bytes,
            self.0.clone(),
        );
    }

    pub fn count(&self, from: Origin, to: Destination, bytes: u64) {
        self.0.get_or_create(&labels(from, to)).inc_by(bytes);
    }

    /// The bytes counted so far from one origin to one destination.
    pub fn total(&self, from: Origin, to: Destination) -> u64 {
        self.0.get_or_create(&labels(from, to)).get()
    }
}
