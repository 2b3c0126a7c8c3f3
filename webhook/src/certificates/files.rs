//! Certificate files that cert-manager or an administrator renews. They are read again when they change.

use std::{fs, io, path::Path};

use k8s_openapi::jiff::Timestamp;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::authority::read_ends;

/// The content of a mounted Secret of type `kubernetes.io/tls`.
#[derive(Debug)]
pub(crate) struct Files {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub ends: Option<Timestamp>,
    /// To see a change by.
    pub content: (Vec<u8>, Vec<u8>),
}

impl Files {
    /// # Errors
    /// Names the file that is not as it should be.
    pub(crate) fn read(dir: &Path) -> io::Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read(&path)
                .map_err(|error| io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())))
        };
        let wrong = |name: &str, error: &dyn std::fmt::Display| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} in {} is not PEM of the right kind: {error}", name, dir.display()),
            )
        };
        let (certificates, key) = (read("tls.crt")?, read("tls.key")?);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificates)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong("tls.crt", &error))?;
        Ok(Self {
            chain,
            key: PrivateKeyDer::from_pem_slice(&key).map_err(|error| wrong("tls.key", &error))?,
            ends: std::str::from_utf8(&certificates)
                .ok()
                .and_then(read_ends)
                .map(|(_, ends)| ends),
            content: (certificates, key),
        })
    }
}
