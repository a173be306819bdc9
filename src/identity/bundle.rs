//! Bundles: which CAs vouch for which trust domain, and whether a chain leads to them.
//!
//! One bundle a trust domain, never merged: a partner's CA that issues an ID of our trust domain proves nothing
//! (SPIFFE Federation standard, section 3). It knows neither files nor handshakes.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::leaf::{Extensions, unix_seconds};
use super::{AnchorError, Leaf, SvidError, TrustDomain, Usage};

/// The most intermediate certificates that a peer may send. Real hierarchies have one to three; each one more is
/// signature work that a peer makes us do before it has proved anything.
pub const MAX_INTERMEDIATES: usize = 6;

/// The bundles of all trust domains that this workload accepts: its own and its partners'.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bundles(Vec<(TrustDomain, Bundle)>);

/// The CA certificates of one trust domain.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bundle {
    anchors: Vec<TrustAnchor<'static>>,
    limits: Vec<AnchorLimits>, // one for each anchor, same order
    crls: Vec<Crl>,
}

/// What a CA has revoked.
#[derive(Debug, Clone)]
struct Crl {
    list: Arc<CertRevocationList<'static>>,
    der: Arc<[u8]>,
}

impl PartialEq for Crl {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

/// What a CA certificate says of itself and a bare trust anchor (name and key, RFC 5280 section 6.1.1) leaves out.
/// Operators expect an expired CA and a path length to count, as they do in Go and OpenSSL.
#[derive(Debug, Clone, Copy, PartialEq)]
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

