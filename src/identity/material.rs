//! A workload's identity material: its SVID with the private key, and the bundles, checked as one.
//!
//! Works on bytes; where they come from is [`super::files`]' matter. Only a set that a handshake could use comes out.

use std::fmt;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::leaf::certificate_sha256_hex;
use super::pem::{self, Content, Item};
use super::{Bundle, Bundles, IdentityError, Leaf, SpiffeId, SvidError, TrustDomain, Usage};

/// What one load gives.
#[derive(Debug, Clone)]
pub struct Material {
    /// This workload's certificate and key.
    pub svid: Svid,
    /// Whom it believes, by trust domain.
    pub bundles: Bundles,
}

/// This workload's X509-SVID: the chain and the private key that belongs to it.
///
/// The key's bytes cannot be read back; it can only sign.
#[derive(Clone)]
pub struct Svid {
    leaf: Leaf,
    sha256_hex: Arc<str>,
    key: Arc<CertifiedKey>,
}

/// A PEM text and the name that errors call it by.
#[derive(Clone, Copy)]
pub struct PemFile<'a> {
    /// The name, usually a path.
    pub name: &'a str,
    /// The content.
    pub text: &'a [u8],
}

/// The PEM texts of one load.
#[derive(Clone)]
pub struct PemSet<'a> {
    /// The SVID, leaf first, then the intermediates.
    pub certificate: PemFile<'a>,
    /// The leaf's private key: PKCS#8, SEC1 or PKCS#1.
    pub private_key: PemFile<'a>,
    /// The CA certificates of the own trust domain.
    pub bundle: PemFile<'a>,
    /// The CA certificates of partners.
    pub federation: Vec<(&'a TrustDomain, PemFile<'a>)>,
}

/// Checks everything about `set`: well-formed, a pair, a valid SVID in `trust_domain` at `now`, and a chain that leads to
/// its bundle.
///
/// # Errors
/// The first thing that is wrong. A key that does not belong to the certificate is told apart
/// ([`IdentityError::KeyMismatch`]), because writers that are not atomic show it for a moment in every rotation.
pub fn material_from_pem(
    set: &PemSet<'_>,
    trust_domain: &TrustDomain,
    now: UnixTime,
) -> Result<Material, IdentityError> {
    let file = || set.certificate.name.to_owned();
    let invalid = |reason: SvidError| IdentityError::Svid { file: file(), reason };

    let chain = read_chain(set.certificate)?;
    let (key_line, key) = read_key(set.private_key)?;
    let mut bundles = Bundles::default();
    let own = (trust_domain, set.bundle);
    for (name, pem) in std::iter::once(&own).chain(&set.federation) {
        if !bundles.insert((*name).clone(), read_bundle(*pem)?) {
            return Err(IdentityError::DuplicateTrustDomain {
                file: pem.name.to_owned(),
                trust_domain: (*name).clone(),
            });
        }
    }
    // The chain is never empty: `read_chain` refuses that.
    let (end_entity, intermediates) =
        chain.split_first().ok_or_else(|| IdentityError::NoCertificate { file: file() })?;
    let leaf = Leaf::parse(end_entity).map_err(invalid)?;
    let sha256_hex = certificate_sha256_hex(end_entity).into();
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|_| {
        IdentityError::KeyUnsupported { file: set.private_key.name.to_owned(), line: key_line }
    })?;
    let certified = CertifiedKey::new(chain.clone(), key);
    certified.keys_match().map_err(|_| IdentityError::KeyMismatch {
        certificate: file(),
        private_key: set.private_key.name.to_owned(),
    })?;
    if leaf.id.trust_domain() != trust_domain.as_str() {
        return Err(IdentityError::WrongTrustDomain {
            file: file(),
            id: leaf.id,
            trust_domain: trust_domain.clone(),
        });
    }
    bundles.verify(&leaf, end_entity, intermediates, Usage::Both, now).map_err(invalid)?;
    Ok(Material { svid: Svid { leaf, sha256_hex, key: Arc::new(certified) }, bundles })
}

impl Svid {
    /// Who this workload is.
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// The certificates, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// Start of the leaf's validity, Unix seconds, inclusive.
    pub fn not_before(&self) -> i64 {
        self.leaf.not_before
    }

    /// End of the leaf's validity, Unix seconds, inclusive.
    pub fn not_after(&self) -> i64 {
        self.leaf.not_after
    }

    /// The leaf's serial number, lower-case hexadecimal.
    pub fn serial_hex(&self) -> &str {
        &self.leaf.serial_hex
    }

    /// SHA-256 of the leaf's DER, lower-case hexadecimal.
    pub fn leaf_sha256_hex(&self) -> &str {
        &self.sha256_hex
    }

    /// The chain with its key, in the form TLS uses it.
    pub fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.leaf.id)
            .field("not_after", &self.leaf.not_after)
            .field("sha256", &self.sha256_hex)
            .finish_non_exhaustive()
    }
}

pub(crate) fn read_items(pem: PemFile<'_>) -> Result<Vec<Item>, IdentityError> {
    pem::items(pem.text).map_err(|error| IdentityError::Pem { file: pem.name.to_owned(), error })
}

/// The certificates of a file, at least one. A key beside them is left alone: combined files are common.
pub(crate) fn read_chain(pem: PemFile<'_>) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let certificates = read_items(pem)?.into_iter().filter_map(|item| match item.content {
        Content::Certificate(der) => Some(der),
        Content::Key(_) => None,
    });
    let chain: Vec<_> = certificates.collect();
    if chain.is_empty() {
        return Err(IdentityError::NoCertificate { file: pem.name.to_owned() });
    }
    Ok(chain)
}

/// A bundle's file: CA certificates, at least one, and nothing secret.
pub(crate) fn read_bundle(pem: PemFile<'_>) -> Result<Bundle, IdentityError> {
    let file = || pem.name.to_owned();
    let mut bundle = Bundle::default();
    for Item { line, content } in read_items(pem)? {
        match content {
            Content::Certificate(der) => {
                bundle.add(&der).map_err(|reason| IdentityError::Anchor { file: file(), line, reason })?;
            }
            Content::Key(_) => return Err(IdentityError::KeyInBundle { file: file(), line }),
        }
    }
    if bundle.is_empty() {
        return Err(IdentityError::NoCertificate { file: file() });
    }
    Ok(bundle)
}

fn read_key(pem: PemFile<'_>) -> Result<(usize, PrivateKeyDer<'static>), IdentityError> {
    let file = || pem.name.to_owned();
    let mut found = None;
    for Item { line, content } in read_items(pem)? {
        let Content::Key(key) = content else { continue };
        if found.replace((line, key)).is_some() {
            return Err(IdentityError::SeveralPrivateKeys { file: file(), line });
        }
    }
    found.ok_or_else(|| IdentityError::NoPrivateKey { file: file() })
}
