//! One certificate read as an X509-SVID leaf: the rules of the SPIFFE X509-SVID standard, sections 3 to 5.
//!
//! It looks at this certificate alone. Who signed it is [`super::Bundles`]' question.

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::EndEntityCert;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, KeyUsage, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::{SpiffeId, SvidError};

/// What a certificate is used for in one handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
            _ => SvidError::Malformed,
        })?;
        let extensions = Extensions::read(&cert)?;
        let id = extensions.spiffe_id()?;
        extensions.check_leaf()?;
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
}

impl<'a> Extensions<'a> {
    /// # Errors
    /// [`SvidError::Malformed`] if one cannot be read or appears twice.
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
                ParsedExtension::ParseError { .. } => return Err(SvidError::Malformed),
                _ => {}
            }
        }
        if found.names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
            return Err(SvidError::Malformed);
        }
        Ok(found)
    }

    fn spiffe_id(&self) -> Result<SpiffeId, SvidError> {
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

    /// X509-SVID sections 4.2 and 4.3 and 5.2: a leaf is no CA, may sign handshakes, and signs nothing else.
    fn check_leaf(&self) -> Result<(), SvidError> {
        if self.ca {
            return Err(SvidError::LeafIsCa);
        }
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
