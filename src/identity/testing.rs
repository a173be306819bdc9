//! Certificates for tests: right ones, and every kind of wrong one.

use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{
    Bundle, Bundles, Leaf, Material, PemFile, PemSet, SpiffeId, SvidError, TrustDomain, Usage,
    material_from_pem,
};

/// 2027-01-15. Tests of pure checks use this time; forged certificates are valid an hour before and after "now".
pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const WEB: &str = "spiffe://hospital.local/ns/clinic/sa/web";
pub(crate) const RECORDS: &str = "spiffe://hospital.local/ns/clinic/sa/records";

pub(crate) fn now() -> UnixTime {
    at(NOW)
}

pub(crate) fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

pub(crate) fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

pub(crate) fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

pub(crate) fn pem<'a>(name: &'a str, text: &'a str) -> PemFile<'a> {
    PemFile { name, text: text.as_bytes() }
}

/// Sets the validity to `from` and `until` seconds from `now`.
pub(crate) fn validity(params: &mut CertificateParams, now: u64, from: i64, until: i64) {
    let time = |offset: i64| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now.checked_add_signed(offset).unwrap())
    };
    params.not_before = time(from);
    params.not_after = time(until);
}

/// A CA that signs whatever it is asked to.
pub(crate) struct Forge {
    pub(crate) now: u64,
    pub(crate) cert: Certificate,
    pub(crate) key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A leaf with its key.
pub(crate) struct Forged {
    pub(crate) cert: Certificate,
    pub(crate) key_pem: String,
}

impl Forge {
    pub(crate) fn new(now: u64) -> Self {
        Self::root(now, |_| {})
    }

    pub(crate) fn root(now: u64, change: impl FnOnce(&mut CertificateParams)) -> Self {
        Self::root_with_key(now, &KeyPair::generate().unwrap().serialize_pem(), change)
    }

    pub(crate) fn root_with_key(
        now: u64,
        key_pem: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let key = KeyPair::from_pem(key_pem).unwrap();
        let mut params = ca_params(now, "Test Root");
        change(&mut params);
        let cert = params.self_signed(&key).unwrap();
        Self { now, cert, key_pem: key_pem.to_owned(), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn intermediate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = ca_params(self.now, name);
        change(&mut params);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Self { now: self.now, cert, key_pem: key.serialize_pem(), issuer: Issuer::new(params, key) }
    }

    /// A right SVID for [`WEB`], before `change`.
    pub(crate) fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Forged {
        let key = KeyPair::generate().unwrap();
        let mut params = base_params(self.now, "leaf");
        params.subject_alt_names = vec![uri(WEB)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        Forged { cert: params.signed_by(&key, &self.issuer).unwrap(), key_pem: key.serialize_pem() }
    }

    pub(crate) fn svid(&self, spiffe_id: &str) -> Forged {
        self.leaf(|params| params.subject_alt_names = vec![uri(spiffe_id)])
    }

    /// What a workload with a right SVID loads.
    pub(crate) fn material(&self) -> Material {
        let leaf = self.leaf(|_| {});
        let (certificate, bundle) = (leaf.cert.pem(), self.cert.pem());
        let set = PemSet {
            certificate: pem("svid.pem", &certificate),
            private_key: pem("svid.key", &leaf.key_pem),
            bundle: pem("bundle.pem", &bundle).into(),
            federation: vec![],
        };
        material_from_pem(&set, &domain("hospital.local"), at(self.now)).unwrap()
    }

    /// A list that revokes these serial numbers, in PEM, valid until `until` seconds from now.
    pub(crate) fn crl(&self, serials: &[SerialNumber], until: i64) -> String {
        let mut times = CertificateParams::default();
        validity(&mut times, self.now, -3_600, until);
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: serial.clone(),
            revocation_time: times.not_before,
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: times.not_before,
            next_update: times.not_after,
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    pub(crate) fn bundle(&self) -> Bundle {
        let mut bundle = Bundle::default();
        bundle.add(self.cert.der()).unwrap();
        bundle
    }

    /// Bundles that know this CA as hospital.local's.
    pub(crate) fn bundles(&self) -> Bundles {
        bundles(vec![("hospital.local", self.bundle())])
    }
}

pub(crate) fn bundles(list: Vec<(&str, Bundle)>) -> Bundles {
    let mut bundles = Bundles::default();
    for (name, bundle) in list {
        assert!(bundles.insert(domain(name), bundle));
    }
    bundles
}

/// The verdict of a peer's side that knows `bundles`, at [`NOW`].
pub(crate) fn verdict(
    bundles: &Bundles,
    leaf: &Forged,
    intermediates: &[&Forge],
) -> Result<SpiffeId, SvidError> {
    let chain: Vec<CertificateDer<'_>> = intermediates.iter().map(|ca| ca.cert.der().clone()).collect();
    let der = leaf.cert.der();
    let leaf = Leaf::parse(der)?;
    bundles.verify(&leaf, der, &chain, Usage::Both, now()).map(|()| leaf.id)
}

fn base_params(now: u64, name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    validity(&mut params, now, -3_600, 3_600);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn ca_params(now: u64, name: &str) -> CertificateParams {
    let mut params = base_params(now, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
