//! One certificate read as an X509-SVID leaf: the rules of the SPIFFE X509-SVID standard, sections 3 to 5.
//!
//! It looks at this certificate alone. Who signed it is [`super::Bundles`]' question.

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::EndEntityCert;
use x509_parser::asn1_rs::Oid;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, KeyUsage, ParsedExtension};
use x509_parser::oid_registry::{
    OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE,
    OID_X509_EXT_SUBJECT_ALT_NAME,
};
use x509_parser::prelude::FromDer;

use super::{SpiffeId, SvidError};

/// What a certificate is used for in one handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Usage {
    /// A peer that connected to us.
    Client,
    /// A peer that we connected to.
    Server,
    /// Our own: a sidecar uses one SVID toward both sides.
    Both,
}

/// A certificate that has the form of an X509-SVID.
///
/// Its time, its use and its chain are not checked yet: see [`Leaf::check_time`], [`Leaf::check_usage`] and
/// [`super::Bundles::verify`], which does all three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The identity it claims.
    pub id: SpiffeId,
    /// Start of its validity, Unix seconds, inclusive.
    pub not_before: i64,
    /// End of its validity, Unix seconds, inclusive.
    pub not_after: i64,
    /// The serial number, lower-case hexadecimal.
    pub serial_hex: String,
    client_auth: bool,
    server_auth: bool,
}

impl Leaf {
    /// Reads one DER certificate and checks every rule that needs nothing but the certificate.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, SvidError> {
        let (rest, cert) = X509Certificate::from_der(der).map_err(|_| SvidError::Malformed)?;
        if !rest.is_empty() {
            return Err(SvidError::Malformed);
        }
        // A second, stricter parser reads the same bytes: it refuses duplicate extensions, trailing data and critical
        // extensions it does not know, so that no certificate means one thing here and another in the chain check.
        EndEntityCert::try_from(der).map_err(|error| match error {
            webpki::Error::UnsupportedCriticalExtension => SvidError::CriticalExtension,
            webpki::Error::SignatureAlgorithmMismatch => SvidError::SignatureAlgorithm,
            _ => SvidError::Malformed,
        })?;
        // RFC 5280 section 4.1.2.2: positive, at most 20 bytes. A list of revoked certificates knows them by it.
        let serial = cert.raw_serial();
        if serial.len() > 20 || serial.first().is_none_or(|first| first & 0x80 != 0) {
            return Err(SvidError::Malformed);
        }
        let extensions = Extensions::read(&cert)?;
        if extensions.ca {
            return Err(SvidError::LeafIsCa); // before its names: those of a CA are no workload's, and the reason is this
        }
        if extensions.constrains_names {
            return Err(SvidError::CriticalExtension);
        }
        let id = extensions.spiffe_id()?;
        extensions.check_key_usage()?;
        // Without the extension every use is allowed (RFC 5280 section 4.2.1.12).
        let (client_auth, server_auth) =
            extensions.extended.map_or((true, true), |e| (e.client_auth, e.server_auth));
        Ok(Self {
            id,
            not_before: cert.validity().not_before.timestamp(),
            not_after: cert.validity().not_after.timestamp(),
            serial_hex: hex(cert.raw_serial()),
            client_auth,
            server_auth,
        })
    }

    /// # Errors
    /// [`SvidError::NotYetValid`] or [`SvidError::Expired`]; both ends belong to the validity (RFC 5280 section 4.1.2.5).
    pub fn check_time(&self, now: UnixTime) -> Result<(), SvidError> {
        let now = unix_seconds(now);
        if now < self.not_before {
            Err(SvidError::NotYetValid { not_before: self.not_before })
        } else if now > self.not_after {
            Err(SvidError::Expired { not_after: self.not_after })
        } else {
            Ok(())
        }
    }

    /// # Errors
    /// [`SvidError::ExtendedKeyUsage`] when the extension is present and does not allow `usage`.
    pub fn check_usage(&self, usage: Usage) -> Result<(), SvidError> {
        if usage != Usage::Server && !self.client_auth {
            Err(SvidError::ExtendedKeyUsage { missing: "clientAuth" })
        } else if usage != Usage::Client && !self.server_auth {
            Err(SvidError::ExtendedKeyUsage { missing: "serverAuth" })
        } else {
            Ok(())
        }
    }
}

