//! `authority.key` as a certificate authority: what it signs, and how its public half is trusted.
//!
//! It signs grants and tickets with the same key. Neither can be taken for the other: those begin with a version byte, 1,
//! and a certificate's body with the tag of a DER sequence, 0x30.

use piecemeal_proto::{AuthorityKey, AuthorityPublic};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, PKCS_ED25519,
    PublicKeyData, SignatureAlgorithm, SigningKey, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, Der, PrivateKeyDer, TrustAnchor};

use crate::ServerRole;

/// The name of every site's authority: a site is told from another by its key.
const AUTHORITY_NAME: &str = "piecemeal site";
/// The DER of that name, up to its text: a set of one sequence of the object identifier of a common name (2.5.4.3) and a
/// UTF-8 string of 14 bytes. Without the sequence around it, as trust anchors have it.
const NAME_DER: [u8; 11] = [0x31, 23, 0x30, 21, 0x06, 3, 0x55, 0x04, 0x03, 0x0c, 14];
/// The DER of an Ed25519 public key, up to its 32 bytes: the algorithm (1.3.101.112) and a bit string. Again without the
/// sequence around it. Source: RFC 8410, section 4.
const KEY_DER: [u8; 10] = [0x30, 5, 0x06, 3, 0x2b, 0x65, 0x70, 0x03, 33, 0];

/// A new certificate for a server of the site, and its private key.
///
/// It is valid from 1970 to 9999: edge boards boot in 1970 and get the time later or never, so that a clock can neither make
/// a certificate old nor keep a node out. It ends with the process that it is made for, and its key is never written down.
pub(crate) fn issue(
    authority: &AuthorityKey,
    role: ServerRole,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([role.name().to_owned()])?;
    params.distinguished_name = common_name(role.name());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(9999, 12, 31);

    let mut issuer = CertificateParams::default();
    issuer.distinguished_name = common_name(AUTHORITY_NAME);
    let signer = Signer {
        key: authority,
        public: authority.public(),
    };
    let certificate = params.signed_by(&key, &Issuer::new(issuer, signer))?;
    Ok((certificate.der().clone(), key.into()))
}

/// The authority as the issuer of certificates that are trusted.
pub(crate) fn trust_anchor(authority: AuthorityPublic) -> TrustAnchor<'static> {
    TrustAnchor {
        subject: Der::from([&NAME_DER, AUTHORITY_NAME.as_bytes()].concat()),
        subject_public_key_info: Der::from([&KEY_DER[..], authority.as_bytes()].concat()),
        name_constraints: None,
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

struct Signer<'a> {
    key: &'a AuthorityKey,
    public: AuthorityPublic,
}

impl PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.key.sign(message).to_vec())
    }
}
