//! A small CA for development and tests: no revocation, no rotation, its key in a plain file.
//!
//! It issues exactly what the verifier of this crate, SPIRE and OpenSSL accept as an X509-SVID. It neither reads nor
//! writes files. Production identities come from SPIRE or another issuer.

use std::fmt;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::leaf::{Extensions, unix_seconds};
use super::material::{PemFile, read_chain};
use super::{SpiffeId, TrustDomain};

/// How far back a new certificate is dated, so that a peer whose clock is a little slow accepts it at once.
const BACKDATE: Duration = Duration::from_secs(60);

/// A development CA of one trust domain.
pub struct Ca {
    trust_domain: TrustDomain,
    not_after: i64,
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A new SVID. The key is the only copy.
pub struct IssuedSvid {
    /// The leaf certificate, PEM.
    pub cert_pem: String,
    /// Its private key, PKCS#8 PEM.
    pub key_pem: String,
}

/// Why the CA cannot be made or cannot issue.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The certificate is not one this CA can work with.
    #[error("the CA certificate cannot be used: {0}")]
    Certificate(&'static str),
    /// The key cannot be read or is of an unknown kind.
    #[error("the CA key cannot be used: {0}")]
    Key(#[source] rcgen::Error),
    /// The key is not the certificate's.
    #[error(
        "the CA key does not belong to the CA certificate: make both again with phiward identity ca --force"
    )]
    KeyMismatch,
    /// The ID is of another trust domain.
    #[error("{id} is not in the trust domain {trust_domain} of this CA")]
    WrongTrustDomain {
        /// The ID asked for.
        id: SpiffeId,
        /// The CA's trust domain.
        trust_domain: TrustDomain,
    },
    /// The CA certificate is past its validity.
    #[error("the CA expired at {}: make a new one with phiward identity ca --force", super::error::utc(*.not_after))]
    Expired {
        /// End of the CA's validity, Unix seconds.
        not_after: i64,
    },
    /// A validity that no certificate can state.
    #[error("the validity must be between one second and 100 years")]
    Validity,
    /// Key generation or signing failed.
    #[error("cannot make the certificate: {0}")]
    Generate(#[source] rcgen::Error),
}

impl Ca {
    /// Makes a CA, ECDSA P-256, that is valid from a minute before `now` for `validity` after it.
    ///
    /// # Errors
    /// [`CaError::Validity`] or [`CaError::Generate`].
    pub fn new(trust_domain: &TrustDomain, validity: Duration, now: UnixTime) -> Result<Self, CaError> {
        let key = KeyPair::generate().map_err(CaError::Generate)?;
        let (mut params, not_after) = params("phiward development CA", validity, now, i64::MAX)?;
        // X509-SVID section 3.1: a CA carries its trust domain as a SPIFFE ID without a path.
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert_pem = params.self_signed(&key).map_err(CaError::Generate)?.pem();
        Ok(Self { trust_domain: trust_domain.clone(), not_after, cert_pem, issuer: Issuer::new(params, key) })
    }

    /// Takes up a CA that [`Ca::new`] made.
    ///
    /// # Errors
    /// When the texts are not a CA certificate with a trust domain and the key that belongs to it.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let chain = read_chain(PemFile { name: "ca.pem", text: cert_pem.as_bytes() })
            .map_err(|_| CaError::Certificate("it is not a PEM certificate"))?;
        let [der] = chain.as_slice() else {
            return Err(CaError::Certificate("the file must hold exactly one certificate"));
        };
        let (_, cert) = X509Certificate::from_der(der)
            .map_err(|_| CaError::Certificate("it is not well-formed X.509"))?;
        let extensions = Extensions::read(&cert)
            .map_err(|_| CaError::Certificate("its extensions are not well-formed"))?;
        if !extensions.ca {
            return Err(CaError::Certificate("it is not a CA certificate"));
        }
        let trust_domain = ca_trust_domain(&extensions).ok_or(CaError::Certificate(
            "it has no URI SAN spiffe://TRUST_DOMAIN: make it with phiward identity ca",
        ))?;
        let key = KeyPair::from_pem(key_pem).map_err(CaError::Key)?;
        if key.subject_public_key_info() != cert.public_key().raw {
            return Err(CaError::KeyMismatch);
        }
        let not_after = cert.validity().not_after.timestamp();
        let issuer = Issuer::from_ca_cert_der(der, key).map_err(CaError::Generate)?;
        Ok(Self { trust_domain, not_after, cert_pem: cert_pem.to_owned(), issuer })
    }

