//! Who is let in: what a daemon's hello must say and prove.
//!
//! The proof is over a nonce that was made for this connection alone, so that a proof that was overheard admits nobody.

use std::net::{IpAddr, SocketAddr};

use piecemeal_proto::{AuthorityKey, NodeId, RoleKey, wire};

use crate::swarm::{Features, Member, Role};

/// What this site's daemons prove themselves with.
pub(crate) struct Admission {
    peer: RoleKey,
    mirror: RoleKey,
}

/// A daemon whose hello was accepted.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) member: Member,
    pub(crate) incarnation: u64,
    /// Where its piece port answers: never empty, never a wildcard.
    pub(crate) addresses: Vec<wire::Address>,
}

impl Admission {
    pub(crate) fn new(authority_key: &AuthorityKey) -> Self {
        Self {
            peer: authority_key.join_key().peer_role(),
            mirror: authority_key.mirror_role(),
        }
    }

    /// Admits the daemon at `observed` that answered the challenge `nonce` with `hello`.
    pub(crate) fn check(
        &self,
        hello: wire::Hello,
        nonce: &[u8],
        observed: IpAddr,
    ) -> Result<Admitted, RefuseHelloError> {
        if !(hello.version_min..=hello.version_max).contains(&wire::VERSION) {
            return Err(RefuseHelloError::Version {
                min: hello.version_min,
                max: hello.version_max,
            });
        }
        let node = NodeId::from_slice(&hello.node).ok_or(RefuseHelloError::Node)?;
        let (role, key) = match hello.role() {
            wire::Role::Peer => (Role::Peer, &self.peer),
            wire::Role::Mirror => (Role::Mirror, &self.mirror),
            wire::Role::Unspecified => return Err(RefuseHelloError::Role),
        };
        if !key.verify(&hello.claim(nonce), &hello.proof) {
            return Err(match role {
                Role::Peer => RefuseHelloError::PeerProof,
                Role::Mirror => RefuseHelloError::MirrorProof,
            });
        }
        if hello.pool.len().max(hello.zone.len()) > NAME_BYTES_MAX {
            return Err(RefuseHelloError::Name);
        }
        let addresses = addresses(&hello, observed);
        if addresses.is_empty() {
            return Err(RefuseHelloError::Port);
        }
        Ok(Admitted {
            member: Member {
                node,
                role,
                pool: hello.pool,
                zone: hello.zone,
                may_use_upstream: hello.may_use_upstream,
                features: features(&hello.features),
            },
            incarnation: hello.incarnation,
            addresses,
        })
    }
}

/// Why a daemon is not let in. The text reaches the daemon's log: it says what to do, and no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RefuseHelloError {
    #[error(
        "this scheduler speaks version {VERSION} of the protocol, the daemon versions {min} to {max} (upgrade the older of the two)",
        VERSION = wire::VERSION
    )]
    Version { min: u32, max: u32 },
    #[error("a node id has 16 bytes")]
    Node,
    #[error("the role must be peer or mirror")]
    Role,
    #[error(
        "the join.key does not fit (give the peer the join.key that `piecemeal keygen` wrote beside this scheduler's authority.key)"
    )]
    PeerProof,
    #[error("the authority.key does not fit (a mirror needs the same authority.key as this scheduler)")]
    MirrorProof,
    #[error("the names of pool and zone may have {NAME_BYTES_MAX} bytes each (shorten them)")]
    Name,
    #[error("no address of the piece port can be used (state addresses with a port, or piece_port alone)")]
    Port,
    #[error("no hello came within {} s of the challenge", super::session::HELLO_WAIT.as_secs())]
    Late,
    #[error("the first report must be a hello")]
    NoHello,
    #[error(
        "this node is connected already, by a daemon of a higher incarnation (do two daemons share one store, or was a store copied to another node?)"
    )]
    Superseded,
    #[error("the scheduler cannot take another daemon (restart it)")]
    Exhausted,
}

impl RefuseHelloError {
    /// For `refused_total{reason}`.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Version { .. } => "version",
            Self::PeerProof | Self::MirrorProof => "proof",
            Self::Late => "late",
            Self::Superseded => "superseded",
            Self::Exhausted => "exhausted",
            Self::Node | Self::Role | Self::Name | Self::Port | Self::NoHello => "hello",
        }
    }
}

fn features(stated: &[String]) -> Features {
    let has = |feature: &str| stated.iter().any(|stated| stated == feature);
    Features {
        piece_hashes: has(wire::feature::PIECE_HASHES),
        drop: has(wire::feature::DROP),
    }
}

/// The addresses that the daemon stated, wildcards replaced by the observed one; that one alone when it stated none.
fn addresses(hello: &wire::Hello, observed: IpAddr) -> Vec<wire::Address> {
    let stated = hello.addresses.iter().take(ADDRESSES_MAX).filter_map(|address| {
        let ip: IpAddr = address.ip.parse().ok()?;
        let ip = if ip.is_unspecified() {
            observed
        } else {
            ip.to_canonical()
        };
        let port = if address.port == 0 {
            hello.piece_port
        } else {
            address.port
        };
        socket(ip, port)
    });
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in stated {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        addresses.extend(socket(observed, hello.piece_port));
    }
    addresses.into_iter().map(to_wire).collect()
}

fn socket(ip: IpAddr, port: u32) -> Option<SocketAddr> {
    let port = u16::try_from(port).ok().filter(|&port| port != 0)?;
    Some(SocketAddr::new(ip, port))
}

fn to_wire(address: SocketAddr) -> wire::Address {
    wire::Address {
        ip: address.ip().to_string(),
        port: address.port().into(),
    }
}

/// A DNS name's length, which names of sites and racks stay below.
const NAME_BYTES_MAX: usize = 253;
/// More than the interfaces of any node that is reached on several.
const ADDRESSES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(addresses: &[(&str, u32)], piece_port: u32) -> Vec<String> {
        let hello = wire::Hello {
            addresses: addresses
                .iter()
                .map(|&(ip, port)| wire::Address { ip: ip.into(), port })
                .collect(),
            piece_port,
            ..wire::Hello::default()
        };
        let observed = "192.0.2.7".parse().unwrap();
        super::addresses(&hello, observed)
            .iter()
            .map(|address| format!("{} {}", address.ip, address.port))
            .collect()
    }

    #[test]
    fn a_daemon_is_reached_where_it_says_or_where_it_was_seen() {
        assert_eq!(stated(&[], 65002), ["192.0.2.7 65002"]);
        assert_eq!(stated(&[("0.0.0.0", 1), ("::", 2)], 0), ["192.0.2.7 1", "192.0.2.7 2"]);
        assert_eq!(stated(&[("0.0.0.0", 1), ("::", 1)], 9), ["192.0.2.7 1"]);
        assert_eq!(
            stated(&[("10.0.0.1", 0), ("fd00::1", 3)], 9),
            ["10.0.0.1 9", "fd00::1 3"]
        );
    }

    #[test]
    fn addresses_that_cannot_be_used_are_left_out() {
        assert_eq!(stated(&[("nowhere", 1), ("10.0.0.1", 70_000)], 9), ["192.0.2.7 9"]);
        assert!(stated(&[("nowhere", 1)], 0).is_empty());
        assert!(stated(&[], 65_536).is_empty());
    }
}
