//! How the key of an epoch is bound to the workload that writes it: signed by the key of its SVID.
//!
//! Owns the statement that is signed. Whether the SVID's chain leads to a bundle is judged only where a bundle is at hand.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;

use super::note::VerifierKey;
use crate::identity::{Bundles, Leaf, Usage};

/// Strongest first; every key that an SVID may have can do one of them.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
];

/// An SVID, and its signature over the key of an epoch.
pub(crate) struct Binding {
    /// The leaf and its intermediates: DER in base64.
    pub(crate) chain: Vec<String>,
    /// The signature scheme of TLS (RFC 8446 section 4.2.3), by number.
    pub(crate) scheme: u16,
    /// In base64.
    pub(crate) signature: String,
}

impl Binding {
    /// Signs `key` with the key of the SVID. `None` when that key can do no scheme.
    pub(crate) fn sign(svid: &Arc<CertifiedKey>, key: &VerifierKey) -> Option<Self> {
        let signer = svid.key.choose_scheme(&SCHEMES)?;
        let signature = signer.sign(&statement(&key.to_text())).ok()?;
        let chain = svid.cert.iter().map(|der| BASE64.encode(der)).collect();
        Some(Self { chain, scheme: u16::from(signer.scheme()), signature: BASE64.encode(signature) })
    }
}

/// Checks that the SVID in an `audit.open` is the writer's and signed `key`. With `bundles` also that it is to be believed:
/// that its chain leads to the bundle of its trust domain, as of the time of the event.
///
/// # Errors
/// What is wrong.
pub(crate) fn check(open: &Value, key: &VerifierKey, bundles: Option<&Bundles>) -> Result<(), String> {
    let text = |pointer: &str| open.pointer(pointer).and_then(Value::as_str);
    let bytes = |text: &str| BASE64.decode(text).ok();
    let chain = open.pointer("/open/svid/chain").and_then(Value::as_array).ok_or("the SVID has no chain")?;
    let chain: Option<Vec<_>> =
        chain.iter().map(|der| Some(CertificateDer::from(bytes(der.as_str()?)?))).collect();
    let chain = chain.ok_or("the SVID's chain is no base64")?;
    let (leaf_der, intermediates) = chain.split_first().ok_or("the SVID's chain is empty")?;
    let leaf = Leaf::parse(leaf_der).map_err(|error| format!("the SVID cannot be read: {error}"))?;
    if Some(leaf.id.as_str()) != text("/instance/spiffe_id") {
        return Err(format!("the SVID is that of {}, which is not the writer", leaf.id));
    }
    let scheme =
        open.pointer("/open/svid/scheme").and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
    let scheme = SignatureScheme::from(scheme.ok_or("the SVID's signature has no scheme")?);
    let signature =
        text("/open/svid/signature").and_then(bytes).ok_or("the SVID's signature is no base64")?;
    if !signed(leaf_der, scheme, &statement(&key.to_text()), &signature) {
        return Err("the epoch's key is not signed by the SVID".to_owned());
    }
    let Some(bundles) = bundles else { return Ok(()) };
    let at = text("/time").and_then(|time| time.parse::<jiff::Timestamp>().ok());
    let at = at.and_then(|at| u64::try_from(at.as_second()).ok()).ok_or("the event has no time")?;
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at));
    bundles
        .verify(&leaf, leaf_der, intermediates, Usage::Client, at)
        .map_err(|error| format!("the SVID is not to be believed: {error}"))
}

/// What is signed. The name of the key holds the epoch, and the first line keeps the signature from meaning anything else.
fn statement(verifier_key: &str) -> Vec<u8> {
    format!("phiward audit epoch key v1\n{verifier_key}\n").into_bytes()
}

fn signed(leaf: &CertificateDer<'_>, scheme: SignatureScheme, message: &[u8], signature: &[u8]) -> bool {
    let Ok(certificate) = webpki::EndEntityCert::try_from(leaf) else { return false };
    let algorithms = default_provider().signature_verification_algorithms;
    let of_scheme =
        algorithms.mapping.iter().filter(|(known, _)| SCHEMES.contains(known) && *known == scheme);
    let mut algorithms = of_scheme.flat_map(|(_, algorithms)| *algorithms);
    algorithms.any(|algorithm| certificate.verify_signature(*algorithm, message, signature).is_ok())
}