/// The extensions that decide what a certificate may be.
///
/// `x509-parser` reads extensions leniently: what it could not read is kept as a value, and its accessors for some of
/// them answer "absent". Reading them here turns every one of those into an error instead.
#[derive(Default)]
pub(crate) struct Extensions<'a> {
    pub(crate) names: &'a [GeneralName<'a>],
    pub(crate) usage: Option<&'a KeyUsage>,
    pub(crate) extended: Option<&'a ExtendedKeyUsage<'a>>,
    pub(crate) ca: bool,
    pub(crate) path_len: Option<u32>,
    /// Critical, which a leaf has no use for (RFC 5280 section 4.2.1.10).
    constrains_names: bool,
}

impl<'a> Extensions<'a> {
    /// # Errors
    /// [`SvidError::Malformed`] if one of them cannot be read, or any extension appears twice.
    pub(crate) fn read(cert: &'a X509Certificate<'a>) -> Result<Self, SvidError> {
        cert.extensions_map().map_err(|_| SvidError::Malformed)?;
        let mut found = Self::default();
        for extension in cert.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(san) => found.names = &san.general_names,
                ParsedExtension::KeyUsage(usage) => found.usage = Some(usage),
                ParsedExtension::ExtendedKeyUsage(usage) => found.extended = Some(usage),
                ParsedExtension::BasicConstraints(basic) => {
                    found.ca = basic.ca;
                    found.path_len = basic.path_len_constraint;
                }
                ParsedExtension::NameConstraints(_) if extension.critical => found.constrains_names = true,
                ParsedExtension::ParseError { .. } if decides(&extension.oid) => {
                    return Err(SvidError::Malformed);
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn spiffe_id(&self) -> Result<SpiffeId, SvidError> {
        if self.names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
            return Err(SvidError::Malformed); // it could be a second URI
        }
        let mut uris = self.names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None, // DNS names and addresses may stand beside the ID and never are one (X509-SVID section 2)
        });
        let uri = uris.next().ok_or(SvidError::NoUriSan)?;
        match uris.count() {
            0 => SpiffeId::parse(uri).map_err(SvidError::SpiffeId),
            more => Err(SvidError::SeveralUriSans { count: more + 1 }),
        }
    }

    /// X509-SVID sections 4.3 and 5.2: a leaf may sign handshakes, and no certificates or CRLs.
    fn check_key_usage(&self) -> Result<(), SvidError> {
        let usage = self.usage.ok_or(SvidError::KeyUsageMissing)?;
        if usage.key_cert_sign() || usage.crl_sign() {
            Err(SvidError::KeyUsageCaBits)
        } else if !usage.digital_signature() {
            Err(SvidError::KeyUsageNoSignature)
        } else {
            Ok(())
        }
    }
}

/// Whether this module reads the extension. Others may have any content: an enterprise CA's bundle must still load.
fn decides(oid: &Oid<'_>) -> bool {
    [
        OID_X509_EXT_SUBJECT_ALT_NAME,
        OID_X509_EXT_KEY_USAGE,
        OID_X509_EXT_EXTENDED_KEY_USAGE,
        OID_X509_EXT_BASIC_CONSTRAINTS,
    ]
    .contains(oid)
}

/// Lower-case hexadecimal of the SHA-256 of a DER certificate: what an audit event calls `cert_sha256`.
pub fn certificate_sha256_hex(der: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der).as_ref())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

