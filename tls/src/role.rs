//! Roles of the servers that hold `authority.key`, as their certificates name them.
//!
//! Invariant: each role has a name and a protocol of its own, so that no server passes for one of the other role.

use std::fmt;

use rustls::pki_types::{DnsName, ServerName};

/// A server that holds `authority.key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerRole {
    Mirror,
    Scheduler,
}

impl ServerRole {
    /// The name in its certificate. It is never resolved.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mirror => "mirror.piecemeal.internal",
            Self::Scheduler => "scheduler.piecemeal.internal",
        }
    }

    pub(crate) fn server_name(self) -> ServerName<'static> {
        ServerName::DnsName(DnsName::try_from(self.name()).expect("a role's name is a DNS name"))
    }

    /// The protocol above TLS, as ALPN names it.
    pub(crate) fn alpn(self) -> Vec<Vec<u8>> {
        let protocol: &[u8] = match self {
            Self::Mirror => b"http/1.1",
            Self::Scheduler => b"h2",
        };
        vec![protocol.to_vec()]
    }
}

impl fmt::Display for ServerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mirror => "mirror",
            Self::Scheduler => "scheduler",
        })
    }
}
