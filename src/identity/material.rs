//! A workload's identity material: its SVID with the private key, and the bundles, checked as one.
//!
//! Works on bytes; where they come from is [`super::files`]' matter. Only a set that a handshake could use comes out.

use std::fmt;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

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
    pub bundle: BundlePem<'a>,
    /// The CA certificates of partners.
    pub federation: Vec<(&'a TrustDomain, BundlePem<'a>)>,
}

/// The PEM texts of one trust domain's bundle.
#[derive(Clone, Copy)]
pub struct BundlePem<'a> {
    /// Its CA certificates.
    pub anchors: PemFile<'a>,
    /// What these CAs have revoked, where that is published.
    pub crl: Option<PemFile<'a>>,
}

impl<'a> From<PemFile<'a>> for BundlePem<'a> {
    fn from(anchors: PemFile<'a>) -> Self {
        Self { anchors, crl: None }
    }
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
    let chain = read_chain(set.certificate)?;
    let (line, key) = read_key(set.private_key)?;
    let mut bundles = Bundles::default();
    let own = (trust_domain, set.bundle);
    for (name, pem) in std::iter::once(&own).chain(&set.federation) {
        let mut bundle = read_bundle(pem.anchors)?;
        if let Some(crl) = pem.crl {
            read_crls(crl, &mut bundle)?;
        }
        if !bundles.insert((*name).clone(), bundle) {
            return Err(IdentityError::DuplicateTrustDomain {
                file: pem.anchors.name.to_owned(),
                trust_domain: (*name).clone(),
            });
        }
    }
    let names = Names { certificate: set.certificate.name, private_key: set.private_key.name, line };
    assemble(&names, chain, &key, bundles, trust_domain, now)
}

/// Identity material as the SPIFFE Workload API gives it: DER, several certificates one after another.
pub struct DerSet<'a> {
    /// The SVID, leaf first, then the intermediates.
    pub certificate: &'a [u8],
    /// The leaf's private key: PKCS#8.
    pub private_key: &'a [u8],
    /// The CA certificates of the own trust domain.
    pub bundle: &'a [u8],
    /// Those of other trust domains. An empty one vouches for nobody any more.
    pub federation: Vec<(TrustDomain, &'a [u8])>,
}

/// As [`material_from_pem`], of DER. Errors call it by `name`.
///
/// # Errors
/// The first thing that is wrong.
pub fn material_from_der(
    set: &DerSet<'_>,
    name: &str,
    trust_domain: &TrustDomain,
    now: UnixTime,
) -> Result<Material, IdentityError> {
    let chain = split_der(set.certificate, name)?;
    let key = PrivateKeyDer::Pkcs8(set.private_key.to_vec().into());
    let mut bundles = Bundles::default();
    let own = bundle_from_der(set.bundle, name)?;
    if own.is_empty() {
        return Err(IdentityError::NoBundle { from: name.to_owned(), trust_domain: trust_domain.clone() });
    }
    let federation = set.federation.iter().map(|(domain, der)| Ok((domain, bundle_from_der(der, name)?)));
    let federation = federation.collect::<Result<Vec<_>, IdentityError>>()?;
    for (domain, bundle) in std::iter::once((trust_domain, own)).chain(federation) {
        if !bundles.insert(domain.clone(), bundle) {
            return Err(IdentityError::DuplicateTrustDomain {
                file: name.to_owned(),
                trust_domain: domain.clone(),
            });
        }
    }
    let names = Names { certificate: name, private_key: name, line: 0 };
    assemble(&names, chain, &key, bundles, trust_domain, now)
}

/// What errors call the parts by.
struct Names<'a> {
    certificate: &'a str,
    private_key: &'a str,
    /// Where the key stands in its file.
    line: usize,
}

