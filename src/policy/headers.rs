//! Rules about header fields, and the view of a request's headers that they need.
//!
//! Deny matches wide, allow matches narrow: a permission wants exactly one line with exactly one value, a deny rule looks
//! at every value of every line (CVE-2020-25017, CVE-2026-26308: the first line was matched, another one was used). Knows
//! no HTTP library.

/// The header lines of a request, in any order. Asked only when a rule is about headers or about a query.
pub trait Headers {
    /// Calls `visit` with the name and the value of every line.
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8]));
}

/// No header at all.
#[derive(Debug, Clone, Copy)]
pub struct NoHeaders;

impl Headers for NoHeaders {
    fn each(&self, _visit: &mut dyn FnMut(&str, &[u8])) {}
}

/// What one header must be for a permission, or may be for a deny rule: one of these values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HeaderRule {
    /// In lower case, with dashes.
    pub(super) name: String,
    /// As they were written.
    pub(super) values: Box<[String]>,
}

/// Why a permission's header condition does not hold. Never holds a value: it may be anybody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderMiss {
    Absent,
    /// More than one line, counting those that some gateways take for the same (`content_type`).
    Repeated,
    /// `Connection` names it, so it ends here and the app would not see it (RFC 9110 section 7.6.1).
    Dropped,
    Value,
}

impl HeaderRule {
    /// Whether there is exactly one line, and its value is byte for byte one of those wanted.
    pub(super) fn allows(&self, headers: &dyn Headers) -> Result<(), HeaderMiss> {
        let (mut lines, mut dropped, mut equal) = (0_u32, false, false);
        headers.each(&mut |name, value| {
            if same_name(name, &self.name) {
                lines += 1;
                let wanted = || self.values.iter().any(|wanted| wanted.as_bytes() == value.trim_ascii());
                equal = name.eq_ignore_ascii_case(&self.name) && wanted();
            } else if name.eq_ignore_ascii_case("connection") {
                dropped |= elements(value).any(|token| token.eq_ignore_ascii_case(self.name.as_bytes()));
            }
        });
        match lines {
            0 => Err(HeaderMiss::Absent),
            2.. => Err(HeaderMiss::Repeated),
            _ if dropped => Err(HeaderMiss::Dropped),
            _ if equal => Ok(()),
            _ => Err(HeaderMiss::Value),
        }
    }

    /// Whether any value of any line is, to some server, one of those denied.
    pub(super) fn denies(&self, headers: &dyn Headers) -> bool {
        any_value(headers, &self.name, |value| {
            self.values.iter().any(|denied| denied.as_bytes().eq_ignore_ascii_case(value))
        })
    }

    /// True when whatever `other` allows is allowed by `self` too.
    pub(super) fn includes(&self, other: &Self) -> bool {
        self.name == other.name && other.values.iter().all(|value| self.values.contains(value))
    }

    /// As [`Self::includes`], for deny rules, which fold case.
    pub(super) fn includes_folded(&self, other: &Self) -> bool {
        let known = |value: &String| self.values.iter().any(|ours| ours.eq_ignore_ascii_case(value));
        self.name == other.name && other.values.iter().all(known)
    }
}

/// True when the body is a form, whose fields many servers add to the parameters of the query.
pub(super) fn has_form_body(headers: &dyn Headers) -> bool {
    any_value(headers, "content-type", |value| {
        ["application/x-www-form-urlencoded", "multipart/form-data"]
            .iter()
            .any(|form| form.as_bytes().eq_ignore_ascii_case(value))
    })
}

/// True when `holds` for a value of a line called `wanted`: each element of a list, with and without its parameters
/// (`;charset=utf-8`) and quotes, and the whole line.
fn any_value(headers: &dyn Headers, wanted: &str, holds: impl Fn(&[u8]) -> bool) -> bool {
    let mut found = false;
    headers.each(&mut |name, value| {
        if found || !same_name(name, wanted) {
            return;
        }
        found = holds(value.trim_ascii())
            || elements(value).any(|element| {
                let bare = element.split(|b| *b == b';').next().unwrap_or_default();
                holds(unquoted(element)) || holds(unquoted(bare))
            });
    });
    found
}

