//! Patterns of SPIFFE IDs: which workloads a binding or a deny rule means.
//!
//! The trust domain is always literal, so that a pattern can never reach into a domain its author did not name. There
//! are no regular expressions and no partial segments (CVE-2020-16844, CVE-2026-39350: suffix and regex matches that
//! granted more than was meant), so that inclusion of one pattern in another is decided exactly.

use std::fmt;

use super::spiffe_id::{MAX_SPIFFE_ID_BYTES, check_segment};
use super::{SpiffeId, SpiffeIdError, TrustDomain};

/// `spiffe://<trust domain>/<segment>/...`, where `*` is one whole segment and a last `**` is one or more.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IdPattern {
    text: String,
    trust_domain: TrustDomain,
    segments: Vec<Segment>,
    rest: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Segment {
    Literal(String),
    Any,
}

/// Why a text is not an identity pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdPatternError {
    /// What is not a wildcard breaks the grammar of SPIFFE IDs.
    #[error(transparent)]
    Id(#[from] SpiffeIdError),
    /// A `*` in the trust domain.
    #[error(
        "the trust domain must be written out: a wildcard there would trust every domain that is federated"
    )]
    WildcardTrustDomain,
    /// A `*` that is only part of a segment.
    #[error("'*' must be a whole segment, as in /ns/clinic/sa/*")]
    PartialWildcard,
    /// A `**` that is not the last segment.
    #[error("'**' must be the last segment, as in /ns/clinic/**")]
    RestNotLast,
}

