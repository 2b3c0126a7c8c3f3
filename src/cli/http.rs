//! HTTP client of the commands, and the runtime that it needs.
//!
//! Invariant: a machine without CA certificates has a client too, which trusts no server.

use anyhow::Context;
use reqwest::{Client, ClientBuilder};
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Runtime;

pub(super) fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// An HTTP client. On a machine without CA certificates, such as an empty container, it trusts no server but still speaks
/// plain HTTP.
pub(super) fn http_client(settings: impl Fn(ClientBuilder) -> ClientBuilder) -> anyhow::Result<Client> {
    let build = |builder| settings(builder).build();
    build(Client::builder())
        .or_else(|_| {
            let trust_none = ClientConfig::builder()
                .with_root_certificates(RootCertStore::empty())
                .with_no_client_auth();
            build(Client::builder().tls_backend_preconfigured(trust_none))
        })
        .context("cannot make an HTTP client")
}
