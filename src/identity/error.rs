//! Why an identity is not accepted: one enum for a certificate's verdict, one for what was loaded.
//!
//! Texts tell an operator what to do; codes are stable, because they are written into the audit trail and into metrics.

use std::path::PathBuf;

use super::pem::PemError;
use super::{MAX_INTERMEDIATES, SpiffeId, SpiffeIdError, TrustDomain};

/// Why a certificate and its chain are not a valid X509-SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// The bytes are not one well-formed X.509 v3 certificate.
    #[error("the certificate is not well-formed X.509 v3: issue it again")]
    Malformed,
    /// A critical extension that this verifier does not know (RFC 5280 section 4.2: it must be refused).
    #[error("the certificate or its chain has a critical extension that is not supported: issue it without")]
    CriticalExtension,
    /// No URI subject alternative name.
    #[error("the certificate has no URI SAN: issue it with exactly one, the SPIFFE ID")]
    NoUriSan,
    /// More than one URI subject alternative name.
    #[error("the certificate has {count} URI SANs: an SVID has exactly one, the SPIFFE ID")]
    SeveralUriSans {
        /// How many there are.
        count: usize,
    },
    /// The URI subject alternative name is not a workload's SPIFFE ID.
    #[error("the URI SAN is not the SPIFFE ID of a workload: {0}")]
    SpiffeId(SpiffeIdError),
    /// The leaf is a CA certificate.
    #[error("the certificate is a CA certificate: a workload needs a leaf (basicConstraints CA:FALSE)")]
    LeafIsCa,
    /// The keyUsage extension is absent.
    #[error("the certificate has no keyUsage: issue it with keyUsage=critical,digitalSignature")]
    KeyUsageMissing,
    /// keyUsage does not allow signatures, which is all that TLS 1.3 uses a certificate for.
    #[error("keyUsage lacks digitalSignature: issue the certificate with keyUsage=critical,digitalSignature")]
    KeyUsageNoSignature,
    /// keyUsage lets a leaf sign certificates or CRLs.
    #[error("keyUsage has keyCertSign or cRLSign, which a leaf must not have")]
    KeyUsageCaBits,
    /// extendedKeyUsage is present and does not allow the role the certificate was shown for.
    #[error(
        "extendedKeyUsage lacks {missing}: issue the certificate with extendedKeyUsage=clientAuth,serverAuth"
    )]
    ExtendedKeyUsage {
        /// `clientAuth` or `serverAuth`.
        missing: &'static str,
    },
    /// The validity starts in the future.
    #[error("the certificate is not valid before {}: check the clocks of this machine and of the issuer", utc(*.not_before))]
    NotYetValid {
        /// Start of the validity, Unix seconds.
        not_before: i64,
    },
    /// The validity is over.
    #[error("the certificate expired at {}: issue a new one", utc(*.not_after))]
    Expired {
        /// End of the validity, Unix seconds.
        not_after: i64,
    },
    /// There is no bundle for the trust domain that the certificate names.
    #[error(
        "there is no bundle for the trust domain {trust_domain}: add it under identity.federation if it is a partner"
    )]
    UnknownTrustDomain {
        /// The trust domain of the SPIFFE ID, not proved.
        trust_domain: String,
    },
    /// The chain does not lead to the bundle of the certificate's own trust domain.
    #[error("no CA in the bundle of its own trust domain signed this certificate or its chain")]
    UntrustedChain,
    /// A CA of the chain or of the bundle is past its validity.
    #[error("a CA certificate of the chain has expired: renew the CA and distribute the new bundle")]
    AuthorityExpired,
    /// A CA of the chain or of the bundle is not valid yet.
    #[error("a CA certificate of the chain is not valid yet: check the clocks")]
    AuthorityNotYetValid,
    /// A CA of the chain breaks a constraint: not a CA, no keyCertSign, path length, name constraints, key usages.
    #[error(
        "the chain breaks a constraint of one of its CAs (CA flag, keyCertSign, path length, name constraints or extendedKeyUsage)"
    )]
    ChainConstraint,
    /// A CRL of its issuer names the certificate, or an intermediate.
    #[error("the certificate, or a CA of its chain, is on its issuer's revocation list")]
    Revoked,
    /// The CRL of an issuer cannot be relied on, so nobody of that issuer is.
    #[error(
        "the revocation list of the certificate's issuer has passed its nextUpdate, or is not that issuer's: publish a new one"
    )]
    RevocationUnknown,
    /// More intermediates than any real hierarchy has.
    #[error(
        "the chain has more than {MAX_INTERMEDIATES} intermediate certificates or takes too much work to check"
    )]
    ChainTooLong,
    /// Signed with an algorithm, or with a key, that is not accepted.
    #[error(
        "the chain is signed with an algorithm or key that is not accepted: use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more with SHA-2"
    )]
    SignatureAlgorithm,
}