    /// Puts a bundle in the place of the one that its trust domain has, if any.
    pub fn replace(&mut self, trust_domain: &TrustDomain, bundle: Bundle) {
        match self.0.iter_mut().find(|(name, _)| name == trust_domain) {
            Some((_, old)) => *old = bundle,
            None => self.0.push((trust_domain.clone(), bundle)),
        }
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

    /// Adds a list of what one of its CAs, or an intermediate, has revoked. Whether that CA signed it is checked when it is used.
    ///
    /// # Errors
    /// It is not well-formed.
    #[expect(clippy::result_unit_err, reason = "webpki tells no more that an operator could use")]
    pub fn add_crl(&mut self, der: Vec<u8>) -> Result<(), ()> {
        let list = OwnedCertRevocationList::from_der(&der).map_err(drop)?;
        self.crls.push(Crl { list: Arc::new(list.into()), der: der.into() });
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
        let crls: Vec<&CertRevocationList<'_>> = self.crls.iter().map(|crl| &*crl.list).collect();
        // An issuer without a list has revoked nothing; a list past its nextUpdate says nothing, so nobody is believed.
        let revocation = RevocationOptionsBuilder::new(&crls).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let verify = |usage: KeyUsage| {
            cert.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &self.anchors,
                intermediates,
                now,
                usage,
                revocation,
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
        E::CertRevoked => SvidError::Revoked,
        E::CrlExpired { .. }
        | E::InvalidCrlSignatureForPublicKey
        | E::UnsupportedCrlSignatureAlgorithmContext(_)
        | E::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)
        | E::IssuerNotCrlSigner
        | E::UnknownRevocationStatus => SvidError::RevocationUnknown,
        E::MaximumNameConstraintComparisonsExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded => SvidError::ChainTooLong,
        _ => SvidError::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::pem;
    use super::super::testing::{Forge, NOW, WEB, bundles, validity, verdict};
    use super::*;
    use rcgen::{BasicConstraints, CustomExtension, IsCa, KeyUsagePurpose};

    /// If this fails, the ordinary case does not work: a leaf signed by the CA, or by its intermediate.
    #[test]
    fn a_chain_to_the_own_bundle_is_accepted() {
        let root = Forge::new(NOW);
        assert_eq!(verdict(&root.bundles(), &root.leaf(|_| {}), &[]).unwrap().as_str(), WEB);
        let middle = root.intermediate("Middle", |_| {});
        let issuing =
            middle.intermediate("Issuing", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
        let leaf = issuing.leaf(|_| {});
        assert!(verdict(&root.bundles(), &leaf, &[&issuing, &middle]).is_ok());
        assert_eq!(verdict(&root.bundles(), &leaf, &[&issuing]), Err(SvidError::UntrustedChain));
        assert!(verdict(&middle.bundles(), &leaf, &[&issuing]).is_ok(), "a bundle may hold an intermediate");
    }

    /// If this fails, a partner's CA can make itself any of our workloads, or the other way round.
    #[test]
    fn federation_does_not_cross() {
        let (ours, partners) = (Forge::new(NOW), Forge::new(NOW));
        let both = bundles(vec![("hospital.local", ours.bundle()), ("partner.example", partners.bundle())]);
        let theirs = "spiffe://partner.example/gateway";
        assert!(verdict(&both, &ours.svid(WEB), &[]).is_ok());
        assert!(verdict(&both, &partners.svid(theirs), &[]).is_ok());
        assert_eq!(verdict(&both, &partners.svid(WEB), &[]), Err(SvidError::UntrustedChain));
        assert_eq!(verdict(&both, &ours.svid(theirs), &[]), Err(SvidError::UntrustedChain));
        let unknown = SvidError::UnknownTrustDomain { trust_domain: "partner.example".to_owned() };
        assert_eq!(verdict(&ours.bundles(), &partners.svid(theirs), &[]), Err(unknown));
    }

    /// If this fails, a second bundle for a trust domain silently widens or replaces the first.
    #[test]
    fn a_trust_domain_has_one_bundle() {
        let (first, second) = (Forge::new(NOW), Forge::new(NOW));
        let mut bundles = first.bundles();
        assert!(!bundles.insert(TrustDomain::parse("hospital.local").unwrap(), second.bundle()));
        assert_eq!(verdict(&bundles, &second.leaf(|_| {}), &[]), Err(SvidError::UntrustedChain));
    }

    /// If this fails, an expired CA keeps vouching, or an expired CA in the bundle breaks its successor.
    #[test]
    fn a_ca_counts_only_in_its_validity() {
        let old = Forge::root(NOW, |p| validity(p, NOW, -7_200, -3_600));
        assert_eq!(verdict(&old.bundles(), &old.leaf(|_| {}), &[]), Err(SvidError::AuthorityExpired));
        let early = Forge::root(NOW, |p| validity(p, NOW, 3_600, 7_200));
        assert_eq!(verdict(&early.bundles(), &early.leaf(|_| {}), &[]), Err(SvidError::AuthorityNotYetValid));

        let renewed = Forge::root_with_key(NOW, &old.key_pem, |_| {}); // same name and key, new dates
        let mut bundle = old.bundle();
        bundle.add(renewed.cert.der()).unwrap();
        assert!(verdict(&bundles(vec![("hospital.local", bundle)]), &old.leaf(|_| {}), &[]).is_ok());

        let root = Forge::new(NOW);
        let lapsed = root.intermediate("Lapsed", |p| validity(p, NOW, -7_200, -3_600));
        assert_eq!(
            verdict(&root.bundles(), &lapsed.leaf(|_| {}), &[&lapsed]),
            Err(SvidError::AuthorityExpired)
        );
    }

    /// If this fails, a CA that may not make CAs makes one, and it is believed.
    #[test]
    fn the_constraints_of_each_ca_hold() {
        let constraint = Err(SvidError::ChainConstraint);
        let root = Forge::root(NOW, |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
        let below = root.intermediate("Below", |_| {});
        assert_eq!(
            verdict(&root.bundles(), &below.leaf(|_| {}), &[&below]),
            constraint,
            "path length of the root"
        );

        let root = Forge::new(NOW);
        let last = root.intermediate("Last", |p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
        let below = last.intermediate("Below", |_| {});
        assert_eq!(
            verdict(&root.bundles(), &below.leaf(|_| {}), &[&below, &last]),
            constraint,
            "path length"
        );

        let no_ca = root.intermediate("No CA", |p| p.is_ca = IsCa::ExplicitNoCa);
        assert_eq!(verdict(&root.bundles(), &no_ca.leaf(|_| {}), &[&no_ca]), constraint, "not a CA");
        let no_sign = root.intermediate("No sign", |p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
        assert_eq!(
            verdict(&root.bundles(), &no_sign.leaf(|_| {}), &[&no_sign]),
            constraint,
            "no keyCertSign"
        );
        let web_only = root.intermediate("Mail", |p| {
            p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::EmailProtection];
        });
        assert_eq!(
            verdict(&root.bundles(), &web_only.leaf(|_| {}), &[&web_only]),
            constraint,
            "extendedKeyUsage"
        );
    }

    /// If this fails, a CA restricted by URI name constraints, which webpki cannot evaluate, is believed without them.
    #[test]
    fn uri_name_constraints_fail_closed() {
        // permittedSubtrees { URI "hospital.local" }, RFC 5280 section 4.2.1.10
        let mut content = vec![0x30, 0x14, 0xa0, 0x12, 0x30, 0x10, 0x86, 0x0e];
        content.extend(b"hospital.local");
        let root = Forge::root(NOW, |p| {
            p.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 30], content));
        });
        assert_eq!(verdict(&root.bundles(), &root.leaf(|_| {}), &[]), Err(SvidError::ChainConstraint));
    }

    /// If this fails, a peer that has proved nothing can make us check as many signatures as it likes.
    #[test]
    fn a_long_chain_is_refused_unread() {
        let root = Forge::new(NOW);
        let extra: Vec<_> = (0..=MAX_INTERMEDIATES).map(|_| &root).collect();
        assert_eq!(verdict(&root.bundles(), &root.leaf(|_| {}), &extra), Err(SvidError::ChainTooLong));
        assert!(
            verdict(&root.bundles(), &root.leaf(|_| {}), &extra[1..]).is_ok(),
            "the most that is allowed"
        );
    }

    /// If this fails, a workload's own certificate or a restricted one becomes a trust anchor.
    #[test]
    fn only_a_ca_becomes_an_anchor() {
        let root = Forge::new(NOW);
        let mut bundle = Bundle::default();
        assert_eq!(bundle.add(root.leaf(|_| {}).cert.der()), Err(AnchorError::NotCa));
        let no_sign = Forge::root(NOW, |p| p.key_usages = vec![KeyUsagePurpose::CrlSign]);
        assert_eq!(bundle.add(no_sign.cert.der()), Err(AnchorError::NoKeyCertSign));
        assert_eq!(bundle.add(&vec![0x30, 0].into()), Err(AnchorError::Malformed));
        assert!(bundle.is_empty());
        let plain = Forge::root(NOW, |p| p.key_usages = vec![]);
        assert_eq!(bundle.add(plain.cert.der()), Ok(()), "openssl's default CA has no keyUsage");
        assert_eq!(bundle.len(), 1);
    }

    /// The verdict on a leaf of `ca` with the serial number 7, by a bundle with these CRLs.
    fn with_crls(ca: &Forge, crls: &[String]) -> Result<(), SvidError> {
        let mut bundle = ca.bundle();
        for crl in crls {
            let items = pem::items(crl.as_bytes()).unwrap();
            let [pem::Item { content: pem::Content::Crl(der), .. }] = &items[..] else { panic!("one CRL") };
            bundle.add_crl(der.clone()).unwrap();
        }
        let leaf = ca.leaf(|params| params.serial_number = Some(7u64.into()));
        verdict(&bundles(vec![("hospital.local", bundle)]), &leaf, &[]).map(drop)
    }

    /// If this fails, a certificate whose key was stolen works until it expires although its CA revoked it.
    #[test]
    fn what_an_issuer_has_revoked_is_refused_and_nothing_else() {
        let (ca, other) = (
            Forge::new(NOW),
            Forge::root(NOW, |params| {
                params.distinguished_name.push(rcgen::DnType::OrganizationName, "Another");
            }),
        );
        let list = |serials: &[u64], until| {
            ca.crl(&serials.iter().map(|serial| (*serial).into()).collect::<Vec<_>>(), until)
        };
        assert_eq!(with_crls(&ca, &[list(&[7], 60)]), Err(SvidError::Revoked));
        assert_eq!(with_crls(&ca, &[list(&[3, 5, 7], 60)]), Err(SvidError::Revoked));
        assert_eq!(with_crls(&ca, &[list(&[8], 60)]), Ok(()));
        assert_eq!(
            with_crls(&ca, &[other.crl(&[7u64.into()], 60)]),
            Ok(()),
            "another issuer's serial number"
        );
    }

    /// If this fails, whoever keeps the newest list from arriving keeps revoked certificates alive, or a list that its issuer
    /// did not sign counts.
    #[test]
    fn a_list_that_cannot_be_relied_on_refuses_its_issuers_certificates() {
        let (ca, namesake) = (Forge::new(NOW), Forge::new(NOW));
        assert_eq!(with_crls(&ca, &[ca.crl(&[], -1)]), Err(SvidError::RevocationUnknown));
        assert_eq!(with_crls(&ca, &[namesake.crl(&[], 60)]), Err(SvidError::RevocationUnknown));
    }

    /// If this fails, an intermediate that was revoked goes on issuing.
    #[test]
    fn a_revoked_intermediate_vouches_for_nobody() {
        let root = Forge::new(NOW);
        let middle = root.intermediate("Middle", |params| params.serial_number = Some(9u64.into()));
        let leaf = middle.leaf(|_| {});
        let mut bundle = root.bundle();
        let crl = root.crl(&[9u64.into()], 60);
        let items = pem::items(crl.as_bytes()).unwrap();
        let pem::Content::Crl(der) = &items[0].content else { panic!("a CRL") };
        bundle.add_crl(der.clone()).unwrap();
        let judged = verdict(&bundles(vec![("hospital.local", bundle)]), &leaf, &[&middle]);
        assert_eq!(judged, Err(SvidError::Revoked));
    }
}
