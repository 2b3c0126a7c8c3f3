//! Trust in an upstream's TLS certificate: the machine's authorities, and those that the administrator names for this upstream.
//!
//! Invariant: a server's certificate is accepted by a chain to an authority, or because it is itself one that the administrator named,
//! byte for byte. In both cases its names, dates and purpose are checked, and the server proves that it has the key.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
};
use rustls_platform_verifier::Verifier;
use x509_parser::parse_x509_certificate;

/// A certificate to show to an upstream, and its key.
pub(crate) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// # Errors
    /// What is wrong with the file's content, without any of it.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let chain = certificates(pem)?;
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| "it has no private key in PEM".to_owned())?;
        Ok(Self { chain, key })
    }
}

/// The certificates of a PEM file, at least one.
///
/// # Errors
/// What is wrong with the file's content.
pub(crate) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(certificates) if certificates.is_empty() => Err("it has no certificate in PEM".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(error.to_string()),
    }
}

/// TLS with an upstream. `authorities`: besides the machine's.
///
/// # Errors
/// As rustls': the machine has no authorities, or the identity's key does not fit its certificate.
pub(crate) fn client_config(
    authorities: Vec<CertificateDer<'static>>,
    identity: Option<Identity>,
) -> Result<ClientConfig, Error> {
    let provider = CryptoProvider::get_default().map_or_else(|| Arc::new(ring::default_provider()), Arc::clone);
    let chains: Arc<dyn ServerCertVerifier> = match authorities.is_empty() {
        true => Arc::new(Verifier::new(Arc::clone(&provider))?),
        false => Arc::new(NamedOrChained {
            chains: Arc::new(Verifier::new_with_extra_roots(
                authorities.iter().cloned(),
                Arc::clone(&provider),
            )?),
            named: authorities,
        }),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(chains);
    let mut config = match identity {
        Some(Identity { chain, key }) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Accepts what chains to an authority, and a named certificate of an authority that a server presents as its own.
///
/// Administrators make such certificates by `openssl req -x509`, as Docker's guide to registries does. OpenSSL and Go accept them; WebPKI
/// does not, since a server's certificate is not to be an authority's.
#[derive(Debug)]
struct NamedOrChained {
    chains: Arc<dyn ServerCertVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for NamedOrChained {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chained = self
            .chains
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match chained {
            // WebPKI's own error, which rustls passes on under no name of its own.
            Err(Error::InvalidCertificate(CertificateError::Other(_)))
                if self.named.iter().any(|named| named == end_entity) && is_authority_for_servers(end_entity, now) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            chained => chained,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Whether the certificate is an authority's, is valid at `now`, and may be a server's: it states no purpose, or that one.
fn is_authority_for_servers(certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
    let Ok((_, certificate)) = parse_x509_certificate(certificate) else {
        return false;
    };
    let Ok(now) = i64::try_from(now.as_secs()) else {
        return false;
    };
    let validity = certificate.validity();
    let is_valid = validity.not_before.timestamp() <= now && now <= validity.not_after.timestamp();
    let is_for_servers = match certificate.extended_key_usage() {
        Ok(Some(usage)) => usage.value.server_auth || usage.value.any,
        Ok(None) => true,
        Err(_) => false,
    };
    certificate.is_ca() && is_valid && is_for_servers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
    };

    use super::*;

    type Change = fn(&mut CertificateParams);

    const NAME: &str = "registry.corp.test";
    /// In 2030.
    const NOW: u64 = 1_900_000_000;

    /// As `openssl req -x509` makes it.
    fn params() -> CertificateParams {
        let mut params = CertificateParams::new([NAME.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2040, 1, 1);
        params
    }

    fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let mut params = params();
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap()
    }

    fn verify(named: &Certificate, shown: &Certificate, host: &'static str) -> Result<(), Error> {
        let provider = Arc::new(ring::default_provider());
        let named = vec![named.der().clone()];
        let chains = Arc::new(Verifier::new_with_extra_roots(named.clone(), provider).unwrap());
        let verifier = NamedOrChained { chains, named };
        let (host, now) = (
            ServerName::try_from(host).unwrap(),
            UnixTime::since_unix_epoch(Duration::from_secs(NOW)),
        );
        verifier.verify_server_cert(shown.der(), &[], &host, &[], now).map(drop)
    }

    #[test]
    fn a_certificate_that_the_administrator_named_is_accepted_although_it_is_an_authoritys() {
        let authority = self_signed(|_| {});
        verify(&authority, &authority, NAME).unwrap();
        let for_servers = self_signed(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        verify(&for_servers, &for_servers, NAME).unwrap();
        let plain = self_signed(|params| params.is_ca = IsCa::ExplicitNoCa);
        verify(&plain, &plain, NAME).unwrap();
    }

    #[test]
    fn its_names_dates_and_purpose_are_checked() {
        let good = self_signed(|_| {});
        assert!(verify(&good, &good, "other.corp.test").is_err(), "another name");
        let cases: [(&str, Change); 4] = [
            ("expired", |params| params.not_after = date_time_ymd(2027, 1, 1)),
            ("to come", |params| params.not_before = date_time_ymd(2035, 1, 1)),
            ("for clients", |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
            ("of no name", |params| params.subject_alt_names = Vec::new()),
        ];
        for (what, change) in cases {
            let bad = self_signed(change);
            assert!(verify(&bad, &bad, NAME).is_err(), "{what}");
        }
    }

    #[test]
    fn no_other_certificate_of_an_authority_is_accepted() {
        let key = KeyPair::generate().unwrap();
        let named = params().self_signed(&key).unwrap();
        let again = params().self_signed(&key).unwrap();
        let renewed = {
            let mut params = params();
            params.not_after = date_time_ymd(2041, 1, 1);
            params.self_signed(&key).unwrap()
        };
        // Of one key and one name, but not byte for byte.
        assert!(named.der() == again.der() || verify(&named, &again, NAME).is_err());
        assert!(verify(&named, &renewed, NAME).is_err());
        let issuer = Issuer::new(params(), key);
        let below = params().signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        assert!(verify(&named, &below, NAME).is_err(), "an authority below it");
        let mut leaf = params();
        leaf.is_ca = IsCa::NoCa;
        let leaf = leaf.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        verify(&named, &leaf, NAME).unwrap();
    }

    #[test]
    fn a_file_without_a_certificate_or_a_key_is_named_by_what_it_lacks() {
        let key = KeyPair::generate().unwrap();
        let pem = params().self_signed(&key).unwrap().pem();
        assert_eq!(certificates(pem.as_bytes()).unwrap().len(), 1);
        assert!(
            certificates(key.serialize_pem().as_bytes())
                .unwrap_err()
                .contains("no certificate")
        );
        assert!(
            Identity::from_pem(pem.as_bytes())
                .err()
                .unwrap()
                .contains("no private key")
        );
        assert!(Identity::from_pem(format!("{pem}{}", key.serialize_pem()).as_bytes()).is_ok());
    }
}