/// The elements of a list (RFC 9110 section 5.6.1).
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii)
}

fn unquoted(value: &[u8]) -> &[u8] {
    let value = value.trim_ascii();
    let inner = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    inner.map_or(value, <[u8]>::trim_ascii)
}

/// True when `name` is `wanted`, or what an app behind a CGI-like gateway takes for it: any case, `_` for `-`.
pub(super) fn same_name(name: &str, wanted: &str) -> bool {
    let same = |(a, b): (u8, u8)| a.eq_ignore_ascii_case(&b) || a == b'_' && b == b'-';
    name.len() == wanted.len() && name.bytes().zip(wanted.bytes()).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lines<'a>(&'a [(&'a str, &'a str)]);

    impl Headers for Lines<'_> {
        fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
            self.0.iter().for_each(|(name, value)| visit(name, value.as_bytes()));
        }
    }

    fn rule() -> HeaderRule {
        HeaderRule { name: "content-type".into(), values: ["a/b".to_owned(), "c/d".to_owned()].into() }
    }

    /// If this fails, a second line, a list or another spelling gets a request past a permission's condition.
    #[test]
    fn a_permission_wants_one_line_with_one_exact_value() {
        type Row<'a> = (&'a [(&'a str, &'a str)], Result<(), HeaderMiss>);
        let table: [Row<'_>; 12] = [
            (&[("content-type", "a/b")], Ok(())),
            (&[("Content-Type", " c/d\t")], Ok(())),
            (&[("other", "x"), ("content-type", "a/b")], Ok(())),
            (&[], Err(HeaderMiss::Absent)),
            (&[("content-type", "a/b"), ("content-type", "a/b")], Err(HeaderMiss::Repeated)),
            (&[("content-type", "a/b"), ("content_type", "x/y")], Err(HeaderMiss::Repeated)),
            (&[("content_type", "a/b")], Err(HeaderMiss::Value)),
            (&[("content-type", "A/b")], Err(HeaderMiss::Value)),
            (&[("content-type", "a/b, c/d")], Err(HeaderMiss::Value)),
            (&[("content-type", "a/b;charset=utf-8")], Err(HeaderMiss::Value)),
            (&[("content-type", "")], Err(HeaderMiss::Value)),
            (&[("content-type", "a/b"), ("connection", "close, Content-Type")], Err(HeaderMiss::Dropped)),
        ];
        for (lines, want) in table {
            assert_eq!(rule().allows(&Lines(lines)), want, "{lines:?}");
        }
    }

    /// If this fails, a denied value is let pass because it is not the first, or not spelt as in the policy.
    #[test]
    fn a_deny_rule_sees_every_value_of_every_line() {
        let denied: [&[(&str, &str)]; 8] = [
            &[("content-type", "a/b")],
            &[("CONTENT_TYPE", "A/B")],
            &[("content-type", "x"), ("content-type", "c/d")],
            &[("content-type", "x/y, C/D ,z")],
            &[("content-type", "a/b; charset=utf-8")],
            &[("content-type", "\"a/b\"")],
            &[("content-type", "x,\"a/b\" ;q=1")],
            &[("content-type", "a/b"), ("connection", "content-type")],
        ];
        for lines in denied {
            assert!(rule().denies(&Lines(lines)), "{lines:?}");
        }
        let passes: [&[(&str, &str)]; 4] =
            [&[], &[("content-type", "a/bc")], &[("x-content-type", "a/b")], &[("content-type", "")]];
        for lines in passes {
            assert!(!rule().denies(&Lines(lines)), "{lines:?}");
        }
    }

    /// If this fails, parameters that a query rule forbids are sent in the body instead.
    #[test]
    fn forms_are_recognised() {
        for value in
            ["application/x-www-form-urlencoded", "Multipart/Form-Data; boundary=x", "a, multipart/form-data"]
        {
            assert!(has_form_body(&Lines(&[("content-type", value)])), "{value}");
        }
        assert!(!has_form_body(&Lines(&[("content-type", "application/fhir+json")])));
        assert!(!has_form_body(&NoHeaders));
    }
}
