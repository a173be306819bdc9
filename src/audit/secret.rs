//! Secrets of receivers: tokens and passwords, which live in files and nowhere else.
//!
//! Owns reading them, for each request anew, so that a rotated token counts at once. What is read has no `Debug` and no
//! `Display`: it can become a header that is marked sensitive, and nothing else.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use http::HeaderValue;

/// The most bytes of a secret: a JWT of a few KiB is the longest that receivers take.
const MAX_SECRET_BYTES: u64 = 16 * 1024;

/// How a sidecar shows a receiver that it may write there.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// `Authorization: Bearer <token>`.
    Bearer(SecretFile),
    /// `Authorization: Splunk <token>`, as the HTTP Event Collector wants it.
    Splunk(SecretFile),
    /// `Authorization: ApiKey <key>`, as Elasticsearch wants it.
    ApiKey(SecretFile),
    /// `Authorization: Basic ...` (RFC 7617).
    Basic {
        /// The user's name.
        username: String,
        /// The password.
        password: SecretFile,
    },
}

/// A file that holds one secret, on one line.
#[derive(Debug, Clone)]
pub struct SecretFile(PathBuf);

/// Why a secret cannot be used. Nothing of it is shown.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("{}: the secret of an audit sink cannot be read: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// It is not one line of text.
    #[error(
        "{}: the secret of an audit sink must be one line of 1 to 16384 visible ASCII characters; nothing else may be in the file",
        path.display()
    )]
    Form {
        /// The file.
        path: PathBuf,
    },
}

impl Credentials {
    /// The value of `Authorization`, from the file as it is now.
    ///
    /// # Errors
    /// The file cannot be read or holds no secret.
    pub fn header(&self) -> Result<HeaderValue, SecretError> {
        let file = self.file();
        let secret = file.read()?;
        let text = match self {
            Self::Bearer(_) => format!("Bearer {secret}"),
            Self::Splunk(_) => format!("Splunk {secret}"),
            Self::ApiKey(_) => format!("ApiKey {secret}"),
            Self::Basic { username, .. } => format!("Basic {}", base64(&format!("{username}:{secret}"))),
        };
        let mut value =
            HeaderValue::try_from(text).map_err(|_| SecretError::Form { path: file.0.clone() })?;
        value.set_sensitive(true); // it is not shown by Debug
        Ok(value)
    }

    fn file(&self) -> &SecretFile {
        match self {
            Self::Bearer(file) | Self::Splunk(file) | Self::ApiKey(file) => file,
            Self::Basic { password, .. } => password,
        }
    }
}

impl SecretFile {
    /// The file at `path`, which is read when the secret is needed.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn read(&self) -> Result<String, SecretError> {
        let mut text = String::new();
        std::fs::File::open(&self.0)
            .and_then(|file| file.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text))
            .map_err(|error| SecretError::Read { path: self.0.clone(), error })?;
        let secret = text.trim_ascii();
        let fits = !secret.is_empty()
            && text.len() as u64 <= MAX_SECRET_BYTES
            && secret.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        if fits { Ok(secret.to_owned()) } else { Err(SecretError::Form { path: self.0.clone() }) }
    }
}

/// RFC 4648 section 4, with padding.
fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(text.len().div_ceil(3) * 4);
    for group in text.as_bytes().chunks(3) {
        let bytes = [group[0], *group.get(1).unwrap_or(&0), *group.get(2).unwrap_or(&0)];
        let bits = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            out.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, receivers refuse a right password.
    #[test]
    fn basic_credentials_are_those_of_the_rfcs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "open sesame\n").unwrap();
        let basic = Credentials::Basic { username: "Aladdin".into(), password: SecretFile::new(&path) };
        assert_eq!(basic.header().unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="); // RFC 7617 section 2
        for (text, want) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(text), want); // RFC 4648 section 10
        }
    }

    /// If this fails, a token stands in a log, or a file that is not one is sent as one.
    #[test]
    fn a_secret_is_one_line_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let bearer = Credentials::Bearer(SecretFile::new(&path));
        assert!(matches!(bearer.header(), Err(SecretError::Read { .. })));
        for bad in ["", "\n", "s3cr3t\ns3cr3t", "s3cr3t\u{e9}", &"s3cr3t".repeat(4000)] {
            std::fs::write(&path, bad).unwrap();
            let error = bearer.header().unwrap_err();
            assert!(matches!(error, SecretError::Form { .. }), "{bad:?}");
            assert!(!format!("{error} {error:?}").contains("s3cr3t"));
        }
        std::fs::write(&path, "  s3cr3t\n").unwrap();
        let header = bearer.header().unwrap();
        assert_eq!(header, "Bearer s3cr3t");
        assert!(!format!("{header:?} {bearer:?}").contains("s3cr3t"));
    }
}
