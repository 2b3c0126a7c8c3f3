//! Certificate authority of the webhook's server: when the CA is renewed, and what it signs. Pure: clock and storage are the
//! caller's.
//!
//! Every API server trusts a new CA before that CA signs anything, and trusts an old one for as long as the webhook may still
//! present a certificate that it signed: an API server always knows the CA of the certificate that it is shown.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};
use time::OffsetDateTime;
use x509_parser::{parse_x509_certificate, pem::parse_x509_pem};

/// The lifetimes of CAs and certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetimes {
    pub ca: Duration,
    pub leaf: Duration,
    /// The time for which a new CA is published before it signs: API servers learn of it by a watch.
    pub announce: Duration,
}

impl Lifetimes {
    pub(crate) const USUAL: Self = Self {
        ca: Duration::from_secs(365 * 24 * 3600),
        leaf: Duration::from_secs(7 * 24 * 3600),
        announce: Duration::from_secs(60),
    };
}

/// One CA.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ca {
    certificate: String,
    key: String,
    begins: Timestamp,
    ends: Timestamp,
}

/// The CA that signs, the one that will, and those that are still trusted, as the Secret holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authority {
    signing: Ca,
    next: Option<Ca>,
    /// PEM.
    retired: Vec<String>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the Secret of the CA has no {0} that can be read")]
    Content(&'static str),
}

/// The keys of the parts in the Secret's `data`.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const RETIRED: &str = "retired.crt";
const SUBJECT: &str = "piecemeal webhook CA";

impl Authority {
    pub(crate) fn new(now: Timestamp, lifetimes: Lifetimes) -> Result<Self, CertificateError> {
        Ok(Self {
            signing: Ca::new(now, lifetimes)?,
            next: None,
            retired: Vec::new(),
        })
    }

    /// The authority to be stored in its place; none while nothing has to change. `announced`: for how long the next CA has been seen published.
    pub(crate) fn step(
        &self,
        now: Timestamp,
        announced: Duration,
        lifetimes: Lifetimes,
    ) -> Result<Option<Self>, CertificateError> {
        let mut stepped = self.clone();
        match &self.next {
            // The CA has expired: no certificate of it is trusted any more, so that a new one may sign at once.
            _ if self.signing.ends <= now => return Self::new(now, lifetimes).map(Some),
            Some(next) if announced >= lifetimes.announce => {
                stepped.retired.push(self.signing.certificate.clone());
                stepped.signing = next.clone();
                stepped.next = None;
            }
            Some(_) => {}
            None if elapsed(self.signing.begins, now) >= lifetimes.ca * 2 / 3 => {
                stepped.next = Some(Ca::new(now, lifetimes)?)
            }
            None => {}
        }
        stepped
            .retired
            .retain(|certificate| read_ends(certificate).is_some_and(|(_, ends)| ends > now));
        Ok((stepped != *self).then_some(stepped))
    }

    /// A new CA is begun, whatever the age of this one.
    pub(crate) fn renew(&self, now: Timestamp, lifetimes: Lifetimes) -> Result<Self, CertificateError> {
        Ok(Self {
            next: Some(Ca::new(now, lifetimes)?),
            ..self.clone()
        })
    }

    /// Makes the CA of `other` the next one: the Secret now holds it in place of this one.
    pub(crate) fn adopt(&self, other: &Self) -> Self {
        Self {
            next: Some(other.signing.clone()),
            ..self.clone()
        }
    }

    /// The CA that signs: PEM.
    pub(crate) fn signing(&self) -> &str {
        &self.signing.certificate
    }

    /// The CA that will sign: PEM.
    pub(crate) fn next(&self) -> Option<&str> {
        self.next.as_ref().map(|next| next.certificate.as_str())
    }

    /// The certificates that are published to API servers: PEM.
    pub(crate) fn bundle(&self) -> String {
        let next = self.next.iter().map(|next| next.certificate.as_str());
        [self.signing.certificate.as_str()]
            .into_iter()
            .chain(next)
            .chain(self.retired.iter().map(String::as_str))
            .collect()
    }

    pub(crate) fn ends(&self) -> Timestamp {
        self.signing.ends
    }

