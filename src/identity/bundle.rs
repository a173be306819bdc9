//! Bundles: which CAs vouch for which trust domain, and whether a chain leads to them.
//!
//! One bundle a trust domain, never merged: a partner's CA that issues an ID of our trust domain proves nothing
//! (SPIFFE Federation standard, section 3). It knows neither files nor handshakes.

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::leaf::{Extensions, unix_seconds};
use super::{AnchorError, Leaf, SvidError, TrustDomain, Usage};

/// The most intermediate certificates that a peer may send. Real hierarchies have one to three; each one more is
/// signature work that a peer makes us do before it has proved anything.
pub const MAX_INTERMEDIATES: usize = 6;

/// The bundles of all trust domains that this workload accepts: its own and its partners'.
#[derive(Debug, Clone, Default)]
pub struct Bundles(Vec<(TrustDomain, Bundle)>);

/// The CA certificates of one trust domain.
#[derive(Debug, Clone, Default)]
pub struct Bundle {
    anchors: Vec<TrustAnchor<'static>>,
    limits: Vec<AnchorLimits>, // one for each anchor, same order
}

/// What a CA certificate says of itself and a bare trust anchor (name and key, RFC 5280 section 6.1.1) leaves out.
/// Operators expect an expired CA and a path length to count, as they do in Go and OpenSSL.
#[derive(Debug, Clone, Copy)]
struct AnchorLimits {
    not_before: i64,
    not_after: i64,
    path_len: Option<u32>,
}

impl Bundles {
    /// The bundle of `trust_domain`.
    pub fn get(&self, trust_domain: &str) -> Option<&Bundle> {
        self.0.iter().find(|(name, _)| name.as_str() == trust_domain).map(|(_, bundle)| bundle)
    }

    /// The trust domains, own first when loaded by [`super::load`].
    pub fn trust_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.0.iter().map(|(name, _)| name)
    }

    /// Adds a bundle; `false`, and nothing changes, if its trust domain has one.
    #[must_use]
    pub fn insert(&mut self, trust_domain: TrustDomain, bundle: Bundle) -> bool {
        let new = self.get(trust_domain.as_str()).is_none();
        if new {
            self.0.push((trust_domain, bundle));
        }
        new
    }

    /// Checks that `leaf`, read from `end_entity`, is valid at `now` for `usage` and that its chain leads to the bundle
    /// of its own trust domain.
    ///
    /// # Errors
    /// Why not; [`SvidError::UnknownTrustDomain`] when there is no such bundle.
    pub fn verify(
        &self,
        leaf: &Leaf,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), SvidError> {
        leaf.check_time(now)?;
        leaf.check_usage(usage)?;
        let trust_domain = leaf.id.trust_domain();
        let bundle = self
            .get(trust_domain)
            .ok_or_else(|| SvidError::UnknownTrustDomain { trust_domain: trust_domain.to_owned() })?;
        bundle.verify_chain(end_entity, intermediates, usage, now)
    }
}

impl Bundle {
    /// Adds one CA certificate.
    ///
    /// # Errors
    /// Why it cannot be a trust anchor.
    pub fn add(&mut self, der: &CertificateDer<'_>) -> Result<(), AnchorError> {
        let (rest, cert) = X509Certificate::from_der(der).map_err(|_| AnchorError::Malformed)?;
        let extensions = Extensions::read(&cert).map_err(|_| AnchorError::Malformed)?;
        let anchor = webpki::anchor_from_trusted_cert(der).map_err(|_| AnchorError::Malformed)?;
        if !rest.is_empty() {
            return Err(AnchorError::Malformed);
        }
        if !extensions.ca {
            return Err(AnchorError::NotCa);
        }
        // Absent is what `openssl req -x509` writes for a CA, and allows everything (RFC 5280 section 4.2.1.3).
        if extensions.usage.is_some_and(|usage| !usage.key_cert_sign()) {
            return Err(AnchorError::NoKeyCertSign);
        }
        self.anchors.push(anchor.to_owned());
        self.limits.push(AnchorLimits {
            not_before: cert.validity().not_before.timestamp(),
            not_after: cert.validity().not_after.timestamp(),
            path_len: extensions.path_len,
        });
        Ok(())
    }

    /// How many CA certificates it holds.
    pub fn len(&self) -> usize {
        self.anchors.len()
    }

    /// Whether it holds none, and so vouches for nobody.
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    fn verify_chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), SvidError> {
        if intermediates.len() > MAX_INTERMEDIATES {
            return Err(SvidError::ChainTooLong);
        }
        let cert = EndEntityCert::try_from(end_entity).map_err(|_| SvidError::Malformed)?;
        let verify = |usage: KeyUsage| {
            cert.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &self.anchors,
                intermediates,
                now,
                usage,
                None,
                Some(&|path: &VerifiedPath<'_>| self.check_path(path, now)),
            )
            .map(drop)
            .map_err(chain_error)
        };
        match usage {
            Usage::Client => verify(KeyUsage::client_auth()),
            Usage::Server => verify(KeyUsage::server_auth()),
            Usage::Both => verify(KeyUsage::client_auth()).and_then(|()| verify(KeyUsage::server_auth())),
        }
    }

    /// What webpki leaves to its caller: the anchor's own limits, and keyCertSign of the intermediates, which it does
    /// not read. An error here makes it try the next path, so an expired CA beside its successor does no harm.
    fn check_path(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), webpki::Error> {
        let at = self.anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()));
        let limits = at.and_then(|at| self.limits.get(at)).ok_or(webpki::Error::UnknownIssuer)?;
        let seconds = unix_seconds(now);
        let time =
            |at: i64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(at.max(0).unsigned_abs()));
        if seconds < limits.not_before {
            return Err(webpki::Error::CertNotValidYet { time: now, not_before: time(limits.not_before) });
        }
        if seconds > limits.not_after {
            return Err(webpki::Error::CertExpired { time: now, not_after: time(limits.not_after) });
        }
        let depth = path.intermediate_certificates().count();
        if limits.path_len.is_some_and(|most| depth > most as usize) {
            return Err(webpki::Error::PathLenConstraintViolated);
        }
        for intermediate in path.intermediate_certificates() {
            let der = intermediate.der();
            let (_, cert) = X509Certificate::from_der(&der).map_err(|_| webpki::Error::BadDer)?;
            let extensions = Extensions::read(&cert).map_err(|_| webpki::Error::MalformedExtensions)?;
            if extensions.usage.is_some_and(|usage| !usage.key_cert_sign()) {
                return Err(webpki::Error::EndEntityUsedAsCa);
            }
        }
        Ok(())
    }
}

/// The leaf's own time was checked before, so a time error here speaks of a CA.
fn chain_error(error: webpki::Error) -> SvidError {
    use webpki::Error as E;
    match error {
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => SvidError::UntrustedChain,
        E::CertExpired { .. } => SvidError::AuthorityExpired,
        E::CertNotValidYet { .. } => SvidError::AuthorityNotYetValid,
        E::UnsupportedCriticalExtension => SvidError::CriticalExtension,
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | E::SignatureAlgorithmMismatch => SvidError::SignatureAlgorithm,
        E::EndEntityUsedAsCa
        | E::PathLenConstraintViolated
        | E::NameConstraintViolation
        | E::MalformedNameConstraint
        | E::InvalidNetworkMaskConstraint
        | E::UnsupportedNameType
        | E::EmptyEkuExtension
        | E::RequiredEkuNotFoundContext(_) => SvidError::ChainConstraint,
        E::MaximumNameConstraintComparisonsExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded => SvidError::ChainTooLong,
        _ => SvidError::Malformed,
    }
}
