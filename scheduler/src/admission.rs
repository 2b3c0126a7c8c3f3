//! Admission of daemons: checks what their hellos state, prove and sign.
//!
//! Invariant: the proof shows that the daemon belongs to the site, the signature shows which node it is. Both cover a nonce
//! that was made for this connection alone, so that an overheard hello is refused elsewhere. A daemon of the last release does
//! not sign: its node id is a mere claim.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use parking_lot::RwLock;
use piecemeal_proto::{AuthorityKey, AuthorityPublic, NodeId, PeerRoles, RoleKey, wire};
use tracing::{info, warn};

use crate::brain::{Features, Member, Role};

/// The keys that prove this site's daemons, and the nodes that are shut out.
pub(crate) struct Admission {
    site: AuthorityPublic,
    mirror: RoleKey,
    settings: RwLock<Settings>,
}

/// The settings that change while the scheduler runs.
struct Settings {
    peers: PeerRoles,
    revoked: HashSet<NodeId>,
}

/// The key that admitted a daemon. It may lose that right while the daemon is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AdmittedBy {
    /// A generation of `join.key`.
    JoinKey(u32),
    AuthorityKey,
}

/// A daemon whose hello was accepted.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) member: Member,
    pub(crate) incarnation: u64,
    pub(crate) by: AdmittedBy,
    /// Its own name and release, for people to read.
    pub(crate) host_name: String,
    pub(crate) release: String,
    /// Addresses of its piece port: never empty, never a wildcard.
    pub(crate) addresses: Vec<wire::Address>,
}

impl Admission {
    pub(crate) fn new(authority_key: &AuthorityKey, revoked: HashSet<NodeId>) -> Self {
        Self {
            site: authority_key.public(),
            mirror: authority_key.mirror_role(),
            settings: RwLock::new(Settings {
                peers: authority_key.peer_roles(),
                revoked,
            }),
        }
    }

    /// Takes over the generations of `join.key` and the nodes that are shut out. Another site's key is not used.
    pub(crate) fn apply(&self, authority_key: &AuthorityKey, revoked: HashSet<NodeId>) {
        let mut settings = self.settings.write();
        if settings.revoked != revoked {
            info!("{} nodes are shut out", revoked.len());
            settings.revoked = revoked;
        }
        if authority_key.public() != self.site {
            warn!("the authority.key is another site's now; it is not used until a restart");
            return;
        }
        let roles = authority_key.peer_roles();
        if settings.peers.generation() != roles.generation() {
            info!("generation {} of join.key admits peers now", roles.generation());
        }
        settings.peers = roles;
    }

    /// Why a daemon that was admitted is not admitted any more at `now` (seconds since 1970).
    pub(crate) fn still_admits(&self, node: NodeId, by: AdmittedBy, now: u64) -> Result<(), RefuseHelloError> {
        let settings = self.settings.read();
        if settings.revoked.contains(&node) {
            return Err(RefuseHelloError::Revoked);
        }
        match by {
            AdmittedBy::JoinKey(generation) if !settings.peers.still_admits(generation, now) => {
                Err(RefuseHelloError::PeerProof)
            }
            AdmittedBy::JoinKey(_) | AdmittedBy::AuthorityKey => Ok(()),
        }
    }

