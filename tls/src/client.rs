//! TLS client: verifies that the server belongs to this site and has the expected role.

use std::{error::Error, io, sync::Arc};

use piecemeal_proto::AuthorityPublic;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, InvalidMessage, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{ServerRole, authority};

/// A connection to a server of the site.
pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Why a server is not trusted. The text reaches logs: it says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefuseServerError {
    #[error(
        "the {0}'s certificate is not of this site (does the URL lead to it, and do both daemons have keys of one `piecemeal keygen`?)"
    )]
    OtherSite(ServerRole),
    #[error("the server is not the {0} (were the URLs of mirror and scheduler swapped?)")]
    OtherRole(ServerRole),
    #[error("the {0} answers without TLS (does it have its authority.key, and is it of a version that speaks TLS?)")]
    NoTls(ServerRole),
}

/// Trusts only servers of the site in that role, under any host name.
pub fn client_config(authority: AuthorityPublic, role: ServerRole) -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let roots = RootCertStore {
        roots: vec![authority::trust_anchor(authority)],
    };
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .expect("one root is enough");
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("ring has what TLS 1.3 needs")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(RoleVerifier { chain, role }))
        .with_no_client_auth();
    config.alpn_protocols = role.alpn();
    config
}

/// Makes connections to a server of the site. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    tls: TlsConnector,
    role: ServerRole,
}

impl Connector {
    pub fn new(authority: AuthorityPublic, role: ServerRole) -> Self {
        let tls = TlsConnector::from(Arc::new(client_config(authority, role)));
        Self { tls, role }
    }

    /// Connects to the first address of `host` that takes the connection. It has no time limit.
    ///
    /// # Errors
    /// No server answers there, or the server that answers is not trusted: [`refusal`] tells.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<ClientStream> {
        let stream = TcpStream::connect((host, port)).await?;
        // Small messages must not wait for more to send.
        stream.set_nodelay(true)?;
        self.shake(stream).await
    }

    async fn shake(&self, stream: TcpStream) -> io::Result<ClientStream> {
        self.tls.connect(self.role.server_name(), stream).await
    }
}

/// The reason why the server was not trusted, when that is the cause of `error`.
pub fn refusal(error: &(dyn Error + 'static), role: ServerRole) -> Option<RefuseServerError> {
    std::iter::successors(Some(error), |&error| cause(error))
        .filter_map(|cause| cause.downcast_ref::<rustls::Error>())
        .find_map(|error| match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(error))) => {
                error.downcast_ref::<RefuseServerError>().copied()
            }
            // ALPN shows a server of the other role before any certificate is sent.
            rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                Some(RefuseServerError::OtherRole(role))
            }
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Some(RefuseServerError::NoTls(role)),
            _ => None,
        })
}

fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>() {
        // Its source is that of the error in it, not that error.
        Some(error) => error.get_ref().map(|inner| inner as _),
        None => error.source(),
    }
}

/// Verifies the role's name in a certificate, instead of the host name in the URL.
#[derive(Debug)]
struct RoleVerifier {
    chain: Arc<WebPkiServerVerifier>,
    role: ServerRole,
}

