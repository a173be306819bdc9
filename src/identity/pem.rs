//! PEM text to DER, with the line of every mistake.
//!
//! Owns the outer structure (RFC 7468) so that an error has a line number; the base64 inside a block is decoded by
//! `rustls-pki-types`. It does not look into the DER.

use rustls_pki_types::pem::{Error as PkiError, PemObject, SectionKind};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};

/// What is wrong with a PEM text, and on which line (from 1).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// DER bytes, where PEM is expected.
    #[error(
        "1: this is binary DER, not PEM: convert it, for example with openssl x509 -inform der or openssl pkey -inform der"
    )]
    Der,
    /// A `-----BEGIN` line without its closing dashes.
    #[error("{line}: a damaged -----BEGIN line")]
    BeginLine {
        /// The line.
        line: usize,
    },
    /// A block that never ends: the file is cut off, or is being written.
    #[error("{line}: the {label} block that starts here has no -----END line: the file is cut off")]
    Unterminated {
        /// The line of the block's start.
        line: usize,
        /// The block's label.
        label: String,
    },
    /// An `-----END` line that closes no open block.
    #[error("{line}: this -----END line does not match an open block")]
    EndLine {
        /// The line.
        line: usize,
    },
    /// The text between the lines is not base64.
    #[error("{line}: the {label} block that starts here is not valid base64")]
    Base64 {
        /// The line of the block's start.
        line: usize,
        /// The block's label.
        label: String,
    },
    /// A key under a passphrase.
    #[error(
        "{line}: the private key is encrypted, and there is nobody to type a passphrase: decrypt it with openssl pkey -in FILE -out NEW"
    )]
    Encrypted {
        /// The line of the block's start.
        line: usize,
    },
}

/// A certificate, a private key or a CRL, and the line its block starts at, from 1. Blocks of other kinds are passed over.
pub(crate) struct Item {
    pub(crate) line: usize,
    pub(crate) content: Content,
}

pub(crate) enum Content {
    Certificate(CertificateDer<'static>),
    Key(PrivateKeyDer<'static>),
    Crl(Vec<u8>),
}

/// Every certificate, private key and CRL of `text`, in order. Text around the blocks is a comment (RFC 7468 section 2).
pub(crate) fn items(text: &[u8]) -> Result<Vec<Item>, PemError> {
    if text.first() == Some(&0x30) && !contains(text, b"-----BEGIN ") {
        return Err(PemError::Der);
    }
    let mut found = Vec::new();
    let mut open: Option<Open<'_>> = None;
    let mut offset = 0;
    for (index, raw) in text.split_inclusive(|b| *b == b'\n').enumerate() {
        let line = index + 1;
        let trimmed = raw.trim_ascii_end();
        if trimmed.starts_with(b"-----BEGIN") {
            if let Some(block) = open {
                return Err(PemError::Unterminated { line: block.line, label: block.label() });
            }
            let label = trimmed.strip_prefix(b"-----BEGIN ").and_then(|rest| rest.strip_suffix(b"-----"));
            let label = label.ok_or(PemError::BeginLine { line })?;
            open = Some(Open { line, start: offset, label });
        } else if let Some(end) = trimmed.strip_prefix(b"-----END ") {
            let block = open.take().ok_or(PemError::EndLine { line })?;
            if end.strip_suffix(b"-----") != Some(block.label) {
                return Err(PemError::EndLine { line });
            }
            found.extend(block.read(&text[block.start..offset + raw.len()])?);
        }
        offset += raw.len();
    }
    match open {
        Some(block) => Err(PemError::Unterminated { line: block.line, label: block.label() }),
        None => Ok(found),
    }
}

struct Open<'a> {
    line: usize,
    start: usize,
    label: &'a [u8],
}

impl Open<'_> {
    fn label(&self) -> String {
        String::from_utf8_lossy(self.label).into_owned()
    }

