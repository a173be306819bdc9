//! The codes of findings: a closed list, so that a pipeline can name one and rely on it. Codes are added, never changed.

use super::Severity;

/// A kind of finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// Its stable name, in snake_case.
    pub name: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What it means, in one sentence without a full stop.
    pub meaning: &'static str,
}

/// Every kind of finding there is.
pub const CODES: &[Code] = &[
    error("yaml", "not YAML, or a part of YAML that is not accepted"),
    error("document", "a key, a type or a value is wrong, or not supported"),
    error("duplicate", "something is there twice"),
    error("bad_name", "not a name"),
    error("bad_method", "not one of the eight methods"),
    error("bad_path", "not a path pattern, or one that no request can have"),
    error("bad_host", "not a host in the form it is compared in, or not in `service.hosts`"),
    error("bad_header", "a header that no rule can be about, or a value that no line can have"),
    error("bad_query", "a query rule that cannot be or could never hold"),
    error("bad_identity", "not a SPIFFE ID or identity pattern"),
    error("unknown_role", "a binding names a role that is not there"),
    error("never_valid", "a binding ends before it begins"),
    error("test_failed", "a test of the file came out otherwise"),
    warning("shadow_mode", "the policy decides and blocks nothing"),
    warning("no_hosts", "no `service.hosts`: any host is decided"),
    warning("wide_path", "a permission grants `/**`"),
    warning("wide_methods", "a permission grants every method under a `**`"),
    warning("wide_identity", "a binding names a whole trust domain"),
    warning("unknown_trust_domain", "an identity of a trust domain that the sidecar does not know"),
    warning("unbound_role", "nobody has the role"),
    warning("untested_role", "no passing test shows that a permission of the role allows"),
    warning("expiring_test", "a test will fail once a date of the file has come"),
    warning("void_limits", "a later permission of the role grants all of it, within wider limits or none"),
    warning("denied_binding", "a deny rule takes all that the binding gives"),
    warning("expired_binding", "the binding has ended"),
    warning("expired_deny", "the deny rule has ended"),
    warning("review_overdue", "`metadata.review.due` has passed"),
    warning("shadowed", "an earlier permission covers all of it"),
    warning("shadowed_deny", "an earlier deny rule covers all of it"),
    warning("unreachable", "deny rules cover all of a permission"),
    warning("unreachable_path", "a deny rule covers one path of a permission"),
    warning("not_compared", "too many rules alike to look for all of the last four"),
];

const fn error(name: &'static str, meaning: &'static str) -> Code {
    Code { name, severity: Severity::Error, meaning }
}

const fn warning(name: &'static str, meaning: &'static str) -> Code {
    Code { name, severity: Severity::Warning, meaning }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The codes that the sources of this module report, with their severities.
    fn reported(dir: &Path, found: &mut BTreeSet<(String, &'static str)>) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                reported(&entry.path(), found);
                continue;
            }
            let text = std::fs::read_to_string(entry.path()).unwrap();
            for (call, severity) in [
                (concat!("Finding::", "error("), "error"),
                (concat!("Finding::", "warning("), "warning"),
                (concat!("code", ": "), "error"),
            ] {
                for (at, _) in text.match_indices(call) {
                    let argument = text[at + call.len()..].trim_start();
                    if let Some(code) = argument.strip_prefix('"').and_then(|rest| rest.split('"').next()) {
                        found.insert((code.to_owned(), severity));
                    }
                }
            }
        }
    }

    /// If this fails, a finding has a code that no list tells of, or the list tells of one that is never reported.
    #[test]
    fn the_list_has_every_code_that_is_reported_and_no_other() {
        let mut found = BTreeSet::new();
        reported(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/policy"), &mut found);
        let listed = CODES.iter().map(|code| (code.name.to_owned(), code.severity.as_str())).collect();
        assert_eq!(found, listed);
    }

    /// If this fails, the documentation names a code that does not exist, or misses one.
    #[test]
    fn the_documentation_lists_the_same_codes() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/policy.md");
        let text = std::fs::read_to_string(path).unwrap();
        let rows = text.lines().skip_while(|line| !line.starts_with("| code | severity |"));
        let documented: Vec<_> = rows
            .skip(2)
            .take_while(|line| line.starts_with('|'))
            .map(|line| {
                let cells: Vec<_> =
                    line.split(" | ").map(|cell| cell.trim_matches(['|', ' ', '`'])).collect();
                (cells[0].to_owned(), cells[1].to_owned())
            })
            .collect();
        let listed: Vec<_> =
            CODES.iter().map(|code| (code.name.to_owned(), code.severity.as_str().to_owned())).collect();
        assert_eq!(documented, listed);
    }
}
