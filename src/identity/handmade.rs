//! Certificates that no library makes: each breaks one rule of RFC 5280 or of the X509-SVID standard, and each is refused with its
//! own reason. What a library can be made to do is in the tests of `leaf` and `bundle`.

use rcgen::{KeyPair, SigningKey};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::testing::{Forge, NOW, WEB, now};
use super::{Leaf, SpiffeIdError, SvidError, Usage};

/// A certificate, part by part, each in DER.
struct Parts {
    version: Vec<u8>,
    serial: Vec<u8>,
    inner_algorithm: Vec<u8>,
    issuer: Vec<u8>,
    validity: Vec<u8>,
    subject: Vec<u8>,
    key: Vec<u8>,
    unique_id: Vec<u8>,
    extensions: Vec<Vec<u8>>,
    outer_algorithm: Vec<u8>,
    /// What is done with the signature before it is put in.
    sign: fn(Vec<u8>) -> Vec<u8>,
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    match length {
        0..0x80 => out.push(length as u8),
        0x80..0x100 => out.extend([0x81, length as u8]),
        _ => out.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    out.extend_from_slice(content);
    out
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

/// ecdsa-with-SHA256: 1.2.840.10045.4.3.2 (RFC 5758, section 3.2). SHA-1's is 1.2.840.10045.4.1.
fn ecdsa_sha256() -> Vec<u8> {
    sequence(&[tlv(0x06, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02])])
}

fn ecdsa_sha1() -> Vec<u8> {
    sequence(&[tlv(0x06, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01])])
}

fn utc_time(text: &str) -> Vec<u8> {
    tlv(0x17, text.as_bytes())
}

/// An extension below 2.5.29.
fn extension(number: u8, critical: bool, content: &[u8]) -> Vec<u8> {
    let critical = if critical { tlv(0x01, &[0xff]) } else { Vec::new() };
    sequence(&[tlv(0x06, &[0x55, 0x1d, number]), critical, tlv(0x04, content)])
}

fn names(uris: &[&[u8]]) -> Vec<u8> {
    let names: Vec<_> = uris.iter().map(|uri| tlv(0x86, uri)).collect();
    extension(17, true, &sequence(&names))
}

const KEY_USAGE: u8 = 15;

fn key_usage(bits: &[u8]) -> Vec<u8> {
    extension(KEY_USAGE, true, &tlv(0x03, bits))
}

impl Parts {
    /// A right SVID for [`WEB`] from `ca`, valid around [`NOW`].
    fn right(ca: &Forge) -> Self {
        let (_, issuer) = X509Certificate::from_der(ca.cert.der()).unwrap();
        let key = KeyPair::generate().unwrap();
        Self {
            version: tlv(0xa0, &tlv(0x02, &[2])),
            serial: tlv(0x02, &[0x11]),
            inner_algorithm: ecdsa_sha256(),
            issuer: issuer.subject().as_raw().to_vec(),
            validity: sequence(&[utc_time("270115070000Z"), utc_time("270115090000Z")]),
            subject: sequence(&[]),
            key: rcgen::PublicKeyData::subject_public_key_info(&key),
            unique_id: Vec::new(),
            extensions: vec![key_usage(&[7, 0x80]), names(&[WEB.as_bytes()])],
            outer_algorithm: ecdsa_sha256(),
            sign: |signature| signature,
        }
    }

    fn certificate(&self, ca: &Forge) -> Vec<u8> {
        let extensions = match self.extensions.is_empty() {
            true => Vec::new(),
            false => tlv(0xa3, &sequence(&self.extensions)),
        };
        let signed = sequence(&[
            self.version.clone(),
            self.serial.clone(),
            self.inner_algorithm.clone(),
            self.issuer.clone(),
            self.validity.clone(),
            self.subject.clone(),
            self.key.clone(),
            self.unique_id.clone(),
            extensions,
        ]);
        let signature = KeyPair::from_pem(&ca.key_pem).unwrap().sign(&signed).unwrap();
        let signature = [vec![0], (self.sign)(signature)].concat();
        sequence(&[signed, self.outer_algorithm.clone(), tlv(0x03, &signature)])
    }
}

/// What a peer's side that knows `ca` says of a certificate.
fn judge(ca: &Forge, der: Vec<u8>) -> Result<String, SvidError> {
    let der = CertificateDer::from(der);
    let leaf = Leaf::parse(&der)?;
    ca.bundles().verify(&leaf, &der, &[], Usage::Both, now())?;
    Ok(leaf.id.to_string())
}

type Change = fn(&mut Parts);