    /// A certificate for `names`, and its key.
    pub(crate) fn issue(
        &self,
        names: &[String],
        now: Timestamp,
        lifetimes: Lifetimes,
    ) -> Result<Leaf, CertificateError> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = subject("piecemeal webhook");
        let ends = later(now, lifetimes.leaf).min(self.signing.ends);
        params.not_before = moment(earlier(now, CLOCK_SKEW));
        params.not_after = moment(ends);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.signing.issuer()?)?;
        Ok(Leaf {
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            renew_at: later(now, lifetimes.leaf * 2 / 3).min(ends),
            ends,
            signed_by: self.signing.certificate.clone(),
        })
    }

    /// Whether `leaf` was signed by the CA that signs now.
    pub(crate) fn has_signed(&self, leaf: &Leaf) -> bool {
        leaf.signed_by == self.signing.certificate
    }

    /// The `data` of the Secret.
    pub(crate) fn data(&self) -> Value {
        let mut data = json!({
            CERTIFICATE: encode(&self.signing.certificate), KEY: encode(&self.signing.key), RETIRED: encode(&self.retired.concat()),
        });
        if let Some(next) = &self.next {
            data[NEXT_CERTIFICATE] = json!(encode(&next.certificate));
            data[NEXT_KEY] = json!(encode(&next.key));
        }
        data
    }

    pub(crate) fn read(secret: &Value) -> Result<Self, CertificateError> {
        let field = |name: &'static str| decode(&secret["data"][name]).ok_or(CertificateError::Content(name));
        let next = match (field(NEXT_CERTIFICATE), field(NEXT_KEY)) {
            (Ok(certificate), Ok(key)) => Some(Ca::read(certificate, key)?),
            _ => None,
        };
        let retired = field(RETIRED).unwrap_or_default();
        Ok(Self {
            signing: Ca::read(field(CERTIFICATE)?, field(KEY)?)?,
            next,
            retired: retired
                .split_inclusive(PEM_END)
                .map(ToOwned::to_owned)
                .filter(|pem| pem.contains(PEM_END))
                .collect(),
        })
    }
}

impl Ca {
    fn new(now: Timestamp, lifetimes: Lifetimes) -> Result<Self, CertificateError> {
        let key = KeyPair::generate()?;
        let mut params = ca_params();
        params.not_before = moment(earlier(now, CLOCK_SKEW));
        params.not_after = moment(later(now, lifetimes.ca));
        let certificate = params.self_signed(&key)?.pem();
        Self::read(certificate, key.serialize_pem())
    }

    fn read(certificate: String, key: String) -> Result<Self, CertificateError> {
        let (begins, ends) = read_ends(&certificate).ok_or(CertificateError::Content(CERTIFICATE))?;
        // The API server would not trust what the key of another CA signs.
        let pair = KeyPair::from_pem(&key).map_err(|_| CertificateError::Content(KEY))?;
        let is_pair = parse_x509_pem(certificate.as_bytes())
            .ok()
            .and_then(|(_, pem)| pem.parse_x509().ok().map(|parsed| parsed.public_key().raw.to_vec()))
            == Some(rcgen::PublicKeyData::subject_public_key_info(&pair));
        if !is_pair {
            return Err(CertificateError::Content(KEY));
        }
        let begins = later(begins, CLOCK_SKEW);
        Ok(Self {
            certificate,
            key,
            begins,
            ends,
        })
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, CertificateError> {
        let key = KeyPair::from_pem(&self.key).map_err(|_| CertificateError::Content(KEY))?;
        Ok(Issuer::new(ca_params(), key))
    }
}

/// A server's certificate, in memory only.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub certificate: CertificateDer<'static>,
    pub key: PrivateKeyDer<'static>,
    pub renew_at: Timestamp,
    pub ends: Timestamp,
    signed_by: String,
}

/// When the first certificate of a PEM begins and ends.
pub(crate) fn read_ends(pem: &str) -> Option<(Timestamp, Timestamp)> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = parse_x509_certificate(&der).ok()?;
    let validity = certificate.validity();
    let at = |time: i64| Timestamp::from_second(time).ok();
    Some((
        at(validity.not_before.timestamp())?,
        at(validity.not_after.timestamp())?,
    ))
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(SUBJECT);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