impl SvidError {
    /// The stable snake_case code of this reason, for audit events and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "certificate_malformed",
            Self::CriticalExtension => "critical_extension",
            Self::NoUriSan => "no_uri_san",
            Self::SeveralUriSans { .. } => "several_uri_sans",
            Self::SpiffeId(_) => "spiffe_id_invalid",
            Self::LeafIsCa => "leaf_is_ca",
            Self::KeyUsageMissing => "key_usage_missing",
            Self::KeyUsageNoSignature => "key_usage_no_digital_signature",
            Self::KeyUsageCaBits => "key_usage_ca_bits",
            Self::ExtendedKeyUsage { .. } => "extended_key_usage",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Expired { .. } => "expired",
            Self::UnknownTrustDomain { .. } => "unknown_trust_domain",
            Self::UntrustedChain => "untrusted_chain",
            Self::AuthorityExpired => "authority_expired",
            Self::AuthorityNotYetValid => "authority_not_yet_valid",
            Self::ChainConstraint => "chain_constraint",
            Self::Revoked => "revoked",
            Self::RevocationUnknown => "revocation_unknown",
            Self::ChainTooLong => "chain_too_long",
            Self::SignatureAlgorithm => "signature_algorithm",
        }
    }
}

/// Why a certificate cannot be a trust anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// Not one well-formed X.509 v3 certificate.
    #[error("it is not a well-formed X.509 v3 certificate")]
    Malformed,
    /// basicConstraints CA:TRUE is missing.
    #[error("it is not a CA certificate (basicConstraints CA:TRUE is missing); is it a workload's SVID?")]
    NotCa,
    /// keyUsage is present and does not allow it to sign certificates.
    #[error("its keyUsage does not include keyCertSign")]
    NoKeyCertSign,
}

/// Why identity material could not be loaded. Every text names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file could not be read.
    #[error("{}: cannot read it: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is larger than any certificate file is.
    #[error("{}: larger than {} bytes: this is not a PEM certificate or key file", .path.display(), super::files::MAX_FILE_BYTES)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The PEM text is broken.
    #[error("{file}:{error}")]
    Pem {
        /// The file.
        file: String,
        /// Where and what.
        error: PemError,
    },
    /// What should be certificates in DER is not.
    #[error("{}: gave something that is not a list of DER certificates", .from)]
    Der {
        /// Who gave it.
        from: String,
    },
    /// There is no CA certificate of the own trust domain.
    #[error("{}: gave no CA certificate of {trust_domain}", .from)]
    NoBundle {
        /// Who should have given it.
        from: String,
        /// Of which trust domain.
        trust_domain: TrustDomain,
    },
    /// No certificate in the file.
    #[error("{file}: holds no certificate: expected a PEM file with -----BEGIN CERTIFICATE-----")]
    NoCertificate {
        /// The file.
        file: String,
    },
    /// No private key in the file.
    #[error("{file}: holds no private key: expected a PEM file with -----BEGIN PRIVATE KEY-----")]
    NoPrivateKey {
        /// The file.
        file: String,
    },
    /// More than one private key in the file.
    #[error("{file}:{line}: a second private key: keep only the one that belongs to the certificate")]
    SeveralPrivateKeys {
        /// The file.
        file: String,
        /// The line of the second key, from 1.
        line: usize,
    },
    /// A key of a kind or size that is not supported.
    #[error(
        "{file}:{line}: this private key is not supported: use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more"
    )]
    KeyUnsupported {
        /// The file.
        file: String,
        /// The line the key starts at, from 1.
        line: usize,
    },
    /// The key and the certificate are not a pair: two different issues, or a rotation seen half-way.
    #[error(
        "{private_key}: the private key does not belong to the certificate in {certificate}: if they were just rotated, the next look will find the pair; otherwise issue them together again"
    )]
    KeyMismatch {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        private_key: String,
    },
    /// A private key lies among the CA certificates.
    #[error(
        "{file}:{line}: a bundle must hold CA certificates only, and this is a private key: remove it, and if it is the CA's, replace the CA"
    )]
    KeyInBundle {
        /// The file.
        file: String,
        /// The line the key starts at, from 1.
        line: usize,
    },
    /// A CRL lies among the CA certificates, where nobody would heed it.
    #[error(
        "{file}:{line}: a revocation list in a bundle: put it in a file of its own, and name that under `crl`"
    )]
    CrlInBundle {
        /// The file.
        file: String,
        /// The line the list starts at, from 1.
        line: usize,
    },
    /// Something else than CRLs.
    #[error(
        "{file}:{line}: a `crl` file holds revocation lists alone, one at least: -----BEGIN X509 CRL-----"
    )]
    NoCrl {
        /// The file.
        file: String,
        /// The line of what is none, from 1.
        line: usize,
    },
    /// A CRL that cannot be read.
    #[error(
        "{file}:{line}: this revocation list is not well-formed, or has a critical extension that is not supported"
    )]
    Crl {
        /// The file.
        file: String,
        /// The line the list starts at, from 1.
        line: usize,
    },
    /// A certificate of a bundle cannot be a trust anchor.
    #[error("{file}:{line}: this certificate cannot be trusted as a CA: {reason}")]
    Anchor {
        /// The file.
        file: String,
        /// The line the certificate starts at, from 1.
        line: usize,
        /// Why.
        reason: AnchorError,
    },
    /// Two bundles for one trust domain: which one counts would depend on their order.
    #[error(
        "{file}: a second bundle for the trust domain {trust_domain}: name each trust domain once, and none under federation that is your own"
    )]
    DuplicateTrustDomain {
        /// The file of the second bundle.
        file: String,
        /// The trust domain.
        trust_domain: TrustDomain,
    },
    /// The certificate is not a valid SVID at this time.
    #[error("{file}: not a valid SVID: {reason}")]
    Svid {
        /// The certificate's file.
        file: String,
        /// Why.
        reason: SvidError,
    },
    /// The SVID is of another trust domain than this workload's.
    #[error("{file}: {id} is not in the trust domain {trust_domain} that identity.trust_domain names")]
    WrongTrustDomain {
        /// The certificate's file.
        file: String,
        /// The identity of the certificate.
        id: SpiffeId,
        /// The trust domain of the configuration.
        trust_domain: TrustDomain,
    },
}

