//! The SPIFFE ID: who a workload is, as text that was checked once.
//!
//! Owns the grammar of the SPIFFE-ID standard (sections 2.1 to 2.3) and nothing of certificates. The grammar is stricter
//! than RFC 3986: no upper case in scheme or trust domain, no escapes, no query, no port. Some libraries lower-case
//! `SPIFFE://` before they compare (see CVE-2020-16844 for what lenient identity comparison costs); this parser refuses.

use std::fmt;
use std::sync::Arc;

/// The longest SPIFFE ID that is accepted, in bytes (SPIFFE-ID standard, section 2.3).
pub const MAX_SPIFFE_ID_BYTES: usize = 2048;
/// The longest trust domain name, in bytes (SPIFFE-ID standard, section 2.1).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;

const SCHEME: &str = "spiffe://";

/// A workload's identity: `spiffe://<trust domain>/<segment>/...`, at least one segment.
///
/// Cloning shares the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    path_at: u16,
}

/// The name of a trust domain, such as `hospital.local`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// Why a text is not a SPIFFE ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// The text does not start with `spiffe://` in lower case.
    #[error("it must start with spiffe:// in lower case")]
    Scheme,
    /// The text is longer than [`MAX_SPIFFE_ID_BYTES`].
    #[error("it is longer than 2048 bytes")]
    TooLong,
    /// The trust domain is empty or longer than [`MAX_TRUST_DOMAIN_BYTES`].
    #[error("the trust domain must have 1 to 255 bytes")]
    TrustDomainLength,
    /// The trust domain has a byte outside `a-z 0-9 . - _` (a port, user info or an upper-case letter among them).
    #[error("the trust domain may hold only a-z, 0-9, '.', '-' and '_'")]
    TrustDomainByte,
    /// There is no path: this names a trust domain, not a workload.
    #[error("it names a trust domain, not a workload: a path such as /ns/clinic/sa/web is missing")]
    NoPath,
    /// An empty segment (`//`) or a trailing slash.
    #[error("the path has an empty segment or a trailing slash")]
    EmptySegment,
    /// A segment that is `.` or `..`.
    #[error("the path has a '.' or '..' segment")]
    DotSegment,
    /// A path byte outside `a-z A-Z 0-9 . - _`.
    #[error("the path may hold only a-z, A-Z, 0-9, '.', '-' and '_' between slashes")]
    PathByte,
}

impl SpiffeId {
    /// Checks `text` against the grammar and keeps it.
    ///
    /// # Errors
    /// The first rule of the standard that `text` breaks.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_SPIFFE_ID_BYTES {
            return Err(SpiffeIdError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let domain_len = rest.find('/').unwrap_or(rest.len());
        let (domain, path) = rest.split_at(domain_len);
        check_trust_domain(domain)?;
        check_path(path)?;
        let path_at = (SCHEME.len() + domain_len) as u16; // fits: the whole is at most 2048 bytes
        Ok(Self { text: text.into(), path_at })
    }

    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..usize::from(self.path_at)]
    }

    /// The path with its leading slash, such as `/ns/clinic/sa/web`.
    pub fn path(&self) -> &str {
        &self.text[usize::from(self.path_at)..]
    }

    /// The path's segments, in order.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path()[1..].split('/')
    }
}

impl TrustDomain {
    /// Checks `name` (no scheme, no slash) and keeps it.
    ///
    /// # Errors
    /// [`SpiffeIdError::TrustDomainLength`] or [`SpiffeIdError::TrustDomainByte`].
    pub fn parse(name: &str) -> Result<Self, SpiffeIdError> {
        check_trust_domain(name)?;
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_trust_domain(name: &str) -> Result<(), SpiffeIdError> {
    if name.is_empty() || name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(SpiffeIdError::TrustDomainLength);
    }
    let legal = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    if name.bytes().all(legal) { Ok(()) } else { Err(SpiffeIdError::TrustDomainByte) }
}

fn check_path(path: &str) -> Result<(), SpiffeIdError> {
    let Some(segments) = path.strip_prefix('/') else {
        return Err(SpiffeIdError::NoPath);
    };
    if segments.is_empty() {
        return Err(SpiffeIdError::NoPath);
    }
    for segment in segments.split('/') {
        check_segment(segment)?;
    }
    Ok(())
}

/// Checks one path segment; identity patterns share this rule for their literal segments.
pub(crate) fn check_segment(segment: &str) -> Result<(), SpiffeIdError> {
    let legal = |b: u8| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    match segment {
        "" => Err(SpiffeIdError::EmptySegment),
        "." | ".." => Err(SpiffeIdError::DotSegment),
        _ if !segment.bytes().all(legal) => Err(SpiffeIdError::PathByte),
        _ => Ok(()),
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// If this fails, an identity that another SPIFFE implementation reads differently could be granted access.
    #[test]
    fn each_rule_of_the_grammar_is_enforced() {
        let long_domain = format!("spiffe://{}/a", "d".repeat(256));
        let long = format!("spiffe://d/{}", "a".repeat(2048));
        let table = [
            ("SPIFFE://hospital.local/a", SpiffeIdError::Scheme),
            ("https://hospital.local/a", SpiffeIdError::Scheme),
            ("spiffe:/hospital.local/a", SpiffeIdError::Scheme),
            ("", SpiffeIdError::Scheme),
            (long.as_str(), SpiffeIdError::TooLong),
            ("spiffe:///a", SpiffeIdError::TrustDomainLength),
            (long_domain.as_str(), SpiffeIdError::TrustDomainLength),
            ("spiffe://Hospital.local/a", SpiffeIdError::TrustDomainByte),
            ("spiffe://hospital.local:443/a", SpiffeIdError::TrustDomainByte),
            ("spiffe://user@hospital.local/a", SpiffeIdError::TrustDomainByte),
            ("spiffe://hospital.local", SpiffeIdError::NoPath),
            ("spiffe://hospital.local/", SpiffeIdError::NoPath),
            ("spiffe://hospital.local//a", SpiffeIdError::EmptySegment),
            ("spiffe://hospital.local/a/", SpiffeIdError::EmptySegment),
            ("spiffe://hospital.local/a/../b", SpiffeIdError::DotSegment),
            ("spiffe://hospital.local/./b", SpiffeIdError::DotSegment),
            ("spiffe://hospital.local/a%2Fb", SpiffeIdError::PathByte),
            ("spiffe://hospital.local/a?x=1", SpiffeIdError::PathByte),
            ("spiffe://hospital.local/a#x", SpiffeIdError::PathByte),
            ("spiffe://hospital.local/ä", SpiffeIdError::PathByte),
            ("spiffe://hospital.local/a\0", SpiffeIdError::PathByte),
        ];
        for (text, want) in table {
            assert_eq!(SpiffeId::parse(text), Err(want), "{text}");
        }
    }

    /// If this fails, patterns and bundles are looked up under the wrong trust domain or path.
    #[test]
    fn the_parts_are_the_parts() {
        let id = SpiffeId::parse("spiffe://hospital.local/ns/clinic/sa/Web-1_x.y").unwrap();
        assert_eq!(id.trust_domain(), "hospital.local");
        assert_eq!(id.path(), "/ns/clinic/sa/Web-1_x.y");
        assert_eq!(id.segments().collect::<Vec<_>>(), ["ns", "clinic", "sa", "Web-1_x.y"]);
    }
}
