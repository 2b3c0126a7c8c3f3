//! TLS within a site, without certificate files.
//!
//! The site's certificate authority is `authority.key` itself. Mirror and scheduler hold it, and make themselves a
//! certificate when they start; every holder of `join.key` has the authority's public key, which suffices to check a
//! certificate. A certificate says which of the two its owner is, and nothing about hosts: the URL of a mirror may have any
//! name or address in it.
//!
//! The servers take plain connections on the same port, and know them by their first byte.

mod authority;
mod client;
mod role;
mod server;
mod stream;

pub use client::{ClientStream, Connector, RefuseServerError, client_config, refusal};
pub use role::ServerRole;
pub use server::{Acceptor, MakeCertificateError, Opening, opening};
pub use stream::SiteStream;
