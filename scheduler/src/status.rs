//!
//! Status of a scheduler for `piecemeal status`, as JSON.
//!
//! Invariant: the driver takes a snapshot; the request that asked for it writes the JSON, so that placement does not wait.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use piecemeal_proto::wire;
use serde_json::{Value, json};
use tokio::time::Duration;

use crate::{
    brain::{MemberId, MemberStatus, Status, SwarmStatus},
    metrics::role_name,
};

pub(crate) struct Snapshot {
    pub(crate) status: Status,
    pub(crate) contacts: HashMap<MemberId, Contact>,
}

/// The part of a member's status that the brain does not know.
pub(crate) struct Contact {
    pub(crate) source: Arc<wire::Source>,
    /// Time since its latest report.
    pub(crate) heard: Duration,
    pub(crate) signed: bool,
    pub(crate) host_name: String,
    pub(crate) release: String,
}

impl Snapshot {
    pub(crate) fn to_json(&self) -> Value {
        let members: Vec<Value> = self.status.members.iter().map(|member| self.member(member)).collect();
        let swarms: Vec<Value> = self.status.swarms.iter().map(swarm).collect();
        json!({
            "members": members,
            "swarms": swarms,
            "idle_swarms": self.status.idle_swarms,
            "leases": self.status.leases,
        })
    }

    fn member(&self, member: &MemberStatus) -> Value {
        let contact = self.contacts.get(&member.member);
        json!({
            "node": member.node.to_string(),
            "role": role_name(member.role),
            "pool": member.pool,
            "zone": member.zone,
            "host_name": contact.map(|contact| &contact.host_name),
            "release": contact.map(|contact| &contact.release),
            "signed": contact.map(|contact| contact.signed),
            "addresses": contact.map(Contact::addresses).unwrap_or_default(),
            "heard_seconds": contact.map(|contact| contact.heard.as_secs_f64()),
            "silent": member.silent,
            "blobs": member.blobs,
            "fetching": member.fetching,
            "serving": member.serving,
        })
    }
}

impl Contact {
    fn addresses(&self) -> Vec<String> {
        let text = |address: &wire::Address| {
            let (ip, port) = (address.ip.parse().ok()?, u16::try_from(address.port).ok()?);
            Some(SocketAddr::new(ip, port).to_string())
        };
        self.source.addresses.iter().filter_map(text).collect()
    }
}

fn swarm(swarm: &SwarmStatus) -> Value {
    let pieces_wanted = u64::from(swarm.wanting) * u64::from(swarm.pieces);
    json!({
        "pool": swarm.pool,
        "digest": swarm.digest.to_string(),
        "fill": swarm.fill.map(|fill| fill.to_string()),
        "proven": swarm.proven,
        "blob_bytes": swarm.blob_bytes,
        "piece_bytes": swarm.piece_bytes,
        "pieces": swarm.pieces,
        "hashed": swarm.hashed,
        "wanting": swarm.wanting,
        "complete": swarm.complete,
        "partial": swarm.partial,
        "completion_percent": (swarm.pieces_held * 100).checked_div(pieces_wanted),
        "leases": swarm.leases,
    })
}