    /// Issues an SVID for `id` with a new P-256 key, valid from a minute before `now` for `validity` after it, and never
    /// longer than the CA.
    ///
    /// # Errors
    /// When `id` is not in the CA's trust domain, the CA has expired, or `validity` is out of range.
    pub fn issue(&self, id: &SpiffeId, validity: Duration, now: UnixTime) -> Result<IssuedSvid, CaError> {
        if id.trust_domain() != self.trust_domain.as_str() {
            return Err(CaError::WrongTrustDomain {
                id: id.clone(),
                trust_domain: self.trust_domain.clone(),
            });
        }
        if unix_seconds(now) >= self.not_after {
            return Err(CaError::Expired { not_after: self.not_after });
        }
        let key = KeyPair::generate().map_err(CaError::Generate)?;
        let (mut params, _) = params("phiward development SVID", validity, now, self.not_after)?;
        params.subject_alt_names = vec![uri(id.as_str())?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let cert = params.signed_by(&key, &self.issuer).map_err(CaError::Generate)?;
        Ok(IssuedSvid { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// The trust domain it issues for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// End of the CA certificate's validity, Unix seconds.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// The CA certificate, PEM: the bundle of its trust domain.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The CA's private key, PKCS#8 PEM.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl fmt::Debug for IssuedSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedSvid").finish_non_exhaustive()
    }
}

/// What CA and leaf have in common, and the end of the validity in Unix seconds.
fn params(
    name: &str,
    validity: Duration,
    now: UnixTime,
    not_after_limit: i64,
) -> Result<(CertificateParams, i64), CaError> {
    const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);
    const YEAR_5000: u64 = 95_617_584_000; // far inside what X.509 and the calendar can say, so no sum below overflows
    let now = now.as_secs();
    if validity.as_secs() == 0 || validity > LONGEST || now > YEAR_5000 {
        return Err(CaError::Validity);
    }
    let not_after = (now + validity.as_secs()).min(not_after_limit.max(0).unsigned_abs());
    let at = |seconds: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    let mut params = CertificateParams::default();
    params.not_before = at(now.saturating_sub(BACKDATE.as_secs()));
    params.not_after = at(not_after);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    Ok((params, not_after as i64)) // fits: not_after is below the year 5100
}

fn uri(text: &str) -> Result<SanType, CaError> {
    Ok(SanType::URI(text.try_into().map_err(CaError::Generate)?))
}

fn ca_trust_domain(extensions: &Extensions<'_>) -> Option<TrustDomain> {
    let mut names = extensions.names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
        _ => None,
    });
    let name = names.next().filter(|_| names.next().is_none());
    name.and_then(|name| TrustDomain::parse(name).ok())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{NOW, RECORDS, WEB, at, domain, id, now, pem};
    use super::super::{PemSet, SvidError, material_from_pem};
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn ca() -> Ca {
        Ca::new(&domain("hospital.local"), 30 * DAY, now()).unwrap()
    }

    fn load(
        ca: &Ca,
        svid: &IssuedSvid,
        now: UnixTime,
    ) -> Result<crate::identity::Material, crate::identity::IdentityError> {
        let set = PemSet {
            certificate: pem("svid.pem", &svid.cert_pem),
            private_key: pem("svid.key", &svid.key_pem),
            bundle: pem("bundle.pem", ca.cert_pem()).into(),
            federation: vec![],
        };
        material_from_pem(&set, ca.trust_domain(), now)
    }

    /// If this fails, the development mesh has no identities.
    #[test]
    fn an_issued_svid_is_accepted_by_our_own_verifier() {
        let ca = ca();
        let svid = ca.issue(&id(WEB), DAY, now()).unwrap();
        let material = load(&ca, &svid, now()).unwrap();
        assert_eq!(material.svid.id().as_str(), WEB);
        assert_eq!(material.svid.not_before(), NOW as i64 - 60, "a slow clock accepts it too");
        assert_eq!(material.svid.not_after(), NOW as i64 + 86_400);
        let late = load(&ca, &svid, at(NOW + 86_401)).unwrap_err();
        assert_eq!(late.code(), SvidError::Expired { not_after: 0 }.code());
    }

    /// If this fails, `identity issue` cannot use what `identity ca` wrote.
    #[test]
    fn a_ca_read_back_issues_for_the_same_bundle() {
        let first = ca();
        let again = Ca::from_pem(first.cert_pem(), &first.key_pem()).unwrap();
        assert_eq!(again.trust_domain(), first.trust_domain());
        assert_eq!(again.not_after(), first.not_after());
        let svid = again.issue(&id(RECORDS), DAY, now()).unwrap();
        assert!(load(&first, &svid, now()).is_ok());
    }

    /// If this fails, the CA makes certificates that no verifier accepts, and nobody is told why.
    #[test]
    fn what_no_peer_would_accept_is_not_issued() {
        let ca = ca();
        let foreign = ca.issue(&id("spiffe://partner.example/gateway"), DAY, now());
        assert!(matches!(foreign, Err(CaError::WrongTrustDomain { .. })));
        assert!(matches!(ca.issue(&id(WEB), Duration::ZERO, now()), Err(CaError::Validity)));
        assert!(matches!(ca.issue(&id(WEB), Duration::MAX, now()), Err(CaError::Validity)));
        assert!(matches!(ca.issue(&id(WEB), DAY, at(NOW + 31 * 86_400)), Err(CaError::Expired { .. })));
        let capped = ca.issue(&id(WEB), 90 * DAY, now()).unwrap();
        assert_eq!(load(&ca, &capped, now()).unwrap().svid.not_after(), ca.not_after());
    }

    /// If this fails, a CA directory with files of two CAs issues SVIDs that nobody accepts.
    #[test]
    fn a_ca_that_does_not_fit_together_is_refused() {
        let (first, second) = (ca(), ca());
        assert!(matches!(Ca::from_pem(first.cert_pem(), &second.key_pem()), Err(CaError::KeyMismatch)));
        assert!(matches!(Ca::from_pem(first.cert_pem(), "x"), Err(CaError::Key(_))));
        assert!(matches!(Ca::from_pem("x", &first.key_pem()), Err(CaError::Certificate(_))));
        let svid = first.issue(&id(WEB), DAY, now()).unwrap();
        assert!(matches!(Ca::from_pem(&svid.cert_pem, &svid.key_pem), Err(CaError::Certificate(_))));
        let openssl = include_str!("../../tests/fixtures/openssl/ca.pem");
        assert!(matches!(Ca::from_pem(openssl, &first.key_pem()), Err(CaError::Certificate(_))));
    }

    /// If this fails, a CA's or a workload's key can reach a log.
    #[test]
    fn debug_shows_no_key() {
        let ca = ca();
        let shown = format!("{ca:?} {:?}", ca.issue(&id(WEB), DAY, now()).unwrap());
        assert!(!shown.contains("BEGIN") && !shown.contains("key"), "{shown}");
    }
}
