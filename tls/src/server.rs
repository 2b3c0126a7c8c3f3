//! TLS server: one port for connections with TLS and without.
//!
//! Invariant: the wait for the first byte and the handshake both have a limit.

use std::{io, sync::Arc, time::Duration};

use piecemeal_proto::AuthorityKey;
use rustls::{ServerConfig, ServerConnection, crypto::ring, version::TLS13};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsAcceptor;

use crate::{ServerRole, SiteStream, authority};

/// The longest wait for the first byte of a connection.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most encrypted bytes that wait for the socket: two records. A client that reads slowly fills it.
const BUFFER_BYTES: usize = 32 * 1024;
/// The first byte of a TLS record that begins a handshake. No HTTP, of any version, begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// The protocol that a connection's first byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    Plain,
    Tls,
}

/// Waits for the first byte, and leaves it where it is.
///
/// # Errors
/// The connection ended, or said nothing for 5 seconds.
pub async fn opening(stream: &TcpStream) -> io::Result<Opening> {
    let mut first = [0];
    match timeout(FIRST_BYTE_TIMEOUT, stream.peek(&mut first)).await?? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ if first[0] == TLS_HANDSHAKE => Ok(Opening::Tls),
        _ => Ok(Opening::Plain),
    }
}

/// Makes TLS connections of a server that holds the site's authority. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

/// Why there is no certificate. The system lacks random numbers, most likely.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a certificate: {0}")]
pub struct MakeCertificateError(String);

impl Acceptor {
    /// Makes a certificate, good for as long as the process runs.
    ///
    /// # Errors
    /// [`MakeCertificateError`].
    pub fn new(authority: &AuthorityKey, role: ServerRole) -> Result<Self, MakeCertificateError> {
        let (certificate, key) =
            authority::issue(authority, role).map_err(|error| MakeCertificateError(error.to_string()))?;
        // Both ends are Piecemeal's: no older TLS version is needed.
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("ring has what TLS 1.3 needs")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .map_err(|error| MakeCertificateError(error.to_string()))?;
        config.alpn_protocols = role.alpn();
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Takes a connection as it comes: a TLS handshake is done, anything else is left as it is.
    ///
    /// # Errors
    /// The connection ended, said nothing, or is not what it began as.
    pub async fn take(&self, stream: TcpStream) -> io::Result<SiteStream> {
        match opening(&stream).await? {
            Opening::Plain => Ok(SiteStream::Plain(stream)),
            Opening::Tls => self.shake(stream).await,
        }
    }

    /// The handshake with a client that has begun one.
    ///
    /// # Errors
    /// The client trusts another site, is no client, or takes too long.
    pub async fn shake(&self, stream: TcpStream) -> io::Result<SiteStream> {
        let limit = |session: &mut ServerConnection| session.set_buffer_limit(Some(BUFFER_BYTES));
        // In a box: a connection that only waits for a handshake must not be as large.
        let shaking = Box::pin(self.0.accept_with(stream, limit));
        let stream = timeout(HANDSHAKE_TIMEOUT, shaking).await??;
        Ok(SiteStream::Tls(Box::new(stream)))
    }
}
