//! What a certificate file says, in words, and whether it is a valid SVID now.
//!
//! The verdict comes from the same functions that a handshake calls. Works on bytes; prints nothing.

use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Serialize;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::error::utc;
use super::leaf::{Extensions, certificate_sha256_hex, hex, unix_seconds};
use super::material::{PemFile, read_bundle, read_chain};
use super::{Bundles, IdentityError, Leaf, SvidError, TrustDomain, Usage};

/// One file's report. Its JSON form is stable: fields may be added, none changes its meaning.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The file's name.
    pub file: String,
    /// Whether it is a valid SVID now, as far as it was checked.
    pub valid: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Whether the chain was followed to a bundle. `false` means that `valid` speaks of the certificate alone.
    pub chain_checked: bool,
    /// The identity, if the certificate has the form of an SVID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<String>,
    /// Whole seconds until the leaf expires; negative when it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<i64>,
    /// Every certificate of the file, leaf first.
    pub certificates: Vec<Certificate>,
}

/// Why a file is not a valid SVID now.
#[derive(Debug, Clone, Serialize)]
pub struct Reason {
    /// The stable code, the same as in audit events.
    pub code: &'static str,
    /// What to do about it.
    pub text: String,
}

/// One certificate, as it describes itself.
#[derive(Debug, Clone, Serialize)]
pub struct Certificate {
    /// SHA-256 of the DER, lower-case hexadecimal.
    pub sha256: String,
    /// The rest, unless the certificate is not well-formed.
    #[serde(flatten)]
    pub facts: Option<Facts>,
}

/// The readable part of a certificate.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// The subject's distinguished name; may be empty.
    pub subject: String,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// The serial number, lower-case hexadecimal.
    pub serial: String,
    /// The public key's kind and size.
    pub key: String,
    /// Start of the validity, RFC 3339.
    pub not_before: String,
    /// End of the validity, RFC 3339.
    pub not_after: String,
    /// Whether it says it is a CA.
    pub ca: bool,
    /// The URI SANs as they are.
    pub uri_sans: Vec<String>,
    /// keyUsage, in the words of RFC 5280.
    pub key_usage: Vec<&'static str>,
    /// extendedKeyUsage; absent means that every use is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extended_key_usage: Option<Vec<String>>,
}

/// Describes the certificates of `pem` and judges the first as an SVID at `now`, with its chain if there is a `bundle`
/// (taken as that of the trust domain which the certificate names).
///
/// # Errors
/// When either file is not readable PEM with certificates. A certificate that is no valid SVID is a report, not an error.
pub fn inspect(
    pem: PemFile<'_>,
    bundle: Option<PemFile<'_>>,
    now: UnixTime,
) -> Result<Report, IdentityError> {
    let chain = read_chain(pem)?;
    let bundle = bundle.map(read_bundle).transpose()?;
    let chain_checked = bundle.is_some();
    let (end_entity, intermediates) =
        chain.split_first().ok_or_else(|| IdentityError::NoCertificate { file: pem.name.to_owned() })?;
    let leaf = Leaf::parse(end_entity);
    let verdict = leaf.as_ref().map_err(Clone::clone).and_then(|leaf| {
        let Some(bundle) = bundle else {
            return leaf.check_time(now).and_then(|()| leaf.check_usage(Usage::Both));
        };
        let mut bundles = Bundles::default();
        let own = TrustDomain::parse(leaf.id.trust_domain()).map_err(SvidError::SpiffeId)?;
        // There is no other bundle that could have the name.
        let _ = bundles.insert(own, bundle);
        bundles.verify(leaf, end_entity, intermediates, Usage::Both, now)
    });
    let leaf = leaf.ok();
    Ok(Report {
        file: pem.name.to_owned(),
        valid: verdict.is_ok(),
        reason: verdict.err().map(|reason| Reason { code: reason.code(), text: reason.to_string() }),
        chain_checked,
        expires_in_seconds: leaf.as_ref().map(|leaf| leaf.not_after.saturating_sub(unix_seconds(now))),
        spiffe_id: leaf.map(|leaf| leaf.id.to_string()),
        certificates: chain.iter().map(describe).collect(),
    })
}

fn describe(der: &CertificateDer<'_>) -> Certificate {
    Certificate { sha256: certificate_sha256_hex(der), facts: facts(der) }
}

fn facts(der: &CertificateDer<'_>) -> Option<Facts> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let extensions = Extensions::read(&cert).ok()?;
    let uris = extensions.names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    Some(Facts {
        subject: cert.subject().to_string(),
        issuer: cert.issuer().to_string(),
        serial: hex(cert.raw_serial()),
        key: key_name(&cert),
        not_before: utc(cert.validity().not_before.timestamp()),
        not_after: utc(cert.validity().not_after.timestamp()),
        ca: extensions.ca,
        uri_sans: uris.collect(),
        key_usage: extensions.usage.map(|usage| key_usage(usage.flags)).unwrap_or_default(),
        extended_key_usage: extensions.extended.map(|usage| {
            let known = [
                (usage.client_auth, "clientAuth"),
                (usage.server_auth, "serverAuth"),
                (usage.code_signing, "codeSigning"),
                (usage.email_protection, "emailProtection"),
                (usage.time_stamping, "timeStamping"),
                (usage.ocsp_signing, "OCSPSigning"),
                (usage.any, "anyExtendedKeyUsage"),
            ];
            let known = known.into_iter().filter(|(set, _)| *set).map(|(_, name)| name.to_owned());
            known.chain(usage.other.iter().map(ToString::to_string)).collect()
        }),
    })
}

