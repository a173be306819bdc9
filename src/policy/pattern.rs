//! Path patterns: literal segments, `*` and `{name}` for one segment, a last `**` for zero or more.
//!
//! Owns their grammar and the slow and obvious way to match one, with which the compiled form must agree.
//! A literal must be written the way requests are matched, so that what a reviewer reads is what is compared.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::Reason;
use super::path::{self, PathRules, without_params};
use super::scan::fold;

/// The longest pattern, in bytes.
const MAX_PATTERN_BYTES: usize = 1024;
/// The longest literal segment of a pattern, in bytes.
pub(crate) const MAX_LITERAL_BYTES: usize = 255;
/// The most segments of a pattern: bounds the depth of the compiled form.
const MAX_SEGMENTS: usize = 64;
const MAX_NAME_BYTES: usize = 32;

/// A path pattern.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PathPattern {
    // Shared, since the compiled policy holds every pattern of the document.
    text: Arc<str>,
    pub(crate) segments: Arc<[Segment]>,
    /// True when it ends in `**`, which is not among `segments`.
    pub(crate) rest: bool,
}

/// One segment of a pattern.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Segment {
    /// These bytes. The empty literal is what follows a trailing slash, and only last.
    Literal(String),
    /// One segment that is not empty, under a name: `{name}`, or `*1` for the first `*`.
    One(String),
}

/// Why a text is not a path pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PatternError {
    #[error("a path must begin with '/'")]
    NoSlash,
    #[error(
        "a path may have at most {MAX_PATTERN_BYTES} bytes, {MAX_SEGMENTS} segments and {MAX_LITERAL_BYTES} bytes in one"
    )]
    TooLong,
    #[error("the query takes no part in matching: remove '?' and what follows")]
    Query,
    #[error("'**' must be the last segment, as in /admin/**")]
    RestNotLast,
    #[error(
        "'{{' and '}}' must enclose a whole segment, as in /Patient/{{id}}; write %7B and %7D for the characters"
    )]
    PartialName,
    #[error("'*' must be a whole segment, as in /Patient/*; write %2A for the character")]
    PartialWildcard,
    #[error("{{{0}}} is not a name: it takes a letter, then up to 31 letters, digits or '_'")]
    BadName(String),
    #[error("{{{0}}} is there twice")]
    RepeatedName(String),
    #[error("no request can have this path: {0}")]
    Never(&'static str),
    #[error("requests are compared as `{0}`: write the path that way")]
    NotCanonical(String),
}

impl PathPattern {
    pub(crate) fn parse(text: &str, rules: &PathRules) -> Result<Self, PatternError> {
        let path = text.strip_prefix('/').ok_or(PatternError::NoSlash)?;
        if text.len() > MAX_PATTERN_BYTES {
            return Err(PatternError::TooLong);
        }
        let mut segments = Vec::new();
        let mut rest = false;
        let mut wildcards = 0;
        for segment in path.split('/') {
            if rest {
                return Err(PatternError::RestNotLast);
            }
            match segment {
                "**" => rest = true,
                "*" => {
                    wildcards += 1;
                    segments.push(Segment::One(format!("*{wildcards}")));
                }
                _ => segments.push(segment_of(segment, &segments)?),
            }
        }
        if segments.len() > MAX_SEGMENTS {
            return Err(PatternError::TooLong);
        }
        check_literals(text, &segments, rules)?;
        Ok(Self { text: text.into(), segments: segments.into(), rest })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// True when exactly one path matches.
    pub(crate) fn is_literal(&self) -> bool {
        !self.rest && self.segments.iter().all(|segment| matches!(segment, Segment::Literal(_)))
    }

    /// True for `/**`: every path.
    pub(crate) fn is_everything(&self) -> bool {
        self.rest && self.segments.is_empty()
    }

    /// True when the canonical `path` is one of those meant: the allow side's reading, byte for byte.
    pub(crate) fn matches(&self, path: &str) -> bool {
        match_segments(&self.segments, self.rest, path[1..].split('/'), |want, found| want == found)
    }

    /// True when `path` could be one of those meant to some server: the deny side's reading. See [`fold`].
    pub(crate) fn matches_wide(&self, path: &str) -> bool {
        let same = |want: &str, found: &str| fold(want) == fold(found);
        readings(path)
            .iter()
            .any(|path| match_segments(without_slash(&self.segments), self.rest, wide(path), same))
    }

    /// The name and the value of each variable segment of `path`, which the pattern matches.
    pub(crate) fn params<'a>(&'a self, path: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let found = path.strip_prefix('/').unwrap_or(path).split('/');
        self.segments.iter().zip(found).filter_map(|(segment, found)| match segment {
            Segment::One(name) => Some((name.as_str(), found)),
            Segment::Literal(_) => None,
        })
    }
}