impl IdPattern {
    /// Checks `text` and keeps it.
    ///
    /// # Errors
    /// The first rule that `text` breaks.
    pub fn parse(text: &str) -> Result<Self, IdPatternError> {
        if text.len() > MAX_SPIFFE_ID_BYTES {
            return Err(SpiffeIdError::TooLong.into());
        }
        let after_scheme = text.strip_prefix("spiffe://").ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = after_scheme.split_once('/').unwrap_or((after_scheme, ""));
        if domain.contains('*') {
            return Err(IdPatternError::WildcardTrustDomain);
        }
        let trust_domain = TrustDomain::parse(domain)?;
        if path.is_empty() {
            return Err(SpiffeIdError::NoPath.into());
        }
        let mut segments = Vec::new();
        let mut rest = false;
        for segment in path.split('/') {
            match segment {
                _ if rest => return Err(IdPatternError::RestNotLast),
                "**" => rest = true,
                "*" => segments.push(Segment::Any),
                _ if segment.contains('*') => return Err(IdPatternError::PartialWildcard),
                _ => {
                    check_segment(segment)?;
                    segments.push(Segment::Literal(segment.to_owned()));
                }
            }
        }
        Ok(Self { text: text.to_owned(), trust_domain, segments, rest })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The one trust domain whose identities can match.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// True when exactly one identity matches.
    pub fn is_literal(&self) -> bool {
        !self.rest && self.segments.iter().all(|segment| matches!(segment, Segment::Literal(_)))
    }

    /// True when every identity of the trust domain matches.
    pub fn is_whole_domain(&self) -> bool {
        self.rest && self.segments.is_empty()
    }

    /// True when `id` is one of the identities meant. Bytes are compared, nothing is folded.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        if id.trust_domain() != self.trust_domain.as_str() {
            return false;
        }
        let mut found = id.segments();
        for want in &self.segments {
            match (want, found.next()) {
                (Segment::Any, Some(_)) => {}
                (Segment::Literal(want), Some(found)) if want == found => {}
                _ => return false,
            }
        }
        found.next().is_some() == self.rest
    }

    /// One identity that matches: `x` for each wildcard.
    pub fn example(&self) -> SpiffeId {
        let segments = self.segments.iter().map(|segment| match segment {
            Segment::Literal(text) => text.as_str(),
            Segment::Any => "x",
        });
        let rest = if self.rest { Some("x") } else { None };
        self.identity(segments.chain(rest))
    }

    /// The segments, none for each `*`, and whether a `**` follows.
    pub(crate) fn parts(&self) -> (impl Iterator<Item = Option<&str>>, bool) {
        let segments = self.segments.iter().map(|segment| match segment {
            Segment::Literal(text) => Some(text.as_str()),
            Segment::Any => None,
        });
        (segments, self.rest)
    }

    fn identity<'a>(&self, segments: impl Iterator<Item = &'a str>) -> SpiffeId {
        let path: String = segments.flat_map(|segment| ["/", segment]).collect();
        // Each segment was checked when the pattern was parsed, and an `x` is never longer than the `*` it stands for.
        #[allow(clippy::expect_used)]
        SpiffeId::parse(&format!("spiffe://{}{path}", self.trust_domain.as_str())).expect("a checked pattern")
    }

    /// True when every identity that `other` matches is matched by `self` too.
    pub fn includes(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.segments.len(), other.segments.len());
        let lengths = match (self.rest, other.rest) {
            (false, false) => ours == theirs,
            (false, true) => false,
            (true, false) => ours < theirs, // our `**` stands for one segment at least
            (true, true) => ours <= theirs,
        };
        lengths
            && self.trust_domain == other.trust_domain
            && self.segments.iter().zip(&other.segments).all(|pair| match pair {
                (Segment::Any, _) => true,
                (ours, theirs) => ours == theirs,
            })
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(path: &str) -> IdPattern {
        IdPattern::parse(&format!("spiffe://d{path}")).unwrap()
    }

    fn id(path: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://d{path}")).unwrap()
    }

    /// If this fails, a pattern that reads as harmless covers identities its author did not mean.
    #[test]
    fn each_rule_of_the_pattern_grammar_is_enforced() {
        let table = [
            ("SPIFFE://d/a", IdPatternError::Id(SpiffeIdError::Scheme)),
            ("spiffe://*/a", IdPatternError::WildcardTrustDomain),
            ("spiffe://*.local/a", IdPatternError::WildcardTrustDomain),
            ("spiffe://D/a", IdPatternError::Id(SpiffeIdError::TrustDomainByte)),
            ("spiffe://d", IdPatternError::Id(SpiffeIdError::NoPath)),
            ("spiffe://d/", IdPatternError::Id(SpiffeIdError::NoPath)),
            ("spiffe://d/a/", IdPatternError::Id(SpiffeIdError::EmptySegment)),
            ("spiffe://d//a", IdPatternError::Id(SpiffeIdError::EmptySegment)),
            ("spiffe://d/../a", IdPatternError::Id(SpiffeIdError::DotSegment)),
            ("spiffe://d/a/**/b", IdPatternError::RestNotLast),
            ("spiffe://d/**/**", IdPatternError::RestNotLast),
            ("spiffe://d/**/", IdPatternError::RestNotLast),
            ("spiffe://d/a*", IdPatternError::PartialWildcard),
            ("spiffe://d/***", IdPatternError::PartialWildcard),
            ("spiffe://d/a b", IdPatternError::Id(SpiffeIdError::PathByte)),
        ];
        for (text, want) in table {
            assert_eq!(IdPattern::parse(text).unwrap_err(), want, "{text}");
        }
    }

    /// If this fails, a workload gets the rights of another.
    #[test]
    fn wildcards_stand_for_whole_segments() {
        let table = [
            ("/ns/lab/sa/web", "/ns/lab/sa/web", true),
            ("/ns/lab/sa/web", "/ns/lab/sa/Web", false),
            ("/ns/lab/sa/*", "/ns/lab/sa/web", true),
            ("/ns/lab/sa/*", "/ns/lab/sa", false),
            ("/ns/lab/sa/*", "/ns/lab/sa/web/x", false),
            ("/ns/lab/**", "/ns/lab", false),
            ("/ns/lab/**", "/ns/lab/sa", true),
            ("/ns/lab/**", "/ns/lab/sa/web", true),
            ("/ns/lab/**", "/ns/lab2/sa", false),
            ("/*/lab/**", "/ns/lab/sa", true),
            ("/**", "/a", true),
        ];
        for (want, given, matches) in table {
            assert_eq!(pattern(want).matches(&id(given)), matches, "{want} {given}");
        }
        assert!(!IdPattern::parse("spiffe://e/**").unwrap().matches(&id("/a")));
    }

    proptest! {
        /// If this fails, "unreachable rule" and "what does this change give away" are guesses.
        #[test]
        fn inclusion_agrees_with_matching(
            a in "(/(a|b|\\*)){0,3}(/a|/\\*|/\\*\\*)", b in "(/(a|b|\\*)){0,3}(/b|/\\*|/\\*\\*)"
        ) {
            let (a, b) = (pattern(&a), pattern(&b));
            // `c` occurs in no pattern, so over these segments and one length more than any pattern the search is exact.
            let mut all_in = true;
            let mut words = vec![String::new()];
            for _ in 0..6 {
                words = words.iter().flat_map(|w| ["a", "b", "c"].map(|s| format!("{w}/{s}"))).collect();
                all_in &= words.iter().map(|w| id(w)).filter(|i| b.matches(i)).all(|i| a.matches(&i));
            }
            prop_assert_eq!(a.includes(&b), all_in);
        }
    }
}