impl ServerCertVerifier for RoleVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _found_by: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let name = self.role.server_name();
        let verified = self
            .chain
            .verify_server_cert(certificate, intermediates, &name, ocsp_response, now);
        verified.map_err(|error| {
            let refused = match error {
                rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                ) => RefuseServerError::OtherRole(self.role),
                _ => RefuseServerError::OtherSite(self.role),
            };
            CertificateError::Other(OtherError(Arc::new(refused))).into()
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use piecemeal_proto::AuthorityKey;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{Acceptor, SiteStream};

    const MIRROR: ServerRole = ServerRole::Mirror;

    fn site(seed: u8) -> AuthorityKey {
        AuthorityKey::from_seed([seed; 32])
    }

    /// Two ends of a TCP connection over loopback: a client's and a server's.
    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    /// Connects a node of the site `node` to the server of site 1 in that role; returns both sides' results.
    async fn meet(node: u8, wanted: ServerRole, is: ServerRole) -> (io::Result<Vec<u8>>, io::Result<SiteStream>) {
        let (client, server) = connected().await;
        let acceptor = Acceptor::new(&site(1), is).unwrap();
        let connector = Connector::new(site(node).public(), wanted);
        let serve = async {
            let mut stream = acceptor.take(server).await?;
            stream.write_all(b"hello").await?;
            stream.shutdown().await?;
            Ok(stream)
        };
        let ask = async {
            let mut stream = connector.shake(client).await?;
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await?;
            Ok(heard)
        };
        tokio::join!(ask, serve)
    }

    #[tokio::test]
    async fn a_node_of_the_site_talks_to_its_servers() {
        for role in [ServerRole::Mirror, ServerRole::Scheduler] {
            let (heard, served) = meet(1, role, role).await;
            assert_eq!(heard.unwrap(), b"hello");
            assert!(matches!(served.unwrap(), SiteStream::Tls(_)));
        }
    }

    #[tokio::test]
    async fn a_node_of_another_site_refuses_the_server_and_is_told_so() {
        let (heard, served) = meet(2, MIRROR, MIRROR).await;
        let error = heard.unwrap_err();
        assert_eq!(refusal(&error, MIRROR), Some(RefuseServerError::OtherSite(MIRROR)));
        assert!(
            served.is_err(),
            "the server goes on with a client that does not trust it"
        );
    }

    #[tokio::test]
    async fn a_scheduler_is_not_taken_for_the_mirror() {
        let (heard, _) = meet(1, MIRROR, ServerRole::Scheduler).await;
        assert_eq!(
            refusal(&heard.unwrap_err(), MIRROR),
            Some(RefuseServerError::OtherRole(MIRROR))
        );
    }

    #[tokio::test]
    async fn what_is_not_tls_is_left_as_it_is() {
        let (mut client, server) = connected().await;
        client.write_all(b"GET / HTTP/1.1").await.unwrap();
        let acceptor = Acceptor::new(&site(1), MIRROR).unwrap();
        let mut stream = acceptor.take(server).await.unwrap();
        assert!(matches!(stream, SiteStream::Plain(_)));
        let mut heard = [0; 14];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"GET / HTTP/1.1");
    }

    #[tokio::test]
    async fn a_port_that_speaks_plain_http_is_named_as_such() {
        let (client, mut server) = connected().await;
        server.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let error = Connector::new(site(1).public(), MIRROR)
            .shake(client)
            .await
            .unwrap_err();
        assert_eq!(refusal(&error, MIRROR), Some(RefuseServerError::NoTls(MIRROR)));
    }

    #[tokio::test]
    async fn an_error_of_another_kind_is_no_refusal() {
        let (client, server) = connected().await;
        drop(server);
        let error = Connector::new(site(1).public(), MIRROR)
            .shake(client)
            .await
            .unwrap_err();
        assert_eq!(refusal(&error, MIRROR), None);
    }

    /// Boards boot in 1970, and some clocks are far ahead.
    #[test]
    fn no_clock_makes_a_certificate_invalid() {
        let verifier = |seed| {
            let roots = RootCertStore {
                roots: vec![authority::trust_anchor(site(seed).public())],
            };
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()))
                .build()
                .unwrap()
        };
        let (certificate, _) = authority::issue(&site(1), MIRROR).unwrap();
        let verify = |seed, seconds, name: &str| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let name = ServerName::try_from(name).unwrap();
            verifier(seed).verify_server_cert(&certificate, &[], &name, &[], now)
        };
        const YEAR: u64 = 365 * 24 * 3600;
        for seconds in [0, 1, 30 * YEAR, 130 * YEAR, 8000 * YEAR] {
            assert!(verify(1, seconds, MIRROR.name()).is_ok(), "{seconds} s after 1970");
        }
        assert!(verify(2, YEAR, MIRROR.name()).is_err());
        assert!(verify(1, YEAR, ServerRole::Scheduler.name()).is_err());
        assert!(verify(1, YEAR, "mirror.example.com").is_err());
    }
}