impl fmt::Debug for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn segment_of(segment: &str, before: &[Segment]) -> Result<Segment, PatternError> {
    let named = segment.strip_prefix('{').and_then(|inner| inner.strip_suffix('}'));
    let Some(name) = named else {
        if segment.contains(['{', '}']) {
            return Err(PatternError::PartialName);
        }
        if segment.contains('*') {
            return Err(PatternError::PartialWildcard);
        }
        return Ok(Segment::Literal(segment.to_owned()));
    };
    let mut bytes = name.bytes();
    let legal = bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.len() <= MAX_NAME_BYTES;
    if !legal {
        return Err(PatternError::BadName(name.to_owned()));
    }
    let segment = Segment::One(name.to_owned());
    if before.contains(&segment) { Err(PatternError::RepeatedName(name.to_owned())) } else { Ok(segment) }
}

/// Checks the literals by asking what would become of a request that has them.
fn check_literals(text: &str, segments: &[Segment], rules: &PathRules) -> Result<(), PatternError> {
    if text.contains('?') {
        return Err(PatternError::Query);
    }
    let mut sample = String::with_capacity(text.len() + segments.len());
    for segment in segments {
        sample.push('/');
        sample.push_str(if let Segment::Literal(text) = segment { text } else { "x" });
    }
    if sample.is_empty() {
        sample.push('/');
    }
    let rules = PathRules { max_bytes: usize::MAX, ..*rules };
    match path::canonical(&sample, &rules) {
        Err(reason) => return Err(PatternError::Never(reason.describe())),
        Ok(Cow::Owned(canonical)) => return Err(PatternError::NotCanonical(canonical)),
        Ok(Cow::Borrowed(_)) => {}
    }
    if text.ends_with("//**") {
        return Err(PatternError::Never(Reason::EmptySegment.describe()));
    }
    let long =
        |segment: &Segment| matches!(segment, Segment::Literal(text) if text.len() > MAX_LITERAL_BYTES);
    if segments.iter().any(long) { Err(PatternError::TooLong) } else { Ok(()) }
}

fn match_segments<'a>(
    pattern: &[Segment],
    rest: bool,
    mut found: impl Iterator<Item = &'a str>,
    same: impl Fn(&str, &str) -> bool,
) -> bool {
    for want in pattern {
        match (want, found.next()) {
            (Segment::Literal(want), Some(found)) if same(want, found) => {}
            (Segment::One(_), Some(found)) if !found.is_empty() => {}
            _ => return false,
        }
    }
    rest || found.next().is_none()
}

/// A pattern's segments without the empty one of a trailing slash.
pub(super) fn without_slash(segments: &[Segment]) -> &[Segment] {
    match segments.split_last() {
        Some((Segment::Literal(last), before)) if last.is_empty() => before,
        _ => segments,
    }
}

/// The segments of a canonical path without the empty one of a trailing slash.
fn wide(path: &str) -> impl Iterator<Item = &str> {
    let inner = path[1..].strip_suffix('/').unwrap_or(&path[1..]);
    inner.split('/').take(if inner.is_empty() { 0 } else { usize::MAX })
}