/// `flags` has bit 0 for digitalSignature, and so on in the order of RFC 5280 section 4.2.1.3.
fn key_usage(flags: u16) -> Vec<&'static str> {
    const NAMES: [&str; 9] = [
        "digitalSignature",
        "nonRepudiation",
        "keyEncipherment",
        "dataEncipherment",
        "keyAgreement",
        "keyCertSign",
        "cRLSign",
        "encipherOnly",
        "decipherOnly",
    ];
    NAMES.into_iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, name)| name).collect()
}

fn key_name(cert: &X509Certificate<'_>) -> String {
    let key = cert.public_key();
    let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok()).map(|oid| oid.to_id_string());
    match (key.algorithm.algorithm.to_id_string().as_str(), curve.as_deref()) {
        ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => "ECDSA P-256".to_owned(),
        ("1.2.840.10045.2.1", Some("1.3.132.0.34")) => "ECDSA P-384".to_owned(),
        ("1.2.840.10045.2.1", Some("1.3.132.0.35")) => "ECDSA P-521".to_owned(),
        ("1.3.101.112", _) => "Ed25519".to_owned(),
        (algorithm, _) => match key.parsed() {
            Ok(PublicKey::RSA(rsa)) => format!("RSA {}", rsa.key_size()),
            _ => algorithm.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Forge, NOW, WEB, at, now, pem, uri};
    use super::*;

    /// If this fails, `inspect` says something else than a handshake would.
    #[test]
    fn the_verdict_is_that_of_a_handshake() {
        let (ca, other) = (Forge::new(NOW), Forge::new(NOW));
        let (certificate, own, foreign) = (ca.leaf(|_| {}).cert.pem(), ca.cert.pem(), other.cert.pem());
        let look = |bundle: Option<&str>, time| {
            let bundle = bundle.map(|text| pem("bundle.pem", text));
            inspect(pem("svid.pem", &certificate), bundle, time).unwrap()
        };
        let code = |report: Report| report.reason.map(|reason| reason.code);
        let good = look(Some(&own), now());
        assert!(good.valid && good.chain_checked);
        assert_eq!((good.spiffe_id.as_deref(), good.expires_in_seconds), (Some(WEB), Some(3_600)));
        let alone = look(None, now());
        assert!(alone.valid && !alone.chain_checked);
        assert_eq!(code(look(Some(&foreign), now())), Some("untrusted_chain"));
        let late = look(None, at(NOW + 3_700));
        assert_eq!(late.expires_in_seconds, Some(-100));
        assert_eq!(code(late), Some("expired"));
        let ca_file = inspect(pem("ca.pem", &own), None, now()).unwrap();
        assert_eq!(ca_file.reason.map(|reason| reason.code), Some("leaf_is_ca"));
        assert!(inspect(pem("svid.key", "x"), None, now()).is_err());
    }

    /// If this fails, programs that read the JSON report break.
    #[test]
    fn the_json_form_is_stable() {
        let ca = Forge::new(NOW);
        let leaf = ca.leaf(|p| p.subject_alt_names.push(uri("spiffe://hospital.local/second")));
        let text = leaf.cert.pem() + &ca.cert.pem();
        let report = serde_json::json!(inspect(pem("svid.pem", &text), None, now()).unwrap());
        assert_eq!(report["valid"], false);
        assert_eq!(report["reason"]["code"], "several_uri_sans");
        assert_eq!(report["chain_checked"], false);
        let [leaf, root] = report["certificates"].as_array().unwrap().as_slice() else { panic!("{report}") };
        assert_eq!(leaf["uri_sans"], serde_json::json!([WEB, "spiffe://hospital.local/second"]));
        assert_eq!(leaf["key_usage"], serde_json::json!(["digitalSignature"]));
        assert_eq!(leaf["extended_key_usage"], serde_json::json!(["clientAuth", "serverAuth"]));
        assert_eq!((&leaf["key"], &leaf["ca"]), (&"ECDSA P-256".into(), &false.into()));
        assert_eq!(leaf["not_before"], "2027-01-15T07:00:00Z");
        assert_eq!(leaf["not_after"], "2027-01-15T09:00:00Z");
        assert_eq!((&leaf["subject"], &leaf["issuer"]), (&"CN=leaf".into(), &"CN=Test Root".into()));
        assert_eq!(leaf["sha256"].as_str().unwrap().len(), 64);
        assert_eq!(
            (&root["ca"], &root["key_usage"]),
            (&true.into(), &serde_json::json!(["keyCertSign", "cRLSign"]))
        );
    }
}