    /// Admits the daemon at `observed` that answered the challenge `nonce` with `hello` at `now` (seconds since 1970).
    pub(crate) fn check(
        &self,
        hello: wire::Hello,
        nonce: &[u8],
        observed: IpAddr,
        now: u64,
    ) -> Result<Admitted, RefuseHelloError> {
        let (min, max) = (hello.version_min, hello.version_max);
        if !(min..=max).contains(&wire::VERSION) {
            return Err(RefuseHelloError::Version { min, max });
        }
        let node = NodeId::from_slice(&hello.node).ok_or(RefuseHelloError::Node)?;
        let role = role(&hello)?;
        let by = self.prove(role, &hello.claim(nonce), &hello.proof, now)?;
        let signed = !hello.public_key.is_empty() || !hello.signature.is_empty();
        if signed && !hello.is_signed(nonce) {
            return Err(RefuseHelloError::Signature);
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
                signed,
                role,
                pool: hello.pool,
                zone: hello.zone,
                may_use_upstream: hello.may_use_upstream,
                features: features(&hello.features),
            },
            incarnation: hello.incarnation,
            by,
            host_name: readable(&hello.host_name),
            release: readable(&hello.release),
            addresses,
        })
    }

    fn prove(&self, role: Role, claim: &[u8], proof: &[u8], now: u64) -> Result<AdmittedBy, RefuseHelloError> {
        match role {
            Role::Peer => {
                let settings = self.settings.read();
                let generation = settings.peers.admits(claim, proof, now);
                generation.map(AdmittedBy::JoinKey).ok_or(RefuseHelloError::PeerProof)
            }
            Role::Mirror if self.mirror.verify(claim, proof) => Ok(AdmittedBy::AuthorityKey),
            Role::Mirror => Err(RefuseHelloError::MirrorProof),
        }
    }
}

/// Why a daemon is not admitted. The text reaches the daemon's log: it says what to do, and contains no secret.
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
        "the join.key does not fit (give the peer the newest join.key that `piecemeal keygen` wrote beside this scheduler's authority.key, \
         and reload the scheduler when the key was rotated)"
    )]
    PeerProof,
    #[error("the authority.key does not fit (a mirror needs the same authority.key as this scheduler)")]
    MirrorProof,
    #[error("the hello is not signed by the node that it names (does the node.key in the daemon's cache folder fit?)")]
    Signature,
    #[error(
        "this node has signed before, and a hello under its id must be signed (upgrade the daemon again, or give it a cache folder of its own)"
    )]
    Unsigned,
    #[error("this node is shut out (take it out of the scheduler's --revoke to admit it again)")]
    Revoked,
    #[error("the names of pool and zone may have {NAME_BYTES_MAX} bytes each (shorten them)")]
    Name,
    #[error("no address of the piece port can be used (state addresses with a port, or piece_port alone)")]
    Port,
    #[error("no hello came within {} s of the challenge", crate::limits::HELLO_WAIT.as_secs())]
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
            Self::Signature | Self::Unsigned => "signature",
            Self::Revoked => "revoked",
            Self::Late => "late",
            Self::Superseded => "superseded",
            Self::Exhausted => "exhausted",
            Self::Node | Self::Role | Self::Name | Self::Port | Self::NoHello => "hello",
        }
    }
}

fn role(hello: &wire::Hello) -> Result<Role, RefuseHelloError> {
    match hello.role() {
        wire::Role::Peer => Ok(Role::Peer),
        wire::Role::Mirror => Ok(Role::Mirror),
        wire::Role::Unspecified => Err(RefuseHelloError::Role),
    }
}

fn features(stated: &[String]) -> Features {
    let has = |feature: &str| stated.iter().any(|stated| stated == feature);
    Features {
        piece_hashes: has(wire::feature::PIECE_HASHES),
        drop: has(wire::feature::DROP),
        clients: has(wire::feature::CLIENT_STATE),
    }
}

/// The addresses that the daemon stated, wildcards replaced by the observed address; the observed address alone when it stated
/// none.
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

/// Text from a daemon that is not admitted yet, made safe for a log and a terminal.
fn readable(text: &str) -> String {
    let shown = text.chars().filter(|character| !character.is_control());
    shown.take(SHOWN_CHARS_MAX).collect()
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

/// Longest name of a pool or zone: that of a DNS name.
const NAME_BYTES_MAX: usize = 253;
/// Characters of a name that are shown: the longest name of a host.
const SHOWN_CHARS_MAX: usize = 64;
/// Addresses of one daemon: more than the interfaces of any node.
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