    /// `block` is this block's text, from its BEGIN line to its END line.
    fn read(&self, block: &[u8]) -> Result<Option<Item>, PemError> {
        let line = self.line;
        // "Proc-Type: 4,ENCRYPTED" is how openssl's traditional formats say it; the label is how PKCS#8 does.
        if self.label == b"ENCRYPTED PRIVATE KEY" || contains(block, b"Proc-Type: 4,ENCRYPTED") {
            return Err(PemError::Encrypted { line });
        }
        let (kind, der) = match <(SectionKind, Vec<u8>)>::from_pem_slice(block) {
            Ok(section) => section,
            Err(PkiError::NoItemsFound) => return Ok(None), // a label that is nothing to us, such as EC PARAMETERS
            Err(_) => return Err(PemError::Base64 { line, label: self.label() }),
        };
        let content = match kind {
            SectionKind::Certificate => Content::Certificate(der.into()),
            SectionKind::PrivateKey => Content::Key(PrivatePkcs8KeyDer::from(der).into()),
            SectionKind::EcPrivateKey => Content::Key(PrivateSec1KeyDer::from(der).into()),
            SectionKind::RsaPrivateKey => Content::Key(PrivatePkcs1KeyDer::from(der).into()),
            SectionKind::Crl => Content::Crl(der),
            _ => return Ok(None),
        };
        Ok(Some(Item { line, content }))
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: &str = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";

    fn error(text: &str) -> PemError {
        items(text.as_bytes()).err().unwrap()
    }

    /// If this fails, files with comments, Windows line ends or blocks of other kinds do not load.
    #[test]
    fn blocks_are_found_with_their_lines() {
        let other = "-----BEGIN EC PARAMETERS-----\nBggq\n-----END EC PARAMETERS-----\n";
        let text = format!("Subject: CN=web\n\n{BLOCK}{other}{}", BLOCK.replace('\n', "\r\n"));
        let found = items(text.as_bytes()).unwrap();
        assert_eq!(found.iter().map(|item| item.line).collect::<Vec<_>>(), [3, 9]);
        for item in &found {
            assert!(matches!(&item.content, Content::Certificate(der) if der.as_ref() == [0, 1, 2]));
        }
        assert!(items(b"").unwrap().is_empty());
        assert!(items(b"no blocks").unwrap().is_empty());
        assert_eq!(items(BLOCK.trim_end().as_bytes()).unwrap().len(), 1, "no newline at the end");
    }

    /// If this fails, an operator looks for the mistake in the wrong line, or a damaged file is half read.
    #[test]
    fn mistakes_are_named_with_their_line() {
        let label = || "CERTIFICATE".to_owned();
        assert_eq!(error("\n-----BEGIN CERTIFICATE\n"), PemError::BeginLine { line: 2 });
        assert_eq!(error(&BLOCK[..40]), PemError::Unterminated { line: 1, label: label() });
        let cut = format!("-----BEGIN CERTIFICATE-----\nAAEC\n{BLOCK}");
        assert_eq!(error(&cut), PemError::Unterminated { line: 1, label: label() });
        assert_eq!(error("a\n-----END CERTIFICATE-----\n"), PemError::EndLine { line: 2 });
        assert_eq!(error(&BLOCK.replace("END CERTIFICATE", "END X")), PemError::EndLine { line: 3 });
        assert_eq!(error(&BLOCK.replace("AAEC", "A!EC")), PemError::Base64 { line: 1, label: label() });
        let encrypted = BLOCK.replace("CERTIFICATE", "ENCRYPTED PRIVATE KEY");
        assert_eq!(error(&encrypted), PemError::Encrypted { line: 1 });
        let old_style =
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAEC\n-----END RSA PRIVATE KEY-----";
        assert_eq!(error(old_style), PemError::Encrypted { line: 1 });
        assert_eq!(error("0\u{1}\u{1}"), PemError::Der);
    }

    proptest! {
        /// If this fails, a damaged file stops a running sidecar instead of being refused.
        #[test]
        fn no_text_panics(text in "(-----BEGIN |-----END |CERTIFICATE|-----|\n|AAEC|PRIVATE KEY|[ -~]|\\PC){0,40}") {
            let _ = items(text.as_bytes());
        }
    }
}