/// What a canonical path may mean to some server: itself, and, as far as the policy let them pass, with `%2F` decoded
/// and with matrix parameters cut off.
fn readings(path: &str) -> [String; 4] {
    let plain = |segment: &'_ str| segment[..without_params(segment.as_bytes()).len()].to_owned();
    let cut = |path: &str| path.split('/').map(plain).collect::<Vec<_>>().join("/");
    let split = path.replace("%2F", "/");
    [path.to_owned(), cut(path), cut(&split), split]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> PathPattern {
        PathPattern::parse(text, &PathRules::default()).unwrap()
    }

    /// If this fails, a pattern is accepted that reads as something it does not mean, or that nothing can match.
    #[test]
    fn each_rule_of_the_pattern_grammar_is_enforced() {
        let long = format!("/{}", "a".repeat(256));
        let longer = "/a".repeat(600);
        let deep = "/a".repeat(65);
        for text in [
            "",
            "a",
            "**",
            "/a/**/b",
            "/**/",
            "/a?b",
            "/a#b",
            "/a*",
            "/*.json",
            "/{id",
            "/id}",
            "/a{id}",
            "/{id}.json",
            "/{}",
            "/{1a}",
            "/{a-b}",
            "/{a}/{a}",
            "/a//b",
            "//",
            "/a//**",
            "//**",
            "/./a",
            "/../a",
            "/a b",
            "/a\\b",
            "/é",
            "/%41",
            "/%c3%a9",
            "/a%2Fb",
            "/a;b",
            "/%",
            "/%2541",
            "/%00",
            "/***",
            "/{abcdefghijklmnopqrstuvwxyz0123456}",
            &long,
            &longer,
            &deep,
        ] {
            assert!(PathPattern::parse(text, &PathRules::default()).is_err(), "{text}");
        }
        for text in
            ["/", "/**", "/a/", "/*/{id}/**", "/%C3%A9", "/%7Bid%7D", "/a%2Ab", "/fhir/$reindex", "/a.b/..c"]
        {
            assert_eq!(pattern(text).as_str(), text);
        }
        let relaxed = PathRules { preserve_encoded_slash: true, allow_matrix_params: true, max_bytes: 16 };
        assert!(PathPattern::parse("/a%2Fb;c", &relaxed).is_ok());
    }

    /// If this fails, a permission grants more, or less, than it says.
    #[test]
    fn the_allow_side_matches_exactly() {
        let table = [
            ("/", "/", true),
            ("/", "/a", false),
            ("/a", "/a/", false),
            ("/a/", "/a/", true),
            ("/a/", "/a", false),
            ("/a/{id}", "/a/1", true),
            ("/a/{id}", "/a/", false),
            ("/a/{id}", "/a/1/", false),
            ("/a/{id}", "/A/1", false),
            ("/a/*/c", "/a/b/c", true),
            ("/a/**", "/a", true),
            ("/a/**", "/a/", true),
            ("/a/**", "/a/b/c/", true),
            ("/a/**", "/ab", false),
            ("/**", "/", true),
            ("/$x", "/%24x", false),
        ];
        for (text, path, want) in table {
            assert_eq!(pattern(text).matches(path), want, "{text} {path}");
        }
    }

    /// If this fails, a deny rule is passed by by spelling the path in another way.
    #[test]
    fn the_deny_side_matches_every_spelling() {
        let table = [
            ("/admin/**", "/Admin", true),
            ("/admin/**", "/admin/", true),
            ("/admin/**", "/ADMIN/x", true),
            ("/admin/**", "/admin./x", true),
            ("/admin/**", "/admin%20/x", true),
            ("/admin/**", "/administrator", false),
            ("/admin", "/admin/", true),
            ("/admin/", "/admin", true),
            ("/admin", "/admin...", true),
            ("/admin", "/a%64min", true), // not canonical, but no reason to miss it
            ("/fhir/$reindex", "/fhir/%24ReIndex", true),
            ("/%7Bx", "/%7bX", true),
            ("/a/{id}", "/a/1/", true),
            ("/a/{id}", "/a/", false),
            ("/admin/x", "/admin%2Fx", true),
            ("/a/{id}/c", "/a/b%2Fb/c", true),
            ("/admin/x", "/admin;v=1/x", true),
            ("/admin/x", "/admin;a%2FX", true),
            ("/", "/", true),
            ("/", "/a", false),
        ];
        for (text, path, want) in table {
            assert_eq!(pattern(text).matches_wide(path), want, "{text} {path}");
        }
    }

    /// If this fails, audit events carry the wrong pseudonyms.
    #[test]
    fn parameters_are_named() {
        let named = pattern("/a/{id}/*/x/*/**");
        let found: Vec<_> = named.params("/a/1/2/x/3/4/5").collect();
        assert_eq!(found, [("id", "1"), ("*1", "2"), ("*2", "3")]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// If this fails, there is a path that is both denied and, in the narrow reading of the same pattern, not.
        #[test]
        fn the_wide_reading_includes_the_narrow_one(
            text in "(/(a|b|\\*)){0,3}(/a|/B|/\\*|/\\*\\*|/)", path in "(/(a|b|B|c)){0,4}(/a|/)",
        ) {
            let a = pattern(&text);
            prop_assert!(!a.matches(&path) || a.matches_wide(&path), "{} {}", text, path);
        }
    }
}