fn encode(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

fn decode(value: &Value) -> Option<String> {
    String::from_utf8(BASE64_STANDARD.decode(value.as_str()?).ok()?).ok()
}

fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

fn earlier(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_sub(by).unwrap_or(Timestamp::MIN)
}

/// None counts where `since` is still to come.
fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

fn moment(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

const PEM_END: &str = "-----END CERTIFICATE-----\n";
/// Clocks of nodes and control plane differ.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        RootCertStore, client::WebPkiServerVerifier, client::danger::ServerCertVerifier, pki_types::UnixTime,
    };

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const LIFETIMES: Lifetimes = Lifetimes {
        ca: Duration::from_secs(30 * 24 * 3600),
        leaf: Duration::from_secs(3 * 24 * 3600),
        announce: Duration::from_secs(60),
    };

    fn start() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn name() -> Vec<String> {
        vec!["webhook.piecemeal.svc".to_owned()]
    }

    /// Whether an API server that has `bundle` believes `leaf` at `now`.
    fn is_trusted(leaf: &Leaf, bundle: &str, now: Timestamp) -> bool {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .unwrap();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().try_into().unwrap()));
        verifier
            .verify_server_cert(&leaf.certificate, &[], &name()[0].as_str().try_into().unwrap(), &[], at)
            .is_ok()
    }

    #[test]
    fn a_leaf_is_trusted_by_every_holder_of_the_bundle_for_its_own_lifetime() {
        let authority = Authority::new(start(), LIFETIMES).unwrap();
        let leaf = authority.issue(&name(), start(), LIFETIMES).unwrap();
        assert!(is_trusted(&leaf, &authority.bundle(), later(start(), DAY)));
        assert!(!is_trusted(&leaf, &authority.bundle(), later(start(), 4 * DAY)));
        let stranger = Authority::new(start(), LIFETIMES).unwrap();
        assert!(!is_trusted(&leaf, &stranger.bundle(), start()));
    }

    #[test]
    fn in_a_year_of_rotations_every_leaf_is_trusted_by_every_bundle_that_an_api_server_may_have() {
        let mut authority = Authority::new(start(), LIFETIMES).unwrap();
        let mut now = start();
        // An API server may be half a minute late, and so may a replica that still shows its earlier certificate.
        let mut late = authority.bundle();
        let mut leaf = authority.issue(&name(), now, LIFETIMES).unwrap();
        let mut rotations = 0;
        let mut next_since = now;
        for _ in 0..2000 {
            let announced = elapsed(next_since, now);
            let due = authority.step(now, announced, LIFETIMES).unwrap();
            now = later(
                now,
                if due.is_some() {
                    Duration::from_secs(30)
                } else {
                    DAY / 5
                },
            );
            if let Some(stepped) = due {
                next_since = now;
                late = authority.bundle();
                authority = stepped;
                rotations += 1;
                assert!(
                    is_trusted(&leaf, &authority.bundle(), now),
                    "an old leaf with a new bundle"
                );
            }
            if now >= leaf.renew_at || !authority.has_signed(&leaf) {
                leaf = authority.issue(&name(), now, LIFETIMES).unwrap();
            }
            assert!(is_trusted(&leaf, &late, now), "a new leaf with an old bundle");
            assert!(is_trusted(&leaf, &authority.bundle(), now));
            late = authority.bundle();
            assert!(authority.retired.len() <= 2);
        }
        assert!(rotations > 20, "{rotations}");
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let authority = Authority::new(start(), LIFETIMES)
            .unwrap()
            .renew(later(start(), DAY), LIFETIMES)
            .unwrap();
        let promoted = authority
            .step(later(start(), 2 * DAY), DAY, LIFETIMES)
            .unwrap()
            .unwrap();
        for authority in [authority, promoted] {
            assert_eq!(Authority::read(&json!({"data": authority.data()})).unwrap(), authority);
        }
    }

    #[test]
    fn a_lost_or_foreign_content_is_no_authority() {
        let (one, other) = (
            Authority::new(start(), LIFETIMES).unwrap(),
            Authority::new(start(), LIFETIMES).unwrap(),
        );
        let mut mixed = one.data();
        mixed[KEY] = other.data()[KEY].clone();
        for data in [json!({}), json!({CERTIFICATE: "x", KEY: "y"}), mixed] {
            assert!(Authority::read(&json!({ "data": data })).is_err());
        }
    }

    #[test]
    fn an_authority_that_has_ended_is_replaced_at_once() {
        let authority = Authority::new(start(), LIFETIMES).unwrap();
        let now = later(start(), 40 * DAY);
        let stepped = authority.step(now, Duration::ZERO, LIFETIMES).unwrap().unwrap();
        assert!(is_trusted(
            &stepped.issue(&name(), now, LIFETIMES).unwrap(),
            &stepped.bundle(),
            now
        ));
    }

    #[test]
    fn a_ca_that_was_never_published_never_signs() {
        let authority = Authority::new(start(), LIFETIMES)
            .unwrap()
            .renew(start(), LIFETIMES)
            .unwrap();
        assert_eq!(
            authority
                .step(later(start(), 10 * DAY), Duration::ZERO, LIFETIMES)
                .unwrap(),
            None
        );
    }

    #[test]
    fn an_adopted_ca_is_published_before_it_signs() {
        let (known, foreign) = (
            Authority::new(start(), LIFETIMES).unwrap(),
            Authority::new(start(), LIFETIMES).unwrap(),
        );
        let adopted = known.adopt(&foreign);
        assert_eq!(adopted.signing(), known.signing());
        assert!(adopted.bundle().contains(foreign.signing()));
        let promoted = adopted.step(start(), LIFETIMES.announce, LIFETIMES).unwrap().unwrap();
        assert_eq!(promoted.signing(), foreign.signing());
        assert!(promoted.bundle().contains(known.signing()));
    }

    #[test]
    fn a_certificate_may_be_for_an_address() {
        let authority = Authority::new(start(), LIFETIMES).unwrap();
        assert!(authority.issue(&["127.0.0.1".to_owned()], start(), LIFETIMES).is_ok());
    }
}