impl IdentityError {
    /// The stable snake_case code of this reason, for audit events, `/ready` and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "file_unreadable",
            Self::TooLarge { .. } => "file_too_large",
            Self::Pem { .. } => "pem_malformed",
            Self::Der { .. } => "certificate_malformed",
            Self::NoBundle { .. } => "bundle_missing",
            Self::NoCertificate { .. } => "certificate_missing",
            Self::NoPrivateKey { .. } => "private_key_missing",
            Self::SeveralPrivateKeys { .. } => "several_private_keys",
            Self::KeyUnsupported { .. } => "private_key_unsupported",
            Self::KeyMismatch { .. } => "key_mismatch",
            Self::KeyInBundle { .. } => "private_key_in_bundle",
            Self::CrlInBundle { .. } => "crl_in_bundle",
            Self::NoCrl { .. } => "crl_missing",
            Self::Crl { .. } => "crl_malformed",
            Self::Anchor { .. } => "bundle_not_ca",
            Self::DuplicateTrustDomain { .. } => "duplicate_trust_domain",
            Self::Svid { reason, .. } => reason.code(),
            Self::WrongTrustDomain { .. } => "wrong_trust_domain",
        }
    }
}

/// A Unix time as RFC 3339 text, or the bare number when it is outside of what a calendar holds.
pub(crate) fn utc(unix_seconds: i64) -> String {
    jiff::Timestamp::from_second(unix_seconds).map_or_else(|_| unix_seconds.to_string(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, a code changes under those who query the audit trail by it, or two reasons share one.
    #[test]
    fn codes_are_stable_and_texts_say_what_to_do() {
        let reasons = [
            SvidError::Malformed,
            SvidError::CriticalExtension,
            SvidError::NoUriSan,
            SvidError::SeveralUriSans { count: 2 },
            SvidError::SpiffeId(SpiffeIdError::NoPath),
            SvidError::LeafIsCa,
            SvidError::KeyUsageMissing,
            SvidError::KeyUsageNoSignature,
            SvidError::KeyUsageCaBits,
            SvidError::ExtendedKeyUsage { missing: "clientAuth" },
            SvidError::NotYetValid { not_before: 0 },
            SvidError::Expired { not_after: 1_800_000_000 },
            SvidError::UnknownTrustDomain { trust_domain: "a".to_owned() },
            SvidError::UntrustedChain,
            SvidError::AuthorityExpired,
            SvidError::AuthorityNotYetValid,
            SvidError::ChainConstraint,
            SvidError::Revoked,
            SvidError::RevocationUnknown,
            SvidError::ChainTooLong,
            SvidError::SignatureAlgorithm,
        ];
        let codes: Vec<_> = reasons.iter().map(SvidError::code).collect();
        let want = "certificate_malformed critical_extension no_uri_san several_uri_sans spiffe_id_invalid leaf_is_ca \
                    key_usage_missing key_usage_no_digital_signature key_usage_ca_bits extended_key_usage \
                    not_yet_valid expired unknown_trust_domain untrusted_chain authority_expired \
                    authority_not_yet_valid chain_constraint revoked revocation_unknown chain_too_long signature_algorithm";
        assert_eq!(codes.join(" "), want);
        assert_eq!(
            reasons[11].to_string(),
            "the certificate expired at 2027-01-15T08:00:00Z: issue a new one"
        );
        assert_eq!(utc(i64::MAX), i64::MAX.to_string(), "outside of the calendar");
    }
}