/// If this fails, a certificate outside of the standards gives an identity, or is refused without saying why.
#[test]
fn each_rule_that_is_broken_has_its_reason() {
    use SvidError as E;
    let ca = Forge::new(NOW);
    assert_eq!(judge(&ca, Parts::right(&ca).certificate(&ca)).unwrap(), WEB, "nothing is wrong with it");
    let table: &[(&str, Change, SvidError)] = &[
        // RFC 5280, 4.1: the outer form
        ("version 1 has no extensions", |c| c.version = Vec::new(), E::Malformed),
        ("version 1", |c| (c.version, c.extensions) = (Vec::new(), Vec::new()), E::Malformed),
        ("version 2", |c| c.version = tlv(0xa0, &tlv(0x02, &[1])), E::Malformed),
        ("version 4", |c| c.version = tlv(0xa0, &tlv(0x02, &[3])), E::Malformed),
        ("no serial number", |c| c.serial = Vec::new(), E::Malformed),
        ("a negative serial number", |c| c.serial = tlv(0x02, &[0x91]), E::Malformed),
        ("a serial number of 21 bytes", |c| c.serial = tlv(0x02, &[1; 21]), E::Malformed),
        ("no validity", |c| c.validity = Vec::new(), E::Malformed),
        (
            "a time without seconds",
            |c| c.validity = sequence(&[utc_time("2701150700Z"), utc_time("270115090000Z")]),
            E::Malformed,
        ),
        (
            "a time with an offset",
            |c| c.validity = sequence(&[utc_time("270115070000+0100"), utc_time("270115090000Z")]),
            E::Malformed,
        ),
        (
            "an end before the start",
            |c| c.validity = sequence(&[utc_time("270115085900Z"), utc_time("270115070000Z")]),
            E::NotYetValid { not_before: NOW as i64 + 3540 },
        ),
        ("no key", |c| c.key = Vec::new(), E::Malformed),
        ("no extensions", |c| c.extensions = Vec::new(), E::NoUriSan),
        ("an extension twice", |c| c.extensions.push(key_usage(&[7, 0x80])), E::Malformed),
        (
            "a critical extension that nobody knows",
            |c| c.extensions.push(extension(99, true, &tlv(0x05, &[]))),
            E::CriticalExtension,
        ),
        (
            "critical name constraints, which are for CAs",
            |c| c.extensions.push(extension(30, true, &sequence(&[]))),
            E::CriticalExtension,
        ),
        // 4.1.1.2 and 4.1.1.3: the signature
        (
            "another algorithm inside than outside",
            |c| c.inner_algorithm = ecdsa_sha1(),
            E::SignatureAlgorithm,
        ),
        (
            "another algorithm outside than inside",
            |c| c.outer_algorithm = ecdsa_sha1(),
            E::SignatureAlgorithm,
        ),
        (
            "SHA-1",
            |c| (c.inner_algorithm, c.outer_algorithm) = (ecdsa_sha1(), ecdsa_sha1()),
            E::SignatureAlgorithm,
        ),
        (
            "a signature of something else",
            |c| {
                c.sign = |mut s| {
                    *s.last_mut().unwrap() ^= 1;
                    s
                }
            },
            E::UntrustedChain,
        ),
        ("no signature", |c| c.sign = |_| Vec::new(), E::UntrustedChain),
        ("another issuer's name", |c| c.issuer = sequence(&[]), E::UntrustedChain),
        // 4.2.1.3, 4.2.1.9, 4.2.1.12: usages
        ("no keyUsage", |c| drop(c.extensions.remove(0)), E::KeyUsageMissing),
        ("keyUsage without a bit", |c| c.extensions[0] = key_usage(&[0]), E::KeyUsageNoSignature),
        ("keyAgreement alone", |c| c.extensions[0] = key_usage(&[3, 0x08]), E::KeyUsageNoSignature),
        ("keyCertSign", |c| c.extensions[0] = key_usage(&[2, 0x84]), E::KeyUsageCaBits),
        ("cRLSign", |c| c.extensions[0] = key_usage(&[1, 0x82]), E::KeyUsageCaBits),
        (
            "CA:TRUE",
            |c| c.extensions.push(extension(19, true, &sequence(&[tlv(0x01, &[0xff])]))),
            E::LeafIsCa,
        ),
        (
            "an extendedKeyUsage for mail alone",
            |c| {
                let mail = tlv(0x06, &[0x2b, 6, 1, 5, 5, 7, 3, 4]);
                c.extensions.push(extension(37, false, &sequence(&[mail])));
            },
            E::ExtendedKeyUsage { missing: "clientAuth" },
        ),
        (
            "an extendedKeyUsage for servers alone",
            |c| {
                let server = tlv(0x06, &[0x2b, 6, 1, 5, 5, 7, 3, 1]);
                c.extensions.push(extension(37, false, &sequence(&[server])));
            },
            E::ExtendedKeyUsage { missing: "clientAuth" },
        ),
        // X509-SVID, 2 and 4: the name
        ("no SAN", |c| drop(c.extensions.remove(1)), E::NoUriSan),
        ("a SAN of nothing", |c| c.extensions[1] = names(&[]), E::NoUriSan),
        (
            "a DNS name alone",
            |c| c.extensions[1] = extension(17, false, &sequence(&[tlv(0x82, b"web.clinic")])),
            E::NoUriSan,
        ),
        (
            "two URIs",
            |c| c.extensions[1] = names(&[WEB.as_bytes(), b"https://web.clinic/"]),
            E::SeveralUriSans { count: 2 },
        ),
        (
            "the same URI twice",
            |c| c.extensions[1] = names(&[WEB.as_bytes(), WEB.as_bytes()]),
            E::SeveralUriSans { count: 2 },
        ),
        (
            "a URI that is no text",
            |c| c.extensions[1] = names(&[b"spiffe://hospital.local/\xff"]),
            E::Malformed,
        ),
        (
            "another scheme",
            |c| c.extensions[1] = names(&[b"https://hospital.local/a"]),
            E::SpiffeId(SpiffeIdError::Scheme),
        ),
        (
            "a trust domain alone",
            |c| c.extensions[1] = names(&[b"spiffe://hospital.local"]),
            E::SpiffeId(SpiffeIdError::NoPath),
        ),
        (
            "a port",
            |c| c.extensions[1] = names(&[b"spiffe://hospital.local:443/a"]),
            E::SpiffeId(SpiffeIdError::TrustDomainByte),
        ),
        (
            "a user",
            |c| c.extensions[1] = names(&[b"spiffe://web@hospital.local/a"]),
            E::SpiffeId(SpiffeIdError::TrustDomainByte),
        ),
        (
            "a trust domain in capitals",
            |c| c.extensions[1] = names(&[b"spiffe://Hospital.local/a"]),
            E::SpiffeId(SpiffeIdError::TrustDomainByte),
        ),
        (
            "a query",
            |c| c.extensions[1] = names(&[b"spiffe://hospital.local/a?b=c"]),
            E::SpiffeId(SpiffeIdError::PathByte),
        ),
        (
            "a fragment",
            |c| c.extensions[1] = names(&[b"spiffe://hospital.local/a#b"]),
            E::SpiffeId(SpiffeIdError::PathByte),
        ),
        (
            "an escape",
            |c| c.extensions[1] = names(&[b"spiffe://hospital.local/%61"]),
            E::SpiffeId(SpiffeIdError::PathByte),
        ),
        (
            "a NUL",
            |c| c.extensions[1] = names(&[b"spiffe://hospital.local/a\0b"]),
            E::SpiffeId(SpiffeIdError::PathByte),
        ),
        (
            "an empty segment",
            |c| c.extensions[1] = names(&[b"spiffe://hospital.local/a//b"]),
            E::SpiffeId(SpiffeIdError::EmptySegment),
        ),
        (
            "a slash at the end",
            |c| c.extensions[1] = names(&[b"spiffe://hospital.local/a/"]),
            E::SpiffeId(SpiffeIdError::EmptySegment),
        ),
        (
            "a dot segment",
            |c| c.extensions[1] = names(&[b"spiffe://hospital.local/a/../b"]),
            E::SpiffeId(SpiffeIdError::DotSegment),
        ),
        (
            "2049 bytes",
            |c| c.extensions[1] = names(&[&[b"spiffe://hospital.local/".as_slice(), &[b'a'; 2025]].concat()]),
            E::SpiffeId(SpiffeIdError::TooLong),
        ),
        (
            "a trust domain that nobody knows",
            |c| c.extensions[1] = names(&[b"spiffe://partner.example/a"]),
            E::UnknownTrustDomain { trust_domain: "partner.example".into() },
        ),
    ];
    let mut wrong = Vec::new();
    for (what, change, reason) in table {
        let mut parts = Parts::right(&ca);
        change(&mut parts);
        let judged = judge(&ca, parts.certificate(&ca));
        if judged.as_ref() != Err(reason) {
            wrong.push(format!("{what}: {judged:?} instead of {reason:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// If this fails, a certificate can be read in two ways: DER has one form for everything (X.690, section 10).
#[test]
fn what_is_not_der_is_refused() {
    let ca = Forge::new(NOW);
    let right = Parts::right(&ca).certificate(&ca);
    let length = u16::from_be_bytes([right[2], right[3]]);
    let long_form = [&[0x30, 0x83, 0, right[2], right[3]], &right[4..]].concat();
    let indefinite = [&[0x30, 0x80], &right[4..], &[0, 0]].concat();
    let [more, less] = [length + 1, length - 1].map(u16::to_be_bytes);
    for (what, der) in [
        ("nothing", Vec::new()),
        ("bytes after it", [&right[..], &[0]].concat()),
        ("a certificate after it", [&right[..], &right[..]].concat()),
        ("a length in more bytes than it needs", long_form),
        ("an indefinite length", indefinite),
        ("a length that is too long", [&[0x30, 0x82, more[0], more[1]], &right[4..]].concat()),
        ("a length that is too short", [&[0x30, 0x82, less[0], less[1]], &right[4..]].concat()),
        ("PEM", b"-----BEGIN CERTIFICATE-----".to_vec()),
    ] {
        assert_eq!(judge(&ca, der), Err(SvidError::Malformed), "{what}");
    }
}