fn assemble(
    names: &Names<'_>,
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
    bundles: Bundles,
    trust_domain: &TrustDomain,
    now: UnixTime,
) -> Result<Material, IdentityError> {
    let file = || names.certificate.to_owned();
    let invalid = |reason: SvidError| IdentityError::Svid { file: file(), reason };
    let (end_entity, intermediates) =
        chain.split_first().ok_or_else(|| IdentityError::NoCertificate { file: file() })?;
    let leaf = Leaf::parse(end_entity).map_err(invalid)?;
    let sha256_hex = certificate_sha256_hex(end_entity).into();
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(key).map_err(|_| {
        IdentityError::KeyUnsupported { file: names.private_key.to_owned(), line: names.line }
    })?;
    let certified = CertifiedKey::new(chain.clone(), key);
    certified.keys_match().map_err(|_| IdentityError::KeyMismatch {
        certificate: file(),
        private_key: names.private_key.to_owned(),
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

/// The certificates of a DER text that holds several, one after another.
fn split_der(mut der: &[u8], name: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let mut certificates = Vec::new();
    while !der.is_empty() {
        let malformed = |_| IdentityError::Der { from: name.to_owned() };
        let (rest, _) = X509Certificate::from_der(der).map_err(malformed)?;
        let (certificate, rest) = der.split_at(der.len() - rest.len());
        certificates.push(CertificateDer::from(certificate.to_vec()));
        der = rest;
    }
    Ok(certificates)
}

fn bundle_from_der(der: &[u8], name: &str) -> Result<Bundle, IdentityError> {
    let mut bundle = Bundle::default();
    for certificate in split_der(der, name)? {
        let refused = |reason| IdentityError::Anchor { file: name.to_owned(), line: 0, reason };
        bundle.add(&certificate).map_err(refused)?;
    }
    Ok(bundle)
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

    /// The same, but past its end: who issued it has taken it back, so no handshake may use it.
    pub fn withdrawn(&self) -> Self {
        let mut leaf = self.leaf.clone();
        leaf.not_after = 0;
        Self { leaf, ..self.clone() }
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
        Content::Key(_) | Content::Crl(_) => None,
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
            Content::Crl(_) => return Err(IdentityError::CrlInBundle { file: file(), line }),
        }
    }
    if bundle.is_empty() {
        return Err(IdentityError::NoCertificate { file: file() });
    }
    Ok(bundle)
}

/// Adds the CRLs of a file to the bundle whose CAs issued them.
fn read_crls(pem: PemFile<'_>, bundle: &mut Bundle) -> Result<(), IdentityError> {
    let mut any = false;
    for Item { line, content } in read_items(pem)? {
        let file = || pem.name.to_owned();
        let Content::Crl(der) = content else { return Err(IdentityError::NoCrl { file: file(), line }) };
        bundle.add_crl(der).map_err(|()| IdentityError::Crl { file: file(), line })?;
        any = true;
    }
    if any { Ok(()) } else { Err(IdentityError::NoCrl { file: pem.name.to_owned(), line: 1 }) }
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

#[cfg(test)]
mod tests {
    use super::super::PemError;
    use super::super::testing::{Forge, Forged, NOW, WEB, domain, now, pem, validity};
    use super::*;

    /// A set that loads, as texts a test can spoil.
    struct Texts {
        certificate: String,
        key: String,
        bundle: String,
    }

    fn texts(ca: &Forge, leaf: &Forged) -> Texts {
        Texts { certificate: leaf.cert.pem(), key: leaf.key_pem.clone(), bundle: ca.cert.pem() }
    }

    fn right() -> Texts {
        let ca = Forge::new(NOW);
        texts(&ca, &ca.leaf(|_| {}))
    }

    fn load(texts: &Texts) -> Result<Material, IdentityError> {
        let set = PemSet {
            certificate: pem("svid.pem", &texts.certificate),
            private_key: pem("svid.key", &texts.key),
            bundle: pem("bundle.pem", &texts.bundle).into(),
            federation: vec![],
        };
        material_from_pem(&set, &domain("hospital.local"), now())
    }

    fn code_and_text(texts: &Texts) -> (&'static str, String) {
        let error = load(texts).unwrap_err();
        (error.code(), error.to_string())
    }

    /// If this fails, SVIDs made with plain openssl, in any of its key formats, do not work.
    #[test]
    fn svids_made_by_openssl_load() {
        macro_rules! fixture {
            ($name:literal) => {
                include_str!(concat!("../../tests/fixtures/openssl/", $name))
            };
        }
        let table = [
            (fixture!("sec1.pem"), fixture!("sec1.key"), "sec1"),
            (fixture!("pkcs1.pem"), fixture!("pkcs1.key"), "pkcs1"),
            (fixture!("pkcs8.pem"), fixture!("pkcs8.key"), "pkcs8"),
            (fixture!("p384.pem"), fixture!("p384.key"), "p384"),
        ];
        for (certificate, key, name) in table {
            let texts =
                Texts { certificate: certificate.into(), key: key.into(), bundle: fixture!("ca.pem").into() };
            let material = load(&texts).unwrap();
            assert_eq!(material.svid.id().path(), format!("/ns/clinic/sa/{name}"));
        }
        let encrypted = Texts {
            certificate: fixture!("sec1.pem").into(),
            key: fixture!("encrypted.key").into(),
            bundle: fixture!("ca.pem").into(),
        };
        let error = load(&encrypted).unwrap_err();
        assert!(
            matches!(error, IdentityError::Pem { error: PemError::Encrypted { line: 1 }, .. }),
            "{error}"
        );
    }

    /// If this fails, audit events and the admin page name a wrong identity, expiry or fingerprint.
    #[test]
    fn a_right_set_gives_the_svid_and_its_bundles() {
        let ca = Forge::new(NOW);
        let middle = ca.intermediate("Middle", |_| {});
        let leaf = middle.leaf(|_| {});
        let mut texts = texts(&ca, &leaf);
        texts.certificate += &middle.cert.pem();
        let Material { svid, bundles } = load(&texts).unwrap();
        assert_eq!(svid.id().as_str(), WEB);
        assert_eq!(svid.chain(), [leaf.cert.der().clone(), middle.cert.der().clone()]);
        assert_eq!((svid.not_before(), svid.not_after()), (NOW as i64 - 3_600, NOW as i64 + 3_600));
        assert_eq!(svid.leaf_sha256_hex(), certificate_sha256_hex(leaf.cert.der()));
        assert_eq!(svid.leaf_sha256_hex().len(), 64);
        assert_eq!(bundles.trust_domains().map(TrustDomain::as_str).collect::<Vec<_>>(), ["hospital.local"]);
    }

    /// If this fails, a rotation seen half-way is taken for good, or is reported as something else.
    #[test]
    fn a_torn_pair_is_told_apart() {
        let ca = Forge::new(NOW);
        let (old, new) = (ca.leaf(|_| {}), ca.leaf(|_| {}));
        let torn = Texts { key: old.key_pem.clone(), ..texts(&ca, &new) };
        let (code, text) = code_and_text(&torn);
        assert_eq!(code, "key_mismatch");
        assert!(
            text.starts_with("svid.key: the private key does not belong to the certificate in svid.pem"),
            "{text}"
        );
    }

    /// If this fails, a sidecar starts with an identity that no peer accepts, or that is not its own.
    #[test]
    fn a_set_that_no_peer_would_accept_is_refused() {
        let ca = Forge::new(NOW);
        let wrong = |leaf: &Forged| code_and_text(&texts(&ca, leaf)).0;
        assert_eq!(wrong(&ca.leaf(|p| validity(p, NOW, -7_200, -1))), "expired");
        assert_eq!(wrong(&ca.leaf(|p| validity(p, NOW, 1, 7_200))), "not_yet_valid");
        assert_eq!(wrong(&ca.leaf(|p| p.subject_alt_names = vec![])), "no_uri_san");
        assert_eq!(wrong(&ca.leaf(|p| p.extended_key_usages.truncate(1))), "extended_key_usage");
        assert_eq!(wrong(&ca.svid("spiffe://partner.example/gateway")), "wrong_trust_domain");
        let foreign = Texts { bundle: Forge::new(NOW).cert.pem(), ..right() };
        let (code, text) = code_and_text(&foreign);
        assert_eq!(code, "untrusted_chain");
        assert!(text.starts_with("svid.pem: not a valid SVID: no CA in the bundle"), "{text}");
    }

    /// If this fails, an operator is not told which file and line is wrong.
    #[test]
    fn every_wrong_file_is_named() {
        let Texts { certificate, key, bundle } = right();
        let with = |certificate: &str, key: &str, bundle: &str| {
            let texts = Texts { certificate: certificate.into(), key: key.into(), bundle: bundle.into() };
            let (code, text) = code_and_text(&texts);
            (code, text.split(": ").next().unwrap().to_owned())
        };
        let is = |code, place: &str| (code, place.to_owned());
        assert_eq!(with("", &key, &bundle), is("certificate_missing", "svid.pem"));
        assert_eq!(with(&certificate, "", &bundle), is("private_key_missing", "svid.key"));
        assert_eq!(with(&certificate, &key, ""), is("certificate_missing", "bundle.pem"));
        assert_eq!(with(&certificate[..80], &key, &bundle), is("pem_malformed", "svid.pem:1"));
        let lines = key.lines().count() + 1;
        let twice = format!("{key}{key}");
        assert_eq!(
            with(&certificate, &twice, &bundle),
            is("several_private_keys", &format!("svid.key:{lines}"))
        );
        let not_a_key = "\n-----BEGIN PRIVATE KEY-----\nAAEC\n-----END PRIVATE KEY-----\n";
        assert_eq!(with(&certificate, not_a_key, &bundle), is("private_key_unsupported", "svid.key:2"));
        let lines = bundle.lines().count() + 1;
        assert_eq!(
            with(&certificate, &key, &format!("{bundle}{key}")),
            is("private_key_in_bundle", &format!("bundle.pem:{lines}"))
        );
        assert_eq!(
            with(&certificate, &key, &format!("{bundle}{certificate}")),
            is("bundle_not_ca", &format!("bundle.pem:{lines}"))
        );
    }

    /// If this fails, one of two bundles for a trust domain wins by its position in the configuration.
    #[test]
    fn a_trust_domain_is_named_once() {
        let (texts, partner) = (right(), Forge::new(NOW).cert.pem());
        let set = |federation| PemSet {
            certificate: pem("svid.pem", &texts.certificate),
            private_key: pem("svid.key", &texts.key),
            bundle: pem("bundle.pem", &texts.bundle).into(),
            federation,
        };
        let (own, other) = (domain("hospital.local"), domain("partner.example"));
        let load = |set| material_from_pem(&set, &own, now());
        let material = load(set(vec![(&other, pem("partner.pem", &partner).into())])).unwrap();
        assert!(material.bundles.get("partner.example").is_some());
        for federation in [vec![&own], vec![&other, &other]] {
            let federation =
                federation.into_iter().map(|name| (name, pem("partner.pem", &partner).into())).collect();
            let error = load(set(federation)).unwrap_err();
            assert_eq!(error.code(), "duplicate_trust_domain");
        }
    }

    /// If this fails, a private key can reach a log.
    #[test]
    fn debug_shows_no_key() {
        let texts = right();
        let shown = format!("{:?}", load(&texts).unwrap().svid);
        assert!(shown.contains(WEB) && !shown.to_lowercase().contains("key"), "{shown}");
    }
}
