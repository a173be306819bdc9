//! Pseudonyms: how an identifier can be found again in the trail by who holds the key, and read by nobody else.
//!
//! Owns the deployment's key and the one construction, HMAC-SHA-256 cut to 128 bits. Medical record numbers are identifiers
//! under 45 CFR 164.514(b)(2)(i)(R), so they enter an event in this form alone. A plain hash would not do: record numbers
//! are short enough to try them all.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;

use super::json;

/// The least bytes of a key; HMAC-SHA-256 gains nothing from less than its output (RFC 2104 section 3).
pub const MIN_KEY_BYTES: usize = 32;
const MAX_KEY_FILE_BYTES: u64 = 4096;

/// The key of a deployment's pseudonyms. Its `Debug` shows nothing of it.
#[derive(Clone)]
pub struct PseudonymKey(hmac::Key);

/// An identifier as the trail shows it: `k1:` and 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pseudonym([u8; 16]);

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("{}: the key of the audit pseudonyms cannot be read ({error}); make one with: openssl rand -hex 32", path.display())]
    Read {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file holds too few bytes, or far too many.
    #[error("{}: the key of the audit pseudonyms must have {MIN_KEY_BYTES} to {MAX_KEY_FILE_BYTES} random bytes, in hexadecimal or raw; make one with: openssl rand -hex 32", path.display())]
    Length {
        /// The key file.
        path: PathBuf,
    },
}

impl PseudonymKey {
    /// Reads a key file: hexadecimal text (a trailing line end is ignored) or raw bytes.
    ///
    /// # Errors
    /// The file cannot be read, or holds fewer than [`MIN_KEY_BYTES`] bytes of key.
    pub fn from_file(path: &Path) -> Result<Self, KeyFileError> {
        key_of_file(path).map(|key| Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// Takes a key from the content of a key file; `None` when it is shorter than [`MIN_KEY_BYTES`].
    pub fn from_bytes(content: &[u8]) -> Option<Self> {
        key_in(content).map(|key| Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// The pseudonym of `identifier`, byte for byte: callers pass what the policy matched, so that a search finds it.
    pub fn pseudonym(&self, identifier: &[u8]) -> Pseudonym {
        let tag = hmac::sign(&self.0, identifier);
        let mut cut = [0; 16];
        cut.copy_from_slice(&tag.as_ref()[..16]); // an HMAC-SHA-256 tag has 32 bytes
        Pseudonym(cut)
    }
}

/// The key in a file, hexadecimal or raw.
///
/// # Errors
/// The file cannot be read, or holds fewer than [`MIN_KEY_BYTES`] bytes of key.
pub(crate) fn key_of_file(path: &Path) -> Result<Vec<u8>, KeyFileError> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_KEY_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| KeyFileError::Read { path: path.into(), error })?;
    let length = || KeyFileError::Length { path: path.into() };
    if bytes.len() as u64 > MAX_KEY_FILE_BYTES {
        return Err(length());
    }
    key_in(&bytes).ok_or_else(length)
}

fn key_in(content: &[u8]) -> Option<Vec<u8>> {
    // Only text has a line end to trim: one raw key in 256 ends with the byte 0x0a by chance.
    let is_text = content.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace());
    let trimmed = if is_text { content.trim_ascii() } else { content };
    let key = unhex(trimmed).unwrap_or_else(|| trimmed.to_vec());
    (key.len() >= MIN_KEY_BYTES).then_some(key)
}

impl Pseudonym {
    /// As a batch and a journal have it.
    pub(crate) const BYTES: usize = 16;

    pub(crate) fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0
    }

    pub(crate) fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    pub(crate) fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"k1:");
        out.extend_from_slice(json::hex_pairs(&self.0).as_flattened());
    }
}

impl fmt::Debug for PseudonymKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PseudonymKey(..)")
    }
}

impl fmt::Display for Pseudonym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Vec::with_capacity(35);
        self.write(&mut out);
        f.write_str(&String::from_utf8_lossy(&out))
    }
}

impl fmt::Debug for Pseudonym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    text.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, `openssl dgst -sha256 -hmac` no longer finds a patient's events, nor does an older release's key.
    #[test]
    fn a_pseudonym_is_the_first_half_of_hmac_sha_256() {
        // RFC 4231 test case 1, whose key is 20 bytes: padded with zeros to 32 it is the same HMAC key (RFC 2104).
        let mut key = [0u8; 32];
        key[..20].fill(0x0b);
        let key = PseudonymKey::from_bytes(&key).unwrap();
        assert_eq!(key.pseudonym(b"Hi There").to_string(), "k1:b0344c61d8db38535ca8afceaf0bf12b");
    }

    /// If this fails, the same key in its two spellings gives two pseudonyms for one patient.
    #[test]
    fn hexadecimal_and_raw_keys_are_one() {
        let raw: Vec<u8> = (100..132).collect();
        let mut hex = Vec::new();
        json::hex(&mut hex, &raw);
        hex.extend_from_slice(b"\r\n");
        let a = PseudonymKey::from_bytes(&raw).unwrap().pseudonym(b"123");
        assert_eq!(a, PseudonymKey::from_bytes(&hex).unwrap().pseudonym(b"123"));
        assert_ne!(a, PseudonymKey::from_bytes(&raw).unwrap().pseudonym(b"124"));
    }

    /// If this fails, a raw key whose last byte happens to be a line end is refused or changed.
    #[test]
    fn a_raw_key_may_end_with_a_line_end() {
        let mut raw = vec![0xf1; 31];
        raw.push(b'\n');
        assert!(PseudonymKey::from_bytes(&raw).is_some());
    }

    /// If this fails, a guessable key passes, or the operator is not told how to make a good one.
    #[test]
    fn a_short_key_is_refused_with_the_command_that_makes_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "correct horse battery staple\n").unwrap();
        let error = PseudonymKey::from_file(file.path()).unwrap_err().to_string();
        assert!(error.contains("openssl rand -hex 32"), "{error}");
        let error = PseudonymKey::from_file(Path::new("/nonexistent/key")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/key") && error.contains("openssl rand"), "{error}");
        assert_eq!(format!("{:?}", PseudonymKey::from_bytes(&[7; 32]).unwrap()), "PseudonymKey(..)");
    }
}