pub(crate) fn unix_seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::SpiffeIdError;
    use super::super::testing::{Forge, NOW, WEB, at, now, uri};
    use super::*;
    use proptest::prelude::*;
    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose as Eku, IsCa,
        KeyUsagePurpose as Ku, SanType,
    };

    const KEY_USAGE_OID: [u64; 4] = [2, 5, 29, 15];
    const UNKNOWN_OID: [u64; 4] = [1, 2, 3, 4];

    fn parse(change: impl FnOnce(&mut CertificateParams)) -> Result<Leaf, SvidError> {
        Leaf::parse(Forge::new(NOW).leaf(change).cert.der())
    }

    /// If this fails, a certificate that the SPIFFE standard refuses gives an identity.
    #[test]
    fn each_leaf_rule_has_its_own_reason() {
        let dns = || SanType::DnsName("web.clinic".try_into().unwrap());
        let path_error = |error| Err(SvidError::SpiffeId(error));
        assert_eq!(parse(|p| p.subject_alt_names = vec![]), Err(SvidError::NoUriSan));
        assert_eq!(parse(|p| p.subject_alt_names = vec![dns()]), Err(SvidError::NoUriSan));
        let twice = parse(|p| p.subject_alt_names.push(uri("spiffe://hospital.local/b")));
        assert_eq!(twice, Err(SvidError::SeveralUriSans { count: 2 }));
        assert_eq!(
            parse(|p| p.subject_alt_names.push(uri(WEB))),
            Err(SvidError::SeveralUriSans { count: 2 })
        );
        let other = parse(|p| p.subject_alt_names.push(uri("https://hospital.local/b")));
        assert_eq!(other, Err(SvidError::SeveralUriSans { count: 2 }));
        let root_id = parse(|p| p.subject_alt_names = vec![uri("spiffe://hospital.local")]);
        assert_eq!(root_id, path_error(SpiffeIdError::NoPath));
        let upper = parse(|p| p.subject_alt_names = vec![uri("SPIFFE://hospital.local/a")]);
        assert_eq!(upper, path_error(SpiffeIdError::Scheme));
        assert_eq!(parse(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), Err(SvidError::LeafIsCa));
        assert_eq!(parse(|p| p.key_usages = vec![]), Err(SvidError::KeyUsageMissing));
        assert_eq!(parse(|p| p.key_usages = vec![Ku::KeyAgreement]), Err(SvidError::KeyUsageNoSignature));
        assert_eq!(parse(|p| p.key_usages.push(Ku::KeyCertSign)), Err(SvidError::KeyUsageCaBits));
        assert_eq!(parse(|p| p.key_usages.push(Ku::CrlSign)), Err(SvidError::KeyUsageCaBits));
        let unknown = CustomExtension::from_oid_content(&UNKNOWN_OID, vec![5, 0]);
        let mut critical = unknown.clone();
        critical.set_criticality(true);
        assert_eq!(parse(|p| p.custom_extensions.push(critical)), Err(SvidError::CriticalExtension));
        assert!(parse(|p| p.custom_extensions.push(unknown)).is_ok());
        let no_policies = CustomExtension::from_oid_content(&[2, 5, 29, 32], vec![5, 0]);
        assert!(
            parse(|p| p.custom_extensions.push(no_policies)).is_ok(),
            "an unreadable extension that decides nothing"
        );
        let no_usage = CustomExtension::from_oid_content(&KEY_USAGE_OID, vec![4, 0]);
        let unreadable = parse(|p| {
            p.key_usages = vec![];
            p.custom_extensions.push(no_usage);
        });
        assert_eq!(unreadable, Err(SvidError::Malformed), "and one that does");
        let not_ca = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![4, 0]);
        let unreadable = parse(|p| {
            p.is_ca = IsCa::NoCa;
            p.custom_extensions.push(not_ca);
        });
        assert_eq!(unreadable, Err(SvidError::Malformed));
        let not_utf8 = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 3, 0x86, 1, 0xff]);
        let unreadable = parse(|p| {
            p.subject_alt_names = vec![];
            p.custom_extensions.push(not_utf8);
        });
        assert_eq!(unreadable, Err(SvidError::Malformed));
        let doubled = CustomExtension::from_oid_content(&KEY_USAGE_OID, vec![3, 2, 7, 0x80]);
        assert_eq!(parse(|p| p.custom_extensions.push(doubled)), Err(SvidError::Malformed));
    }

    /// If this fails, SVIDs of other issuers (a DNS name beside the ID, no extendedKeyUsage, no basicConstraints) are
    /// refused without need.
    #[test]
    fn what_the_standard_allows_is_accepted() {
        let dns = SanType::DnsName("web.clinic".try_into().unwrap());
        assert_eq!(parse(|p| p.subject_alt_names.push(dns)).unwrap().id.as_str(), WEB);
        assert!(parse(|p| p.is_ca = IsCa::NoCa).is_ok());
        assert!(parse(|p| p.extended_key_usages = vec![]).unwrap().check_usage(Usage::Both).is_ok());
        assert!(parse(|p| p.key_usages.extend([Ku::KeyEncipherment, Ku::KeyAgreement])).is_ok());
        assert!(
            parse(|p| p.distinguished_name = rcgen::DistinguishedName::new()).is_ok(),
            "the SAN is critical then"
        );
    }

    /// If this fails, a certificate made for one side of a connection works on the other.
    #[test]
    fn extended_key_usage_must_cover_the_role() {
        let missing = |missing| Err(SvidError::ExtendedKeyUsage { missing });
        let client = parse(|p| p.extended_key_usages = vec![Eku::ClientAuth]).unwrap();
        assert_eq!(client.check_usage(Usage::Client), Ok(()));
        assert_eq!(client.check_usage(Usage::Server), missing("serverAuth"));
        assert_eq!(client.check_usage(Usage::Both), missing("serverAuth"));
        let server = parse(|p| p.extended_key_usages = vec![Eku::ServerAuth]).unwrap();
        assert_eq!(server.check_usage(Usage::Client), missing("clientAuth"));
        assert_eq!(server.check_usage(Usage::Server), Ok(()));
        let neither = parse(|p| p.extended_key_usages = vec![Eku::CodeSigning, Eku::Any]).unwrap();
        assert_eq!(neither.check_usage(Usage::Client), missing("clientAuth"));
    }

    /// If this fails, an SVID is used outside of its validity, or is refused in its first or last second.
    #[test]
    fn both_ends_belong_to_the_validity() {
        let leaf = parse(|_| {}).unwrap();
        let (first, last) = (NOW - 3_600, NOW + 3_600);
        assert_eq!((leaf.not_before, leaf.not_after), (first as i64, last as i64));
        assert_eq!(leaf.check_time(at(first - 1)), Err(SvidError::NotYetValid { not_before: first as i64 }));
        assert_eq!(leaf.check_time(at(first)), Ok(()));
        assert_eq!(leaf.check_time(now()), Ok(()));
        assert_eq!(leaf.check_time(at(last)), Ok(()));
        assert_eq!(leaf.check_time(at(last + 1)), Err(SvidError::Expired { not_after: last as i64 }));
        assert_eq!(leaf.check_time(at(u64::MAX)), Err(SvidError::Expired { not_after: last as i64 }));
    }

    /// If this fails, bytes after the certificate are carried along unread.
    #[test]
    fn trailing_and_missing_bytes_are_refused() {
        let der = Forge::new(NOW).leaf(|_| {}).cert.der().to_vec();
        let longer = [der.as_slice(), &[0]].concat();
        assert_eq!(Leaf::parse(&longer.into()), Err(SvidError::Malformed));
        for length in 0..der.len() {
            assert_eq!(Leaf::parse(&der[..length].into()), Err(SvidError::Malformed), "{length} bytes");
        }
    }

    proptest! {
        /// If this fails, a peer can crash a worker with a certificate.
        #[test]
        fn no_damaged_certificate_panics(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..6)) {
            const PEM: &str = include_str!("../../tests/fixtures/openssl/sec1.pem");
            let chain = crate::identity::material::read_chain(crate::identity::testing::pem("svid.pem", PEM));
            let mut der = chain.unwrap()[0].to_vec();
            for (at, byte) in changes {
                let at = at % der.len();
                der[at] = byte;
            }
            let _ = Leaf::parse(&der.into());
        }
    }
}
